"""One inference of an adapter that nobody has let in yet, beside the traffic. Knows no slots, queue or files.

It runs on a bank of its own, of one slot that just fits, in one thread on one core: the worker, its bank and the
adapters in it never wait for it. What is refused is what the adapter is at fault for; a device that fails is tried on
the bare backbone first, and where that fails too, nothing is said of the adapter.

Nothing can end an inference that has begun. One that outstays its time keeps the thread: until it comes back uploads
are refused at once, as a device that hangs would only make each of them wait its whole time in vain. If it comes back
so do uploads; if not, only a restart helps, and what is served meanwhile is served as before.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from service.engine.cores import use_cores
from service.engine.cost import Costs
from service.engine.faults import Fault, fault_of
from service.errors import DeadlineExceeded, InvalidBundle, NotReady
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.spec import NULL_SLOT
from service.registry.manifest import Manifest

_FEATURE_NOISE, _SAMPLE_NOISE = 0.5, 0.1  # amplitudes: of normalised features, of samples

_log = logging.getLogger(__name__)


class SmokeTest:
    """Runs adapters once on noise and on silence, each as long as the adapter's own window.

    Args:
        seconds: how long an upload waits for its turn and its inference.
        suspect: called when it met an error of the device's own.
    """

    def __init__(self, backbone: Backbone, seconds: float, costs: Costs, suspect: Callable[[], None]) -> None:
        self._backbone = backbone
        self._seconds = seconds
        self._costs = costs
        self._suspect = suspect
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="smoke", initializer=use_cores, initargs=(1,))
        self._overdue: Future[Tensor] | None = None  # what nobody waits for any more

    async def __call__(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """Raise unless the backbone runs these weights well.

        Raises:
            InvalidBundle: a row of its window is too large for this server, the backbone cannot run it, or its outputs
                are not finite.
            DeadlineExceeded: it took too long.
            NotReady: one before it took too long, and goes on; or the device has no memory left, or fails.
        """
        frames = manifest.least_window_frames
        if refusal := self._costs.refusal(manifest.window_frames):
            raise InvalidBundle(f"adapter_config.json: input.window_frames: {refusal}")
        if self._overdue is not None and not self._overdue.done():
            raise NotReady(
                "the first inference of an adapter before this one hangs; no other can be tried until it ends"
            )
        running = self._pool.submit(self._run, weights, frames)
        try:
            outputs = await asyncio.wait_for(asyncio.wrap_future(running), self._seconds)
        except TimeoutError:
            if not running.cancel():
                self._overdue = running
            raise DeadlineExceeded(
                f"the adapter's first inference was not done within {self._seconds:g} s; try again when the service "
                "is less busy"
            ) from None
        if not torch.isfinite(outputs).all():
            raise InvalidBundle(
                f"the adapter's outputs on noise and silence are not finite in {str(self._backbone.dtype)[6:]}; its "
                "weights or its scales are too large for this backbone"
            )

    def _run(self, weights: AdapterWeights, frames: int) -> Tensor:
        """The head's outputs `[2, ...]` on noise and on silence, one after the other: they may be large."""
        spec = self._backbone.spec
        shape = (1, *self._backbone.input_shape(frames))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * (
            _SAMPLE_NOISE if spec.model_type.reads_samples else _FEATURE_NOISE
        )
        silence = torch.zeros(shape)
        with torch.inference_mode():
            try:
                bank = Bank(self._backbone, 1)
                bank.write(1, fold(weights, self._backbone))
                return torch.cat([self._backbone.answer(window, bank, [1]).cpu() for window in (noise, silence)])
            except Exception as error:
                _log.exception("the first inference of an adapter failed")
                fault, what = fault_of(error), str(error)
            self._check_device(fault, silence)
        raise InvalidBundle(f"the backbone cannot run the adapter: {what}")

    def _check_device(self, fault: Fault, silence: Tensor) -> None:
        """Raises NotReady where the adapter is not at fault: no memory, an error of the device's, a bare failure."""
        if fault is Fault.MEMORY:
            raise NotReady(
                "the device has no memory left for the adapter's first inference; try again when it is less busy"
            )
        try:
            if fault is Fault.DEVICE:
                self._suspect()
            else:
                self._backbone.forward(silence, Bank.of(self._backbone, []), [NULL_SLOT])
                return
        except Exception:
            _log.exception("the bare backbone fails too")
        raise NotReady("the device fails, whatever it is asked: nothing can be said of the adapter; try again later")
