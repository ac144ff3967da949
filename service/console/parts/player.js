// A clip to hear and see: waveform, spectrogram, a player, a cursor where it plays, and a view that zooms.
import { make } from "../api.js";
import { axis } from "./axis.js";
import { samplesOf } from "./samples.js";
import { drawSpectrogram } from "./spectrogram.js";
import { drawWave } from "./wave.js";
import { zoomed } from "./zoom.js";

export function player() {
  const view = zoomed();
  const wave = make("canvas", { class: "wave", role: "img", "aria-label": "Waveform" });
  const spectrogram = make("canvas", { class: "spectrogram", role: "img", "aria-label": "Spectrogram, 0 to 8 kHz" });
  const cursor = make("span", { class: "cursor", hidden: true });
  const marks = make("div");
  const surface = make("div", { class: "surface", title: "Click to go there, drag to zoom" }, wave, spectrogram, cursor);
  const drawn = make("div", { class: "drawn", hidden: true }, surface, marks);
  const audio = make("audio", { controls: true });
  const told = make("p", { class: "hint" });
  const element = make("div", { class: "clip", hidden: true }, drawn, view.element, audio, told);
  const clip = { element, audio, view, seconds: 0, show, play, dispose };
  let source = null;
  let until = Infinity;
  let latest = 0;
  let drawing = false;

  async function show(file) {
    const turn = ++latest;
    if (audio.src) URL.revokeObjectURL(audio.src);
    [source, clip.seconds, until] = [null, 0, Infinity];
    element.hidden = !file;
    [told.textContent, drawn.hidden, cursor.hidden] = ["", true, true];
    view.clear();
    if (!file) return audio.removeAttribute("src");
    audio.src = URL.createObjectURL(file);
    const known = Promise.race(["loadedmetadata", "error"].map((kind) => new Promise((done) => audio.addEventListener(kind, done, { once: true }))));
    const found = await known.then(() => samplesOf(file, audio.duration)).catch(() => "The file cannot be read any more: choose it again.");
    if (turn !== latest) return;
    if (typeof found === "string") return (told.textContent = found);
    [source, clip.seconds, drawn.hidden] = [found, found.seconds, false];
    view.extend(found.seconds);
  }

  // What is looked at; asked for again while it is being read, it is drawn once more behind that.
  async function draw() {
    if (!source || !element.isConnected || drawing) return void (drawing &&= "again");
    drawing = true;
    const [of, start, end] = [source, view.start, Math.min(view.end, source.seconds)];
    const samples = await of.read(start, end).catch(() => new Float32Array());
    if (of === source && samples.length) {
      const share = (end - start) / (view.end - view.start || 1);
      of.loudest = drawWave(wave, samples, share, of.loudest); // as high as before, whatever is looked at
      of.brightest = drawSpectrogram(spectrogram, samples, of.rate, share, of.brightest);
      marks.replaceChildren(axis(view.start, view.end));
      place();
    }
    const again = drawing === "again";
    drawing = false;
    if (again) draw();
  }

  function play(start, end = Infinity) {
    audio.currentTime = start;
    until = end;
    audio.play().catch(() => {});
  }

  function place() {
    const share = (audio.currentTime - view.start) / (view.end - view.start || 1);
    cursor.hidden = !clip.seconds || share < 0 || share > 1;
    cursor.style.left = `${100 * share}%`;
  }

  function follow() {
    if (audio.currentTime >= until) {
      audio.pause();
      until = Infinity;
    }
    if (!audio.paused && clip.seconds && audio.currentTime > view.end && view.end < view.seconds) view.place(audio.currentTime, audio.currentTime + view.end - view.start);
    place();
    if (!audio.paused) requestAnimationFrame(follow);
  }

  for (const kind of ["play", "seeked", "pause"]) audio.addEventListener(kind, follow);
  view.watch(draw);
  view.select(surface, (seconds) => [(until = Infinity), (audio.currentTime = seconds)]);
  let width = 0;
  const watcher = new ResizeObserver(() => {
    if (surface.clientWidth !== width) [width] = [surface.clientWidth, draw()];
  });
  watcher.observe(surface);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", draw);

  function dispose() {
    latest++;
    audio.pause();
    watcher.disconnect();
    scheme.removeEventListener("change", draw);
    if (audio.src) URL.revokeObjectURL(audio.src);
  }
  return clip;
}
