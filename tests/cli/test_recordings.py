"""Commands over recordings as a shell would call them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service.cli import app, recordings
from service.cli.journal import NAME, Journal
from service.registry.bundle import read_bundle
from service.registry.manifest import parse_manifest
from tests.api.live import Live
from tests.api.test_events import CLIP, INPUT, LEVELS, TONES
from tests.synthesis import encode
from tests.training.miniature import make_classes


def ipet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_wav2vec2_dir: Path) -> Path:
    """A folder for each class, an adapter of them, and soundscapes of the selection and the report part."""
    root = tmp_path_factory.mktemp("recordings")
    data = make_classes(root / "clips")
    words = ["folders", "--data", data, "--out", root / "bundle", "--set", f"backbone={tiny_wav2vec2_dir}"]
    changes = ["optimiser.epochs=1", "input.window_frames=50", "input.windows=1", "augment.background=0.2", "seed=2"]
    changes += ["adapter.head_start=random"]
    done = ipet("train", *words, *(word for each in changes for word in ("--set", each)), "--dtype", "float32")
    assert done.exit_code == 0, done.output
    for part in ("selection", "report"):
        scene = ["--seconds", 8, "--gap", 1, 2, "--count", 3, "--seed", 4]
        done = ipet("soundscapes", "--data", data, "--out", root / part, "--part", part, *scene)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("3 soundscapes, ")
    return root


def test_a_bundle_is_calibrated_and_measured(made: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    on = ["--backbone", tiny_wav2vec2_dir, "--dtype", "float32"]
    table = made / "selection" / "events.csv"
    done = ipet(
        "calibrate", made / "bundle", "--events", table, "--data", made / "selection", "--out", tmp_path / "out", *on
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split("\t")[:2] == ["before", "event F1"]
    thresholds = parse_manifest(read_bundle(tmp_path / "out").config).events_asked["threshold"]
    assert set(thresholds) == {"blues", "jazz", "rock"}

    table = made / "report" / "events.csv"
    how = ["--events", table, "--data", made / "report", "--bootstrap", 20, *on]
    done = ipet("evaluate", tmp_path / "out", *how)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["recordings"], figures["seconds"]) == (3, 24.0)
    assert figures["parameters"]["threshold"] == thresholds
    done = ipet("evaluate", tmp_path / "out", *how, "--hop", 0.25, "--threshold", 0.9)
    assert (json.loads(done.stdout)["parameters"]["hop"], json.loads(done.stdout)["parameters"]["threshold"]) == (
        0.25,
        0.9,
    )
    done = ipet("evaluate", tmp_path / "out", *how, "--hop", 0.123)
    assert (done.exit_code, "multiple of 0.01 s" in done.stderr) == (1, True)


def test_what_is_to_be_calibrated_has_to_be_said(made: Path, tmp_path: Path) -> None:
    done = ipet("calibrate", made / "bundle", "--data", made / "report", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "expected one of --trials and --events" in done.stderr


# `ipet events`, by a running server


@pytest.fixture(scope="module")
def hears(live: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    fields = {"labels": ("cat", "dog", "background"), "activation": "softmax", "events": LEVELS, "input": INPUT}
    live.publish(tmp_path_factory.mktemp("recordings"), "folder-hears", seed=3, **fields)
    return "folder-hears"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.flac").write_bytes(CLIP)
    (tmp_path / "in" / "sub" / "b.flac").write_bytes(CLIP)
    return tmp_path / "in"


def ask(live: Live, *words: object) -> Result:
    return CliRunner().invoke(app, ["events", *map(str, words)], env={"IPET_URL": live.url, "COLUMNS": "200"})


def test_the_tables_of_a_folder_are_the_services(live: Live, hears: str, folder: Path, tmp_path: Path) -> None:
    headers = {"Accept": "text/csv"}
    wanted = live.http.post(f"/v1/events?adapter={hears}", content=CLIP, headers=headers).text.splitlines()
    printed = ask(live, folder, "-a", hears)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.splitlines()[0] == "file,adapter,version,label,start,end,score"
    told = [line.partition(",") for line in printed.stdout.splitlines()[1:]]
    assert [rest for file, _, rest in told if file == "sub/b.flac"] == [line.partition(",")[2] for line in wanted[1:]]
    assert {file for file, _, _ in told} == {"a.flac", "sub/b.flac"}
    for form, ending in (("csv", ".csv"), ("audacity", ".labels.txt"), ("raven", ".selections.txt"), ("json", ".json")):
        done = ask(live, folder, "-a", hears, "--format", form, "--out", tmp_path / form)
        assert done.exit_code == 0, done.output
        names = {f"a.flac{ending}", f"sub/b.flac{ending}", NAME}
        assert {file.relative_to(tmp_path / form).as_posix() for file in (tmp_path / form).rglob("*.*")} == names
    assert (tmp_path / "csv" / "a.flac.csv").read_text().splitlines()[1:] == [f"a.flac{line}" for line in wanted[1:]]
    labels = (tmp_path / "audacity" / "a.flac.labels.txt").read_text().splitlines()
    assert [line.split("\t")[2] for line in labels] == [line.split(",")[3] for line in wanted[1:]]


def test_a_run_goes_on_where_it_was(live: Live, hears: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = ask(live, folder / "a.flac", "-a", hears, "--out", out)
    assert (first.exit_code, "1 recordings; 12 s of audio" in first.stderr) == (0, True)
    journal = out / NAME
    with journal.open("a") as file:
        file.write('{"path": "cut o')  # a line that a kill left
    again = ask(live, folder, "-a", f"{hears}@live", "--out", out, "--combined")
    assert "2 recordings, 1 known from before; 12 s of audio" in again.stderr
    rows = csv.DictReader((out / "events.csv").read_text().splitlines())
    assert {row["file"] for row in rows} == {"a.flac", "sub/b.flac"}
    assert len(journal.read_text().splitlines()) == 2
    assert "2 known from before; 0 s" in ask(live, folder, "-a", hears, "--out", out).stderr
    assert (out / "sub" / "b.flac.csv").exists()  # made of what is known
    asked = ask(live, folder, "-a", hears, "--out", out, "--hop", 0.25)
    assert "known" not in asked.stderr  # other parameters
    (folder / "a.flac").touch()
    assert "1 known from before" in ask(live, folder, "-a", hears, "--out", out, "--hop", 0.25).stderr
    assert "known" not in ask(live, folder, "-a", hears, "--out", out, "--hop", 0.25, "--fresh").stderr


def test_what_cannot_be_heard_is_told_and_the_rest_is_kept(
    live: Live, hears: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "bad.wav").write_bytes(b"no audio at all")
    (folder / "broken.wav").write_bytes(encode(np.concatenate(TONES), 16_000, "wav")[:200_000])
    done = ask(live, folder, "-a", hears, "--out", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 1
    assert "bad.wav: " in done.stderr
    assert not (tmp_path / "out" / "bad.wav.csv").exists()
    assert (tmp_path / "out" / "sub" / "b.flac.csv").exists()
    unknown = ask(live, folder, "-a", "nobody", "--out", tmp_path / "out")
    assert (unknown.exit_code, "unknown_adapter: " in unknown.stderr) == (1, True)
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "a.flac").write_bytes(CLIP)
    twice = ask(live, folder, tmp_path / "twice", "-a", hears)
    assert (twice.exit_code, "would both be a.flac" in twice.stderr) == (1, True)


def test_one_recording_ends_no_run(live: Live, hears: str, folder: Path, tmp_path: Path) -> None:
    (folder / "a-empty.wav").write_bytes(b"")
    done = ask(live, folder, "-a", hears, "--out", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 1
    assert f"error: {folder / 'a-empty.wav'}: " in done.stderr
    assert (tmp_path / "out" / "sub" / "b.flac.csv").exists()
    nobody = CliRunner().invoke(app, ["events", str(folder), "-a", f"{hears}@1", "--url", "http://127.0.0.1:9"])
    assert (nobody.exit_code, nobody.stderr.count("error: ")) == (1, 1)


def test_what_cannot_be_read_is_told_by_name(
    live: Live, hears: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recordings.audio_in
    monkeypatch.setattr(recordings, "audio_in", lambda path: [path / "gone.wav", *found(path)])
    done = ask(live, folder, "-a", hears)
    assert (done.exit_code, f"error: {folder / 'gone.wav'}: " in done.stderr) == (1, True)
    assert "sub/b.flac," in done.stdout


def test_a_journal_keeps_what_would_be_answered_again(tmp_path: Path) -> None:
    clips = [tmp_path / name for name in ("damaged", "busy", "whole")]
    codes: list[dict[str, object]] = [{"error": {"code": "bad_audio"}}, {"error": {"code": "deadline_exceeded"}}, {}]
    journal = Journal(tmp_path / "out", {"hop": 0.5})
    for clip, code in zip(clips, codes, strict=True):
        clip.write_bytes(b"audio")
        assert journal.answer(clip) is None
        journal.keep(clip, {"events": [], **code})
    path = tmp_path / "out" / NAME
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b'{"path": "cut\xff', b"[]", b'{"path": "x"}', *lines[1:], b"half"]))
    again = Journal(tmp_path / "out", {"hop": 0.5})
    assert [again.answer(clip) is not None for clip in clips] == [True, False, True]


def test_parquet_where_pyarrow_is(live: Live, hears: str, folder: Path, tmp_path: Path) -> None:
    done = ask(live, folder, "-a", hears, "--format", "parquet", "--out", tmp_path / "out", "--combined")
    try:
        import pyarrow.parquet as pq
    except ImportError:
        assert (done.exit_code, "pip install pyarrow" in done.stderr) == (1, True)
    else:
        assert pq.read_table(tmp_path / "out" / "events.parquet").column_names[0] == "file"
