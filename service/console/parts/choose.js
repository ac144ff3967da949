// Which adapters are asked: found by name or description, or typed; each with the version that is meant.
import { api, make } from "../api.js";
import { may } from "../session.js";

const OFFERED = 8; // of those that match
const PAUSE = 200; // ms after a key before the service is asked
const remembered = new Map(); // by id, while the page is open

// Chooses beforehand, for the chooser of this id: [{name, at, info}].
export const preset = (id, chosen) => remembered.set(id, chosen);

// `chosen` has {name, at, info}: `info` is the service's, null where the key may not read it.
export function chooser({ id, task, single = false, changed = () => {} }) {
  const input = make("input", { id: `${id}-name`, type: "search", autocomplete: "off", spellcheck: "false", placeholder: "name, or name@2" });
  const add = make("button", { type: "button", class: "quiet", id: `${id}-add`, click: () => typed() }, single ? "Choose" : "Add");
  const offered = make("span", { class: "row middle offered" });
  const chips = make("ul", { class: "chips", id: `${id}-chips`, "aria-label": single ? "Chosen adapter" : "Chosen adapters" });
  const told = make("p", { class: "hint", role: "status" });
  const element = make("div", {}, make("div", { class: "row" }, make("label", {}, single ? "Adapter" : "Adapters", input), add, offered), chips, told);
  const chosen = remembered.get(id) ?? [];
  remembered.set(id, chosen);
  let timer = 0;

  const reference = ({ name, at }) => (at ? `${name}@${at}` : name);

  async function offer(first = false) {
    if (!may("read")) {
      told.textContent = "This key may ask adapters and not list them: type the name of one.";
      return;
    }
    const query = new URLSearchParams({ limit: OFFERED, ...(task ? { task } : {}), ...(input.value ? { q: input.value.split("@")[0] } : {}) });
    try {
      const { adapters } = await api.call(`/v1/adapters?${query}`);
      offered.replaceChildren(...adapters.filter((one) => one.live !== null).map((one) => make("button", { type: "button", class: "quiet", "aria-label": `Add ${one.name}`, click: () => put(one.name, "", one) }, one.name)));
      told.textContent = adapters.length ? "" : input.value ? "No adapter has this in its name or description." : "There is no adapter yet: upload one under Adapters.";
      if (first && !chosen.length && adapters[0] && adapters[0].live !== null) put(adapters[0].name, "", adapters[0]);
    } catch (error) {
      told.textContent = error.message;
    }
  }

  async function typed() {
    const [name, at = ""] = input.value.trim().split("@");
    if (!name) return input.focus();
    let info = null;
    try {
      if (may("read")) info = await api.call(`/v1/adapters/${encodeURIComponent(name)}`);
    } catch (error) {
      if (error.status !== 403) return void (told.textContent = error.message);
    }
    told.textContent = "";
    input.value = "";
    put(name, at, info);
    offer();
  }

  function put(name, at, info) {
    if (single) chosen.length = 0;
    const taken = chosen.filter((one) => one.name === name).map((one) => one.at);
    if (taken.includes(at)) at = choices(info).map(([value]) => value).find((value) => !taken.includes(value) && !(taken.includes("") && value === String(info?.live))) ?? null;
    if (at !== null) chosen.push({ name, at, info });
    draw();
    changed();
  }

  function draw() {
    chips.replaceChildren(...chosen.map((one) => {
      const versions = one.info && make("select", { "aria-label": `Version of ${one.name}`, change: (event) => {
        one.at = event.target.value;
        changed();
      } }, ...choices(one.info).map(([value, text]) => new Option(text, value, false, value === one.at)));
      const drop = make("button", { type: "button", "aria-label": `Remove ${one.name}`, click: () => {
        chosen.splice(chosen.indexOf(one), 1);
        draw();
        input.focus();
        changed();
      } }, "×");
      return make("li", { class: "chip" }, one.info ? one.name : reference(one), versions, drop);
    }));
  }

  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    typed();
  });
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(offer, PAUSE);
  });
  draw();
  offer(true);
  return { element, chosen, reference, put, focus: () => input.focus() };
}

// What a version can be called: the bare name, an alias, a number.
function choices(info) {
  if (!info) return [["", "live"]];
  const aliases = Object.keys(info.aliases).filter((alias) => alias !== "live").sort();
  const versions = info.versions.map((one) => String(one.version));
  return [["", `live (${info.live})`], ...[...aliases, ...versions].map((one) => [one, one])];
}
