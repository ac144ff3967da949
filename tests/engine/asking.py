"""An engine over a backbone of this process, and requests to it without HTTP."""

import asyncio
import math
import time
from collections.abc import Sequence

from service.audio.waveform import Waveform
from service.engine.engine import Engine, Outputs
from service.engine.local import LocalDevice
from service.model.backbone import Backbone
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry
from tests.synthesis import encode


def open_engine(backbone: Backbone, registry: Registry, settings: Settings, telemetry: Telemetry) -> Engine:
    """One that has not been started yet."""
    device = LocalDevice(backbone, settings, telemetry)
    registry.on_gone(device.forget)
    return Engine(device, registry, settings, telemetry)


async def infer(
    engine: Engine, clips: Sequence[Waveform], adapters: Sequence[AdapterVersion], deadline: float = math.inf
) -> list[list[Outputs]]:
    """What a request of these clips is answered, `[clip][adapter]`."""
    async with engine.admit(adapters) as place:
        encoded = [encode(clip.samples, codec="pcm_f32le") for clip in clips]  # to the bit
        clips_read = await place.prepare(encoded, lambda nbytes: None)
        async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
            return await place.infer(clips_read, deadline)
