// The API's documentation, drawn from /openapi.json.
import { api, byId, drawProblem, make } from "./api.js";

async function draw() {
  const description = await api.call("/openapi.json");
  byId("title").textContent = `${description.info.title} ${description.info.version}`;
  byId("description").textContent = unwrapped(description.info.description);
  const groups = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(drawOperation(method, path, operation));
    }
  }
  for (const [tag, operations] of groups) {
    byId("groups").append(make("section", { "aria-label": tag }, make("h2", {}, capital(tag)), ...operations));
  }
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    const text = JSON.stringify(schema, null, 2);
    byId("schemas").append(make("details", { class: "operation", id: `schema-${name}` }, make("summary", {}, make("code", {}, name)), make("pre", {}, text)));
  }
}

function drawOperation(method, path, operation) {
  const [first, ...rest] = unwrapped(operation.description ?? operation.summary ?? "").split("\n");
  const summary = make("summary", {}, make("span", { class: `method ${method}` }, method.toUpperCase()), make("code", {}, path), make("span", { class: "about" }, first));
  const body = make("div", { class: "body" });
  if (rest.join("").trim()) body.append(make("p", { class: "text" }, rest.join("\n").trim()));
  if (operation.parameters?.length) {
    body.append(make("h3", {}, "Parameters"), table(operation.parameters.map((parameter) => [
      make("code", {}, parameter.name),
      `${parameter.in}${parameter.required ? ", required" : ""}`,
      shape(parameter.schema),
      unwrapped(parameter.description ?? ""),
    ])));
  }
  if (operation.requestBody) {
    body.append(make("h3", {}, "Body"), make("p", { class: "text" }, unwrapped(operation.requestBody.description ?? "")), table(
      Object.entries(operation.requestBody.content).map(([type, content]) => [make("code", {}, type), shape(content.schema)]),
    ));
  }
  body.append(make("h3", {}, "Answers"), table(
    Object.entries(operation.responses).map(([status, answer]) => [
      status,
      unwrapped(answer.description),
      Object.entries(answer.content ?? {}).map(([type, content]) => `${type} ${shape(content.schema)}`).join(", "),
    ]),
  ));
  return make("details", { class: "operation" }, summary, body);
}

// Text whose lines were broken for the source: paragraphs stay, lines join.
function unwrapped(text) {
  return text.split(/\n\s*\n/).map((paragraph) => paragraph.replace(/\s*\n\s*/g, " ")).join("\n\n").replaceAll("`", "");
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// A schema in few words: the name it refers to, or its type.
function shape(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(shape).join(" or ");
  if (schema.type === "array") return `list of ${shape(schema.items)}`;
  if (schema.properties) {
    const needed = schema.required ?? [];
    const parts = Object.entries(schema.properties);
    return parts.map(([name, part]) => `${name}${needed.includes(name) ? "" : "?"}: ${shape(part)}`).join("; ");
  }
  const fallback = schema.default === undefined ? "" : ` (default ${JSON.stringify(schema.default)})`;
  return `${schema.format ?? schema.type ?? ""}${fallback}`;
}

function table(rows) {
  return make("table", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))));
}

draw().catch((error) => byId("notice").replaceChildren(drawProblem(error)));
