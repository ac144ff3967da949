// Uploading a bundle: which of the chosen files is what, and under which name it goes.
import { api, byId, drawProblem, make } from "./api.js";
import { dropZone } from "./drop.js";

const zone = dropZone(byId("bundle-zone"));

// The parts of the upload, told apart by the files' endings, as a bundle's files may have been renamed.
function parts(files) {
  const found = {};
  for (const file of files) {
    const ending = file.name.toLowerCase().split(".").at(-1);
    const part = { json: "config", safetensors: "weights", md: "card" }[ending];
    if (part && !found[part]) found[part] = file;
  }
  return found;
}

async function upload(event) {
  event.preventDefault();
  const notice = byId("upload-notice");
  const bundle = parts(zone.input.files);
  if (!bundle.config || !bundle.weights) {
    zone.input.focus();
    notice.replaceChildren(make("p", { class: "hint" }, "Choose adapter_config.json and adapter_model.safetensors together."));
    return;
  }
  byId("upload-run").disabled = true;
  try {
    const { name } = JSON.parse(await bundle.config.text());
    if (typeof name !== "string") throw new Error(`${bundle.config.name} names no adapter`);
    const form = new FormData();
    for (const [part, file] of Object.entries(bundle)) form.append(part, file);
    const query = new URLSearchParams({ activate: byId("activate").checked });
    const answer = await api.call(`/v1/adapters/${encodeURIComponent(name)}/versions?${query}`, { method: "POST", body: form });
    const told = `${answer.name} version ${answer.version} is here${answer.live ? " and live" : ", not live"}.`;
    notice.replaceChildren(make("p", { class: "done" }, told));
    zone.clear();
  } catch (error) {
    const broken = error instanceof SyntaxError ? new Error(`${bundle.config.name} is not JSON: ${error.message}`) : error;
    notice.replaceChildren(drawProblem(broken));
  } finally {
    byId("upload-run").disabled = false;
    document.dispatchEvent(new Event("asked"));
  }
}

byId("upload").addEventListener("submit", upload);
