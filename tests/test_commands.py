"""What README and docs tell to type can be typed, and what they say comes out does: on the shipped bundles."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
from typer.testing import CliRunner

from service.cli import app
from tests.cli.process import Served, serving
from tests.synthesis import encode, noise
from tests.test_docs import DOCUMENTS, ROOT
from tests.training.miniature import chord

README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:8000"
CONSOLE = re.compile(r"^```console\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
NEAR = 0.03  # between figures of this page and of another machine's arithmetic


def commands(path: Path) -> Iterator[tuple[str, str]]:
    """Every command of a page, its lines joined and its comment cut off, and what is printed below it."""
    for block in CONSOLE.findall(path.read_text()):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            if shlex.split(command, comments=True):
                yield command, printed.strip()


ALL = [(path, command) for path in DOCUMENTS for command, _ in commands(path)]
OURS = [(path, words) for path, command in ALL if (words := shlex.split(command, comments=True))[0] == "ipet"]
CURL = [(command, printed) for command, printed in commands(README) if command.startswith("curl ")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `make serve` serves."""
    data = tmp_path_factory.mktemp("readme") / "data"
    with serving("embedded", data, adapters=ROOT / "adapters/bundles", dtype="auto") as process:
        yield process


@pytest.fixture
def url(served: Served) -> str:
    return served.url


def test_there_are_commands_to_try() -> None:
    assert len(OURS) >= 10
    assert len(CURL) >= 6
    assert sum(1 for _, printed in CURL if printed) >= 3


@pytest.mark.parametrize(("path", "words"), OURS, ids=[f"{path.name}: {' '.join(words[1:4])}" for path, words in OURS])
def test_the_command_line_takes_it(path: Path, words: list[str]) -> None:
    """Command, options and their forms; not whether the files are there, which is the reader's."""
    command, context, rest = typer.main.get_command(app), None, words[1:]
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        context = click.Context(command, parent=context, info_name=words[0])
        name, *rest = rest
        found = command.get_command(context, name)  # type: ignore[attr-defined]
        assert found is not None, f"{path.name}: ipet has no command {name}"
        command = found
    parsed, left, _ = command.make_parser(click.Context(command, parent=context)).parse_args(args=list(rest))
    assert not left
    needed = [one.name for one in command.params if one.required and not parsed.get(one.name or "")]
    assert not needed, f"{path.name}: {' '.join(words)} lacks {needed}"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize(("command", "printed"), CURL, ids=[command[-60:] for command, _ in CURL])
def test_curl_prints_what_the_readme_says(url: str, command: str, printed: str) -> None:
    words = shlex.split(command.replace(ADDRESS, url), comments=True)
    done = subprocess.run([words[0], "-sS", "--fail-with-body", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if printed:
        same(json.loads(done.stdout), json.loads(printed.replace("\n", "")), "the answer")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_life_of_a_speaker_is_what_its_page_says(url: str) -> None:
    """The page's calls, in their order, and what comes of each."""
    told = []
    for command, _ in commands(ROOT / "docs/SPEAKERS.md"):
        words = shlex.split(command.replace(ADDRESS, url), comments=True)
        if words[0] != "curl":
            continue
        curl = [words[0], "-sS", "--fail-with-body", *words[1:]]
        done = subprocess.run(curl, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout) if done.stdout else {}
        told.append(next((answer[name] for name in ("decision", "status", "speaker") if name in answer), len(answer)))
    assert told == [
        *("pending", "enrolled", "accept", "reject", "identified", "unknown"),
        *(2, "ann", "opted_out", "pending", 0, "queued"),  # list, export, opt-out, opt-in, deletion, a job
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_recordings_are_heard_as_their_page_says(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's calls of a running server; the tables that it describes come of them."""
    (tmp_path / "night").mkdir()
    for number in range(2):
        shutil.copy(ROOT / "adapters/examples/dog.flac", tmp_path / f"night/{number}.flac")
    asked = [shlex.split(command.replace(ADDRESS, url)) for command, _ in commands(ROOT / "docs/RECORDINGS.md")]
    said = [
        subprocess.run([*words, "-sS", "--fail-with-body"], cwd=ROOT, capture_output=True, text=True).stdout
        for words in asked
        if words[0] == "curl"
    ]
    table, job = said
    assert table.splitlines()[0] == "file,adapter,version,label,start,end,score"
    assert ",sound-events,1,dog,0.0," in table
    assert json.loads(job)["status"] == "queued"
    (events,) = (words for words in asked if words[:2] == ["ipet", "events"])
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*events[1:], "--url", url])
    assert done.exit_code == 0, done.output
    assert "2 recordings; 6 s of audio" in done.output
    labels = sorted((tmp_path / "labels").glob("[01]*"))
    assert len(labels) == 2
    assert all(re.fullmatch(r"(\d+\.\d{6}\t\d+\.\d{6}\tdog\n)+", path.read_text()) for path in labels)


def same(found: Any, told: Any, where: str) -> None:
    """Same members in the same order, same words, figures near one another."""
    if isinstance(told, dict):
        assert list(found) == list(told), where
        for name in told:
            same(found[name], told[name], f"{where}.{name}")
    elif isinstance(told, list):
        assert len(found) == len(told), where
        for at, (one, other) in enumerate(zip(found, told, strict=True)):
            same(one, other, f"{where}[{at}]")
    elif isinstance(told, float):
        assert found == pytest.approx(told, abs=NEAR, rel=NEAR), where
    else:
        assert found == told, where


def test_the_python_example_runs(url: str) -> None:
    for example in PYTHON.findall(README.read_text()):
        code = example.replace(ADDRESS, url) + "\nassert answer['results']"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_greeting_is_what_make_serve_prints(served: Served) -> None:
    """The size of the backbone and the adapters that it tells."""
    assert served.process.stdout is not None
    pattern = re.compile(r"^ *backbone (\S+ \(\S+ M parameters\)) on .*; (adapters: .*)$", re.MULTILINE)
    told, printed = pattern.search(README.read_text()), pattern.search(served.process.stdout.readline())
    assert told
    assert printed
    assert printed.groups() == told.groups()


def test_the_figures_are_those_of_the_bundles() -> None:
    rows = re.findall(
        r"^\|(?: `([\w-]+)`)? \| [^|]+ \| (\w+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", README.read_text(), re.M
    )
    assert len(rows) == 7
    name = ""
    for named, figure, value, low, high in rows:
        name = named or name
        report = json.dumps(json.loads((ROOT / "adapters/bundles" / name / "figures.json").read_text())["report"])
        digits = [f"{float(number):.3f}" for number in re.findall(r"\d+\.\d+", report)]
        assert {value, low, high} <= set(digits), (name, figure, value, low, high)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Beside a server, training is faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_the_way_from_a_folder_of_clips_to_a_served_adapter(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's commands, on five clips for each of three classes."""
    for target, label in enumerate(("hum", "whistle", "hiss")):
        for take in range(5):
            clip = noise(1.0, seed=take)[:, 0] if label == "hiss" else chord(200.0 * 6**target, 1.0, seed=take)
            (tmp_path / "DATA" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "DATA" / label / f"{take}.wav").write_bytes(encode(clip))
    (tmp_path / "CLIP.wav").write_bytes(encode(chord(1210.0, 1.5, seed=9)))
    own = [command for command, _ in commands(README) if "runs/mine" in command or "--adapter mine" in command]
    assert len(own) == 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPET_URL", served.url)
    for command in own:
        done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert done.exit_code == 0, done.output
    assert "whistle" in done.stdout.split("hum")[0].split("hiss")[0]  # before the other two: the likeliest
