// The people of the key's domain: enrolled from clips or the microphone, verified, identified, and let go.
import { api, drawProblem, make } from "../api.js";
import { action, badge } from "../act.js";
import { chooser } from "../parts/choose.js";
import { AUDIO, dropZone } from "../parts/drop.js";
import { player } from "../parts/player.js";
import { recorder } from "../parts/record.js";
import { toast } from "../parts/toast.js";
import { identified, ring, verified, warned } from "../parts/voice.js";
import { needs } from "../session.js";

const SHOWN = 50; // speakers of a page
const STATUSES = ["enrolled", "pending", "stale", "expired", "opted_out"];
const pathOf = (speaker) => `/v1/speakers/${encodeURIComponent(speaker)}`;

export function mount(root) {
  const clip = player();
  const chosen = chooser({ id: "speaker-adapter", task: "SPEAKER_VERIFICATION", single: true, changed: () => list() });
  const zone = dropZone({ id: "voice", what: "Voice", hint: "Drop clips of one person, or choose them", accept: AUDIO, multiple: true, changed: ([file]) => clip.show(file) });
  const recording = recorder({ id: "record-voice", done: (file) => zone.take([file]) });
  const speaker = make("input", { id: "speaker", autocomplete: "off", spellcheck: "false", placeholder: "ann" });
  const by = make("input", { id: "consent-by", autocomplete: "off" });
  const text = make("input", { id: "consent-text", autocomplete: "off" });
  const expires = make("input", { id: "expires", placeholder: "365d", autocomplete: "off" });
  const answer = make("div", { id: "voice-answer", "aria-live": "polite" });
  const status = make("select", { id: "by-status", change: () => list() }, new Option("any", ""), ...STATUSES.map((one) => new Option(one.replaceAll("_", " "), one)));
  const people = make("div", { id: "people" });
  const more = make("button", { type: "button", class: "quiet", hidden: true, click: () => list(next) }, "More");
  let next = null;

  function adapter() {
    if (chosen.chosen.length) return chosen.reference(chosen.chosen[0]);
    chosen.focus();
    throw new Error("name the speaker adapter first");
  }

  function named() {
    if (speaker.value.trim()) return speaker.value.trim();
    speaker.focus();
    throw new Error("name the speaker first");
  }

  function voices(one = false) {
    if (!zone.files.length) {
      zone.focus();
      throw new Error("choose a clip first, drop one or record one");
    }
    const form = new FormData();
    for (const file of one ? zone.files.slice(0, 1) : zone.files) form.append("audio", file);
    return form;
  }

  async function enrol() {
    const [path, query, body] = [pathOf(named()), new URLSearchParams({ adapter: adapter() }), voices()];
    const told = {};
    if (by.value || text.value) told.consent = { by: by.value, at: new Date().toISOString(), text: text.value };
    if (expires.value) told.expires = expires.value;
    if (Object.keys(told).length) await api.change(path, "PUT", told);
    const enrolled = await api.call(`${path}/enrolments?${query}`, { method: "POST", body });
    const words = { enrolled: "Enrolled", pending: "More speech is needed" };
    const notes = enrolled.enrolments.flatMap((one, i) => warned(one.warnings, `${zone.files[i].name}: `));
    return [make("p", { class: `decision ${enrolled.status === "enrolled" ? "accept" : ""}` }, `${words[enrolled.status] ?? enrolled.status}: ${enrolled.speaker}`), ring(enrolled), ...notes];
  }

  async function verify() {
    return verified(await api.call(`${pathOf(named())}/verify?${new URLSearchParams({ adapter: adapter() })}`, { method: "POST", body: voices() }));
  }

  async function identify() {
    return identified(await api.call(`/v1/speakers/identify?${new URLSearchParams({ adapter: adapter() })}`, { method: "POST", body: voices(true) }));
  }

  function step(id, label, scope, act, quiet = "quiet") {
    const button = make("button", { type: "button", class: quiet, id, click: async () => {
      if (button.ariaBusy) return;
      button.ariaBusy = "true";
      try {
        answer.replaceChildren(make("section", { class: "card", "aria-label": label }, ...(await act())));
      } catch (error) {
        answer.replaceChildren(drawProblem(error));
      }
      button.ariaBusy = null;
      if (act === enrol) await list();
    } }, label);
    return needs(scope, button);
  }

  async function list(after = null) {
    const query = new URLSearchParams({ limit: SHOWN, ...(status.value ? { status: status.value } : {}), ...(after ? { after } : {}) });
    if (chosen.chosen.length) query.set("adapter", chosen.chosen[0].name);
    const focused = document.activeElement?.dataset?.key;
    try {
      const page = await api.call(`/v1/speakers?${query}`);
      next = page.next;
      more.hidden = !next;
      const rows = page.speakers.map(drawSpeaker);
      if (after) people.querySelector("ul").append(...rows);
      else people.replaceChildren(rows.length ? make("ul", { class: "people" }, ...rows) : make("p", { class: "hint" }, "Nobody is here yet, or stands so."));
      if (focused) people.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    } catch (error) {
      people.replaceChildren(drawProblem(error));
    }
  }

  function drawSpeaker(one) {
    const id = one.speaker;
    const act = (label, words, more) => action({ key: `${id}/${label}`, text: label, label: `${label} ${id}`, scope: "speakers", after: list.bind(null, null), ask: words, ...more });
    const voiceprint = one.adapters[0];
    const out = one.status === "opted_out";
    const clips = one.adapters.flatMap((each) => each.enrolments);
    const remove = (each) => act(`Remove clip ${each.id}`, `What was learnt from clip ${each.id} of ${id} is deleted.`, { change: () => api.change(`${pathOf(id)}/enrolments/${each.id}`, "DELETE") });
    const about = [one.consent ? `consent: ${one.consent.by}, “${one.consent.text}”` : "no consent is recorded", one.expires && `expires after ${one.expires}`].filter(Boolean).join(" · ");
    return make("li", { "data-speaker": id },
      make("div", { class: "row middle" }, make("strong", {}, id), badge(one.status), voiceprint && !out && ring(voiceprint), make("span", { class: "push" }),
        make("button", { type: "button", class: "quiet", "data-key": `${id}/pick`, "aria-label": `Choose ${id}`, click: () => [(speaker.value = id), speaker.focus()] }, "Choose"),
        act("Export", null, { change: () => save(id) }),
        out ? act("Opt in", null, { change: () => api.change(`${pathOf(id)}/opt-in`, "POST") }) : act("Opt out", "The voiceprints are deleted, and nobody can enrol, verify or identify this person until they opt in.", { change: () => api.change(`${pathOf(id)}/opt-out`, "POST") }),
        act("Delete", "All that is stored of this person is deleted.", { danger: true, change: () => api.change(pathOf(id), "DELETE") })),
      make("details", {}, make("summary", { class: "hint" }, `${clips.length} ${clips.length === 1 ? "clip" : "clips"} · ${about}`), ...clips.map((each) => make("div", { class: "row middle" }, `clip ${each.id}, version ${each.version}: ${each.speech_seconds.toFixed(1)} s of speech`, ...warned(each.warnings, ""), remove(each)))));
  }

  const consent = make("details", {}, make("summary", {}, "Consent and how long it is kept"), make("div", { class: "row" }, make("label", {}, "Recorded by", by), make("label", {}, "What the person agreed to", text), make("label", {}, "Expires when unused for", expires)));
  root.append(make("h1", {}, "Speakers"),
    make("form", { class: "card", novalidate: true, submit: (event) => event.preventDefault() }, chosen.element, zone.element, make("div", { class: "row middle" }, recording.element), clip.element, consent,
      make("div", { class: "row" }, make("label", {}, "Speaker", speaker), make("span", { class: "push" }), step("enrol", "Enrol", "speakers", enrol), step("identify", "Who is it?", "identify", identify), step("verify", "Is it this speaker?", "speakers", verify, ""))),
    answer,
    make("section", { class: "card", "aria-label": "People" }, make("div", { class: "row" }, make("label", {}, "Status", status)), people, more));
  list();
  return () => {
    recording.stop();
    clip.dispose();
  };
}

async function save(id) {
  const url = URL.createObjectURL(await (await api.send(`${pathOf(id)}/export`)).blob());
  make("a", { href: url, download: `${id}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  toast(`All that is stored of ${id} is in ${id}.json`);
}
