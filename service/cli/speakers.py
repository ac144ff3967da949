"""`ipet speakers`: the people of a service, by a running server; and their keys, at rest."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli import at_rest
from service.cli.clips import AUDIO, Asked, audio_in, print_csv
from service.cli.connection import DEFAULT_URL, AsJson, Key, Url, connected, fail, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer(help="The speakers of a service.", no_args_is_help=True, rich_markup_mode=None)
Speaker = Annotated[str, typer.Argument(help="The speaker's id.")]
Adapter = Annotated[str, typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`.")]
Clip = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The clip in question.")]
COLUMNS: Final = ["speaker", "clips", "result", "speech_seconds", "needed_seconds", "note"]


@app.command()
def enrol(
    source: Annotated[Path, typer.Argument(exists=True, metavar="FOLDER|CSV", help="Who is to be enrolled by what.")],
    adapter: Adapter,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--skip", help="Who is enrolled by all their clips: anew, or left as they are.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Enrol many speakers: a folder for each (or files of that name), or a CSV of `speaker,path`.

    Prints CSV, a row for each speaker; ends with 1 where somebody or some clip could not be enrolled. Started again, it
    goes on: who is enrolled by as many clips is skipped, who was begun with is enrolled by these clips alone. Nobody
    loses a voiceprint to clips that do not make another.
    """
    is_whole = True

    def rows() -> Iterator[list[object]]:
        nonlocal is_whole
        for done, (speaker, clips) in enumerate(people.items()):
            show(done, len(people))
            row = _enrol(client, speaker, clips, adapter, overwrite)
            is_whole &= row["result"] in ("enrolled", "skipped")
            yield [speaker, len(clips), *(row.get(name, "") for name in COLUMNS[2:])]

    with connected(url, key) as client, progress_bar("enrolling") as show:
        people = _listed(source) if source.is_file() else _in_folders(source)
        print_csv(COLUMNS, rows())
    if not is_whole:
        raise typer.Exit(1)


@app.command("list")
def list_speakers(
    status: Annotated[str | None, typer.Option(help="pending, enrolled, stale, expired or opted_out.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", "-a", help="Whose status; the best without it.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show the speakers of the key's domain."""
    with connected(url, key) as client:
        found = client.speakers(status, adapter)
    names = ["speaker", "status", "created", "used", "expires"]
    print_table(names, [[str(one[name] or "") for name in names] for one in found], found if as_json else None)


@app.command()
def show(speaker: Speaker, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print one speaker: consent, status and enrolments, as JSON."""
    with connected(url, key) as client:
        print_json(client.speaker(speaker))


@app.command()
def export(speaker: Speaker, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print all that is stored of a person, the voiceprints too, as JSON."""
    with connected(url, key) as client:
        print_json(client.export_speaker(speaker))


@app.command()
def verify(
    speaker: Speaker,
    clip: Clip,
    adapter: Adapter,
    threshold: Annotated[str | None, typer.Option(help="A name of the adapter's `thresholds`, or a cosine.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Tell whether a voice is the speaker's."""
    with connected(url, key, clips=[clip]) as client:
        answer = client.verify(speaker, clip, adapter, threshold)
    if as_json:
        print_json(answer)
        return
    is_named = answer["threshold_name"] not in (None, "default")  # names judge the normalised score where there is one
    name = "normalised_score" if is_named and answer.get("normalised_score") is not None else "score"
    score = "not compared" if answer[name] is None else f"{name.replace('_', ' ')} {answer[name]:.3f}"
    typer.echo(f"{answer['decision']} ({score}, threshold {answer['threshold']:.3f})")
    _warn(answer["warnings"])


@app.command()
def identify(
    clip: Clip,
    adapter: Adapter,
    among: Annotated[list[str] | None, typer.Option(help="Only this speaker; may be repeated.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Tell whose voice it is, of everybody who is enrolled."""
    with connected(url, key, clips=[clip]) as client:
        answer = client.identify(clip, adapter, among or ())
    if as_json:
        print_json(answer)
        return
    typer.echo(f"{answer['decision']} (threshold {answer['threshold']:.3f} for {answer['searched']} searched)")
    _warn(answer["warnings"])
    print_table(["speaker", "score"], [[one["speaker"], f"{one['score']:.3f}"] for one in answer["candidates"]])


@app.command()
def delete(
    speaker: Speaker,
    enrolment: Annotated[int | None, typer.Option(min=1, help="One enrolment only.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the whole person goes.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Delete a person, or one of their enrolments, for good."""
    if enrolment is None and not yes:
        typer.confirm(f"Delete {speaker} with all enrolments?", abort=True)
    with connected(url, key) as client:
        client.delete_speaker(speaker, enrolment)
    typer.echo(f"deleted {speaker}" + ("" if enrolment is None else f", enrolment {enrolment}"))


app.command()(at_rest.rekey)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _in_folders(folder: Path) -> dict[str, list[Path]]:
    """The clips of each speaker: those in the folder of that name, and the files of that name beside it."""
    people: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            people[path.name] += audio_in(path)
        elif path.suffix.lower() in AUDIO:
            people[path.stem].append(path)
    return people or fail(f"{folder} holds neither folders of speakers nor audio files")


def _listed(table: Path) -> dict[str, list[Path]]:
    """The clips of each speaker in a table of `speaker,path`; paths are seen from its folder."""
    people: dict[str, list[Path]] = defaultdict(list)
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"speaker", "path"} <= set(reader.fieldnames or ()):
            fail(f"{table}: expected the columns speaker and path, got {', '.join(reader.fieldnames or ())}")
        for row in reader:
            if not row["speaker"] or not row["path"]:
                fail(f"{table}: line {reader.line_num} lacks its speaker or its path")
            people[row["speaker"]].append(table.parent / row["path"])
    return people


def _enrol(client: "Client", speaker: str, clips: list[Path], adapter: str, overwrite: bool) -> dict[str, Any]:
    """What came of one speaker: `result` is a status, `skipped`, or why it is neither."""
    from service.client import ProblemError

    if not clips:
        return {"result": "no_audio", "note": "the folder holds no audio file"}
    try:
        standing = _standing(client, speaker, adapter)
        old = [one["id"] for one in standing["enrolments"] if one["digest"] == standing["digest"]]
        is_enrolled = standing["status"] == "enrolled"
        if is_enrolled and not overwrite and len(old) >= len(clips):
            return {"result": "skipped"}
        if not is_enrolled:  # what a run before began with: the same clips must not count twice
            _forget(client, speaker, old)
            old = []
        return _send(client, speaker, clips, adapter, old)
    except ProblemError as error:
        return {"result": error.code, "note": error.detail}
    except OSError as error:
        return {"result": "unreadable", "note": str(error)}


def _send(client: "Client", speaker: str, clips: list[Path], adapter: str, old: list[int]) -> dict[str, Any]:
    """Enrols by clips in place of `old` enrolments, which stay where the clips alone do not make a voiceprint."""
    asked = Asked(clips, lambda some: client.enrol(speaker, some, adapter), bar="")
    row, added = dict[str, Any](), list[dict[str, Any]]()
    is_better = not old
    try:
        for _, row in asked:
            added += row["enrolments"]
        seconds = round(sum(one["speech_seconds"] for one in added), 6)
        is_better |= bool(row) and seconds >= row["needed_seconds"]
    finally:  # a run that breaks off leaves the old ones alone, and nothing that counts beside them
        _forget(client, speaker, old if is_better else [one["id"] for one in added if one["id"] is not None])
    notes = [f"{file}: {error.detail}" for file, error in asked.left_out]
    notes += dict.fromkeys(word for one in added for word in one["warnings"])
    if not is_better:
        notes.append("older enrolments stay")
        row["status"] = "not_enough_speech"
    result = asked.left_out[0][1].code if asked.left_out else row["status"]
    return {**row, "speech_seconds": seconds, "result": result, "note": " ".join(notes)}


def _forget(client: "Client", speaker: str, enrolments: list[int]) -> None:
    for enrolment in enrolments:
        client.delete_speaker(speaker, enrolment)


def _standing(client: "Client", speaker: str, adapter: str) -> dict[str, Any]:
    """How a speaker stands with an adapter; who is not known has no enrolments."""
    from service.client import ProblemError

    try:
        return dict(client.speaker(speaker, adapter)["adapters"][0])
    except ProblemError as error:
        if error.code != "unknown_speaker":
            raise
        return {"status": "unknown", "enrolments": []}
