// A button that records from the microphone: webm with Opus, as a file or chunk by chunk.
import { make } from "../api.js";
import { toast } from "./toast.js";

const TYPE = "audio/webm;codecs=opus";

// `done(file)` gets what was recorded; with `chunk`, that gets every piece as it comes, `started` is called before.
export function recorder({ id, text = "Record", started = async () => {}, chunk = null, done = () => {}, every = 250 }) {
  const button = make("button", { type: "button", class: "quiet", id, "aria-pressed": "false", click: toggle }, text);
  const level = make("meter", { class: "level", max: 1, low: 0.02, "aria-label": "Loudness", hidden: true });
  const told = make("span", { class: "elapsed recording" });
  const element = make("span", { class: "row middle" }, button, level, told);
  let running = null;

  if (!navigator.mediaDevices || !globalThis.MediaRecorder?.isTypeSupported(TYPE)) {
    button.disabled = true;
    button.title = "A browser gives the microphone to pages of this machine or over https, and must record webm with Opus.";
  }

  async function toggle() {
    if (running) return stop();
    button.disabled = true;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      await begin(stream).catch((error) => {
        for (const track of stream.getTracks()) track.stop();
        throw error;
      });
    } catch (error) {
      toast(error.name === "NotAllowedError" ? new Error("the microphone was refused; allow it in the browser's bar") : error);
    }
    button.disabled = false;
  }

  async function begin(stream) {
    await started();
    const media = new MediaRecorder(stream, { mimeType: TYPE });
    const pieces = [];
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const since = performance.now();
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      level.value = samples.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
      told.textContent = `${((performance.now() - since) / 1000).toFixed(1)} s`;
    }, 100);
    media.addEventListener("dataavailable", (event) => (chunk ? chunk(event.data) : pieces.push(event.data)));
    media.addEventListener("stop", () => {
      clearInterval(timer);
      context.close();
      for (const track of stream.getTracks()) track.stop();
      running = null;
      level.hidden = true;
      told.textContent = "";
      button.textContent = text;
      button.setAttribute("aria-pressed", "false");
      done(chunk ? null : new File(pieces, "recording.webm", { type: "audio/webm" }));
    });
    media.start(every);
    running = media;
    level.hidden = false;
    button.textContent = "Stop";
    button.setAttribute("aria-pressed", "true");
  }

  function stop() {
    if (running && running.state !== "inactive") running.stop();
  }
  return { element, stop, button };
}
