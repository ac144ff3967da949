// A model card, drawn from its Markdown: headings, lists, tables, code, links and the pictures that it holds itself.
// Markup within it stays text, and nothing is fetched.
import { make } from "../api.js";

const PICTURE = /^data:image\/(?:png|jpeg|webp|gif);base64,[\w+/=]+$/;
// Read in linear time, as a card may be hostile: no part goes over the `[` or the mark that would begin another one.
const INLINE = /`([^`]{1,999})`|\*\*([^*]{1,999})\*\*|!\[([^[\]]{0,120})\]\((data:image\/[a-z]+;base64,[\w+/=]+|[^)\s[]{1,300})\)|\[([^[\]]{1,120})\]\((https?:\/\/[^)\s[]{1,999})\)/g;
const LINES = 3000; // drawn; the file has the rest
const PARTS = 10000; // cells, links, pictures and the like that are drawn of a card
let left = PARTS; // of the card that is being drawn
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").slice(0, 50).map((cell) => cell.trim());
const isTable = (line) => /^\s*\|/.test(line);
const isItem = (line) => /^\s*(?:[-*+]|\d+[.)])\s/.test(line);
const isHead = (line) => /^#{1,6}\s/.test(line);

export function drawCard(text) {
  left = PARTS;
  const card = make("div", { class: "card-text" });
  const all = text.replace(/^\ufeff?---\r?\n[^]*?\n---(?:\r?\n|$)/, "").split(/\r?\n/); // without its front matter
  const lines = all.slice(0, LINES);
  const run = (start, wanted) => {
    let end = start;
    while (end < lines.length && wanted(lines[end])) end++;
    return lines.slice(start, end);
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    if (line.startsWith("```")) {
      const code = run(at + 1, (one) => !one.startsWith("```"));
      card.append(make("pre", { tabindex: 0 }, code.join("\n")));
      at += code.length + 2;
    } else if (isTable(line)) {
      const rows = run(at, isTable);
      card.append(table(rows.map(cells).filter((row) => (left -= row.length) > 0)));
      at += rows.length;
    } else if (isItem(line)) {
      const items = run(at, isItem);
      card.append(make(/^\s*\d/.test(line) ? "ol" : "ul", {}, ...items.map((item) => make("li", {}, ...inline(item.replace(/^\s*\S+\s/, ""))))));
      at += items.length;
    } else if (isHead(line)) {
      card.append(make(line.startsWith("# ") ? "h3" : "h4", {}, ...inline(line.replace(/^#+\s+/, ""))));
      at += 1;
    } else {
      const words = run(at, (one) => one.trim() && !one.startsWith("```") && !isTable(one) && !isItem(one) && !isHead(one));
      if (words.length) card.append(make("p", {}, ...inline(words.join(" "))));
      at += words.length || 1;
    }
  }
  if (all.length > LINES || left <= 0) card.append(make("p", { class: "hint" }, "It goes on: README.md has the rest."));
  return card;
}

function table(rows) {
  const isRule = (row) => row.every((cell) => /^:?-*:?$/.test(cell));
  const [head, ...body] = rows.length > 1 && isRule(rows[1]) ? [rows[0], ...rows.slice(2)] : [null, ...rows];
  const drawn = (row, tag) => make("tr", {}, ...row.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell))));
  const heads = head?.some((cell) => cell) ? [make("thead", {}, drawn(head, "th"))] : [];
  return make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Table" }, make("table", {}, ...heads, make("tbody", {}, ...body.map((row) => drawn(row, "td")))));
}

function inline(text) {
  const drawn = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    if (--left <= 0) break;
    const [all, code, strong, alt, source, words, address] = found;
    drawn.push(text.slice(from, found.index));
    if (code) drawn.push(make("code", {}, code));
    else if (strong) drawn.push(make("strong", {}, strong));
    else if (words) drawn.push(make("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, words));
    else if (PICTURE.test(source)) drawn.push(make("img", { src: source, alt }));
    else drawn.push(make("span", { class: "hint" }, `[picture, not kept with the card: ${alt || source.slice(0, 80)}]`));
    from = found.index + all.length;
  }
  return [...drawn, text.slice(from)];
}
