"""One inference of an adapter that nobody has let in yet, beside the traffic. Knows no slots, queue or files.

It runs on a bank of its own, of one slot that just fits, in one thread on one core: the worker, its bank and the
adapters in it never wait for it.

Nothing can end an inference that has begun. One that outstays its time keeps the thread: until it comes back uploads
are refused at once, as a device that hangs would only make each of them wait its whole time in vain. If it comes back
so do uploads; if not, only a restart helps, and what is served meanwhile is served as before.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import torch

from service.engine.cores import use_cores
from service.errors import DeadlineExceeded, InvalidBundle, NotReady
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.parts.input_prompt import InputPrompt
from service.model.spec import ModelType
from service.registry.manifest import Manifest

_FRAMES = 128  # 1.28 s: but for an input prompt, an adapter does the same to every frame, whatever its own window
_AMPLITUDE = {ModelType.AST: 0.5, ModelType.WAV2VEC2: 0.1}  # of the noise: as normalised features, as samples


class SmokeTest:
    """Runs adapters once on noise and on silence.

    Args:
        seconds: how long an upload waits for its turn and its inference.
    """

    def __init__(self, backbone: Backbone, seconds: float) -> None:
        self._backbone = backbone
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="smoke", initializer=use_cores, initargs=(1,))
        self._overdue: Future[torch.Tensor] | None = None  # what nobody waits for any more

    def __call__(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """Raise unless the backbone runs these weights well.

        Raises:
            InvalidBundle: the outputs are not finite, or there are none.
            DeadlineExceeded: it took too long.
            NotReady: one before it took too long, and goes on; or the device's memory is full.
        """
        if self._overdue is not None and not self._overdue.done():
            raise NotReady(
                "the first inference of an adapter before this one hangs; no other can be tried until it ends"
            )
        running = self._pool.submit(self._run, weights)
        try:
            outputs = running.result(self._seconds)
        except FutureTimeout:
            if not running.cancel():
                self._overdue = running
            raise DeadlineExceeded(
                f"the adapter's first inference was not done within {self._seconds:g} s; try again when the service "
                "is less busy"
            ) from None
        except torch.OutOfMemoryError:
            raise NotReady(
                "the device has no memory left for the adapter's first inference; try again when it is less busy"
            ) from None
        except RuntimeError as error:
            raise InvalidBundle(f"the backbone cannot run the adapter: {error}") from error
        if not torch.isfinite(outputs).all():
            raise InvalidBundle(
                f"the adapter's outputs on noise and silence are not finite in {str(self._backbone.dtype)[6:]}; its "
                "weights or its scales are too large for this backbone"
            )

    def _run(self, weights: AdapterWeights) -> torch.Tensor:
        spec = self._backbone.spec
        framed = weights.spec.find(InputPrompt)
        shape = self._backbone.input_shape(framed.frames if framed else max(_FRAMES, spec.min_window_frames))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * _AMPLITUDE[spec.model_type]
        with torch.inference_mode():
            bank = Bank.of(self._backbone, [weights])
            return self._backbone.answer(torch.stack([noise, torch.zeros(shape)]), bank, [1, 1]).cpu()
