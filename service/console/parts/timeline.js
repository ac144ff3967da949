// Events of a recording in lanes: filtered by label and score, zoomed with its waveform, and saved as tables.
import { make } from "../api.js";
import { byLabel, lanes } from "./lane.js";
import { downloads } from "./tables.js";

// `play(start, end)` of a click, `view` of the waveform above. `set(events, seconds, file)` draws others; a filter stays.
export function timeline(play, view) {
  const label = make("select", { id: "by-label", change: draw });
  const score = make("input", { id: "by-score", type: "number", min: 0, max: 1, step: 0.05, value: 0, input: draw });
  const told = make("p", { class: "hint", role: "status" });
  const drawn = make("div");
  let [events, file] = [[], ""];
  const element = make("section", { class: "card", "aria-label": "Events", hidden: true },
    make("div", { class: "row" }, make("label", {}, "Label", label), make("label", {}, "Score at least", score),
      make("span", { class: "row middle push" }, make("span", { class: "hint" }, "Save as"), ...downloads(() => [file, wanted()]))),
    told, drawn);

  const wanted = () => events.filter((one) => (!label.value || one.label === label.value) && one.score >= Number(score.value));

  function set(others, length, name) {
    [events, file] = [others, name];
    const labels = [...new Set(events.map((one) => one.label))].sort();
    if (labels.join() !== [...label.options].slice(1).map((one) => one.value).join() || !label.options.length) {
      const before = label.value;
      label.replaceChildren(new Option("all", ""), ...labels.map((one) => new Option(one, one)));
      label.value = labels.includes(before) ? before : "";
    }
    element.hidden = false;
    view.extend(length);
  }

  function draw() {
    if (element.hidden) return;
    const shown = wanted();
    const several = new Set(events.map((one) => `${one.adapter}@${one.version}`)).size > 1;
    const rows = byLabel(shown.map((one) => (several ? { ...one, label: `${one.adapter}@${one.version}: ${one.label}` } : one)));
    told.textContent = `${shown.length} of ${events.length} events`;
    drawn.replaceChildren(shown.length ? lanes(rows, view.start, view.end, play) : make("p", {}, events.length ? "No event is like that." : "Nothing was heard."));
  }
  view.watch(draw);
  return { element, told, set };
}
