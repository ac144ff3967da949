"""The service on Ray Serve: fronts that answer HTTP, and devices, each in processes of their own.

Nothing of Serve's own batching or model multiplexing is used: the engine forms better batches, of many adapters.
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any, Final

import ray
import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from service.api.app import App, create_app
from service.api.context import Runtime
from service.api.opening import open_before
from service.cluster import remote
from service.cluster.config import Config
from service.cluster.proxy import ENVIRONMENT
from service.cluster.remote import Fleet, Lost, RemoteDevice, Reply, Route
from service.cluster.replica import Replica
from service.settings import Settings
from service.telemetry import Telemetry, configure_logging

HEALTH_SECONDS: Final = 1.0  # between looks of Ray's at each process
STATUS_SECONDS: Final = 1.0  # between what devices tell to all fronts
LOOK_SECONDS: Final = 0.5  # between looks whether there is anybody left to wait for
AWAY_SECONDS: Final = 10.0  # that a process may take to say that it is well
SCALING: Final = {"upscale_delay_s": 3.0, "downscale_delay_s": 120.0, "look_back_period_s": 5.0}
_DEVICE: Final = {"max_ongoing_requests": 4096}  # the fronts' own queues are what bounds them


class RayChannel:
    """As `Channel`, over a deployment's handle."""

    def __init__(self, handle: Any, fleet: Fleet) -> None:
        self._handle = handle
        self._fleet = fleet

    async def ask(self, method: str, route: Route, *args: Any) -> Reply:
        # Outside of the request's context, whose id Serve would take for one call's alone.
        response = Context().run(getattr(self._handle, method).remote, route, *args)
        answer = asyncio.ensure_future(_answer(response))
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_SECONDS))[0]:
                if not self._fleet.statuses:
                    raise Lost("no device is running at the moment")
            return answer.result()
        except RayTaskError:  # a fault of the service's own, which every other process would meet as well
            raise
        except (RayError, RayServeException) as error:
            raise Lost(str(error)) from error
        finally:
            if not answer.done():
                response.cancel()
                answer.cancel()

    async def ask_all(self, method: str, *args: Any) -> list[Reply]:
        results = await Context().run(self._handle.broadcast, method, Route(), *args).results_async()
        return [one for one in results if isinstance(one, Reply)]


async def _answer(response: Any) -> Reply:
    reply: Reply = await response
    return reply


class Device(Replica):
    """A device as Serve runs it."""

    def __init__(self, settings: Settings, threads: int | None) -> None:
        configure_logging(settings.log_level.upper())
        if threads is not None:
            torch.set_num_threads(threads)
        super().__init__(settings, serve.get_replica_context().replica_id.unique_id)


class Front:
    """A front as Serve runs it: the application of `ipet serve` before devices that are elsewhere."""

    def __init__(self, settings: Settings, devices: Any) -> None:
        configure_logging(settings.log_level.upper())
        self._settings = settings
        self._devices = devices
        self._settled = threading.Event()
        self._failure: Exception | None = None

    def __serve_build_asgi_app__(self) -> App:
        return create_app(
            self._settings, self._open, on_ready=lambda runtime: self._settled.set(), on_failed=self._failed
        )

    async def check_health(self) -> None:
        """The first time as the front starts: it gets requests once it can answer them. Raises what it failed with."""
        while not self._settled.is_set():
            await asyncio.sleep(0.05)
        if self._failure is not None:
            raise self._failure

    def _failed(self, error: Exception) -> None:
        self._failure = error
        self._settled.set()

    def _open(self, settings: Settings, telemetry: Telemetry) -> Runtime:
        shell = self._devices.shell.remote(Route()).result().value
        device = RemoteDevice(shell, RayChannel(self._devices, remote.FLEET), remote.FLEET, settings)
        return open_before(device, shell, settings, telemetry)


def build(args: Mapping[str, Any]) -> Any:
    """The application of a configuration file of Serve's, whose `args` are those of `Config`. Raises InvalidRequest."""
    return application(Config.of(args))


def application(config: Config) -> Any:
    """Fronts and devices, bound to each other."""
    settings, is_cpu = config.settings, config.devices[0] == "cpu"
    shared = {
        "health_check_period_s": HEALTH_SECONDS,
        "health_check_timeout_s": AWAY_SECONDS,
        "graceful_shutdown_timeout_s": settings.shutdown_timeout,
    }
    count: dict[str, Any] = {"num_replicas": len(config.devices)}
    if config.most_devices > len(config.devices):
        policy = AutoscalingPolicy(
            policy_function="service.cluster.scaling:ByQueuedSeconds", policy_kwargs={"target": config.queued_seconds}
        )
        least, most = len(config.devices), config.most_devices
        count = {
            "autoscaling_config": AutoscalingConfig(min_replicas=least, max_replicas=most, policy=policy, **SCALING)
        }
    devices = serve.deployment(
        Device,
        ray_actor_options={"num_cpus": config.threads} if is_cpu else {"num_cpus": 1, "num_gpus": 1},
        request_router_config=RequestRouterConfig(
            request_router_class="service.cluster.router:Placed", request_routing_stats_period_s=STATUS_SECONDS
        ),
        **(_DEVICE | shared | count),
    )
    fronts = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        num_replicas=config.fronts,
        max_ongoing_requests=settings.max_connections,
        **shared,
    )
    return fronts.bind(settings, devices.bind(settings, config.threads if is_cpu else None))


@contextmanager
def running(config: Config) -> Iterator[None]:
    """A cluster of this machine alone, on loopback but for the service's own address, until the end of the `with`."""
    settings = config.settings
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    cores = config.fronts + config.most_devices * (config.threads if config.devices[0] == "cpu" else 1)
    ray.init(
        num_cpus=cores,  # of the plan: the machine may have fewer
        include_dashboard=False,
        object_store_memory=config.object_store_mb * 2**20,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(application(config), logging_config={"enable_access_log": False})  # the front's own says more
        yield
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
