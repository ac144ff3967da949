// Calls of the REST API for the pages. The key, when one is needed, lives in the tab's session storage.

const KEY = "ipet-key";
const ATTEMPTS = 5; // of a call that is told to come back later
const PATIENCE = 15; // seconds that it waits for that at most
const FROZEN = 60000; // ms after which a call without a file is given up

let turn = Promise.resolve(); // of those that come back later

// What the service refused: `message` is the problem's detail; `status`, `code`, `clip`, `adapter` as in the problem.
export class Problem extends Error {
  constructor(status, members, requestId) {
    super(members.detail || members.title || `the service answered ${status}`);
    Object.assign(this, { status, requestId, title: members.title, code: members.code });
    Object.assign(this, { clip: members.clip, adapter: members.adapter, at: members.at });
  }
}

export const api = {
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  },

  set key(key) {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  },

  // The Response, once it is one of success; comes back where the service says when. Throws Problem, an AbortError, or
  // an Error where nothing answered.
  async send(path, options = {}) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    const signal = options.signal ?? (options.body instanceof Blob || options.body instanceof FormData ? undefined : AbortSignal.timeout(FROZEN));
    for (let attempt = 1; ; attempt++) {
      let response;
      try {
        response = await fetch(path, { ...options, headers, signal });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        if (error.name === "TimeoutError") throw Object.assign(new Error("the service has not answered in time; it may be frozen or overloaded"), { name: "TimeoutError" });
        await readable(options.body);
        throw new Error("the service does not answer; is it still running?");
      }
      if (response.ok || response.status === 304) return response;
      const later = Number(response.headers.get("retry-after"));
      if (response.status === 429 && attempt < ATTEMPTS && later > 0 && later <= PATIENCE) {
        await (turn = turn.then(() => new Promise((done) => setTimeout(done, 1000 * later)))); // one behind another, or all are late again
        signal?.throwIfAborted();
        continue;
      }
      throw new Problem(response.status, parsed(await response.text()) ?? {}, response.headers.get("x-request-id"));
    }
  },

  // The parsed JSON of an answer, null of an empty one.
  async call(path, options = {}) {
    return parsed(await (await this.send(path, options)).text());
  },

  // The same of a body that is JSON.
  change(path, method, body) {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    return this.call(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  },
};

// A file that was moved or changed since it was chosen fails as a service does that is gone.
async function readable(body) {
  const sent = body instanceof FormData ? [...body.values()] : [body];
  for (const file of sent.filter((one) => one instanceof File)) {
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error(`${file.name} cannot be read any more: choose it again`);
    });
  }
}

function parsed(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null; // of something between here and the service
  }
}

const OVERRIDES = /[\u202d\u202e]/g; // which have a name be read as another
const shown = (child) => (typeof child === "string" ? child.replace(OVERRIDES, "\ufffd") : child);

// An element with attributes (`class`, `aria-label`, ...; false and undefined are left out) and children; strings
// become text, never markup. An attribute that is a function listens: `click`, `change`, ...
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map(shown));
  return made;
}

// A problem, drawn for people: what it is, what would be right, and the code and id to look it up by.
export function drawProblem(error) {
  const where = error.clip === undefined ? "" : `clip ${error.clip + 1}: `;
  const notes = [error.code, error.status, error.requestId && `request ${error.requestId}`].filter(Boolean);
  const drawn = make("div", { class: "problem", role: "alert" }, make("strong", {}, error.title ?? "No answer"));
  drawn.append(make("p", {}, where + error.message));
  if (notes.length) drawn.append(make("p", { class: "hint" }, notes.join(" · ")));
  return drawn;
}

export const byId = (id) => document.getElementById(id);

// A list of facts, each [term, string or element].
export const facts = (pairs) =>
  make("dl", { class: "facts" }, ...pairs.map(([term, fact]) => make("div", {}, make("dt", {}, term), make("dd", {}, fact))));
