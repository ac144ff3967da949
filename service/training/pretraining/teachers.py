"""Teachers of pre-training: models whose outputs on a clean clip the student learns to predict from a distorted one.

`resemblyzer` is a voice encoder (Wan et al. 2018, GE2E; Apache-2.0), `pyopen-wakeword` brings Google's speech embedding
(Lin et al. 2020; Apache-2.0; the wake words beside it have another licence and are not opened). Only the weights of
these packages are read: `pip install --no-deps` is enough. Any other name is a directory or Hub id of an encoder.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import nn
from torchaudio.functional import resample
from transformers import AutoFeatureExtractor, AutoModel

from service.audio.waveform import SAMPLING_RATE
from service.training.augment import Samples
from service.training.pretraining.recipe import TeacherSection

VOICE_PART, VOICE_STEP = 160, 80  # frames of 10 ms that the voice encoder hears at once, and between two such parts
VOICE_LEVEL = 10 ** (-30 / 20)  # RMS that quieter clips are raised to
WORD_WINDOW, WORD_STEP, WORD_SIZE = 76, 16, 96  # frames of 10 ms, the same, numbers
WORD_MARGIN = 6240  # samples of silence on each side: half a window, so that frames are centred on all of the clip


class MissingTeacher(ValueError):
    """A teacher that is not installed or cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a teacher makes of a clip: `[1, E]` of all of it (`step` 0), or frames `[F, E]`."""

    values: Samples
    first: float = 0.0  # sample of the clip on which the first frame is centred
    step: float = 0.0  # samples from one frame to the next


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher that is ready."""

    name: str
    of_clip: bool  # whether they are of whole clips rather than of frames
    hear: Callable[[Samples], Target]  # from samples `[N]` at 16 kHz to the target


def load_teacher(section: TeacherSection, device: torch.device) -> Teacher:
    """Load a teacher. Raises MissingTeacher."""
    if section.name == "resemblyzer":
        return Teacher(section.name, True, _Voice(_installed(section.name) / "pretrained.pt", device))
    if section.name == "pyopen-wakeword":
        return Teacher(section.name, False, _Words(_installed(section.name) / "models"))
    return _encoder(section, device)


def _installed(package: str) -> Path:
    found = find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingTeacher(f"teacher {package!r} is not installed: pip install --no-deps {package}")
    return Path(found.submodule_search_locations[0])


class _Voice(nn.Module):
    """resemblyzer's encoder: the mean of its embeddings of 1.6 s, every 0.8 s, of length one: `[1, 256]`."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: value for name, value in state.items() if name.startswith(("lstm", "linear"))})
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLING_RATE, 400, 400, 160, n_mels=40, norm="slaney", mel_scale="slaney", pad_mode="constant"
        )
        self.to(device).eval()

    @torch.inference_mode()
    def forward(self, samples: Samples) -> Target:
        level = float(np.sqrt(np.mean(np.square(samples)))) + 1e-9
        frames = self.mel(torch.from_numpy(samples * max(1.0, VOICE_LEVEL / level)).to(self.linear.weight.device)).T
        frames = nn.functional.pad(frames, (0, 0, 0, max(0, VOICE_PART - len(frames))))
        _, (hidden, _) = self.lstm(frames.unfold(0, VOICE_PART, VOICE_STEP).transpose(1, 2))
        each = nn.functional.normalize(self.linear(hidden[-1]).relu())
        return Target(nn.functional.normalize(each.mean(dim=0, keepdim=True)).cpu().numpy())


class _Words:
    """Google's speech embedding, run by TensorFlow Lite as openWakeWord does: `[F, 96]` every 160 ms."""

    def __init__(self, models: Path) -> None:
        self._mel = _Interpreter(models / "melspectrogram.tflite")
        self._embedding = _Interpreter(models / "embedding_model.tflite")

    def __call__(self, samples: Samples) -> Target:
        mel = self._mel(np.pad(samples * 32768, WORD_MARGIN)[None]).reshape(-1, 32) / 10 + 2  # as it was trained with
        windows = np.lib.stride_tricks.sliding_window_view(mel, WORD_WINDOW, axis=0)[::WORD_STEP]
        values = self._embedding(windows.transpose(0, 2, 1)[..., None]).reshape(-1, WORD_SIZE)
        return Target(values, (WORD_WINDOW * 160 + 240) / 2 - WORD_MARGIN, WORD_STEP * 160)


class _Interpreter:
    """One TensorFlow Lite model, resized to whatever it is given."""

    def __init__(self, path: Path) -> None:
        from pyopen_wakeword.openwakeword import _find_tensorflowlite_c
        from pyopen_wakeword.wakeword import TfLiteWakeWord

        self._lib: Any = TfLiteWakeWord(_find_tensorflowlite_c()).lib
        self._model = self._lib.TfLiteModelCreateFromFile(str(path).encode())
        self._interpreter = self._lib.TfLiteInterpreterCreate(self._model, None)

    def __call__(self, values: NDArray[Any]) -> Samples:
        values, lib, interpreter = np.ascontiguousarray(values, np.float32), self._lib, self._interpreter
        shape = (ctypes.c_int32 * values.ndim)(*values.shape)
        lib.TfLiteInterpreterResizeInputTensor(interpreter, 0, shape, values.ndim)
        lib.TfLiteInterpreterAllocateTensors(interpreter)
        given = lib.TfLiteInterpreterGetInputTensor(interpreter, 0)
        lib.TfLiteTensorCopyFromBuffer(given, values.ctypes.data_as(ctypes.c_void_p), values.nbytes)
        if lib.TfLiteInterpreterInvoke(interpreter):
            raise RuntimeError("TensorFlow Lite could not run the word teacher")
        answer = lib.TfLiteInterpreterGetOutputTensor(interpreter, 0)
        out = np.empty(lib.TfLiteTensorByteSize(answer) // 4, np.float32)
        lib.TfLiteTensorCopyToBuffer(answer, out.ctypes.data_as(ctypes.c_void_p), out.nbytes)
        return out


def _encoder(section: TeacherSection, device: torch.device) -> Teacher:
    """Any encoder of transformers that has frames in time; it hears clips at the rate that it was trained for."""
    try:
        extractor: Any = AutoFeatureExtractor.from_pretrained(section.name)
        model: Any = AutoModel.from_pretrained(section.name, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise MissingTeacher(f"teacher {section.name!r} is no encoder that transformers can read: {error}") from None
    rate = int(extractor.sampling_rate)

    @torch.inference_mode()
    def hear(samples: Samples) -> Target:
        heard = resample(torch.from_numpy(samples), SAMPLING_RATE, rate).numpy()
        frames = model(**extractor(heard, sampling_rate=rate, return_tensors="pt").to(device)).last_hidden_state[0]
        step = len(samples) / len(frames)
        values = frames.float().mean(dim=0, keepdim=True) if section.of_clip else frames.float()
        return Target(values.cpu().numpy(), *(() if section.of_clip else (step / 2, step)))

    return Teacher(section.name, section.of_clip, hear)
