// One adapter: what its versions are and are called, what they say of themselves, and who changed what.
import { api, drawProblem, facts, make } from "../api.js";
import { action, badge, pathOf, residency, taskName } from "../act.js";
import { drawCard } from "../parts/card.js";
import { chart } from "../parts/chart.js";
import { preset } from "../parts/choose.js";
import { size } from "../parts/drop.js";
import { figures } from "../parts/figures.js";
import { toast } from "../parts/toast.js";
import { traffic } from "../parts/traffic.js";
import { needs } from "../session.js";

const HISTORY = 20; // changes shown at first
const PULSE = 5000; // ms between two looks at the traffic

export function mount(root, name) {
  const head = make("div");
  const versions = make("section", { class: "card", "aria-labelledby": "versions-title" });
  const detail = make("section", { class: "card", id: "detail", "aria-label": "Version" });
  const history = make("section", { class: "card", "aria-labelledby": "history-title" });
  const asked = chart("Requests a minute since this page was opened, a column every 5 s", "a minute");
  const pulse = make("section", { class: "card", "aria-labelledby": "traffic-title", hidden: true }, make("h2", { id: "traffic-title" }, "Traffic"), asked.element);
  root.append(head, versions, pulse, detail, history);
  let adapter = null;
  let shown = null; // the version whose details are drawn
  let before = null; // what the metrics said of it

  async function reload() {
    const focused = document.activeElement?.dataset?.key;
    try {
      adapter = await api.call(pathOf(name));
    } catch (error) {
      return root.replaceChildren(make("p", {}, make("a", { href: "#/adapters" }, "All adapters")), make("h1", {}, name), drawProblem(error));
    }
    const now = await traffic();
    drawHead(now.adapters.get(name));
    drawVersions();
    if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    await Promise.all([drawDetail(shown ?? adapter.live ?? adapter.versions.at(-1)?.version), drawHistory()]);
  }

  function drawHead(now) {
    const live = adapter.live === null ? "nothing live" : `live: version ${adapter.live}`;
    const told = now?.requests ? ` · asked ${now.requests === 1 ? "once" : `${now.requests} times`}${now.milliseconds === null ? "" : `, ${now.milliseconds.toFixed(0)} ms${now.requests === 1 ? "" : " each"}`}` : "";
    const gone = action({ key: "delete", text: "Delete adapter", label: `Delete adapter ${name}`, scope: "write", danger: true, ask: "All its versions and aliases go, for everybody who asks it.", change: () => api.change(pathOf(name), "DELETE"), after: leave });
    const chosen = [{ name, at: "", info: adapter }, ...(adapter.aliases.canary && adapter.aliases.canary !== adapter.live ? [{ name, at: "canary", info: adapter }] : [])];
    const listen = make("a", { class: "button", href: "#/try", click: () => preset("adapter", chosen) }, chosen.length > 1 ? "Try live beside canary" : "Try on a clip");
    head.replaceChildren(make("p", {}, make("a", { href: "#/adapters" }, "All adapters")), make("h1", {}, name), make("div", { class: "row middle" }, make("span", { id: "live" }, `${taskName(adapter.task_type)} · ${live}${told}`), make("span", { class: "push" }, listen), gone));
  }

  // What has come since the last look; nothing of it where the key may not see the metrics.
  async function look() {
    if (document.hidden) return;
    const now = await traffic();
    const { requests = 0, adapter_seconds_sum: seconds = 0, adapter_seconds_count: count = 0 } = now.adapters.get(name) ?? {};
    pulse.hidden = !now.slots;
    if (before) {
      const [minutes, came] = [(performance.now() - before.at) / 60000, Math.max(requests - before.requests, 0)];
      const each = count > before.count ? `, ${((1000 * (seconds - before.seconds)) / (count - before.count)).toFixed(0)} ms each` : "";
      asked.add(came / minutes, `${Math.round(came / minutes)} requests a minute now${each}`);
    }
    before = { at: performance.now(), requests, seconds, count };
  }

  async function leave() {
    try {
      await api.call(pathOf(name));
      reload();
    } catch {
      location.hash = "#/adapters";
    }
  }

  const move = (alias, version) => api.change(`${pathOf(name)}/aliases/${encodeURIComponent(alias)}`, "PUT", { version });

  function drawVersions() {
    const heads = ["Version", "State", "Aliases", "Backbone", "Uploaded", ""].map((text) => make("th", { scope: "col" }, text || make("span", { class: "unseen" }, "Actions")));
    const rows = [...adapter.versions].reverse().map(drawVersion);
    const alias = make("input", { id: "alias", required: true, pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", placeholder: "canary", autocomplete: "off", spellcheck: "false" });
    const target = make("select", { id: "alias-version", "aria-label": "Version of the alias" }, ...rows.map((_, i) => new Option(adapter.versions.at(-1 - i).version)));
    const submit = async (event) => {
      event.preventDefault();
      try {
        await move(alias.value, Number(target.value));
        toast(`${alias.value} is version ${target.value}`);
        await reload();
      } catch (error) {
        toast(error);
      }
    };
    versions.replaceChildren(make("h2", { id: "versions-title" }, "Versions"),
      make("div", { class: "wide" }, make("table", { class: "fleet versions" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))),
      make("form", { class: "row", id: "alias-form", submit }, make("label", {}, "Alias", alias), make("label", {}, "Version", target), needs("write", make("button", { class: "quiet" }, "Set alias"))));
  }

  function drawVersion(version) {
    const at = version.version;
    const aliases = Object.entries(adapter.aliases).filter(([, target]) => target === at).map(([alias]) => alias).sort();
    const tags = aliases.map((alias) => make("span", { class: alias === "live" ? "badge live" : "badge" }, alias));
    const before = adapter.live;
    const act = (text, label, more) => action({ key: `${name}/${at}/${text}`, text, label, scope: "write", after: reload, ...more });
    const buttons = [
      at !== before && act("Make live", `Make live: ${name} version ${at}`, {
        ask: `Everybody who asks ${name} is answered by version ${at} from now on${before === null ? "" : `, no longer by version ${before}`}.`,
        change: () => move("live", at),
        undo: before === null ? undefined : () => move("live", before),
      }),
      ...residency(name, version, reload),
      make("button", { type: "button", class: "quiet", "data-key": `${name}/${at}/Details`, "aria-label": `Details of version ${at}`, click: () => drawDetail(at).then(() => detail.scrollIntoView({ block: "nearest" })) }, "Details"),
      ...aliases.filter((alias) => alias !== "live").map((alias) => act(`Drop ${alias}`, `Drop ${alias}, the alias of ${name}`, { ask: `${name}@${alias} is unknown from now on.`, change: () => api.change(`${pathOf(name)}/aliases/${encodeURIComponent(alias)}`, "DELETE") })),
      at !== before && act("Delete", `Delete ${name} version ${at}`, { danger: true, ask: "Its files go, and its number is not used again.", change: () => api.change(`${pathOf(name)}/versions/${at}`, "DELETE") }),
    ];
    return make("tr", {},
      make("th", { scope: "row" }, String(at)),
      make("td", {}, badge(version.state), ` ${version.tier}${version.pinned ? ", pinned" : ""}`, version.reason ? make("p", { class: "reason" }, version.reason) : ""),
      make("td", {}, ...tags),
      make("td", {}, version.verified ? "verified" : make("span", { title: "The bundle names no fingerprint of its backbone." }, "unverified")),
      make("td", {}, make("time", { datetime: version.created }, new Date(version.created).toLocaleString())),
      make("td", { class: "actions" }, ...buttons.filter(Boolean)));
  }

  async function drawDetail(version) {
    shown = version;
    if (version === undefined) return detail.replaceChildren();
    const path = `${pathOf(name)}/versions/${version}`;
    try {
      const [one, card] = await Promise.all([api.call(path), api.send(`${path}/card`).then((answer) => answer.text(), () => null)]);
      if (shown !== version) return;
      const save = (part, file) => make("button", { type: "button", class: "quiet", "aria-label": `Download ${file}`, click: () => download(`${path}/${part}`, file) }, file);
      const told = [["Digest", make("code", { title: one.digest }, one.digest.replace("sha256:", "").slice(0, 12))], ["Size", size(one.bytes)], ["Licence", one.license ?? "not told"], ["Family", one.families.join(", ")], ["Counts to", one.domain ?? "nobody's quota"], ...flat(one.parts)];
      detail.replaceChildren(make("h2", {}, `Version ${version}`), make("p", { class: "text" }, one.description ?? "It has no description."), facts(told));
      detail.append(...figures(one.metrics), make("h3", {}, "Input"), facts(flat(one.input)));
      if (one.labels) detail.append(make("h3", {}, `${one.labels.length} labels`), make("ul", { class: "chips labels" }, ...one.labels.map((label) => make("li", { class: "badge" }, label))));
      detail.append(make("h3", {}, "Files"), make("div", { class: "row middle" }, save("config", "adapter_config.json"), save("weights", "adapter_model.safetensors"), card !== null && save("card", "README.md")));
      if (card !== null) detail.append(make("h3", {}, "Card"), drawCard(card));
    } catch (error) {
      detail.replaceChildren(drawProblem(error));
    }
  }

  async function drawHistory(limit = HISTORY) {
    try {
      const { history: changes, next } = await api.call(`${pathOf(name)}/history?limit=${limit}`);
      const lines = changes.map((one) => make("li", {}, make("time", { datetime: one.at }, new Date(one.at).toLocaleString()), ` ${words(one)} `, make("span", { class: "hint" }, `by ${one.actor}`)));
      history.replaceChildren(make("h2", { id: "history-title" }, "History"), make("ol", { class: "history" }, ...lines));
      if (next) history.append(make("button", { type: "button", class: "quiet", click: () => drawHistory(10 * limit) }, "Older"));
    } catch (error) {
      history.replaceChildren(drawProblem(error));
    }
  }

  const timer = setInterval(look, PULSE);
  const resized = () => asked.draw();
  addEventListener("resize", resized);
  reload().then(look);
  return () => [clearInterval(timer), removeEventListener("resize", resized)];
}

function words({ action: what, version, alias, previous }) {
  const of = [alias && `alias ${alias}`, version !== null && `version ${version}`, previous !== null && `before it version ${previous}`];
  return [alias ? null : what.replaceAll("_", " "), ...of].filter(Boolean).join(", ");
}

const flat = (members) => Object.entries(members ?? {}).filter(([, value]) => value !== null).map(([name, value]) => [name.replaceAll("_", " "), String(value)]);

async function download(path, file) {
  try {
    const url = URL.createObjectURL(await (await api.send(path)).blob());
    make("a", { href: url, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  } catch (error) {
    toast(error);
  }
}
