// A lane for each label over the time from `start` to `end`: spans {start, end, score} that can be clicked.
import { make } from "../api.js";
import { axis } from "./axis.js";

const DRAWN = 3000; // spans at most, the longest first

export function lanes(rows, start, end, play) {
  const share = (at) => (100 * (at - start)) / (end - start || 1);
  const element = make("div", { class: "lanes" });
  const shown = rows.flatMap((row) => row.spans).filter((span) => span.end > start && span.start < end);
  shown.sort((a, b) => b.end - b.start - (a.end - a.start));
  const drawn = new Set(shown.slice(0, DRAWN));
  for (const { label, spans } of rows) {
    const lane = make("div", { class: "lane", role: "group", "aria-label": label });
    for (const span of spans.filter((one) => drawn.has(one))) {
      const words = `${span.label ?? label}, ${span.start.toFixed(2)} to ${span.end.toFixed(2)} s, score ${span.score.toFixed(3)}`;
      const piece = make("button", { type: "button", "aria-label": words, title: words, click: () => play(span.start, span.end) });
      piece.style.left = `${Math.max(share(span.start), 0)}%`;
      piece.style.width = `${Math.min(share(span.end), 100) - Math.max(share(span.start), 0)}%`;
      piece.style.opacity = String(0.25 + 0.75 * span.score);
      piece.tabIndex = lane.children.length ? -1 : 0; // one stop of Tab for each lane; arrows go on from there
      lane.append(piece);
    }
    lane.addEventListener("keydown", ({ key }) => {
      const next = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[key];
      document.activeElement[next]?.focus();
    });
    element.append(make("span", { class: "label" }, label), lane);
  }
  element.append(axis(start, end));
  return element;
}

// Events {label, ...} as rows, the label with the most first.
export function byLabel(events) {
  const rows = new Map();
  for (const event of events) {
    if (!rows.has(event.label)) rows.set(event.label, { label: event.label, spans: [] });
    rows.get(event.label).spans.push(event);
  }
  return [...rows.values()].sort((a, b) => b.spans.length - a.spans.length || a.label.localeCompare(b.label));
}
