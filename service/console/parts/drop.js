// A place to drop files or folders, or to choose them with mouse or keyboard. Knows nothing of what the files are.
import { make } from "../api.js";

export const AUDIO = "audio/*,.wav,.flac,.mp3,.ogg,.opus,.m4a,.aac,.webm";
const UNITS = ["B", "kB", "MB", "GB"];

export function size(bytes) {
  const step = bytes ? Math.min(Math.floor(Math.log10(bytes) / 3), UNITS.length - 1) : 0;
  return `${(bytes / 1000 ** step).toFixed(step ? 1 : 0)} ${UNITS[step]}`;
}

// A zone: `element` to place, `files` as chosen, `take(files)`, `clear()`, `focus()`; `changed(files)` hears of others.
export function dropZone({ id, what, hint, accept, multiple = false, changed = () => {} }) {
  const input = make("input", { type: "file", id, accept, multiple });
  const chosen = make("span", { class: "chosen" }, hint);
  const element = make("label", { class: "zone", id: `${id}-zone` }, input, make("span", { class: "what" }, what), chosen);
  const zone = { element, files: [], take, clear: () => take([]), focus: () => input.focus() };

  function take(files) {
    zone.files = multiple ? [...files] : [...files].slice(0, 1);
    const named = zone.files.slice(0, 6).map((file) => `${file.name} (${size(file.size)})`);
    if (zone.files.length > 6) named.push(`and ${zone.files.length - 6} more`);
    chosen.textContent = named.join(", ") || hint;
    element.classList.toggle("full", zone.files.length > 0);
    changed(zone.files);
  }

  for (const kind of ["dragenter", "dragover"]) {
    element.addEventListener(kind, (event) => {
      event.preventDefault();
      element.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) element.addEventListener(kind, () => element.classList.remove("over"));
  element.addEventListener("drop", async (event) => {
    event.preventDefault();
    take(await dropped(event.dataTransfer));
  });
  input.addEventListener("change", () => {
    if (input.files.length) take([...input.files]);
    input.value = ""; // the same file can be chosen again
  });
  return zone;
}

// A button that chooses a whole folder for a zone.
export function folderButton(zone) {
  const input = make("input", { type: "file", webkitdirectory: true, hidden: true, change: () => zone.take([...input.files].map((file) => Object.assign(file, { folder: file.webkitRelativePath.split("/").at(-2) }))) });
  return make("span", {}, input, make("button", { type: "button", class: "quiet", click: () => input.click() }, "Choose a folder"));
}

// All files of what was dropped, those in folders among them.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(within))).flat();
}

async function within(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [Object.assign(file, { folder: entry.fullPath.split("/").at(-2) })];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return (await Promise.all(found.map(within))).flat();
    found.push(...some);
  }
}

// A file that misses its zone must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
