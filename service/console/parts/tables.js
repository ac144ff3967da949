// Events as the tables that the service answers, byte for byte: CSV, labels of Audacity, selections of Raven.
import { make } from "../api.js";

const RAVEN = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Begin File", "Label", "Score", "Adapter", "Version"];
const HIGHEST = 8000; // Hz that are heard
const number = (value) => (Number.isInteger(value) ? value.toFixed(1) : String(value));
const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const tabs = (cells) => `${cells.map((one) => String(one).replace(/\p{Cc}/gu, " ")).join("\t")}\n`; // no quotes there

const FORMS = {
  csv: ["events.csv", (file, events) => ["file,adapter,version,label,start,end,score\n", ...events.map((one) => `${[cell(file), one.adapter, one.version, cell(one.label), number(one.start), number(one.end), number(one.score)].join(",")}\n`)]],
  audacity: ["labels.txt", (_, events) => events.map((one) => tabs([one.start.toFixed(6), one.end.toFixed(6), one.label]))],
  raven: ["selections.txt", (file, events) => [tabs(RAVEN), ...events.map((one, i) => tabs([i + 1, "Spectrogram 1", 1, one.start.toFixed(6), one.end.toFixed(6), 0, HIGHEST, file, one.label, one.score.toFixed(6), one.adapter, one.version]))]],
};

export const table = (form, file, events) => FORMS[form][1](file, events).join("");

// Buttons that save what `shown()` answers, [file, events].
export function downloads(shown) {
  const save = (form) => {
    const url = URL.createObjectURL(new Blob([table(form, ...shown())], { type: "text/plain" }));
    make("a", { href: url, download: FORMS[form][0] }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const names = { csv: "CSV", audacity: "Audacity", raven: "Raven" };
  return Object.entries(names).map(([form, text]) => make("button", { type: "button", class: "quiet", "aria-label": `Download for ${text}`, click: () => save(form) }, text));
}
