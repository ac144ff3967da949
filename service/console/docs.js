// The API's documentation, drawn from /openapi.json.
"use strict";

const $ = (id) => document.getElementById(id);

async function draw() {
  const description = await api.call("/openapi.json");
  $("title").textContent = `${description.info.title} ${description.info.version}`;
  $("description").textContent = description.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(drawOperation(method, path, operation));
    }
  }
  for (const [tag, operations] of groups) {
    const section = element("section");
    section.append(element("h2", tag), ...operations);
    $("groups").append(section);
  }
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    $("schemas").append(element("details", "", element("summary", name), json(schema)));
  }
}

function drawOperation(method, path, operation) {
  const verb = element("span", method.toUpperCase());
  verb.className = "method";
  const summary = element("summary", "", verb, element("code", path));
  const details = element("details", "", summary, element("p", operation.description ?? operation.summary ?? ""));
  if (operation.parameters?.length) {
    details.append(element("p", "Parameters"), table(operation.parameters.map((parameter) => [
      parameter.name,
      `${parameter.in}${parameter.required ? ", required" : ""}`,
      shape(parameter.schema),
      parameter.description ?? "",
    ])));
  }
  if (operation.requestBody) {
    details.append(element("p", `Body. ${operation.requestBody.description ?? ""}`), table(
      Object.entries(operation.requestBody.content).map(([type, body]) => [type, shape(body.schema)]),
    ));
  }
  details.append(element("p", "Answers"), table(
    Object.entries(operation.responses).map(([status, answer]) => [
      status,
      answer.description,
      Object.entries(answer.content ?? {}).map(([type, body]) => `${type} ${shape(body.schema)}`).join(", "),
    ]),
  ));
  return details;
}

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
  return element("table", "", ...rows.map((row) => element("tr", "", ...row.map((cell) => element("td", cell)))));
}

function json(value) {
  return element("pre", JSON.stringify(value, null, 2));
}

draw().catch((error) => {
  $("notice").textContent = error.message;
  $("notice").hidden = false;
});
