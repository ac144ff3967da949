// The console: what the service holds, and one clip against one adapter.
"use strict";

const $ = (id) => document.getElementById(id);
const VERIFICATION = "SPEAKER_VERIFICATION";
let adapters = [];

async function refresh() {
  try {
    showBackbone(await api.call("/v1/backbone"));
    adapters = (await api.call("/v1/adapters")).adapters;
    showAdapters();
    notice("");
    $("key-section").hidden = true;
  } catch (error) {
    if (error.status === 401) $("key-section").hidden = false;
    notice(error.message);
    if (error.status === 503) setTimeout(refresh, 1000);
  }
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showBackbone(backbone) {
  $("backbone").replaceChildren();
  for (const [name, value] of Object.entries(backbone)) {
    const shown = typeof value === "number" ? value.toLocaleString("en") : value;
    $("backbone").append(element("dt", name.replaceAll("_", " ")), element("dd", String(shown)));
  }
}

function showAdapters() {
  $("adapters").replaceChildren(
    ...adapters.map((adapter) => {
      const aliases = Object.entries(adapter.aliases).filter(([alias]) => alias !== "live");
      const row = element("tr");
      row.append(
        element("td", adapter.name),
        element("td", adapter.task_type.toLowerCase().replaceAll("_", " ")),
        element("td", adapter.live === null ? "none" : String(adapter.live)),
        element("td", aliases.map(([alias, version]) => `${alias} → ${version}`).join(", ") || "none"),
        element("td", adapter.versions.map((v) => `${v.version} ${v.state}`).join(", ")),
      );
      return row;
    }),
  );
  const chosen = $("adapter").value;
  const options = adapters.filter((adapter) => adapter.live !== null).map((adapter) => new Option(adapter.name));
  $("adapter").replaceChildren(...options);
  if (options.some((option) => option.value === chosen)) $("adapter").value = chosen;
  showInputs();
}

function chosenTask() {
  return adapters.find((adapter) => adapter.name === $("adapter").value)?.task_type;
}

function showInputs() {
  const verifies = chosenTask() === VERIFICATION;
  $("first-text").textContent = verifies ? "Clips of the speaker" : "Audio";
  $("first").multiple = verifies;
  $("second-label").hidden = !verifies;
  $("second").required = verifies;
}

async function run(event) {
  event.preventDefault();
  $("run").disabled = true;
  $("answer").replaceChildren(element("p", "Listening ..."));
  try {
    await (chosenTask() === VERIFICATION ? verify() : classify());
    refresh();
  } catch (error) {
    const problem = element("p", error.message);
    problem.className = "problem";
    $("answer").replaceChildren(problem);
  } finally {
    $("run").disabled = false;
  }
}

async function classify() {
  const query = new URLSearchParams({ adapter: $("adapter").value });
  const answer = await api.call(`/v1/classify?${query}`, { method: "POST", body: $("first").files[0] });
  const bars = element("div");
  bars.className = "bars";
  for (const { label, score } of answer.results[0].labels) {
    const bar = element("progress");
    bar.max = 1;
    bar.value = score;
    bar.setAttribute("aria-label", label);
    bars.append(element("span", label), bar, element("span", score.toFixed(3)));
  }
  const { seconds, sampling_rate: rate, channels } = answer.audio[0];
  const hint = element("p", `${seconds.toFixed(2)} s, ${rate} Hz, ${channels} channel(s); version ${answer.results[0].version}`);
  hint.className = "hint";
  $("answer").replaceChildren(bars, hint);
}

async function verify() {
  const form = new FormData();
  for (const file of $("first").files) form.append("enrolment", file);
  form.append("test", $("second").files[0]);
  const query = new URLSearchParams({ adapter: $("adapter").value });
  const { decision, score, threshold } = await api.call(`/v1/score?${query}`, { method: "POST", body: form });
  const shown = element("p", `${decision}: score ${score.toFixed(3)}, threshold ${threshold.toFixed(3)}`);
  shown.className = "decision";
  $("answer").replaceChildren(shown);
}

$("try").addEventListener("submit", run);
$("adapter").addEventListener("change", showInputs);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = $("key").value;
  refresh();
});
refresh();
