"""`ipet adapters backup | restore | verify` on data directories, and the history of a running server."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.access.key_table import KeyTable
from service.cli import app
from service.database import open_database
from service.registry.store import Registry
from tests.api.live import Live
from tests.cli.test_commands import ipet
from tests.registry.bundles import AST, bundle
from tests.registry.publishing import publish
from tests.s3 import S3


def adapters(*words: object) -> Result:
    return CliRunner().invoke(app, ["adapters", *map(str, words)], env={"IPET_DATABASE_URL": "", "IPET_DATA_DIR": ""})


def test_a_registry_moves_and_is_verified(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "here", AST)
    for seed in (1, 2):
        publish(registry, bundle(seed=seed))
    registry.close()
    done = adapters("backup", tmp_path / "out", "--data-dir", tmp_path / "here")
    assert done.stdout == f"1 adapters, 2 versions in {tmp_path / 'out'}\n", done.output
    done = adapters("restore", tmp_path / "out", "--data-dir", tmp_path / "there")
    assert done.stdout == "1 adapters: 2 versions restored, 0 were there\n", done.output
    done = adapters("restore", tmp_path / "out", "--data-dir", tmp_path / "there")
    assert done.stdout == "1 adapters: 0 versions restored, 2 were there\n", done.output

    done = adapters("verify", "--data-dir", tmp_path / "there")
    assert (done.exit_code, done.stdout[:21]) == (0, "2 versions: 0 damaged")
    there = Registry(tmp_path / "there", AST)
    weights = there.weights_path(there.resolve("events@1"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (there.weights_path(there.resolve("events@2")).parent / "adapter_config.json").write_bytes(b"{}")
    done = adapters("verify", "--data-dir", tmp_path / "there")
    assert done.exit_code == 1
    assert done.stdout.startswith("events@1\tadapter_model.safetensors is damaged: its digest is sha256:")
    assert "1 damaged, 1 configs put back" in done.stdout
    verified = Registry(tmp_path / "there", AST, verify=True)
    assert "is damaged" in (verified.problem(verified.resolve("events@1")) or "")
    assert verified.problem(verified.resolve("events@2")) is None


def test_a_registry_moves_to_an_object_store(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry = Registry(tmp_path / "here", AST)
    for seed in (1, 2):
        publish(registry, bundle(seed=seed))
    registry.close()
    assert adapters("backup", tmp_path / "out", "--data-dir", tmp_path / "here").exit_code == 0
    there = ("--data-dir", tmp_path / "there", "--objects", bucket)
    done = adapters("restore", tmp_path / "out", *there)
    assert done.stdout == "1 adapters: 2 versions restored, 0 were there\n", done.output
    assert len(s3.keys(bucket)) == 6
    done = adapters("verify", *there)
    assert (done.exit_code, done.stdout[:21]) == (0, "2 versions: 0 damaged")
    digest = bundle(seed=1).digest.removeprefix("sha256:")
    (key,) = (key for key in s3.keys(bucket) if key.startswith(digest) and key.endswith("safetensors"))
    s3.put(f"{bucket}/{key}", b"damaged")
    done = adapters("verify", *there)  # of the store, whatever lies here
    assert (done.exit_code, done.stdout.partition(" in ")[0]) == (1, "events@1\tadapter_model.safetensors is damaged")
    done = adapters("verify", "--data-dir", tmp_path / "there", "--objects", "s3://nowhere")
    assert done.exit_code == 1
    assert "The specified bucket does not exist (NoSuchBucket)" in done.output


def test_the_old_names_still_work(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "here", AST)
    publish(registry, bundle())
    registry.close()
    assert adapters("export", tmp_path / "out", "--data-dir", tmp_path / "here").exit_code == 0
    done = adapters("import", tmp_path / "out", "--data-dir", tmp_path / "there")
    assert done.stdout == "1 adapters: 1 versions restored, 0 were there\n", done.output


@pytest.mark.parametrize("words", [("verify",), ("backup", "out"), ("export", "out")])
@pytest.mark.parametrize("has_keys", [False, True], ids=["nothing", "only keys"])
def test_looking_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], has_keys: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if has_keys:
        KeyTable(open_database(tmp_path / "data")).close()
    before = sorted(tmp_path.rglob("*"))
    done = adapters(*words, "--data-dir", tmp_path / "data")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there ")
    assert str(tmp_path / "data") in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = adapters("import", tmp_path / "out", "--data-dir", tmp_path / "data")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_history_of_an_adapter(live: Live, tmp_path: Path) -> None:
    for seed in (1, 2):
        live.publish(tmp_path, "told", seed=seed)
    rows = [line.split("\t")[1:] for line in ipet(live, "adapters", "history", "told").stdout.splitlines()]
    assert rows == [
        ["anonymous", "alias", "live -> version 2, before 1"],
        ["anonymous", "upload", "version 2"],
        ["anonymous", "alias", "live -> version 1"],
        ["anonymous", "upload", "version 1"],
    ]
    assert len(json.loads(ipet(live, "adapters", "history", "told", "--limit", 1, "--json").stdout)["history"]) == 1
