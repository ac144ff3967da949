// A place to drop files, or to choose them with mouse or keyboard. Knows nothing of what the files are.

const UNITS = ["B", "kB", "MB", "GB"];

export function size(bytes) {
  const step = bytes ? Math.min(Math.floor(Math.log10(bytes) / 3), UNITS.length - 1) : 0;
  return `${(bytes / 1000 ** step).toFixed(step ? 1 : 0)} ${UNITS[step]}`;
}

// Makes `zone`, a label around a file input and an element of class `chosen`, take dropped files too.
export function dropZone(zone, changed = () => {}) {
  const input = zone.querySelector("input[type=file]");
  const chosen = zone.querySelector(".chosen");
  const hint = chosen.textContent;

  function show() {
    const files = [...input.files];
    chosen.textContent = files.map((file) => `${file.name} (${size(file.size)})`).join(", ") || hint;
    zone.classList.toggle("full", files.length > 0);
    changed(files);
  }

  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    const dropped = new DataTransfer();
    const files = [...event.dataTransfer.files];
    for (const file of input.multiple ? files : files.slice(0, 1)) dropped.items.add(file);
    if (dropped.files.length) input.files = dropped.files;
    show();
  });
  input.addEventListener("change", show);
  return { input, clear: () => { input.value = ""; show(); } };
}

// A file that misses its zone must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
