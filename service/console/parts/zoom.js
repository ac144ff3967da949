// Which stretch of a clip is looked at: shared by its waveform and its lanes, so that an event stays below its sound.
import { make } from "../api.js";
import { clock } from "./axis.js";

const SHORTEST = 0.1; // seconds that are shown at most zoom

// A view {start, end, seconds}: `extend(seconds)` when more is there, `place(start, end)`, `watch(changed)`, and buttons.
export function zoomed() {
  const watchers = new Set();
  const told = make("span", { class: "hint", role: "status" });
  const button = (text, name, act) => make("button", { type: "button", class: "quiet", "aria-label": name, title: name, click: act }, text);
  const buttons = [button("+", "Zoom in", () => zoom(0.5)), button("−", "Zoom out", () => zoom(2)), button("‹", "Earlier", () => move(-0.5)), button("›", "Later", () => move(0.5)), button("All", "All of the recording", () => place(0, view.seconds))];
  const element = make("div", { class: "row middle zoom", hidden: true }, make("span", { class: "row middle" }, ...buttons), told);
  const view = { start: 0, end: 0, seconds: 0, element, place, extend, clear, select, watch: (changed) => watchers.add(changed) };

  function place(start, end) {
    const span = Math.min(Math.max(end - start, SHORTEST), view.seconds);
    view.start = Math.min(Math.max(start, 0), view.seconds - span);
    view.end = view.start + span;
    const whole = span >= view.seconds;
    for (const [at, one] of buttons.entries()) one.setAttribute("aria-disabled", String(at === 0 ? span <= SHORTEST : whole)); // keeps the focus
    const words = (seconds) => (seconds < 60 && span < 60 ? `${seconds.toFixed(2)} s` : clock(seconds));
    told.textContent = whole ? words(view.seconds) : `${words(view.start)} to ${words(view.end)} of ${words(view.seconds)}`;
    element.hidden = !view.seconds;
    for (const changed of watchers) changed();
  }

  function zoom(factor, at = (view.start + view.end) / 2) {
    place(at - (at - view.start) * factor, at + (view.end - at) * factor);
  }

  function move(share) {
    const by = share * (view.end - view.start);
    place(Math.min(view.start + by, view.seconds - (view.end - view.start)), Math.max(view.end + by, view.end - view.start));
  }

  function extend(seconds) {
    const whole = view.start === 0 && view.end >= view.seconds;
    view.seconds = seconds;
    place(whole ? 0 : view.start, whole ? seconds : view.end);
  }

  function clear() {
    view.start = view.end = 0;
    extend(0);
  }

  // Dragging over `surface` looks at what was dragged over, ctrl and the wheel zoom; a click is `chosen(seconds)`.
  function select(surface, chosen) {
    const mark = make("span", { class: "dragged", hidden: true });
    surface.append(mark);
    const at = (event) => {
      const box = surface.getBoundingClientRect();
      return view.start + Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * (view.end - view.start);
    };
    let from = null;
    surface.addEventListener("pointerdown", (event) => {
      if (event.button === 0) [from] = [event, surface.setPointerCapture(event.pointerId)];
    });
    surface.addEventListener("pointermove", (event) => {
      mark.hidden = !from || Math.abs(event.clientX - from.clientX) < 6;
      if (mark.hidden) return;
      const [left, right] = [at(from), at(event)].sort((a, b) => a - b).map((one) => (100 * (one - view.start)) / (view.end - view.start));
      [mark.style.left, mark.style.width] = [`${left}%`, `${right - left}%`];
    });
    surface.addEventListener("pointerup", (event) => {
      if (!from) return;
      const [first, last, moved] = [at(from), at(event), !mark.hidden];
      [from, mark.hidden] = [null, true];
      if (moved) place(Math.min(first, last), Math.max(first, last));
      else chosen(first);
    });
    surface.addEventListener("pointercancel", () => [from, mark.hidden] = [null, true]);
    surface.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, at(event));
    }, { passive: false });
  }
  return view;
}
