// What is said of a voice: how much of it is enrolled, a decision with its score beside the threshold, warnings in words.
import { make } from "../api.js";
import { scale } from "./bars.js";

const DECISIONS = {
  accept: "Same speaker",
  reject: "Not the same speaker",
  identified: "Identified",
  unknown: "Nobody who is enrolled",
  not_enough_speech: "Not enough speech to tell",
  speaker_opted_out: "This person has opted out",
  speaker_not_enrolled: "This person is not enrolled",
  voiceprint_expired: "The voiceprint has expired",
  voiceprint_stale: "The voiceprint is of another version: enrol again",
};
const WARNINGS = {
  no_speech: "nobody speaks in it, so it is not stored",
  clipped: "it is too loud: the peaks are cut off",
  too_quiet: "it is very quiet",
  low_snr: "the noise is louder than the voice",
  several_voices: "two voices seem to speak",
  threshold_unreachable: "so many are searched that nobody can be identified: name fewer, or give the adapter a cohort",
};

// A ring that is filled as far as enough has been said.
export function ring({ progress, speech_seconds: seconds, needed_seconds: needed }) {
  const told = `${seconds.toFixed(1)} of ${needed.toFixed(1)} s of speech`;
  const circle = make("span", { class: "ring", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * progress), "aria-label": told });
  circle.style.setProperty("--share", `${100 * progress}%`);
  return make("span", { class: "row middle" }, circle, make("span", {}, told));
}

export function warned(warnings, of = "The clip: ") {
  return warnings.length ? [make("p", { class: "note" }, of + warnings.map((one) => WARNINGS[one] ?? one).join("; ") + ".")] : [];
}

export function verified(answer) {
  const { decision, score, threshold, threshold_name: name, log_likelihood_ratio: ratio, speech_seconds: speech, reason, warnings } = answer;
  const drawn = [make("p", { class: `decision ${decision}` }, DECISIONS[decision] ?? decision)];
  const told = [`threshold ${threshold.toFixed(3)}${name ? ` (${name})` : ""}`];
  if (score !== null) {
    drawn.push(scale(score, threshold, decision));
    told.unshift(`score ${score.toFixed(3)}`);
  }
  if (ratio !== null && ratio !== undefined) told.push(`log-likelihood ratio ${ratio.toFixed(2)}`);
  if (speech !== null) told.push(`${speech.toFixed(1)} s of speech`);
  if (reason) told.push(`rejected by ${reason}`);
  return [...drawn, make("p", { class: "hint" }, told.join(" · ")), ...warned(warnings)];
}

export function identified(answer) {
  const { decision, candidates, threshold, searched, extrapolated, margin, warnings } = answer;
  const rows = candidates.map(({ speaker, score, log_likelihood_ratio: ratio }) => make("li", {},
    make("span", { class: "label" }, speaker), scale(score, threshold, score >= threshold ? "accept" : "reject"),
    make("span", { class: "score" }, `${score.toFixed(3)}${ratio === null ? "" : `, LLR ${ratio.toFixed(1)}`}`)));
  const told = [`${searched} searched`, `threshold ${threshold.toFixed(3)} for so many${extrapolated ? ", extrapolated" : ""}`, margin !== null && `margin ${margin.toFixed(3)}`];
  const first = decision === "identified" ? `: ${candidates[0].speaker}` : "";
  return [make("p", { class: `decision ${decision}` }, (DECISIONS[decision] ?? decision) + first), make("ol", { class: "candidates" }, ...rows), make("p", { class: "hint" }, told.filter(Boolean).join(" · ")), ...warned(warnings)];
}
