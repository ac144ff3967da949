// The console's frame: which view the address names, how the service stands, and the key.
import { byId, make } from "./api.js";
import { may, refresh, session, useKey, watch, WRONG_KEY } from "./session.js";
import { mount as adapter } from "./views/adapter.js";
import { mount as adapters } from "./views/fleet.js";
import { mount as recordings } from "./views/recordings.js";
import { mount as speakers } from "./views/speakers.js";
import { mount as tryView } from "./views/try.js";

const VIEWS = {
  try: { title: "Try", mount: tryView, scope: "infer" },
  recordings: { title: "Recordings", mount: recordings, scope: "infer" },
  speakers: { title: "Speakers", mount: speakers, scope: "speakers" },
  adapters: { title: "Adapters", mount: adapters, scope: "read", also: "write" },
  adapter: { title: "Adapter", mount: adapter, scope: "read", parent: "adapters" },
};
const FIRST = "try";
let leave = () => {};
let shown = null;

// `#/adapter/name` is [adapter, name].
function route() {
  const [view, argument] = location.hash.replace(/^#\/?/, "").split("/", 2).map(decodeURIComponent);
  return Object.hasOwn(VIEWS, view) ? [view, argument] : [FIRST, undefined];
}

function show() {
  const [name, argument] = route();
  const address = `${name}/${argument}`;
  if (address === shown) return;
  const moved = shown !== null;
  shown = address;
  leave();
  const view = VIEWS[name];
  document.title = `${argument ?? view.title} · ipet-serve`;
  const root = make("div", { class: "view" });
  byId("view").replaceChildren(root);
  leave = allowed(view) ? (view.mount(root, argument) ?? (() => {})) : () => {};
  if (!allowed(view)) root.append(make("h1", {}, view.title), make("p", { class: "note" }, `This key lacks the scope ${view.scope}, which ${view.title} needs; it has ${session.key.scopes.join(", ")}.`));
  drawLinks();
  if (moved) byId("main").focus();
}

const allowed = ({ scope, also }) => may(scope) || (also && may(also));

function drawLinks() {
  const [current] = route();
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const { view } = link.dataset;
    if (view === (VIEWS[current].parent ?? current)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    const lacks = !allowed(VIEWS[view]);
    link.classList.toggle("lacks", lacks);
    link.title = lacks ? `This key lacks the scope ${VIEWS[view].scope}.` : "";
  }
}

function drawState() {
  const { state, text, key, backbone } = session;
  if (byId("status").textContent !== text) byId("status").textContent = text; // said once
  byId("status").className = `status ${state}`;
  byId("gone").hidden = state !== "gone";
  byId("key-wrong").hidden = state !== "locked" || text !== WRONG_KEY;
  byId("key-section").hidden = state !== "locked";
  byId("view").hidden = state === "locked";
  const known = key && key.id !== "anonymous";
  byId("key-shown").hidden = !known;
  if (known) byId("key-name").textContent = `${key.name || key.id}: ${key.scopes.join(", ")}`;
  const size = backbone && `${(backbone.parameters / 1e6).toFixed(1)} M parameters`;
  const told = backbone ? [backbone.name.split("/").at(-1), backbone.model_type, size, `${backbone.device}, ${backbone.dtype}`] : [];
  byId("backbone").textContent = told.join(" · ");
  drawLinks();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await useKey(byId("key").value.trim());
  if (session.state !== "locked") byId("key").value = "";
  else byId("key").focus();
  remount();
});
byId("forget").addEventListener("click", async () => {
  await useKey("");
  remount();
  if (session.state === "locked") byId("key").focus();
});

// What a view has fetched with one key is not shown to another.
function remount() {
  shown = null;
  show();
}

watch(drawState);
window.addEventListener("hashchange", show);
await refresh();
drawState();
show();
