// Calls of the REST API for the pages; the key, when one is needed, lives in this module's memory only.
"use strict";

const api = {
  key: "",

  // Answers the parsed JSON, or throws an Error whose message is the problem's detail and whose `status` is set.
  async call(path, options = {}) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const response = await fetch(path, { ...options, headers });
    const answer = await response.json();
    if (!response.ok) {
      const error = new Error(answer.detail || answer.title || `status ${response.status}`);
      error.status = response.status;
      throw error;
    }
    return answer;
  },
};

// An element with text (never markup) and children.
function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
}
