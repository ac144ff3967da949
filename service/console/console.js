// The console: keeps what is shown in step with the service. The parts of the page are in their own files.
import { showAdapters } from "./adapters.js";
import { api, byId, make } from "./api.js";
import { offer } from "./ask.js";
import "./upload.js";

const REFRESH = 5000; // ms
const STARTING = 1000; // ms, while the backbone is loading
const PAGE = 200; // adapters in one answer
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  let wait = REFRESH;
  try {
    const adapters = await readable();
    byId("adapters-section").hidden = adapters === null;
    showAdapters(adapters ?? []);
    offer(adapters);
    status("ready", "Ready");
    byId("key-section").hidden = true;
  } catch (error) {
    byId("key-section").hidden = error.status !== 401;
    if (error.status === 401) status("locked", api.key ? "That key is not known" : "Asks for a key");
    else if (error.status === 503) [wait] = [STARTING, status("starting", "Loading the backbone")];
    else status("gone", error.message);
  }
  if (!document.hidden) timer = setTimeout(refresh, wait);
}

// Shows the backbone and answers the adapters, or null to a key that may not read them: it may infer all the same.
async function readable() {
  try {
    showBackbone(await api.call("/v1/backbone"));
    return await everyAdapter();
  } catch (error) {
    if (error.status !== 403) throw error;
    byId("backbone").replaceChildren();
    return null;
  }
}

async function everyAdapter() {
  const found = [];
  let after = null;
  do {
    const query = new URLSearchParams({ limit: PAGE, ...(after === null ? {} : { after }) });
    const page = await api.call(`/v1/adapters?${query}`);
    found.push(...page.adapters);
    after = page.next;
  } while (after !== null);
  return found;
}

function status(kind, text) {
  if (byId("status").textContent === text) return; // said once
  byId("status").className = `status ${kind}`;
  byId("status").textContent = text;
}

function showBackbone(backbone) {
  const facts = [
    ["Backbone", backbone.name.split("/").at(-1)],
    ["Architecture", backbone.model_type],
    ["Size", `${(backbone.parameters / 1e6).toFixed(1)} M parameters`],
    ["Layers", `${backbone.num_hidden_layers} × ${backbone.hidden_size}`],
    ["Runs on", `${backbone.device}, ${backbone.dtype}`],
    ["Fingerprint", make("code", { title: backbone.fingerprint }, backbone.fingerprint.replace("sha256:", "").slice(0, 12))],
  ];
  byId("backbone").replaceChildren(...facts.map(([term, fact]) => make("div", {}, make("dt", {}, term), make("dd", {}, fact))));
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = byId("key").value.trim();
  refresh();
});
document.addEventListener("asked", refresh);
document.addEventListener("visibilitychange", refresh);
refresh();
