// One clip and several adapters side by side: what each says, how soon, and of which part.
import { api, drawProblem, make } from "../api.js";
import { bars, partly, scale } from "../parts/bars.js";
import { chooser } from "../parts/choose.js";
import { curl, python, tabs } from "../parts/command.js";
import { AUDIO, dropZone, folderButton } from "../parts/drop.js";
import { lanes } from "../parts/lane.js";
import { player } from "../parts/player.js";
import { recorder } from "../parts/record.js";
import { toast } from "../parts/toast.js";

const PATIENCE = 30000; // ms
const TOP_K = 5;
const EXAMPLES = [["A spoken digit", "digit-three.wav"], ["A dog", "dog.flac"], ["A keyword", "keyword-yes.wav"], ["A dance tune", "music-dance.opus"], ["Ann", "speaker-ann-1.ogg"], ["Ann again", "speaker-ann-2.opus"]];
const VERDICTS = { accept: "Same speaker", reject: "Not the same speaker", not_enough_speech: "Not enough speech to tell" };
const verifies = new Set(); // references that were found to compare speakers, where their task could not be read

export function mount(root) {
  const clip = player();
  const chosen = chooser({ id: "adapter", changed });
  const zone = dropZone({ id: "clip", what: "Clip", hint: "Drop an audio file or a folder here, or choose one: wav, flac, mp3, ogg, opus, m4a, webm", accept: AUDIO, multiple: true, changed: took });
  const enrolment = dropZone({ id: "enrolment", what: "The speaker to compare with", hint: "Drop one or more clips of the speaker, or choose them", accept: AUDIO, multiple: true, changed });
  const which = make("select", { id: "which", "aria-label": "Clip that is asked about", change: pick });
  const windows = make("input", { type: "checkbox", id: "windows", change: changed });
  const run = make("button", { id: "run" }, "Ask");
  const cancel = make("button", { type: "button", class: "quiet", id: "cancel", hidden: true }, "Cancel");
  const elapsed = make("span", { class: "elapsed" });
  const answers = make("div", { id: "answer", class: "answers", "aria-live": "polite" });
  const recording = recorder({ id: "record", done: (file) => zone.take([file]) });
  let file = null;

  function took(files) {
    which.replaceChildren(...files.map((one, index) => new Option(one.name, index)));
    which.hidden = files.length < 2;
    pick();
  }

  function pick() {
    file = zone.files[Number(which.value) || 0] ?? null;
    clip.show(file);
    changed();
  }

  // What is shown is no longer of what is chosen.
  function changed() {
    enrolment.element.hidden = !chosen.chosen.some(compares);
    if (!answers.querySelector(".columns") || answers.classList.contains("stale")) return;
    answers.classList.add("stale");
    answers.prepend(make("p", { class: "note" }, "This is the answer to what was chosen before: ask again."));
  }

  const compares = (one) => one.info?.task_type === "SPEAKER_VERIFICATION" || verifies.has(chosen.reference(one));

  async function ask(event) {
    event.preventDefault();
    if (!chosen.chosen.length) return lacks(chosen, "Name the adapter first.");
    if (!file) return lacks(zone, "Choose a clip first, or drop one.");
    if (chosen.chosen.some(compares) && !enrolment.files.length) return lacks(enrolment, "Choose a clip first of the speaker to compare with.");
    const stop = new AbortController();
    const late = setTimeout(() => stop.abort(new DOMException(`no answer within ${PATIENCE / 1000} s`, "TimeoutError")), PATIENCE);
    const since = performance.now();
    const timer = setInterval(() => (elapsed.textContent = `${((performance.now() - since) / 1000).toFixed(1)} s`), 100);
    [run.disabled, cancel.hidden] = [true, false];
    cancel.onclick = () => stop.abort();
    answers.setAttribute("aria-busy", "true");
    const asked = { file, enrolment: enrolment.files, windows: windows.checked, signal: stop.signal, clip };
    const columns = await Promise.all(chosen.chosen.map((one) => column(one, chosen.reference(one), compares(one), asked)));
    clearInterval(timer);
    clearTimeout(late);
    [run.disabled, cancel.hidden, elapsed.textContent] = [false, true, ""];
    answers.removeAttribute("aria-busy");
    answers.classList.remove("stale");
    const told = columns.filter((one) => one.answer).map((one) => one.answer);
    answers.replaceChildren(make("div", { class: "columns" }, ...columns.map((one) => one.element)));
    const drawn = columns.map((one) => one.lane).filter(Boolean);
    if (drawn.length) answers.append(make("section", { class: "card", "aria-label": "Windows" }, ...drawn.flat()));
    answers.append(...commands(chosen, compares, asked, told));
    enrolment.element.hidden = !chosen.chosen.some(compares);
  }

  function lacks(part, words) {
    part.focus();
    answers.replaceChildren(make("p", { class: "note" }, words));
  }

  const examples = EXAMPLES.map(([text, name]) => make("button", { type: "button", class: "quiet", "data-example": name, click: async () => {
    try {
      zone.take([new File([await (await api.send(`/console/examples/${name}`)).blob()], name)]);
    } catch (error) {
      toast(error);
    }
  } }, text));
  const form = make("form", { id: "ask", class: "card", novalidate: true, submit: ask },
    chosen.element, zone.element,
    make("div", { class: "row middle" }, recording.element, folderButton(zone), make("span", { class: "hint" }, "or hear an example:"), ...examples),
    which, clip.element, enrolment.element,
    make("div", { class: "row middle" }, make("label", { class: "check" }, windows, "Show every window"), make("span", { class: "push" }), elapsed, cancel, run));
  root.append(make("h1", {}, "Try adapters on a clip"), form, answers);
  took([]);
  return () => {
    recording.stop();
    clip.dispose();
  };
}

// The answer of one adapter: its column, and the lane of its windows where these were asked for.
async function column(one, reference, compares, asked) {
  const head = make("h2", {}, reference);
  const element = make("section", { class: "column", "aria-label": reference }, head);
  const since = performance.now();
  let lane = null;
  try {
    let answer;
    if (one.info?.task_type === "FEATURE_EXTRACTION") answer = await post("embed", reference, asked);
    else if (compares) answer = await score(reference, asked);
    else answer = await classify(reference, asked);
    head.append(make("span", { class: "took" }, `${(performance.now() - since).toFixed(0)} ms`));
    if (answer.decision) element.append(...verdict(answer));
    else if (answer.results[0].labels) element.append(...labels(answer));
    else element.append(make("p", {}, `An embedding of ${answer.results[0].embedding.length} numbers.`), ...partly(answer.results[0].heard, answer.audio[0].seconds));
    const spans = answer.results?.[0].windows?.map(({ start, end, labels: [best] }) => ({ start, end, ...best }));
    if (spans) lane = windowLanes(reference, spans, answer.audio[0].seconds, asked.clip);
    return { element, lane, answer };
  } catch (error) {
    element.append(error.name === "AbortError" ? make("p", { class: "note" }, "Cancelled.") : drawProblem(error));
    return { element, lane };
  }
}

const post = (path, reference, { file, signal }, more = {}) =>
  api.call(`/v1/${path}?${new URLSearchParams({ adapter: reference, ...more })}`, { method: "POST", body: file, signal });

// A key that may not read an adapter's task finds it out by asking.
async function classify(reference, asked) {
  try {
    return await post("classify", reference, asked, { top_k: TOP_K, ...(asked.windows ? { windows: "true" } : {}) });
  } catch (error) {
    if (error.code !== "wrong_task") throw error;
    verifies.add(reference);
    if (!asked.enrolment.length) throw new Error("this adapter compares speakers: give it clips of the speaker to compare with, and ask again");
    return score(reference, asked);
  }
}

function score(reference, { file, enrolment, signal }) {
  const form = new FormData();
  for (const one of enrolment) form.append("enrolment", one);
  form.append("test", file);
  return api.call(`/v1/score?${new URLSearchParams({ adapter: reference })}`, { method: "POST", body: form, signal });
}

function labels({ results: [result], audio: [{ seconds, sampling_rate: rate, channels }] }) {
  const channelsShown = channels === 1 ? "mono" : channels === 2 ? "stereo" : `${channels} channels`;
  const drawn = [bars(result.labels), make("p", { class: "hint" }, `version ${result.version} · ${seconds.toFixed(2)} s · ${rate} Hz ${channelsShown}`)];
  if (result.unknown) drawn.push(make("p", { class: "note" }, "Below this adapter's own bound: it may be none of these labels."));
  return [...drawn, ...partly(result.heard, seconds)];
}

function verdict({ decision, score: cosine, threshold, version, speech_seconds: speech, log_likelihood_ratio: ratio }) {
  const drawn = [make("p", { class: `decision ${decision}` }, VERDICTS[decision] ?? decision)];
  const told = [`threshold ${threshold.toFixed(3)}`, `version ${version}`];
  if (cosine !== null) {
    drawn.push(scale(cosine, threshold, decision));
    told[0] = `score ${cosine.toFixed(3)} against ${told[0]}`;
  }
  if (ratio !== undefined && ratio !== null) told.push(`log-likelihood ratio ${ratio.toFixed(2)}`);
  if (speech) told.push(`somebody speaks for ${speech.enrolment.toFixed(1)} s and ${speech.test.toFixed(1)} s`);
  return [...drawn, make("p", { class: "hint" }, told.join(" · "))];
}

function windowLanes(reference, spans, seconds, clip) {
  const rows = [...new Set(spans.map((span) => span.label))].map((label) => ({ label, spans: spans.filter((span) => span.label === label) }));
  const drawn = make("div");
  const draw = () => !drawn.closest(".stale") && drawn.replaceChildren(lanes(rows, clip.view.start, clip.view.end || seconds, clip.play));
  clip.view.watch(draw);
  draw();
  return [make("h2", {}, `Best label of each window: ${reference}`), drawn];
}

// Classifiers are asked in one request, as it is one pass; a comparison is a request of its own.
function commands(chosen, compares, { file, enrolment, windows }, told) {
  const references = (kind) => chosen.chosen.filter((one) => compares(one) === kind).map(chosen.reference);
  const shell = [];
  const code = [];
  if (references(false).length) {
    const query = new URLSearchParams(references(false).map((one) => ["adapter", one]));
    query.set("top_k", TOP_K);
    if (windows) query.set("windows", "true");
    shell.push(curl(`/v1/classify?${query}`, [[null, file]]));
    code.push(python("classify", file.name, references(false), ...(windows ? [{ name: "windows", value: true }] : [])));
  }
  for (const one of references(true)) {
    shell.push(curl(`/v1/score?${new URLSearchParams({ adapter: one })}`, [...enrolment.map((each) => ["enrolment", each]), ["test", file]]));
    code.push(python("score", enrolment.map((each) => each.name), file.name, one));
  }
  const pages = [["curl", shell.join("\n")], ["Python", code.join("\n\n")], ["JSON", JSON.stringify(told.length === 1 ? told[0] : told, null, 2)]];
  return shell.length ? [make("section", { class: "card", "aria-label": "The same as a command" }, make("h2", {}, "The same as a command"), tabs(pages))] : [];
}
