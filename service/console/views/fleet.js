// All adapters: found, filtered and sorted, with where the device has them; and uploads.
import { api, drawProblem, make } from "../api.js";
import { badge, residency, taskName } from "../act.js";
import { needs } from "../session.js";
import { traffic } from "../parts/traffic.js";
import { upload } from "../parts/upload.js";

const REFRESH = 5000; // ms
const FETCHED = 1000; // adapters in one answer
const SHOWN = 50; // rows of a page
const TASKS = ["AUDIO_CLASSIFICATION", "SPEAKER_VERIFICATION", "FEATURE_EXTRACTION"];
const STATES = ["resident", "registered", "loading", "failed"];
const FAMILIES = ["ipet", "prompt", "adapter", "lora", "dora", "prefix", "ia3", "bitfit", "input-prompt", "linear"];
const TIERS = ["device", "host", "disk"];
const RANKS = { failed: 0, loading: 1, resident: 2, registered: 3 };
const ORDERS = {
  name: ["Name", (a, b) => (a.name < b.name ? -1 : 1)],
  state: ["State", (a, b) => RANKS[a.shown?.state] - RANKS[b.shown?.state]],
  newest: ["Newest", (a, b) => (a.newest < b.newest ? 1 : -1)],
  requests: ["Most asked", (a, b) => b.requests - a.requests],
  slowest: ["Slowest", (a, b) => (b.milliseconds ?? 0) - (a.milliseconds ?? 0)],
};
const asked = { q: "", task: "", family: "", state: "", domain: "", tier: "", order: "name", page: 0 }; // kept while the page is open

let kept = {}; // the page of the list that came last

export function mount(root) {
  const rows = new Map(); // by name: what is drawn of it
  const body = make("tbody");
  const count = make("span", { class: "count", id: "count" });
  const slots = make("span", { class: "count push", id: "slots" });
  const pages = make("div", { class: "row middle pages" });
  const notice = make("div");
  const empty = make("p", { class: "hint", hidden: true });
  let found = [];
  let timer = 0;
  let turn = 0;

  async function reload() {
    const mine = ++turn;
    clearTimeout(timer);
    try {
      const [list, now] = await Promise.all([every(), traffic()]);
      if (mine !== turn) return;
      found = list.map((one) => described(one, now));
      slots.textContent = now.slots ? `${now.used} of ${now.slots} slots used` : "";
      notice.replaceChildren();
      draw();
    } catch (error) {
      if (mine !== turn) return;
      if (notice.textContent === "" || error.message !== notice.dataset.told) notice.replaceChildren(drawProblem(error));
      notice.dataset.told = error.message;
    }
    if (!document.hidden && root.isConnected) timer = setTimeout(reload, REFRESH);
  }

  function draw() {
    const [, order] = ORDERS[asked.order];
    const wanted = found.filter((one) => !asked.tier || one.shown?.tier === asked.tier).sort(order);
    const last = Math.max(Math.ceil(wanted.length / SHOWN) - 1, 0);
    asked.page = Math.min(asked.page, last);
    const shown = wanted.slice(asked.page * SHOWN, (asked.page + 1) * SHOWN);
    const names = new Set(shown.map((one) => one.name));
    for (const [name, row] of rows) if (!names.has(name)) [row.element.remove(), rows.delete(name)];
    shown.forEach((one, at) => {
      if (!rows.has(one.name)) rows.set(one.name, drawRow(one.name, reload));
      const { element, patch } = rows.get(one.name);
      patch(one);
      if (body.children[at] !== element) body.insertBefore(element, body.children[at] ?? null); // what has focus keeps it
    });
    count.textContent = wanted.length;
    empty.hidden = wanted.length > 0;
    table.hidden = !wanted.length;
    empty.textContent = ["q", "task", "family", "state", "domain", "tier"].some((name) => asked[name]) ? "No adapter is like that." : "None yet: upload a bundle below, or start the service with --adapters.";
    const turnTo = (page, text) => make("button", { type: "button", class: "quiet", disabled: page < 0 || page > last, click: () => [(asked.page = page), draw()] }, text);
    pages.hidden = last === 0;
    const page = `${asked.page}/${last}`;
    if (pages.dataset.page !== page) pages.replaceChildren(turnTo(asked.page - 1, "Previous"), make("span", {}, `Page ${asked.page + 1} of ${last + 1}`), turnTo(asked.page + 1, "Next"));
    pages.dataset.page = page;
  }

  // A change of what is asked for; what only concerns the page asks nobody.
  function field(text, name, options) {
    const change = (event) => {
      Object.assign(asked, { [name]: event.target.value, page: 0 });
      if (name === "tier" || name === "order") return draw();
      clearTimeout(timer);
      timer = setTimeout(reload, options ? 0 : 200);
    };
    const control = options
      ? make("select", { id: `by-${name}`, change }, ...options.map(([value, shown]) => new Option(shown, value, false, value === asked[name])))
      : make("input", { id: `by-${name}`, type: "search", value: asked[name], input: change, autocomplete: "off" });
    return make("label", {}, text, control);
  }
  const any = (values, shown = (value) => value) => [["", "any"], ...values.map((value) => [value, shown(value)])];
  const heads = ["Adapter", "Task", "State", "Where", "Asked", "Takes", ""].map((text) => make("th", { scope: "col" }, text || make("span", { class: "unseen" }, "Actions")));
  const table = make("table", { class: "fleet", hidden: true }, make("thead", {}, make("tr", {}, ...heads)), body);
  root.append(
    make("div", { class: "row heading" }, make("h1", {}, "Adapters ", count), slots),
    make("section", { class: "card", "aria-label": "Adapters" },
      make("div", { class: "row", role: "search" }, field("Search", "q"), field("Task", "task", any(TASKS, taskName)), field("Family", "family", any(FAMILIES)), field("State", "state", any(STATES)), field("Domain", "domain"), field("Where", "tier", any(TIERS)),
        field("Sort by", "order", Object.entries(ORDERS).map(([value, [text]]) => [value, text]))),
      notice, table, empty, pages),
    make("section", { class: "card", "aria-labelledby": "upload-title" }, make("h2", { id: "upload-title" }, "Upload a bundle"), upload(reload, (button) => needs("write", button))));
  const awake = () => document.hidden || reload();
  document.addEventListener("visibilitychange", awake);
  reload();
  return () => {
    clearTimeout(timer);
    turn = Infinity;
    kept = {};
    document.removeEventListener("visibilitychange", awake);
  };
}

async function every() {
  const found = [];
  let after = null;
  do {
    const query = new URLSearchParams({ limit: FETCHED });
    for (const [name, value] of Object.entries({ ...asked, tier: "", order: "", page: "", after })) if (value) query.set(name, value);
    const page = await fetched(`/v1/adapters?${query}`);
    found.push(...page.adapters);
    after = page.next;
  } while (after !== null);
  return found;
}

// One page of the list, which does not travel again while nothing of it has changed.
async function fetched(path) {
  const before = path === kept.path ? kept : { tag: null };
  const answer = await api.send(path, { headers: before.tag ? { "If-None-Match": before.tag } : {} });
  if (answer.status === 304) return before.page;
  kept = { path, tag: answer.headers.get("etag"), page: await answer.json() };
  return kept.page;
}

// An adapter with what its row shows: its live version, or its newest one; when it was last uploaded; its traffic.
function described(adapter, now) {
  const newest = adapter.versions.at(-1);
  const shown = adapter.versions.find((one) => one.version === adapter.live) ?? newest;
  const { requests = 0, milliseconds = null } = now.adapters.get(adapter.name) ?? {};
  return { ...adapter, shown, newest: newest?.created ?? "", requests, milliseconds };
}

function drawRow(name, reload) {
  const cells = Array.from({ length: 5 }, (_, i) => make("td", { class: ["task", "", "", "number asked", "number"][i] }));
  const reason = make("p", { class: "reason", hidden: true });
  const versions = make("span", { class: "hint" });
  const actions = make("td", { class: "actions" });
  const link = make("a", { href: `#/adapter/${encodeURIComponent(name)}` }, name);
  const element = make("tr", { "data-name": name }, make("th", { scope: "row" }, link, " ", versions, reason), ...cells, actions);
  let before = "";
  let buttons = "";

  function patch(one) {
    const now = JSON.stringify(one);
    if (now === before) return;
    before = now;
    const { shown } = one;
    versions.textContent = `${one.live === null ? "nothing live" : `live: version ${one.live}`}${one.versions.length > 1 ? ` of ${one.versions.length}` : ""}${shown?.domain ? ` · ${shown.domain}` : ""}`;
    const failed = one.versions.find((version) => version.reason);
    reason.hidden = !failed;
    reason.textContent = failed ? `version ${failed.version}: ${failed.reason}` : "";
    cells[0].textContent = [taskName(one.task_type), shown?.families.join(", ")].filter(Boolean).join(" · ");
    cells[1].replaceChildren(badge(shown?.state ?? "registered"));
    cells[2].textContent = shown ? `${shown.tier}${shown.pinned ? ", pinned" : ""}` : "";
    cells[3].textContent = one.requests || "";
    cells[4].textContent = one.milliseconds === null ? "" : `${one.milliseconds.toFixed(0)} ms`;
    const wanted = shown ? `${shown.version} ${shown.state} ${shown.pinned}` : "";
    if (wanted === buttons) return;
    buttons = wanted;
    const focused = [...actions.children].indexOf(document.activeElement);
    actions.replaceChildren(...(shown ? residency(name, shown, reload) : []));
    actions.children[focused]?.focus();
  }
  return { element, patch };
}
