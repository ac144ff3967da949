"""A real server on a real socket, and bundles of random weights to put on it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.api.app import create_app
from service.api.context import Context, Opener, Runtime
from service.api.opening import open_runtime
from service.cli.server import Server
from service.cli.serving import listen, url_of
from service.model.spec import BackboneSpec
from service.registry.bundle import BundleFiles
from service.settings import Settings
from tests.bundles import Json, random_bundle

READY_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Live:
    """A running service."""

    url: str
    http: httpx.Client
    context: Context
    loop: asyncio.AbstractEventLoop | None = None  # the server's own

    @property
    def backbone(self) -> BackboneSpec:
        return self.context.runtime.backbone

    def upload(self, files: BundleFiles, name: str, **params: str) -> httpx.Response:
        parts = {"config": files.config, "weights": files.weights}
        return self.http.post(f"/v1/adapters/{name}/versions", files=parts, params=params)

    def publish(self, directory: Path, name: str, **fields: Any) -> int:
        """Uploads a new random bundle and answers its version."""
        answer = self.upload(random_bundle(directory, self.backbone, name, **fields), name)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["version"])


@contextmanager
def running(settings: Settings, opener: Opener = open_runtime, wait: bool = True) -> Iterator[Live]:
    """The service as `ipet serve` runs it, in a thread of this process."""
    settled = threading.Event()
    failures: list[Exception] = []

    loops: list[asyncio.AbstractEventLoop] = []

    def on_ready(_: Runtime) -> None:
        loops.append(asyncio.get_running_loop())
        settled.set()

    def on_failed(error: Exception) -> None:
        failures.append(error)
        settled.set()

    app = create_app(settings, opener, on_ready=on_ready, on_failed=on_failed)
    server = Server(app, settings)
    listener = listen(settings.host, settings.port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        if wait:
            assert settled.wait(READY_SECONDS), "the service did not get ready"
            if failures:
                raise failures[0]
        with httpx.Client(base_url=url_of(listener), timeout=60) as http:
            yield Live(url_of(listener), http, app.context, loops[0] if loops else None)
    finally:
        server.should_exit = True
        thread.join(90)
        assert not thread.is_alive(), "the server did not stop"


def settings_for(backbone: Path, data_dir: Path, **changes: Any) -> Settings:
    """Settings of a small server on a free port of loopback."""
    given: Json = {
        "backbone": str(backbone),
        "device": "cpu",
        "dtype": "float32",
        "data_dir": data_dir,
        "port": 0,
        "adapter_slots": 4,
        "max_prompt_length": 16,
        "max_bottleneck_dim": 16,
        "shutdown_timeout": 2.0,
    }
    return Settings(**(given | changes))
