// The adapters: versions, aliases, states, and the buttons that move `live` and fill or free slots.
import { api, byId, drawProblem, make } from "./api.js";

const open = new Set(); // names of the adapters whose versions are shown
let shown = "";

export function showAdapters(adapters) {
  const now = JSON.stringify(adapters);
  if (now === shown) return; // what has focus keeps it
  shown = now;
  const focused = document.activeElement?.dataset?.key;
  byId("adapters").replaceChildren(...adapters.map(drawAdapter));
  byId("no-adapters").hidden = adapters.length > 0;
  byId("adapters-count").textContent = adapters.length ? String(adapters.length) : "";
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function drawAdapter(adapter) {
  const live = adapter.versions.find((one) => one.version === adapter.live);
  const task = (adapter.task_type ?? "unreadable").toLowerCase().replaceAll("_", " ");
  const summary = make("summary", { "data-key": adapter.name },
    make("span", { class: "name" }, adapter.name),
    make("span", { class: "task" }, task),
    make("span", {}, adapter.live === null ? "nothing live" : `live: version ${adapter.live}`),
    badge(live?.state ?? "registered"));
  const heads = ["Version", "State", "Aliases", "Backbone", "Uploaded", "Digest", ""].map((text) =>
    make("th", { scope: "col" }, text || make("span", { class: "unseen" }, "Actions")));
  const rows = [...adapter.versions].reverse().map((version) => drawVersion(adapter, version));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  const details = make("details", { class: "adapter", open: open.has(adapter.name) }, summary, make("div", { class: "wide" }, table));
  details.addEventListener("toggle", () => (details.open ? open.add(adapter.name) : open.delete(adapter.name)));
  return make("li", {}, details);
}

function drawVersion(adapter, { version, state, reason, verified, created, digest }) {
  const aliases = Object.entries(adapter.aliases).filter(([, target]) => target === version).map(([alias]) => alias);
  const tags = aliases.sort().map((alias) => make("span", { class: alias === "live" ? "badge live" : "badge" }, alias));
  const name = encodeURIComponent(adapter.name);
  const act = (text, label, ...call) => action(`${adapter.name}/${version}/${text}`, text, `${label} ${adapter.name} version ${version}`, ...call);
  const resident = state === "resident" || state === "loading";
  const buttons = [
    version !== adapter.live && act("Make live", "Make live:", `/v1/adapters/${name}/aliases/live`, "PUT", { version }),
    act(resident ? "Unload" : "Load", resident ? "Unload" : "Load", `/v1/adapters/${name}@${version}/${resident ? "unload" : "load"}`, "POST"),
  ].filter(Boolean);
  return make("tr", {},
    make("th", { scope: "row" }, String(version)),
    make("td", {}, badge(state), reason ? make("p", { class: "reason" }, reason) : ""),
    make("td", {}, ...tags),
    make("td", {}, verified ? "verified" : make("span", { title: "The bundle names no fingerprint of its backbone." }, "unverified")),
    make("td", {}, make("time", { datetime: created }, new Date(created).toLocaleString())),
    make("td", {}, make("code", { title: digest }, digest.replace("sha256:", "").slice(0, 12))),
    make("td", { class: "actions" }, ...buttons));
}

function badge(state) {
  return make("span", { class: `badge ${state}` }, state);
}

function action(key, text, label, path, method, body) {
  const button = make("button", { type: "button", class: "quiet", "aria-label": label, "data-key": key }, text);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const headers = body ? { "Content-Type": "application/json" } : {};
      await api.call(path, { method, headers, body: body && JSON.stringify(body) });
      byId("adapters-notice").replaceChildren(make("p", { class: "done" }, `${label}: done`));
    } catch (error) {
      byId("adapters-notice").replaceChildren(drawProblem(error));
    }
    button.disabled = false;
    shown = "";
    document.dispatchEvent(new Event("asked"));
  });
  return button;
}
