// Changes of adapters that several views offer: the buttons, what they ask first, and what is told afterwards.
import { api, make } from "./api.js";
import { confirmed } from "./parts/dialog.js";
import { toast } from "./parts/toast.js";
import { needs } from "./session.js";

export const pathOf = (name, at) => `/v1/adapters/${encodeURIComponent(name)}${at === undefined ? "" : `@${at}`}`;

// A quiet button that runs `change`, tells `label: done` or the problem, and calls `after`.
export function action({ key, text, label, scope, danger, ask, change, undo, after }) {
  const button = make("button", { type: "button", class: danger ? "quiet danger" : "quiet", "aria-label": label, "data-key": key, click: async () => {
    if (button.ariaBusy) return;
    if (ask && !(await confirmed(label, ask, text, danger))) return;
    button.ariaBusy = "true"; // not disabled, which would lose the focus
    try {
      await change();
      const back = undo && { text: "Undo", act: async () => {
        try {
          await undo();
          toast(`${label}: undone`);
        } catch (error) {
          toast(error);
        }
        after();
      } };
      toast(`${label}: done`, back);
    } catch (error) {
      toast(error);
    }
    button.ariaBusy = null;
    await after();
  } }, text);
  return needs(scope, button);
}

// Load or unload, and pin or unpin, whatever the version's state asks for.
export function residency(name, { version, state, pinned }, after) {
  const resident = state === "resident" || state === "loading";
  const change = (verb, text, scope) => action({ key: `${name}/${version}/${text}`, text, label: `${text} ${name} version ${version}`, scope, after, change: () => api.change(`${pathOf(name, version)}/${verb}`, "POST") });
  return [resident ? change("unload", "Unload", "write") : change("load", "Load", "write"), pinned ? change("unpin", "Unpin", "admin") : change("pin", "Pin", "admin")];
}

export const badge = (state) => make("span", { class: `badge ${state}` }, String(state).replaceAll("_", " "));
export const taskName = (task) => (task ?? "unreadable").toLowerCase().replaceAll("_", " ");
