// Scores as bars, a score on its scale with the threshold, and what of a clip was heard.
import { make } from "../api.js";

// A bar that is filled where `stretches` say, from and to as shares of its width; `mark` is a place on it. What stands
// beside it says the same in words.
export function bar(stretches, kind = "", mark = null) {
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

export function bars(labels, name = "Labels, best first") {
  const list = make("ol", { class: "bars", "aria-label": name });
  for (const { label, score } of labels) {
    list.append(make("li", {}, make("span", { class: "label" }, label), bar([[0, score]]), make("span", { class: "score" }, score.toFixed(3))));
  }
  return list;
}

// A cosine from -1 to 1, with the threshold marked.
export function scale(score, threshold, kind) {
  const share = (cosine) => (cosine + 1) / 2;
  return make("div", { class: "scale" }, "−1", bar([[0, share(score)]], kind, share(threshold)), "1");
}

// What of the clip was heard, where that is not all of it; the rest is hatched.
export function partly(heard, seconds) {
  const covered = heard.reduce((sum, [from, to]) => sum + to - from, 0);
  if (covered > seconds - 0.05) return [];
  const words = heard.map(([from, to]) => `${from.toFixed(2)} to ${to.toFixed(2)} s`).join(", ");
  const note = make("p", { class: "note" }, `Heard ${words} of ${seconds.toFixed(2)} s: this adapter's windows cover no more.`);
  note.append(bar(heard.map(([from, to]) => [from / seconds, to / seconds]), "heard"));
  return [note];
}
