// One adapter and a clip: labels as bars, over time if asked; or two speakers' clips, score against threshold.
import { api, byId, drawProblem, make } from "./api.js";
import { dropZone } from "./drop.js";

const VERIFICATION = "SPEAKER_VERIFICATION";
const VERDICTS = { accept: "Same speaker", reject: "Not the same speaker", not_enough_speech: "Not enough speech to tell" };
let adapters = [];
let listed = true; // else the key may not read the list, and an adapter is named by hand
let preview = "";

const clip = dropZone(byId("clip-zone"), hear);
const enrolment = dropZone(byId("enrolment-zone"));
const test = dropZone(byId("test-zone"));

// Shows the adapters to choose from, and keeps what is chosen; null asks for a name.
export function offer(list) {
  listed = list !== null;
  byId("listed").hidden = !listed;
  byId("named").hidden = listed;
  adapters = (list ?? []).filter((adapter) => adapter.live !== null);
  choose(byId("adapter"), adapters.map((adapter) => [adapter.name, adapter.name]));
  byId("run").disabled = listed && adapters.length === 0;
  showVersions();
}

function choose(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function chosen() {
  return adapters.find((adapter) => adapter.name === byId("adapter").value);
}

function showVersions() {
  const adapter = chosen();
  const aliases = Object.keys(adapter?.aliases ?? {}).filter((alias) => alias !== "live").sort();
  const versions = (adapter?.versions ?? []).map((one) => String(one.version));
  const live = ["", adapter ? `live (${adapter.live})` : "live"];
  choose(byId("version"), [live, ...aliases.map((alias) => [alias, alias]), ...versions.map((one) => [one, one])]);
  showTask();
}

function verifies() {
  return (listed ? chosen()?.task_type : byId("task").value) === VERIFICATION;
}

function showTask() {
  byId("classifying").hidden = byId("windows-choice").hidden = verifies();
  byId("verifying").hidden = !verifies();
  byId("run").textContent = verifies() ? "Compare" : "Classify";
}

function reference() {
  if (!listed) return byId("adapter-name").value.trim();
  const version = byId("version").value;
  return version ? `${byId("adapter").value}@${version}` : byId("adapter").value;
}

function hear(files) {
  const player = byId("player");
  if (preview) URL.revokeObjectURL(preview);
  preview = files.length ? URL.createObjectURL(files[0]) : "";
  player.hidden = !preview;
  if (preview) player.src = preview;
  else player.removeAttribute("src");
}

async function run(event) {
  event.preventDefault();
  const lacking = (verifies() ? [enrolment, test] : [clip]).find((zone) => !zone.input.files.length);
  if (!reference()) return ask(byId("adapter-name"), "Name the adapter first.");
  if (lacking) return ask(lacking.input, "Choose a clip first, or drop one.");
  byId("run").disabled = true;
  byId("answer").setAttribute("aria-busy", "true");
  try {
    byId("answer").replaceChildren(...(await (verifies() ? verify() : classify())));
  } catch (error) {
    byId("answer").replaceChildren(drawProblem(error));
  } finally {
    byId("run").disabled = false;
    byId("answer").removeAttribute("aria-busy");
    document.dispatchEvent(new Event("asked"));
  }
}

function ask(input, what) {
  input.focus();
  byId("answer").replaceChildren(make("p", { class: "hint" }, what));
}

async function classify() {
  const query = new URLSearchParams({ adapter: reference(), top_k: 5 });
  if (byId("windows").checked) query.set("windows", "true");
  const file = clip.input.files[0];
  const started = performance.now();
  const answer = await api.call(`/v1/classify?${query}`, { method: "POST", body: file });
  const took = performance.now() - started;
  const [result] = answer.results;
  const { seconds, sampling_rate: rate, channels } = answer.audio[0];
  const channelsShown = channels === 1 ? "mono" : channels === 2 ? "stereo" : `${channels} channels`;
  const facts = [`${result.adapter} version ${result.version}`, `${seconds.toFixed(2)} s`, `${rate} Hz ${channelsShown}`];
  const drawn = [bars(result.labels), make("p", { class: "hint" }, [...facts, `answered in ${took.toFixed(0)} ms`].join(" · "))];
  if (result.unknown) drawn.push(make("p", { class: "note" }, "Below this adapter's own bound: it may be none of these labels."));
  drawn.push(...partly(result.heard, seconds));
  if (result.windows) drawn.push(timeline(result.windows));
  return [...drawn, curl(`--data-binary @${quoted(file.name)}`, `/v1/classify?${query}`)];
}

function bars(labels) {
  const list = make("ol", { class: "bars", "aria-label": "Labels, best first" });
  for (const { label, score } of labels) {
    list.append(make("li", {}, make("span", { class: "label" }, label), bar([[0, score]]), make("span", { class: "score" }, score.toFixed(3))));
  }
  return list;
}

// A bar that is filled where `stretches` say, from and to as shares of its width; `mark` is a place on it. What stands
// beside it says the same in words.
function bar(stretches, kind = "", mark = null) {
  const percent = (share) => `${100 * Math.min(Math.max(share, 0), 1)}%`;
  const place = (name, left) => {
    const placed = make("span", { class: name });
    placed.style.left = percent(left);
    return placed;
  };
  const drawn = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  for (const [from, to] of stretches) {
    drawn.append(place("fill", from));
    drawn.lastChild.style.width = percent(to - from);
  }
  if (mark !== null) drawn.append(place("mark", mark));
  return drawn;
}

// What of the clip was heard, where that is not all of it.
function partly(heard, seconds) {
  const covered = heard.reduce((sum, [from, to]) => sum + to - from, 0);
  if (covered > seconds - 0.05) return [];
  const words = heard.map(([from, to]) => `${from.toFixed(2)} to ${to.toFixed(2)} s`).join(", ");
  const note = make("p", { class: "note" }, `Heard ${words} of ${seconds.toFixed(2)} s: this adapter's windows cover no more.`);
  note.append(bar(heard.map(([from, to]) => [from / seconds, to / seconds])));
  return [note];
}

function timeline(windows) {
  const rows = windows.map(({ start, end, labels: [best] }) =>
    make("tr", {}, make("td", {}, `${start.toFixed(2)} to ${end.toFixed(2)} s`), make("td", {}, best.label), make("td", {}, best.score.toFixed(3))));
  const heads = ["Window", "Best label", "Score"].map((text) => make("th", { scope: "col" }, text));
  return make("table", { class: "timeline" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

async function verify() {
  const form = new FormData();
  for (const file of enrolment.input.files) form.append("enrolment", file);
  form.append("test", test.input.files[0]);
  const query = new URLSearchParams({ adapter: reference() });
  const answer = await api.call(`/v1/score?${query}`, { method: "POST", body: form });
  const parts = [...enrolment.input.files].map((file) => `-F enrolment=@${quoted(file.name)}`);
  parts.push(`-F test=@${quoted(test.input.files[0].name)}`);
  return [...verdict(answer), curl(parts.join(" "), `/v1/score?${query}`)];
}

function verdict({ decision, score, threshold, version, speech_seconds: speech }) {
  const drawn = [make("p", { class: `decision ${decision}` }, VERDICTS[decision] ?? decision)];
  const facts = [`threshold ${threshold.toFixed(3)}`, `version ${version}`];
  if (score !== null) {
    const share = (cosine) => (cosine + 1) / 2;
    drawn.push(make("div", { class: "scale" }, "−1", bar([[0, share(score)]], decision, share(threshold)), "1"));
    facts[0] = `score ${score.toFixed(3)} against ${facts[0]}`;
  }
  if (speech) facts.push(`somebody speaks for ${speech.enrolment.toFixed(1)} s and ${speech.test.toFixed(1)} s`);
  return [...drawn, make("p", { class: "hint" }, facts.join(" · "))];
}

const quoted = (name) => (/^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`);

function curl(body, path) {
  const key = api.key ? ' -H "Authorization: Bearer $KEY"' : "";
  return make("details", {}, make("summary", {}, "The same as a command"), make("pre", {}, `curl${key} ${body} '${location.origin}${path}'`));
}

byId("ask").addEventListener("submit", run);
byId("adapter").addEventListener("change", showVersions);
byId("task").addEventListener("change", showTask);
