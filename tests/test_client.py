"""Both clients against a real server: the same methods, the same answers, typed errors."""

import asyncio
import subprocess
import sys
from inspect import getmembers
from pathlib import Path

import pytest

from service.client import AsyncClient, Client, ProblemError
from tests.api.live import Live
from tests.bundles import random_bundle


def test_a_round_trip(live: Live, clip: bytes, tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(clip)
    files = random_bundle(tmp_path, live.backbone, "pushed", 1)
    with Client(live.url) as client:
        assert client.ready() == {"status": "ready"}
        assert client.backbone()["hidden_size"] == 48
        answer = client.classify([file, clip], ["alpha", "beta"], top_k=1, windows=True)
        assert [(r["clip"], r["adapter"]) for r in answer["results"]] == [
            (c, a) for c in (0, 1) for a in ("alpha", "beta")
        ]
        assert "windows" in answer["results"][0]
        assert client.classify(str(file), "alpha")["audio"][0]["seconds"] == 1.5
        vector = client.embed(clip, "gamma")["results"][0]["embedding"]
        assert client.score(clip, file, "gamma")["decision"] == "accept"
        assert client.score_embeddings([vector], vector, "gamma")["score"] == pytest.approx(1)

        assert client.push(tmp_path / "pushed-1")["live"] is True
        random_bundle(tmp_path, live.backbone, "pushed", 2)
        assert client.push(tmp_path / "pushed-2", activate=False) | {"digest": ""} == {
            "name": "pushed",
            "version": 2,
            "digest": "",
            "live": False,
        }
        assert client.config("pushed", 1) == files.config
        assert client.weights("pushed", 1) == files.weights
        assert client.activate("pushed", 2)["live"] == 2
        assert client.residency("pushed@1", "load")["state"] == "resident"
        client.activate("pushed", 1, "canary")
        client.delete("pushed", alias="canary")
        client.delete("pushed", 1)
        assert [version["version"] for version in client.adapter("pushed")["versions"]] == [2]
        client.delete("pushed")
        assert "pushed" not in [adapter["name"] for adapter in client.adapters()]


def test_async(live: Live, clip: bytes) -> None:
    async def run() -> None:
        async with AsyncClient(live.url) as client:
            answers = await asyncio.gather(*(client.classify(clip, name) for name in ("alpha", "beta")))
            assert [answer["results"][0]["adapter"] for answer in answers] == ["alpha", "beta"]
            with pytest.raises(ProblemError):
                await client.adapter("nobody")

    asyncio.run(run())


def test_problems_are_typed(live: Live, clip: bytes) -> None:
    with Client(live.url) as client, pytest.raises(ProblemError) as raised:
        client.classify([clip, b"text"], "alpha")
    assert (raised.value.status, raised.value.code) == (422, "bad_audio")
    assert raised.value.members["clip"] == 1
    assert raised.value.retry_after is None


def test_both_clients_have_the_same_documented_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name, value in getmembers(kind, callable) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    assert (Client.push.__doc__ or "").startswith("Uploads a bundle")


def test_the_client_imports_nothing_heavy() -> None:
    code = "import service.client, sys; print([m for m in ('torch', 'numpy', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
