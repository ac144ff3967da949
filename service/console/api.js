// Calls of the REST API for the pages; the key, when one is needed, lives in this module's memory only.

// What the service refused: `message` is the problem's detail; `status`, `code`, `clip` and `adapter` as in the problem.
export class Problem extends Error {
  constructor(status, members, requestId) {
    super(members.detail || members.title || `the service answered ${status}`);
    Object.assign(this, { status, requestId, title: members.title, code: members.code });
    Object.assign(this, { clip: members.clip, adapter: members.adapter });
  }
}

export const api = {
  key: "",

  // The parsed JSON of an answer (null of an empty one); throws Problem, or an Error where nothing answered.
  async call(path, options = {}) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("the service does not answer; is it still running?");
    }
    const text = await response.text();
    let answer = null;
    try {
      answer = text ? JSON.parse(text) : null;
    } catch {
      answer = null; // of something between here and the service
    }
    if (!response.ok) throw new Problem(response.status, answer ?? {}, response.headers.get("x-request-id"));
    return answer;
  },
};

// An element with attributes (`class`, `aria-label`, ...; false and undefined are left out) and children; strings
// become text, never markup.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
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
