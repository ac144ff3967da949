// The same request as a curl command, as Python and as JSON, in tabs, safe to paste whatever the files are called.
import { api, make } from "../api.js";
import { toast } from "./toast.js";

let count = 0;

export const quoted = (word) => (/^[\w./:@=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const part = (name, file) => quoted(`${name}=@"${file.name.replace(/[\\"]/g, "\\$&")}"`);

// `parts` are pairs of a part's name and its file; a single part without a name is the raw body.
export function curl(path, parts) {
  const key = api.key ? ' -H "Authorization: Bearer $IPET_KEY"' : "";
  const [[name, file]] = parts;
  const body = name === null ? `--data-binary @${quoted(file.name)}` : parts.map(([each, of]) => `-F ${part(each, of)}`).join(" ");
  return `curl${key} ${body} ${quoted(location.origin + path)}`;
}

// Python of `service.client`, from the method and its arguments, each a value or {name, value}.
export function python(method, ...words) {
  const literal = (value) => (value === true ? "True" : value === false ? "False" : Array.isArray(value) ? `[${value.map(literal).join(", ")}]` : JSON.stringify(value));
  const shown = words.map((word) => (word?.name ? `${word.name}=${literal(word.value)}` : literal(word)));
  const key = api.key ? ', key=os.environ["IPET_KEY"]' : "";
  const lines = ["from service.client import Client", "", `with Client(${literal(location.origin)}${key}) as client:`, `    print(client.${method}(${shown.join(", ")}))`];
  return (api.key ? ["import os", ...lines] : lines).join("\n");
}

// Tabs, each [title, text], with a button that copies what is shown.
export function tabs(pages) {
  const id = `tabs-${++count}`;
  const text = make("pre", { tabindex: 0 });
  const panel = make("div", { role: "tabpanel", id, "aria-label": pages[0][0] }, text);
  const heads = pages.map(([title, content]) => make("button", { type: "button", class: "quiet", role: "tab", "aria-controls": id, click: () => choose(title, content) }, title));
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "The same request" }, ...heads);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = heads[(heads.indexOf(document.activeElement) + step + heads.length) % heads.length];
    next.click();
    next.focus();
  });
  function choose(title, content) {
    text.textContent = content;
    panel.setAttribute("aria-label", title);
    for (const head of heads) {
      head.setAttribute("aria-selected", String(head.textContent === title));
      head.tabIndex = head.textContent === title ? 0 : -1;
    }
  }
  const copy = make("button", { type: "button", class: "quiet", click: () => copied(text) }, "Copy");
  choose(...pages[0]);
  return make("div", { class: "commands" }, make("div", { class: "row middle" }, list, make("span", { class: "push" }, copy)), panel);
}

async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    toast("Copied");
  } catch {
    getSelection().selectAllChildren(element); // a page over http elsewhere, or a clipboard that is refused
    toast("Selected: press Ctrl+C to copy");
  }
}
