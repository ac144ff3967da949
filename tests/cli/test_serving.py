"""`ipet serve` as a process: flags are settings, it says where it is, it refuses what is unsafe, it stops."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.serving import url_of
from service.model.backbone import Backbone
from service.settings import Settings
from tests.bundles import random_bundle
from tests.cli.process import ENVIRONMENT, serving


def ipet(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"COLUMNS": "200"} | environment,
        timeout=200,
    )


def refused(*words: object, **environment: str) -> Result:
    """What `ipet serve` says that it cannot do, before it loads anything."""
    return CliRunner().invoke(app, ["serve", *map(str, words)], env={"COLUMNS": "200"} | environment)


def test_every_setting_is_a_flag_with_its_variable_and_its_help() -> None:
    shown = " ".join(ipet("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown, name
        assert f"IPET_{name.upper()}" in shown, name
        assert " ".join((field.description or "?").split()) in shown, name


def test_help_is_fast() -> None:
    code = """
import sys
from typer.testing import CliRunner
from service.cli import app
for command in ("train", "evaluate", "pretrain", "classify", "embed", "verify", "adapters"):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
print([m for m in ("torch", "fastapi", "httpx") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_serves_until_it_is_told_to_stop(tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    """With a log whose reader stalls, which tells of a request its adapters, its audio and its client."""
    for name in ("first", "second"):
        random_bundle(tmp_path / "bundles", tiny_ast.spec, name)
    with serving(tiny_ast_dir, tmp_path / "data", adapters=tmp_path / "bundles", adapter_slots=2) as served:
        with httpx.Client(base_url=served.url, timeout=60.0) as client:
            assert client.get("/readyz").status_code == 200
            query = {"adapter": ["first", "second@1"]}
            assert client.post("/v1/classify", params=query, content=clip).status_code == 200
            for _ in range(300):  # whose lines are more than a pipe holds
                assert client.get("/v1/backbone").json()["dtype"] == "float32"
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        errors = served.end()
    assert time.monotonic() - started < 20
    assert served.process.returncode == 0
    assert "Traceback" not in errors
    assert len(errors) > 65_536
    requests = [line for line in map(json.loads, errors.splitlines()) if line["message"] == "request"]
    assert len(requests) == 301
    (asked,) = [line for line in requests if "adapters" in line]
    assert asked["adapters"] == ["first@1", "second@1"]
    assert (asked["audio_seconds"], asked["client"]) == (1.5, "127.0.0.1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_needs_keys_beyond_loopback(host: str, tmp_path: Path) -> None:
    done = refused("--host", host, "--port", "0", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert "IPET_ALLOW_ANONYMOUS=1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_settings_are_named() -> None:
    done = refused("--adapter-slots", "none")
    assert done.exit_code == 2
    assert "--adapter-slots" in done.stderr
    done = refused(IPET_DEVICE="abacus")
    assert done.exit_code == 2
    assert "--device" in done.stderr


def test_a_backbone_that_is_not_there(tmp_path: Path) -> None:
    done = ipet("serve", "--backbone", tmp_path / "none", "--port", "0", "--data-dir", tmp_path / "data")
    assert done.returncode == 1
    assert "error: " in done.stderr


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1"), ("127.0.0.1", "http://127.0.0.1")])
def test_the_url_that_is_told_can_be_opened(host: str, url: str) -> None:
    with socket.socket() as listener:  # bound, not listening: nothing is opened to the network
        listener.bind((host, 0))
        assert url_of(listener) == f"{url}:{listener.getsockname()[1]}"


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused("--port", taken.getsockname()[1], "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert "cannot listen on" in done.stderr
