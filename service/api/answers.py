"""From the engine's outputs to the contract's answers, as JSON. Pure; runs beside the event loop."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from service.api.schemas import (
    Classification,
    ClassifyAnswer,
    ClipInfo,
    EmbedAnswer,
    Embedding,
    LabelScore,
    ScoreAnswer,
    SpeechSeconds,
    WindowLabels,
)
from service.engine.engine import Outputs
from service.engine.prepare import Clip
from service.errors import AdapterFailed
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.calibration import log_likelihood_ratio
from service.scoring.score import Decision, clip_scores, cosine, decide, enrol, merge, rank, voiceprint


def classification(
    clips: Sequence[Clip], outputs: Sequence[Sequence[Outputs]], top_k: int, with_windows: bool
) -> bytes:
    """Answer of /v1/classify; `outputs` are by clip, then by adapter."""
    results = [
        _classification(clip, output, top_k, with_windows) for clip, of_clip in enumerate(outputs) for output in of_clip
    ]
    return _json(ClassifyAnswer(results=results, audio=_audio(clips)))


def labels(output: Outputs, top_k: int) -> bytes:
    """One clip's labels alone, the answer of Hugging Face's pipelines: `[{"label", "score"}]`, best first."""
    ranked = _ranked(output.adapter.manifest.labels or (), scores(output), top_k)
    return TypeAdapter(list[LabelScore]).dump_json(ranked)


def clip_embedding(output: Outputs) -> NDArray[np.float32]:
    """A clip's voiceprint, or what an adapter without a head pooled, as it is."""
    manifest = output.adapter.manifest
    if manifest.task_type is TaskType.FEATURES:
        return clip_scores(finite(output), manifest.input.aggregate)
    return voiceprint(finite(output))


def embeddings(
    clips: Sequence[Clip], outputs: Sequence[Sequence[Outputs]], seal: Callable[[Outputs], str] | None = None
) -> bytes:
    """Answer of /v1/embed; `outputs` are by clip, then by adapter. Where they are to be sealed, `seal` does it."""
    results = [
        Embedding(
            clip=clip,
            adapter=output.adapter.name,
            version=output.adapter.version,
            embedding=None if seal else clip_embedding(output).tolist(),
            sealed=seal(output) if seal else None,
            speech_seconds=clips[clip].speech_seconds or 0.0,
            heard=_heard(output),
        )
        for clip, of_clip in enumerate(outputs)
        for output in of_clip
    ]
    return _json(EmbedAnswer(results=results, audio=_audio(clips)))


def trial(adapter: AdapterVersion, clips: Sequence[Clip], outputs: Sequence[Outputs], names: Sequence[str]) -> bytes:
    """Answer of /v1/score for clips, told apart by the names of their parts: enrolment and test."""
    prints: list[list[float]] = [voiceprint(finite(output)).tolist() for output in outputs]
    seconds = [clip.speech_seconds or 0.0 for clip in clips]
    test = names.index("test")
    enrolment = [index for index, name in enumerate(names) if name == "enrolment"]
    speech = SpeechSeconds(enrolment=round(sum(seconds[index] for index in enrolment), 6), test=seconds[test])
    return score(adapter, [prints[index] for index in enrolment], prints[test], speech)


def score(
    adapter: AdapterVersion,
    enrolment: Sequence[Sequence[float]],
    test: Sequence[float],
    speech: SpeechSeconds | None = None,
) -> bytes:
    """Answer of /v1/score: the cosine of the enrolment and the test embedding, and what the adapter makes of it.

    Args:
        speech: how long somebody speaks on each side, where there were clips.
    """
    manifest = adapter.manifest
    if manifest.threshold is None:
        raise AdapterFailed("the adapter has no threshold to decide by", adapter=adapter.name)
    value, ratio = None, None
    decision: Decision = "not_enough_speech"
    if speech is None or min(speech.enrolment, speech.test) >= manifest.speech_needed.verify_seconds:
        value = cosine(enrol(enrolment), test)
        decision = decide(value, manifest.threshold)
        calibration = manifest.calibration
        if calibration is not None and calibration.slope is not None and calibration.intercept is not None:
            ratio = log_likelihood_ratio(value, calibration.slope, calibration.intercept)
    answer = ScoreAnswer(
        adapter=adapter.name,
        version=adapter.version,
        score=value,
        threshold=manifest.threshold,
        decision=decision,
        speech_seconds=speech,
        log_likelihood_ratio=ratio,
    )
    return answer.model_dump_json(exclude={"log_likelihood_ratio"} if ratio is None else None).encode()


def _classification(clip: int, output: Outputs, top_k: int, with_windows: bool) -> Classification:
    values, manifest = finite(output), output.adapter.manifest
    labels = manifest.labels or ()
    best = scores(output)
    windows = None
    if with_windows:
        windows = [
            WindowLabels(start=start, end=end, labels=_ranked(labels, row, top_k))
            for (start, end), row in zip(output.spans, values, strict=True)
        ]
    return Classification(
        clip=clip,
        adapter=output.adapter.name,
        version=output.adapter.version,
        labels=_ranked(labels, best, top_k),
        heard=_heard(output),
        unknown=True if manifest.reject_below is not None and best.max() < manifest.reject_below else None,
        windows=windows,
    )


def _heard(output: Outputs) -> list[tuple[float, float]]:
    return [(round(start, 6), round(end, 6)) for start, end in merge(output.spans)]


def _ranked(labels: Sequence[str], scores: NDArray[np.float32], top_k: int) -> list[LabelScore]:
    return [LabelScore(label=label, score=value) for label, value in rank(labels, scores, top_k)]


def scores(output: Outputs) -> NDArray[np.float32]:
    """A clip's class scores `[C]`, its windows averaged, or the highest of them, as the manifest says."""
    return clip_scores(finite(output), output.adapter.manifest.input.aggregate)


def finite(output: Outputs) -> NDArray[np.float32]:
    """The output's values; raises AdapterFailed where the adapter made NaN or infinite ones."""
    if not np.isfinite(output.values).all():
        name = f"{output.adapter.name}@{output.adapter.version}"
        raise AdapterFailed("the adapter's outputs are not finite; its weights do not suit this input", adapter=name)
    return output.values


def _audio(clips: Sequence[Clip]) -> list[ClipInfo]:
    return [
        ClipInfo(seconds=round(clip.seconds, 6), sampling_rate=clip.source_rate, channels=clip.channels)
        for clip in clips
    ]


def _json(answer: ClassifyAnswer | EmbedAnswer) -> bytes:
    return answer.model_dump_json(exclude_none=True).encode()
