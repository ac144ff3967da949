"""Opens what an application serves: settings -> backbone on its device -> registry -> engine."""

import asyncio
from collections.abc import Callable

from service.api.context import Runtime
from service.engine.device import Device
from service.engine.engine import Engine
from service.engine.local import LocalDevice
from service.jobs.store import open_jobs
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.model.spec import BackboneSpec
from service.registry.manifest import Manifest
from service.registry.store import FOLLOW_SECONDS, Registry
from service.settings import Settings
from service.speakers.galleries import Cohorts, Galleries
from service.speakers.store import open_speakers
from service.telemetry import Telemetry
from service.version import service_version


def open_runtime(settings: Settings, telemetry: Telemetry) -> Runtime:
    """Loads the backbone, opens the registry, registers the bundles of `--adapters` and builds the engine."""
    backbone = open_backbone(settings)
    device = LocalDevice(backbone, settings, telemetry)
    runtime = open_before(device, backbone, settings, telemetry)
    runtime.registry.on_gone(device.forget)
    return runtime


def open_backbone(settings: Settings) -> Backbone:
    return load_backbone(
        settings.backbone, settings.device, settings.dtype, for_inference=True, weights=settings.weights
    )


def open_registry(
    settings: Settings, backbone: BackboneSpec, smoke: Callable[[Manifest, AdapterWeights], None] | None = None
) -> Registry:
    """The registry of `settings`; `smoke` runs an upload's weights once."""
    return Registry(
        settings.data_dir,
        backbone,
        max_prompt_length=settings.max_prompt_length,
        max_bottleneck_dim=settings.max_bottleneck_dim,
        database_url=settings.database_url,
        objects_url=settings.objects,
        objects_cache_bytes=settings.objects_cache_mb * 2**20,
        smoke=smoke,
        grace_seconds=settings.request_timeout + FOLLOW_SECONDS,
        verify=settings.verify_registry,
    )


def open_before(device: Device, backbone: Backbone, settings: Settings, telemetry: Telemetry) -> Runtime:
    """All that stands before a device, wherever that is; of its backbone the shell will do."""
    spec, place, dtype = backbone.spec, str(backbone.device), str(backbone.dtype).removeprefix("torch.")
    registry = open_registry(settings, spec, lambda *bundle: asyncio.run(device.try_out(*bundle)))
    if settings.adapters is not None:
        registry.register_directory(settings.adapters)
    speakers = open_speakers(settings)
    galleries = Galleries(speakers.database, speakers.vault)
    engine = Engine(device, registry, settings, telemetry)
    telemetry.show_build(service_version(), spec.name, place, dtype)
    cohorts, jobs = Cohorts(registry), open_jobs(settings)
    return Runtime(spec, place, dtype, registry, engine, speakers, galleries, cohorts, jobs)
