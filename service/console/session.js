// What the key of this tab may, and how the service stands: asked again while the page is looked at.
import { api } from "./api.js";

const REFRESH = 4000; // ms
const STARTING = 1000; // ms, while the backbone is loading
const PATIENCE = 4000; // ms until a service that does not answer is called frozen

export const WRONG_KEY = "That key is not known";
export const session = { key: null, backbone: null, state: "starting", text: "Connecting" };
const watchers = new Set();
let timer = 0;
let asking = null;

// Calls `changed` whenever what stands in `session` has changed; answers how to stop that.
export function watch(changed) {
  watchers.add(changed);
  return () => watchers.delete(changed);
}

// Whether the key may do what needs `scope`; before that is known it may.
export function may(scope) {
  const scopes = session.key?.scopes;
  return !scopes || scopes.includes("admin") || scopes.includes(scope);
}

// Disables `button` and says why, where the key may not.
export function needs(scope, button) {
  if (may(scope)) return button;
  button.disabled = true;
  button.title = `This key lacks the scope ${scope}.`;
  button.setAttribute("aria-description", button.title);
  return button;
}

export function refresh() {
  clearTimeout(timer);
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

async function ask() {
  const before = JSON.stringify(session);
  let wait = REFRESH;
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    session.key ??= await api.call("/v1/key", { signal });
    if (session.state !== "ready" || !may("read")) session.backbone = may("read") ? await api.call("/v1/backbone", { signal }) : null;
    const ready = await fetch("/readyz", { signal });
    if (ready.status === 503) throw Object.assign(new Error("loading"), { status: 503 });
    Object.assign(session, { state: "ready", text: "Ready" });
  } catch (error) {
    if (error.status === 401) Object.assign(session, { key: null, state: "locked", text: api.key ? WRONG_KEY : "Asks for a key" });
    else if (error.status === 503) [wait] = [STARTING, Object.assign(session, { state: "starting", text: "Loading the backbone" })];
    else if (error.status === 429) Object.assign(session, { state: "starting", text: "This key's rate is used up" });
    else Object.assign(session, { state: "gone", text: error.name === "TimeoutError" ? "No answer: it may be frozen" : "No answer" });
  }
  if (JSON.stringify(session) !== before) for (const changed of [...watchers]) changed();
  if (!document.hidden) timer = setTimeout(refresh, wait);
}

// Takes another key, or none, and asks what it may.
export async function useKey(key) {
  api.key = key;
  Object.assign(session, { key: null, backbone: null, state: "starting", text: "Connecting" });
  await asking;
  session.key = null;
  await refresh();
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
