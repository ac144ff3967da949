"""What the routes share: settings, metrics and, once it is open, the runtime behind them. Knows no routes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import Request

from service.api.bodies import Budget
from service.engine.engine import Engine
from service.errors import NotReady
from service.model.spec import BackboneSpec
from service.registry.store import Registry
from service.settings import Settings
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that takes time to open: the backbone, on its device, with its adapters.

    Args:
        device: where the backbone runs, as `torch.device` prints it.
        dtype: precision that it runs in, as in `float32`.
    """

    backbone: BackboneSpec
    device: str
    dtype: str
    registry: Registry
    engine: Engine


Opener = Callable[[Settings, Telemetry], Runtime]


class Context:
    """State of one application."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.budget = Budget(settings.inflight_mb * 2**20)
        self.decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._runtime: Runtime | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        """The opened runtime; raises NotReady before that."""
        if self._runtime is None:
            raise NotReady("the backbone is still loading; /readyz answers 200 when it is done", retry_after=1.0)
        return self._runtime

    def open(self, open_runtime: Opener) -> Runtime:
        """Opens the runtime and starts its engine; slow, called from a thread of its own."""
        runtime = open_runtime(self.settings, self.telemetry)
        runtime.engine.start()
        with self._lock:
            if not self._closed:
                self._runtime = runtime
                return runtime
        runtime.engine.stop(0.0)
        raise NotReady("the service is stopping")

    def close(self) -> None:
        """Stops the engine, once the server lets no more requests in."""
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.engine.stop(self.settings.shutdown_timeout)
        self.decoders.shutdown(wait=False, cancel_futures=True)


def context_of(request: Request) -> Context:
    """The context of the application that serves `request`."""
    context: Context = request.app.state.context
    return context
