// What is heard from when to when: in a long file, now or as a job, or live from the microphone.
import { api, drawProblem, make } from "../api.js";
import { badge } from "../act.js";
import { clock } from "../parts/axis.js";
import { bars } from "../parts/bars.js";
import { chooser } from "../parts/choose.js";
import { AUDIO, dropZone } from "../parts/drop.js";
import { player } from "../parts/player.js";
import { recorder } from "../parts/record.js";
import { timeline } from "../parts/timeline.js";
import { toast } from "../parts/toast.js";

const REFRESH = 2000; // ms, while a job has not ended
const JOBS = 20; // shown

export function mount(root) {
  const clip = player();
  const events = timeline(clip.play, clip.view);
  const chosen = chooser({ id: "recording-adapter", task: "AUDIO_CLASSIFICATION" });
  const zone = dropZone({ id: "recording", what: "Recording", hint: "Drop a recording of up to hours here, or choose one", accept: AUDIO, changed: ([file]) => [clip.show(file), (file ? clip.audio : events.told).before(clip.view.element)] });
  const sent = new Map(); // id of a job -> its recording, while the page is open
  const hop = make("input", { id: "hop", type: "number", min: 0.01, step: 0.01, value: 0.5 });
  const threshold = make("input", { id: "threshold", type: "number", min: 0, max: 1, step: 0.05, placeholder: "the adapter's" });
  const run = make("button", { id: "listen" }, "Listen");
  const later = make("button", { type: "button", class: "quiet", id: "later", click: addJob }, "As a job");
  const cancel = make("button", { type: "button", class: "quiet", id: "stop", hidden: true }, "Cancel");
  const bar = make("progress", { max: 1, hidden: true, "aria-label": "Heard so far" });
  const told = make("span", { class: "elapsed", role: "status" });
  const notice = make("div", { "aria-live": "polite" });
  const now = make("section", { class: "card", id: "now", "aria-label": "Heard now", hidden: true });
  const jobs = make("section", { class: "card", "aria-labelledby": "jobs-title", hidden: true });
  const live = recorder({ id: "live", text: "Listen to the microphone", started: openStream, chunk: (data) => socket?.readyState === WebSocket.OPEN && socket.send(data), done: () => socket?.readyState === WebSocket.OPEN && socket.send('{"type": "end"}') });
  let socket = null;
  let timer = 0;

  function query() {
    if (!chosen.chosen.length) {
      chosen.focus();
      throw new Error("name the adapter first");
    }
    const asked = new URLSearchParams(chosen.chosen.map((one) => ["adapter", chosen.reference(one)]));
    asked.set("hop", hop.value || "0.5");
    if (threshold.value) asked.set("threshold", threshold.value);
    return asked;
  }

  function recording() {
    if (zone.files.length) return zone.files[0];
    zone.focus();
    throw new Error("choose a recording first, or drop one");
  }

  async function listen(event) {
    event.preventDefault();
    const stop = new AbortController();
    cancel.onclick = () => stop.abort();
    notice.replaceChildren();
    [run.disabled, cancel.hidden, bar.hidden] = [true, false, false];
    bar.removeAttribute("value");
    try {
      const asked = query();
      const file = recording();
      told.textContent = "sending";
      const answer = await api.send(`/v1/events?${asked}`, { method: "POST", body: file, headers: { Accept: "application/x-ndjson" }, signal: stop.signal });
      const found = [];
      for await (const line of lines(answer.body)) {
        if (line.type === "event") found.push(line);
        if (line.type === "progress") {
          told.textContent = `heard ${clock(line.seconds)}, ${found.length} events`;
          if (clip.audio.duration > 0 && Number.isFinite(clip.audio.duration)) bar.value = line.seconds / clip.audio.duration;
          events.set(found, Math.max(line.seconds, clip.seconds), file.name); // as long as the waveform above
        }
        if (line.type === "error") notice.replaceChildren(drawProblem(Object.assign(new Error(line.error.detail), line.error)));
        if (line.type === "done") events.set(found, line.audio.seconds, file.name);
      }
    } catch (error) {
      notice.replaceChildren(error.name === "AbortError" ? make("p", { class: "note" }, "Cancelled; what was heard until then stays.") : drawProblem(error));
    }
    [run.disabled, cancel.hidden, bar.hidden, told.textContent] = [false, true, true, ""];
  }

  async function addJob() {
    later.disabled = true;
    try {
      const file = recording();
      const { id } = await api.call(`/v1/jobs?${query()}`, { method: "POST", body: file });
      sent.set(id, file);
      toast(`Job ${id.slice(0, 8)} is queued`);
    } catch (error) {
      notice.replaceChildren(drawProblem(error));
    }
    later.disabled = false;
    showJobs();
  }

  async function showJobs() {
    clearTimeout(timer);
    try {
      const list = (await api.call(`/v1/jobs?limit=${JOBS}`)).jobs;
      jobs.hidden = list.length === 0;
      const focused = document.activeElement?.dataset?.key;
      jobs.replaceChildren(make("h2", { id: "jobs-title" }, "Jobs"), make("ul", { class: "jobs" }, ...list.map(drawJob)));
      if (focused) jobs.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
      const busy = list.some(({ status }) => status === "queued" || status === "running");
      if (busy && root.isConnected) timer = setTimeout(showJobs, REFRESH);
    } catch (error) {
      jobs.replaceChildren(drawProblem(error));
    }
  }

  function drawJob({ id, status, progress, error }) {
    const ended = status !== "queued" && status !== "running";
    const button = (text, act) => make("button", { type: "button", class: "quiet", "data-key": `${id}/${text}`, "aria-label": `${text} job ${id}`, click: () => act().catch(toast).finally(showJobs) }, text);
    const show = async () => {
      const result = await api.call(`/v1/jobs/${id}/result`);
      if (!result.events) throw new Error("this job enrolled speakers; its result is a table");
      if (zone.files[0] !== sent.get(id)) zone.take([sent.get(id)].filter(Boolean)); // another's sound is not above it
      events.set(result.events, result.audio?.seconds ?? result.events.at(-1)?.end ?? 0, sent.get(id)?.name ?? id);
      events.element.scrollIntoView({ block: "nearest" });
    };
    return make("li", { class: "row middle" }, make("code", {}, id.slice(0, 8)), badge(status), make("progress", { max: 1, value: progress, "aria-label": "Progress" }), error ? make("span", { class: "reason" }, error.detail ?? String(error)) : "",
      make("span", { class: "push" }), ended && button("Show", show), button(ended ? "Remove" : "Cancel", () => api.call(`/v1/jobs/${id}`, { method: "DELETE" })));
  }

  function openStream() {
    const asked = query();
    const found = [];
    let seconds = 0;
    zone.clear();
    socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream?${asked}`);
    notice.replaceChildren();
    return new Promise((ready, failed) => {
      const lost = () => {
        failed(new Error("the stream was refused or broke off"));
        live.stop();
      };
      socket.onopen = () => socket.send(JSON.stringify({ type: "start", format: "webm", ...(api.key ? { key: api.key } : {}) }));
      socket.onerror = socket.onclose = lost;
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "started") ready();
        if (message.type === "window") drawNow(message);
        if (message.type === "event") found.push(message);
        seconds = Math.max(seconds, message.end ?? 0, message.seconds ?? 0);
        if (seconds) events.set(found, seconds, "live");
        if (message.type === "error") [notice.replaceChildren(drawProblem(Object.assign(new Error(message.detail), message))), failed(new Error(message.detail))];
      };
    });
  }

  function drawNow({ adapter, version, start, end, labels }) {
    const name = `now-${adapter}@${version}`;
    let block = [...now.children].find((one) => one.dataset.name === name);
    if (!block) now.append((block = make("div", { "data-name": name })));
    now.hidden = false;
    block.replaceChildren(make("h2", {}, `${adapter}, ${start.toFixed(1)} to ${end.toFixed(1)} s`), bars(labels));
  }

  root.append(make("h1", {}, "Recordings and live audio"),
    make("form", { class: "card", id: "recordings", novalidate: true, submit: listen }, chosen.element, zone.element, clip.element,
      make("div", { class: "row" }, make("label", {}, "Seconds between windows", hop), make("label", {}, "Threshold", threshold), make("span", { class: "push" }), live.element, later, run),
      make("div", { class: "row middle" }, bar, told, cancel)),
    notice, now, events.element, jobs);
  showJobs();
  return () => {
    clearTimeout(timer);
    live.stop();
    cancel.onclick?.();
    clip.dispose();
  };
}

// The lines of a body, each of JSON.
async function* lines(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    const whole = `${rest}${value ?? ""}`.split("\n");
    rest = whole.pop();
    for (const line of whole) if (line) yield JSON.parse(line);
    if (done) return;
  }
}
