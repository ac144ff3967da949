"""Commands that ask a running server: classify, embed, verify."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.clips import Asked, files_in, print_csv
from service.cli.connection import DEFAULT_URL, AsJson, Key, Url, connected, fail, print_json, print_table

if TYPE_CHECKING:
    from service.answers import Classification, ClassifyAnswer, EmbedAnswer, LabelScore, ScoreAnswer

UNHEARD_SECONDS = 0.05  # of a clip that are not worth a word

Clips = Annotated[list[Path], typer.Argument(exists=True, help="Audio files, and folders of them.")]
Adapter = Annotated[str, typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`.")]


def classify(
    audio: Clips,
    adapter: Annotated[
        list[str], typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`; may be repeated.")
    ],
    top_k: Annotated[int, typer.Option(min=0, help="Labels to print, best first; 0 is all.")] = 5,
    windows: Annotated[bool, typer.Option("--windows", help="With --json: the labels of every window.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line as soon as it is known.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Label clips with one or more adapters. A file that cannot be heard is named, the others are answered."""
    if as_json and as_csv:
        fail("give --json or --csv, not both")
    files = files_in(audio)
    with connected(url, key) as client:
        asked = Asked(files, lambda clips: client.classify(clips, adapter, top_k=top_k, windows=windows))
        if as_json:
            print_json(_joined(asked))
        elif as_csv:
            columns = ["file", "adapter", "version", "label", "score", "heard", "seconds", "unknown"]
            print_csv(columns, (_csv_row(*found) for found in _labels(asked)))
        else:
            print_table(["clip", "adapter", "label", "score", "note"], [_table_row(*found) for found in _labels(asked)])
        asked.end()


def embed(audio: Clips, adapter: Adapter, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print the voiceprints of clips, as JSON."""
    files = files_in(audio)
    with connected(url, key) as client:
        asked = Asked(files, lambda clips: client.embed(clips, adapter))
        print_json(_joined(asked))
        asked.end()


def verify(
    test: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The clip in question.")],
    enrolment: Annotated[
        list[Path], typer.Option("--enrol", "-e", exists=True, dir_okay=False, help="Clip of the speaker; repeat it.")
    ],
    adapter: Adapter,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Tell whether a clip is of an enrolled speaker: accept or reject."""
    with connected(url, key, clips=[*enrolment, test]) as client:
        answer = client.score(enrolment, test, adapter)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{answer['decision']} ({verdict(answer)})")


def verdict(answer: "ScoreAnswer") -> str:
    """What a decision rests on."""
    score, speech = answer["score"], answer["speech_seconds"]
    if score is None and speech is not None:
        return f"somebody speaks for {speech['enrolment']:.2f} s and {speech['test']:.2f} s"
    return f"score {score:.3f}, threshold {answer['threshold']:.3f}"


def _labels(asked: "Asked[ClassifyAnswer]") -> "Iterator[tuple[Path, Classification, LabelScore, float]]":
    """Each label, with its file, its result and the seconds of its clip."""
    for files, answer in asked:
        for result in answer["results"]:
            for label in result["labels"]:
                yield files[result["clip"]], result, label, answer["audio"][result["clip"]]["seconds"]


def _csv_row(file: Path, result: "Classification", label: "LabelScore", seconds: float) -> list[object]:
    heard = ";".join(f"{begin:g}-{end:g}" for begin, end in result["heard"])
    unknown = "true" if result.get("unknown") else ""
    return [file, result["adapter"], result["version"], label["label"], label["score"], heard, f"{seconds:g}", unknown]


def _table_row(file: Path, result: "Classification", label: "LabelScore", seconds: float) -> list[str]:
    notes = ["may be none of its labels"] if result.get("unknown") else []
    if sum(end - begin for begin, end in result["heard"]) < seconds - UNHEARD_SECONDS:
        stretches = ", ".join(f"{begin:.2f} to {end:.2f}" for begin, end in result["heard"])
        notes.append(f"heard {stretches} of {seconds:.2f} s")
    name = f"{result['adapter']}@{result['version']}"
    return [file.name, name, label["label"], f"{label['score']:.3f}", "; ".join(notes)]


def _joined(asked: "Asked[ClassifyAnswer] | Asked[EmbedAnswer]") -> dict[str, Any]:
    """The answers of all requests as one; `clip` counts in its `files` and `audio`."""
    joined: dict[str, Any] = {"results": [], "audio": [], "files": []}
    for files, answer in asked:
        before = len(joined["files"])
        joined["results"] += [{**result, "clip": before + result["clip"]} for result in answer["results"]]
        joined["audio"] += answer["audio"]
        joined["files"] += map(str, files)
    return joined
