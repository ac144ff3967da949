// An axis of time: marks at round seconds from `start` to `end`.
import { make } from "../api.js";

const STEPS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

export function axis(start, end) {
  const step = STEPS.find((one) => (end - start) / one <= 8) ?? 7200;
  const element = make("div", { class: "axis", "aria-hidden": "true" });
  for (let at = Math.ceil(start / step - 1e-9) * step; at <= end + 1e-9; at += step) {
    const share = (at - start) / (end - start || 1);
    const mark = make("span", { class: share > 0.94 ? "last" : "" }, clock(at, step < 1));
    mark.style.left = `${100 * share}%`;
    element.append(mark);
  }
  return element;
}

// 75 is 1:15; below a minute 3.5 s.
export function clock(seconds, exact = false) {
  const fraction = exact ? 1 : 0;
  if (seconds < 60) return `${seconds.toFixed(fraction && seconds % 1 ? (seconds * 10) % 1 > 0.01 ? 2 : 1 : 0)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
