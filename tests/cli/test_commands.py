"""The commands against a real server, as a shell would call them."""

import csv
import io
import json
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.synthesis import encode, noise


def ipet(live: Live, *words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"IPET_URL": live.url, "IPET_KEY": ""})


@pytest.fixture
def file(clip: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    return path


def test_classify(live: Live, file: Path) -> None:
    done = ipet(live, "classify", file, file, "-a", "alpha", "-a", "beta", "--top-k", 2)
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 8
    assert [row[1] for row in rows[::2]] == ["alpha@1", "beta@1"] * 2
    assert {row[4] for row in rows} == {""}
    done = ipet(live, "classify", file, "-a", "alpha", "--json", "--windows")
    assert len(json.loads(done.stdout)["results"][0]["windows"]) == 3


def test_what_was_heard_is_shown(live: Live, tmp_path: Path) -> None:
    """A long clip is answered from its first window, and a score below the adapter's own bound may mean nothing."""
    window = {"sampling_rate": 16000, "window_frames": 64, "windows": 1, "mean": -6.0, "std": 5.0}
    live.publish(tmp_path, "first-window", input=window, reject_below=0.999)
    (tmp_path / "long.wav").write_bytes(encode(noise(4.0)))
    done = ipet(live, "classify", tmp_path / "long.wav", "-a", "first-window", "--top-k", 1)
    assert done.stdout.split("\t")[4] == "may be none of its labels; heard 0.00 to 0.64 of 4.00 s\n"
    done = ipet(live, "classify", tmp_path / "long.wav", "-a", "first-window", "--top-k", 1, "--csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["heard"], row["seconds"], row["unknown"]) == ("0-0.64", "4", "true")
    live.http.delete("/v1/adapters/first-window")


def test_not_enough_speech_is_told(live: Live, file: Path, tmp_path: Path) -> None:
    live.publish(tmp_path, "listening", task=TaskType.VERIFICATION, speech={})
    done = ipet(live, "verify", file, "--enrol", file, "-a", "listening")
    assert (done.exit_code, done.stdout) == (0, "not_enough_speech (somebody speaks for 0.00 s and 0.00 s)\n")
    live.http.delete("/v1/adapters/listening")


def test_embed_and_verify(live: Live, file: Path) -> None:
    done = ipet(live, "embed", file, "-a", "gamma")
    assert len(json.loads(done.stdout)["results"][0]["embedding"]) == 6
    done = ipet(live, "verify", file, "--enrol", file, "-a", "gamma")
    assert done.stdout == "accept (score 1.000, threshold 0.250)\n"
    done = ipet(live, "verify", file, "-e", file, "-a", "gamma", "--json")
    assert json.loads(done.stdout)["decision"] == "accept"


@pytest.fixture
def folder(clip: bytes, tmp_path: Path) -> Path:
    """More clips than a request takes, in folders, two of them no audio."""
    for i in range(20):
        place = tmp_path / "clips" / f"day-{i % 2}" / f"{i:02}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(clip if i not in (3, 7) else b"no audio")
    (tmp_path / "clips" / "notes.txt").write_text("not asked")
    return tmp_path / "clips"


def test_classify_a_folder(live: Live, folder: Path) -> None:
    """Files that cannot be heard are named and end the command with 1; all others are answered."""
    done = ipet(live, "classify", folder, "-a", "alpha", "--top-k", 1, "--csv")
    assert done.exit_code == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    good = [path for path in sorted(folder.rglob("*.wav")) if path.name not in ("03.wav", "07.wav")]
    assert sorted(row["file"] for row in rows) == [str(path) for path in good]
    assert {row["adapter"] for row in rows} == {"alpha"}
    assert all(0 < float(row["score"]) <= 1 for row in rows)
    errors = done.stderr.splitlines()
    assert [line.partition(": the clip")[0] for line in errors] == [
        f"error: {folder / 'day-1' / name}" for name in ("03.wav", "07.wav")
    ]


def test_more_clips_than_a_request_takes(live: Live, folder: Path) -> None:
    assert live.context.settings.max_clips < 16  # fewer than the command sends: it finds out
    for name in ("03.wav", "07.wav"):
        (folder / "day-1" / name).unlink()
    done = ipet(live, "classify", folder, "-a", "alpha", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [result["clip"] for result in answer["results"]] == list(range(18))
    assert len(answer["audio"]) == 18
    assert answer["files"] == [str(path) for path in sorted(folder.rglob("*.wav"))]


def test_embed_names_the_file_at_fault(live: Live, file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    done = ipet(live, "embed", tmp_path / "bad.wav", file, "-a", "gamma")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.wav'}: the clip is no audio")
    assert json.loads(done.stdout)["files"] == [str(file)]
    done = ipet(live, "verify", file, "--enrol", file, "-e", tmp_path / "bad.wav", "-a", "gamma")
    assert done.stderr.startswith(f"error: bad_audio: {tmp_path / 'bad.wav'}: the clip is no audio")


def test_a_folder_without_audio(live: Live, tmp_path: Path) -> None:
    done = ipet(live, "classify", tmp_path, "-a", "alpha")
    assert done.exit_code == 1
    assert "holds no audio file" in done.stderr


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"ipet-serve {metadata.version('ipet-serve')}\n")


def test_push_of_what_is_no_bundle(live: Live, tmp_path: Path) -> None:
    random_bundle(tmp_path, live.backbone, "mine", 1)
    done = ipet(live, "adapters", "push", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {tmp_path} is no bundle: it has no adapter_config.json")
    done = ipet(live, "adapters", "push", tmp_path / "mine-1", "--name", "yours")
    assert done.stderr.startswith("error: ")
    assert 'says "name": "mine", so it can be no version of \'yours\'' in done.stderr


def test_adapters(live: Live, tmp_path: Path) -> None:
    for seed in (1, 2):
        files = random_bundle(tmp_path, live.backbone, "by-hand", seed)
        done = ipet(live, "adapters", "push", tmp_path / f"by-hand-{seed}")
        assert done.stdout == f"by-hand@{seed} live {files.digest}\n"
    listed = {line.split("\t")[0]: line.split("\t") for line in ipet(live, "adapters", "list").stdout.splitlines()}
    assert listed["by-hand"][1:4] == ["AUDIO_CLASSIFICATION", "2", ""]
    assert ipet(live, "adapters", "activate", "by-hand", 1).stdout == "by-hand@live is version 1\n"
    assert json.loads(ipet(live, "adapters", "inspect", "by-hand").stdout)["live"] == 1
    assert "by-hand@1 in" in ipet(live, "adapters", "pull", "by-hand", "--out", tmp_path / "pulled").stdout
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "pulled" / name).read_bytes() == (tmp_path / "by-hand-1" / name).read_bytes()
    assert ipet(live, "adapters", "delete", "by-hand", "--version", 2).stdout == "deleted by-hand@2\n"
    assert ipet(live, "adapters", "delete", "by-hand", "--yes").exit_code == 0
    gone = ipet(live, "adapters", "inspect", "by-hand")
    assert gone.exit_code == 1
    assert gone.stderr.startswith("error: unknown_adapter: ")


def test_history_of_an_adapter(live: Live, tmp_path: Path) -> None:
    for seed in (1, 2):
        live.publish(tmp_path, "chronicled", seed=seed)
    assert ipet(live, "adapters", "activate", "chronicled", 1).exit_code == 0
    assert ipet(live, "adapters", "delete", "chronicled", "--version", 2).exit_code == 0
    assert ipet(live, "adapters", "delete", "chronicled", "--yes").exit_code == 0
    rows = [line.split("\t") for line in ipet(live, "adapters", "history", "chronicled").stdout.splitlines()]
    assert [row[1:] for row in rows] == [
        ["anonymous", "delete_adapter", ""],
        ["anonymous", "delete_version", "version 2"],
        ["anonymous", "alias", "live -> version 1, before 2"],
        ["anonymous", "alias", "live -> version 2, before 1"],
        ["anonymous", "upload", "version 2"],
        ["anonymous", "alias", "live -> version 1"],
        ["anonymous", "upload", "version 1"],
    ]
    newest = json.loads(ipet(live, "adapters", "history", "chronicled", "--limit", 2, "--json").stdout)["history"]
    assert [change["action"] for change in newest] == ["delete_adapter", "delete_version"]
    assert [change["at"] for change in newest] == [row[0] for row in rows[:2]]
    unknown = ipet(live, "adapters", "history", "never-there")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("error: unknown_adapter: ")


def test_a_key_that_is_missing(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", admin_keys="a-key")) as live:
        refused = ipet(live, "adapters", "list")
        assert refused.exit_code == 1
        assert "--key, or the variable IPET_KEY" in refused.stderr
        assert ipet(live, "adapters", "list", "--key", "a-key").exit_code == 0


def test_no_server(file: Path) -> None:
    done = CliRunner().invoke(app, ["classify", str(file), "-a", "x", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "is `ipet serve` running there?" in done.stderr


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_faults_of_the_user_are_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("no recipe")
    source = [tmp_path / "recipe.toml", "--out", tmp_path / "out"] if command == "train" else [tmp_path]
    done = CliRunner().invoke(app, [command, *map(str, source), "--data", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
