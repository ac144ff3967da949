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
