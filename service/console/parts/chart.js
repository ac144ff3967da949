// Values over time as columns on a canvas, the newest on the right, with what they are told in words.
import { make } from "../api.js";
import { fitted } from "./wave.js";

const KEPT = 120; // values

// `add(value, words)` puts the next one there; `words` say what it is, and the most that is shown stands beside them.
export function chart(name, unit) {
  const canvas = make("canvas", { class: "chart", role: "img", "aria-label": name });
  const told = make("figcaption", { class: "hint" });
  const element = make("figure", {}, canvas, told);
  const values = [];

  function add(value, words) {
    values.push(value);
    if (values.length > KEPT) values.shift();
    told.textContent = `${words} · at most ${Math.round(Math.max(...values))} ${unit}`;
    draw();
  }

  function draw() {
    if (!element.isConnected) return;
    const { width, height, context } = fitted(canvas);
    context.fillStyle = getComputedStyle(canvas).color;
    const [each, most] = [width / KEPT, Math.max(...values, 1)];
    values.forEach((value, i) => {
      const tall = Math.max((height * value) / most, value ? 2 : 1);
      context.fillRect(width - (values.length - i) * each, height - tall, Math.max(each - 1, 1), tall);
    });
  }
  return { element, add, draw };
}
