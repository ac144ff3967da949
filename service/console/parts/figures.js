// The figures of a manifest, whatever their names: a column for each part of the data, a row for each figure, intervals
// beside them, and the classes that do worst.
import { make } from "../api.js";
import { bars } from "./bars.js";

const NESTED = ["intervals", "bootstrap", "per_class"]; // what tells of the figures beside them
const isNumber = (value) => typeof value === "number";
const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

export function figures(metrics) {
  const found = columns(metrics ?? {}, "");
  const names = [...new Set(found.flatMap(({ told }) => told.map(([name]) => name)))];
  if (!names.length) return [];
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "unseen" }, "Figure")), ...found.map(({ part }) => make("th", { scope: "col" }, part || "value"))));
  const rows = names.map((name) => make("tr", {}, make("th", { scope: "row" }, words(name)), ...found.map((column) => make("td", { class: "number" }, ...cell(column, name)))));
  const drawn = [make("h3", {}, "Figures"), make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Figures" }, make("table", { class: "figures" }, head, make("tbody", {}, ...rows)))];
  for (const { part, classes } of found) {
    const worst = Object.entries(classes).filter(([, score]) => isNumber(score)).sort((a, b) => a[1] - b[1]);
    if (worst.length) drawn.push(make("details", {}, make("summary", {}, `${part} by class, the worst first`), bars(worst.map(([label, score]) => ({ label, score })), "Classes, the worst first")));
  }
  return drawn;
}

// Groups of figures, however deep, each {part, told: [name, value], intervals, classes}.
function columns(group, part) {
  const entries = Object.entries(group);
  const told = entries.filter(([, value]) => !isGroup(value));
  const deeper = entries.filter(([name, value]) => isGroup(value) && !NESTED.includes(name));
  const own = told.length ? [{ part, told, intervals: group.intervals ?? {}, classes: isGroup(group.per_class) ? group.per_class : {} }] : [];
  return [...own, ...deeper.flatMap(([name, value]) => columns(value, `${part} ${words(name)}`.trim()))];
}

function cell({ told, intervals }, name) {
  const value = told.find(([one]) => one === name)?.[1];
  if (value === undefined) return [""];
  const interval = intervals[name];
  return [shown(value), Array.isArray(interval) ? make("span", { class: "hint" }, `${interval.map(shown).join(" to ")}`) : ""];
}

const words = (name) => name.replaceAll("_", " ");
const shown = (value) => (isNumber(value) && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : Array.isArray(value) ? value.map(shown).join(", ") : String(value));
