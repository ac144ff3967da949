// Uploading a bundle, or what PEFT saved: what can be checked here, step by step, and what the service says.
import { api, drawProblem, make } from "../api.js";
import { session } from "../session.js";
import { configured, illustrated, isForeign, nameOf, parts, tensors } from "./bundle.js";
import { confirmed } from "./dialog.js";
import { dropZone, folderButton } from "./drop.js";
import { toast } from "./toast.js";

const HINT = "Drop a bundle or what PEFT saved: its folder, or adapter_config.json and adapter_model.safetensors, with README.md and its pictures";

// `gate` disables the button where the key may not upload.
export function upload(after, gate) {
  const zone = dropZone({ id: "bundle", what: "Bundle or PEFT directory", hint: HINT, accept: ".json,.safetensors,.md,.png,.jpg,.jpeg,.webp", multiple: true, changed: look });
  const activate = make("input", { type: "checkbox", id: "activate", checked: true });
  const name = make("input", { id: "peft-name", autocomplete: "off", spellcheck: "false" });
  const labels = make("textarea", { id: "peft-labels", rows: 4, spellcheck: "false", placeholder: "one a line; the backbone's own without" });
  const frames = make("input", { id: "peft-frames", type: "number", min: 3, placeholder: "whole clips" });
  const peft = make("fieldset", { hidden: true }, make("legend", {}, "PEFT's files do not say it"),
    make("div", { class: "row" }, make("label", {}, "Name of the adapter", name), make("label", { class: "grow" }, "Labels of its classes", labels), make("label", {}, "Window, in frames of 10 ms", frames)));
  const run = gate(make("button", { id: "upload-run" }, "Upload"));
  const notice = make("div", { id: "upload-notice", "aria-live": "polite" });

  async function look(files) {
    notice.replaceChildren();
    const { config } = parts(files);
    peft.hidden = !(config && isForeign(await configured(config).catch(() => null)));
    if (!files.length) [name.value, labels.value, frames.value] = ["", "", ""];
    if (!peft.hidden && config.folder) name.value = nameOf(config.folder);
  }

  async function send(event) {
    event.preventDefault();
    const { config: file, weights, card } = parts(zone.files);
    if (!file || !weights) {
      zone.focus();
      const pickled = zone.files.some((one) => one.name.endsWith(".bin")) ? " A pickled adapter_model.bin is not read: save it with safe_serialization." : "";
      return notice.replaceChildren(make("p", { class: "note" }, `Choose adapter_config.json and adapter_model.safetensors together.${pickled}`));
    }
    const checks = make("ol", { class: "checks" });
    notice.replaceChildren(checks);
    run.disabled = true;
    try {
      const config = await step(checks, "The config is JSON, of a bundle that names its adapter or of PEFT", () => configured(file));
      const foreign = isForeign(config);
      if (foreign && !name.value.trim()) throw (name.focus(), new Error("PEFT's files name no adapter: give it a name"));
      await step(checks, "The weights begin as safetensors do", () => tensors(weights));
      await step(checks, "It was trained on this backbone, as far as it says", () => matches(config, foreign));
      const form = new FormData();
      form.append("config", foreign ? completed(config) : file);
      form.append("weights", weights);
      if (card) form.append("card", await illustrated(card, zone.files));
      const query = new URLSearchParams({ activate: activate.checked, ...(foreign ? { convert: true } : {}) });
      const words = `The service ${foreign ? "makes a bundle of it exactly, " : ""}finds its tensors and values right and runs it on the backbone`;
      const answer = await step(checks, words, () => api.call(`/v1/adapters/${encodeURIComponent(foreign ? name.value.trim() : config.name)}/versions?${query}`, { method: "POST", body: form }));
      const told = `${answer.name} version ${answer.version} is here${answer.live ? " and live" : ", not live"}.`;
      zone.clear();
      notice.replaceChildren(checks, make("p", { class: "done" }, told));
      toast(told);
    } catch (error) {
      notice.append(drawProblem(error));
    } finally {
      run.disabled = false;
      after();
    }
  }

  // PEFT's config with what it has no word for.
  function completed(config) {
    const given = labels.value.split("\n").map((line) => line.trim()).filter(Boolean);
    const added = { ...(given.length ? { labels: given } : {}), ...(frames.value ? { window_frames: Number(frames.value) } : {}) };
    return new File([JSON.stringify({ ...config, ...added })], "adapter_config.json");
  }

  return make("form", { id: "upload", novalidate: true, submit: send }, zone.element, peft, make("div", { class: "row middle" }, folderButton(zone), make("label", { class: "check" }, activate, "Make it live at once"), make("span", { class: "push" }, run)), notice);
}

// A line of the list, ticked once `check` is done.
async function step(checks, words, check) {
  const line = make("li", { class: "under-way" }, words);
  checks.append(line);
  try {
    const found = await check();
    line.className = "passed";
    return found;
  } catch (error) {
    line.className = "refused";
    throw error;
  }
}

// PEFT's files have a name of their base and no fingerprint: where it is another, whoever uploads has to know better.
async function matches({ backbone, base_model_name_or_path: base }, foreign) {
  if (foreign) {
    const [theirs, ours] = [base, session.backbone?.name].map((one) => (one ?? "").split("/").at(-1));
    const words = `It says that it was trained on ${base || "no base by name"}; this service runs ${session.backbone?.name}. On other weights than its own an adapter answers nonsense.`;
    if (theirs !== ours && !(await confirmed("Is it the same backbone?", words, "It is the same"))) throw new Error(`not uploaded: it was trained on ${base || "an unnamed base"}`);
    return;
  }
  const [theirs, ours] = [backbone?.fingerprint, session.backbone?.fingerprint];
  if (theirs && ours && theirs !== ours) throw new Error(`the bundle is for the backbone ${theirs}; this one is ${ours}`);
}
