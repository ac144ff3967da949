"""Where in a clip somebody speaks: Silero's voice activity detector, as its package ships the weights.

The network is written out here so that all stretches of a clip go through it together; only its recurrent cell takes
them one after the other. It keeps nothing between clips, so any number of threads may use one.
"""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from service.audio.waveform import SAMPLING_RATE

STRETCH_SAMPLES = 512  # 32 ms, each judged by itself and what came before it
CONTEXT_SAMPLES = 64  # of the stretch before, which the network reads too
BLOCK_STRETCHES = 512  # judged at once: bounds the memory of a long clip
BEGINS_AT, ENDS_AT = 0.5, 0.35  # probabilities at which speech begins, and below which it ends
GAP_STRETCHES = 3  # 0.1 s: shorter silence is part of the speech around it
LEAST_STRETCHES = 8  # 0.25 s: shorter speech is none
_REFLECTED_SAMPLES = 64  # behind a stretch, for the last frame of its spectrum
_STRIDES = (1, 2, 2, 1)  # of its convolutions
_WEIGHTS = "data/silero_vad.jit"  # of a later edition than the safetensors beside it
_OF_16_KHZ = "_model."
WHOLE: Final = ((0.0, math.inf),)  # one window
CLIPPED_LEVEL: Final = 0.985  # of full scale; resampling moves peaks a little
CLIPPED_SHARE: Final = 0.001  # of the samples
QUIET_DBFS: Final = -50.0  # root mean square
LEAST_SNR_DB: Final = 0.0
_POWER_FRAME: Final = SAMPLING_RATE // 50  # 20 ms
_FLOOR_PERCENTILE: Final = 10.0  # of the frames' powers: pauses, where only the noise is heard
_FEWEST_FRAMES: Final = 10


class Speech(NamedTuple):
    """How long somebody speaks in the windows `[W]` of a clip, together, and in which of them."""

    seconds: float
    windows: NDArray[np.bool_]


class SpeechActivity:
    """The detector with its weights. Thread-safe."""

    def __init__(self) -> None:
        package = find_spec("silero_vad")  # which is not imported: it changes torch's threads
        if package is None or package.origin is None:
            raise ModuleNotFoundError("the package silero-vad, whose weights tell where somebody speaks, is missing")
        weights = _load_weights(Path(package.origin).parent / _WEIGHTS)
        self._spectrum = weights["stft.forward_basis_buffer"]  # [258, 1, 256]: real parts, then imaginary ones
        convolutions = [f"encoder.{i}.reparam_conv" for i in range(len(_STRIDES))]
        self._convolutions = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in convolutions]
        self._cell = [weights[f"decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        self._out, self._out_bias = weights["decoder.decoder.2.weight"][:, :, 0], weights["decoder.decoder.2.bias"]

    @torch.inference_mode()
    def probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """How likely somebody speaks in each 32 ms of a clip `[N]`, the last of them filled with zeros: `[S]`."""
        count = -(-len(samples) // STRETCH_SAMPLES)
        padded = np.zeros(CONTEXT_SAMPLES + count * STRETCH_SAMPLES, np.float32)
        padded[CONTEXT_SAMPLES : CONTEXT_SAMPLES + len(samples)] = samples
        stretches = torch.from_numpy(padded).unfold(0, CONTEXT_SAMPLES + STRETCH_SAMPLES, STRETCH_SAMPLES)
        state = [torch.zeros(1, 1, 128), torch.zeros(1, 1, 128)]
        found = []
        for block in torch.split(stretches, BLOCK_STRETCHES):
            encoded = self._encode(block)[:, None]  # [S, 1, 128]
            hidden, *state = torch.lstm(encoded, state, self._cell, True, 1, 0.0, False, False, False)
            found.append(torch.sigmoid(hidden[:, 0].relu() @ self._out.T + self._out_bias)[:, 0])
        return torch.cat(found).numpy()

    def _encode(self, stretches: Tensor) -> Tensor:
        """Stretches with their contexts `[S, 576]` -> `[S, 128]`."""
        x = functional.pad(stretches[:, None], (0, _REFLECTED_SAMPLES), mode="reflect")
        real, imaginary = functional.conv1d(x, self._spectrum, stride=128).chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for (weight, bias), stride in zip(self._convolutions, _STRIDES, strict=True):
            x = functional.conv1d(x, weight, bias, stride, padding=1).relu()
        return x[:, :, 0]

    def speech(self, samples: NDArray[np.float32], heard: Sequence[tuple[float, float]] = WHOLE) -> Speech:
        """Where somebody speaks in what is `heard` of a clip `[N]`: starts and ends of windows, seconds."""
        spoken = speech_stretches(self.probabilities(samples))
        middles = (np.arange(len(spoken)) + 0.5) * STRETCH_SAMPLES / SAMPLING_RATE
        windows = np.array([spoken & (start <= middles) & (middles < end) for start, end in heard])  # [W, S]
        seconds = min(int(windows.any(axis=0).sum()) * STRETCH_SAMPLES, len(samples)) / SAMPLING_RATE
        return Speech(seconds, np.asarray(windows.any(axis=1)))


def _load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the network for 16 kHz; what it computes is written above."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.load` is")  # deprecated, or not supported in Python 3.14
        state = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return {
        name.removeprefix(_OF_16_KHZ): tensor.detach() for name, tensor in state.items() if name.startswith(_OF_16_KHZ)
    }


def speech_stretches(probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which stretches `[S]` are speech: short gaps are closed, then short speech is dropped."""
    spoken = np.zeros(len(probabilities), np.bool_)
    begin, end = None, 0  # speech since `begin`, the last of it before `end`

    def close() -> None:
        if begin is not None and end - begin >= LEAST_STRETCHES:
            spoken[begin:end] = True

    for at, probability in enumerate(probabilities.tolist()):
        if begin is not None and at - end > GAP_STRETCHES:
            close()
            begin = None
        if probability >= (BEGINS_AT if begin is None else ENDS_AT):
            begin, end = at if begin is None else begin, at + 1
    close()
    return spoken


def quality_warnings(samples: NDArray[np.float32]) -> tuple[str, ...]:
    """What makes a clip `[N]` at 16 kHz a bad witness of a voice: `clipped`, `too_quiet`, `low_snr`."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    found = {
        "clipped": float(np.mean(np.abs(samples) >= CLIPPED_LEVEL)) > CLIPPED_SHARE if len(samples) else False,
        "too_quiet": power < 10 ** (QUIET_DBFS / 10),
        "low_snr": signal_to_noise_db(samples) < LEAST_SNR_DB,
    }
    return tuple(name for name, holds in found.items() if holds)


def signal_to_noise_db(samples: NDArray[np.float32]) -> float:
    """Power above the noise floor, against the floor: the level of a clip's quietest tenth. Infinite where unknown."""
    frames = len(samples) // _POWER_FRAME
    if frames < _FEWEST_FRAMES:
        return float("inf")
    powers = np.square(samples[: frames * _POWER_FRAME], dtype=np.float64).reshape(frames, _POWER_FRAME).mean(axis=1)
    floor = float(np.percentile(powers, _FLOOR_PERCENTILE))
    above = float(powers.mean()) - floor
    if floor <= 0.0:
        return float("inf")
    return 10 * float(np.log10(max(above, 1e-12 * floor) / floor))
