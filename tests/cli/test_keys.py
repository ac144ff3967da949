"""`ipet keys`, as a shell would call it."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.serving import has_keys
from service.settings import Settings


def ipet(data_dir: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, words)], env={"IPET_DATA_DIR": str(data_dir), "COLUMNS": "200"})


def test_life_of_a_key(tmp_path: Path) -> None:
    words = ("--scopes", "infer,read", "--adapters", "acme-*,shared", "--adapters", "x", "--name", "night job")
    limits = ("--expires", "30d", "--rate", "10/s", "--concurrency", "4")
    made = ipet(tmp_path, "create", *words, *limits)
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    found = re.fullmatch(r"ipet_([0-9a-f]{12})_([\w-]{43})", token)
    assert found is not None, "standard output is the key and nothing else"
    assert f"key {found[1]} may infer,read" in made.stderr
    assert token not in made.stderr

    listed = ipet(tmp_path, "list")
    assert found[2] not in listed.output, "the secret may hold underscores: all of it is looked for"
    row = listed.stdout.strip().split("\t")
    assert row[:5] == [found[1], "night job", "infer,read", "acme-*,shared,x", "10/s, 4 at once"]
    assert row[7] == "active"
    (told,) = json.loads(ipet(tmp_path, "list", "--json").stdout)
    assert told["scopes"] == ["infer", "read"]
    assert told["adapters"] == ["acme-*", "shared", "x"]
    lasts = datetime.fromisoformat(told["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < lasts < timedelta(days=30)

    assert ipet(tmp_path, "revoke", found[1]).stdout == f"revoked {found[1]}\n"
    assert json.loads(ipet(tmp_path, "list", "--json").stdout)[0]["state"] == "revoked"


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--scopes", "root"),
        ("create", "--scopes", ""),
        ("create", "--scopes", "infer", "--adapters", "../etc"),
        ("create", "--scopes", "infer", "--expires", "soon"),
        ("create", "--scopes", "infer", "--rate", "fast"),
        ("create", "--scopes", "infer", "--concurrency", "0"),
        ("create", "--scopes", "infer", "--name", "two\nlines"),
        ("create", "--scopes", "infer", "--domain", "../etc"),
        ("revoke", "000000000000"),
        ("revoke", "ipet_000000000000_secret"),
    ],
)
def test_faults_are_told_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = ipet(tmp_path, *words)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_stored_key_is_a_key_to_bind_with(tmp_path: Path) -> None:
    assert not has_keys(Settings(data_dir=tmp_path))
    assert ipet(tmp_path, "create", "--scopes", "admin").exit_code == 0
    assert has_keys(Settings(data_dir=tmp_path))


def test_create_begins_a_registry_and_says_where(tmp_path: Path) -> None:
    there = tmp_path / "new" / "data"
    first, second = (ipet(there, "create", "--scopes", "read,speakers,identify", "--domain", "acme") for _ in range(2))
    assert re.fullmatch(r"ipet_[0-9a-f]{12}_[\w-]{43}\n", first.stdout)
    assert f"a new one begins in {there.resolve() / 'registry.sqlite'}\n" in first.stderr
    assert "begins" not in second.stderr
    told = json.loads(ipet(there, "list", "--json").stdout)
    assert [(key["domain"], key["scopes"]) for key in told] == [("acme", ["identify", "read", "speakers"])] * 2
    assert there.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("revoke", "000000000000")])
@pytest.mark.parametrize("has_file", [False, True], ids=["no directory", "an empty file"])
def test_looking_makes_nothing(tmp_path: Path, words: tuple[str, ...], has_file: bool) -> None:
    there = tmp_path / "data"
    if has_file:
        there.mkdir()
        (there / "registry.sqlite").touch()
    done = ipet(there, *words)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: there is no registry in {there.resolve() / 'registry.sqlite'}")
    assert [path.name for path in there.glob("*")] == (["registry.sqlite"] if has_file else [])
    assert not has_file or (there / "registry.sqlite").stat().st_size == 0


def test_keys_of_a_database_by_its_url(tmp_path: Path, postgres_url: str) -> None:
    def keys(*words: str) -> Result:
        return ipet(tmp_path / "data", *words, "--database-url", postgres_url)

    refused = keys("list")
    assert refused.exit_code == 1
    assert "there is no registry in postgresql" in refused.stderr
    made = keys("create", "--scopes", "infer")
    assert "a new one begins in postgresql" in made.stderr
    key_id = made.stdout.split("_")[1]
    assert json.loads(keys("list", "--json").stdout)[0]["id"] == key_id
    assert keys("revoke", key_id).stdout == f"revoked {key_id}\n"
