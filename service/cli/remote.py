"""Commands that ask a running server: classify, embed, verify."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import DEFAULT_URL, AsJson, Key, Url, connected, print_json, print_table

Clips = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Audio files.")]
Adapter = Annotated[str, typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`.")]


def classify(
    audio: Clips,
    adapter: Annotated[
        list[str], typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`; may be repeated.")
    ],
    top_k: Annotated[int, typer.Option(min=0, help="Labels to print, best first; 0 is all.")] = 5,
    windows: Annotated[bool, typer.Option("--windows", help="With --json: the labels of every window.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Label clips with one or more adapters."""
    with connected(url, key) as client:
        answer = client.classify(audio, adapter, top_k=top_k, windows=windows)
    if as_json:
        print_json(answer)
        return
    rows = [
        [audio[result["clip"]].name, f"{result['adapter']}@{result['version']}", one["label"], f"{one['score']:.3f}"]
        for result in answer["results"]
        for one in result["labels"]
    ]
    print_table(["clip", "adapter", "label", "score"], rows)


def embed(audio: Clips, adapter: Adapter, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print the voiceprints of clips, as JSON."""
    with connected(url, key) as client:
        print_json(client.embed(audio, adapter))


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
    with connected(url, key) as client:
        answer = client.score(enrolment, test, adapter)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{answer['decision']} (score {answer['score']:.3f}, threshold {answer['threshold']:.3f})")
