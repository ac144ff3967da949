"""`ipet speakers`, as a shell would call it."""

import base64
from pathlib import Path

from typer.testing import CliRunner, Result

from service.cli import app
from service.database import open_database
from service.speakers.vault import KEY_FILE
from tests.speakers.world import ACME, KEYS, World


def ipet(data_dir: Path, *words: object, **environment: str) -> Result:
    env = {"IPET_DATA_DIR": str(data_dir), "COLUMNS": "200"} | environment
    return CliRunner().invoke(app, ["speakers", *map(str, words)], env=env)


def test_voiceprints_are_put_under_a_new_key(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "keys"
    world = World(open_database(data))
    world.enrol("ann", 3.0, 1.0)
    old, new = (base64.b64encode(key).decode() for key in KEYS)
    lost = ipet(data, "rekey", IPET_VOICEPRINT_KEYS=new)
    assert lost.exit_code == 1
    assert "--voiceprint-key-file" in lost.stderr
    file.write_text(f"{new}\n{old}\n")
    done = ipet(data, "rekey", "--voiceprint-key-file", file)
    assert (done.exit_code, done.stdout.split()[0]) == (0, "2")
    assert ipet(data, "rekey", IPET_VOICEPRINT_KEYS=f"{new},{old}").stdout.split()[0] == "0"
    assert len(world.again(KEYS[1]).export(ACME, "ann")[1]) == 2
    assert not (data / KEY_FILE).exists()


def test_nothing_is_begun_where_there_is_nothing(tmp_path: Path) -> None:
    assert ipet(tmp_path / "data", "rekey").exit_code == 1
    assert not (tmp_path / "data").exists()
