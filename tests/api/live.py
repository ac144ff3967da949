"""A real server on a real socket, and bundles of random weights to put on it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from service.api.app import create_app
from service.api.context import Context, Opener, Runtime
from service.cli.serving import listen, make_server, open_runtime, url_of
from service.model.spec import BackboneSpec, TaskType, expected_shapes
from service.registry.bundle import BundleFiles, write_bundle
from service.registry.manifest import build_manifest
from service.settings import Settings

Json = dict[str, Any]
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Live:
    """A running service."""

    url: str
    http: httpx.Client
    context: Context

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

    def on_ready(_: Runtime) -> None:
        settled.set()

    def on_failed(error: Exception) -> None:
        failures.append(error)
        settled.set()

    app = create_app(settings, opener, on_ready=on_ready, on_failed=on_failed)
    server = make_server(app, settings)
    listener = listen(settings.host, settings.port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        if wait:
            assert settled.wait(READY_SECONDS), "the service did not get ready"
            if failures:
                raise failures[0]
        with httpx.Client(base_url=url_of(listener), timeout=60) as http:
            yield Live(url_of(listener), http, app.state.context)
    finally:
        server.should_exit = True
        thread.join(30)
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


def random_bundle(directory: Path, backbone: BackboneSpec, name: str, seed: int = 0, **fields: Any) -> BundleFiles:
    """A valid bundle for `backbone` with random weights; `fields` go over those of its config."""
    config = config_of(backbone, name, **fields)
    manifest = build_manifest(config)
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(manifest.adapter_spec(), backbone)
    tensors = {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}
    return write_bundle(directory / f"{name}-{seed}", manifest, tensors)


def config_of(backbone: BackboneSpec, name: str, task: TaskType = TaskType.CLASSIFICATION, **fields: Any) -> Json:
    """A config for `backbone`, as plain JSON."""
    of_task: Json = {"labels": ["dog", "rain", "clock", "siren", "cat", "wind", "door"], "activation": "softmax"}
    if task is TaskType.VERIFICATION:
        of_task = {"embedding_dim": 6, "threshold": 0.25, "calibration": {"slope": 8.0, "intercept": -2.0}}
    return {
        "format_version": 1,
        "peft_type": "IPET",
        "name": name,
        "task_type": task.value,
        "base_model_name_or_path": backbone.name,
        "backbone": {
            "model_type": backbone.model_type.value,
            "hidden_size": backbone.hidden_size,
            "num_hidden_layers": backbone.num_hidden_layers,
            "fingerprint": backbone.fingerprint,
        },
        "prompt_length": 3,
        "bottleneck_dim": 4,
        "adapter_scale": 0.1,
        "adapter_residual": False,
        "input": {"sampling_rate": 16000, "window_frames": 64, "windows": None, "mean": -6.0, "std": 5.0},
        **of_task,
        **fields,
    }
