"""Base-size backbones of random weights, and the paper's adapters at the paper's lengths. Knows no contestants."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTModel, AutoModel, PreTrainedConfig, Wav2Vec2Config, Wav2Vec2Model

from service.model.adapter import AdapterSpec
from service.model.spec import BackboneSpec, ModelType, TaskType
from tests.backbones import save_tiny_ast, save_tiny_wav2vec2, spec_of

SECONDS = (1.28, 3.0, 5.12, 10.24)
ADAPTER_SCALE = 0.1  # the paper's
CLASSES = 50

# Prompt length and bottleneck of the paper's task of each input length, or of the next shorter one.
_PAPER = {
    ModelType.AST: {1.28: (4, 128), 3.0: (4, 64), 5.12: (4, 32), 10.24: (32, 32)},
    ModelType.WAV2VEC2: {1.28: (64, 64), 3.0: (64, 128), 5.12: (128, 128), 10.24: (128, 64)},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the matrix: an architecture, an input length, and the adapter that the paper has there."""

    model_type: ModelType
    seconds: float

    @property
    def frames(self) -> int:
        return round(self.seconds * 100)

    @property
    def adapter(self) -> AdapterSpec:
        prompt_length, bottleneck_dim = _PAPER[self.model_type][self.seconds]
        return spec_of(
            {
                "task_type": TaskType.CLASSIFICATION,
                "labels": [str(i) for i in range(CLASSES)],
                "prompt_length": prompt_length,
                "bottleneck_dim": bottleneck_dim,
                "adapter_scale": ADAPTER_SCALE,
                "adapter_residual": self.model_type is ModelType.WAV2VEC2,
            }
        )

    @property
    def name(self) -> str:
        short = "AST" if self.model_type is ModelType.AST else "wav2vec 2.0"
        return f"{short} {self.seconds:g} s"


@contextmanager
def checkpoint(model_type: ModelType, tiny: bool = False) -> Iterator[Path]:
    """A directory with a backbone of AST-base or wav2vec2-base geometry, or a tiny one, and random weights."""
    with tempfile.TemporaryDirectory() as directory:
        if tiny:
            save_tiny = save_tiny_ast if model_type is ModelType.AST else save_tiny_wav2vec2
            yield save_tiny(Path(directory))
        else:
            yield _save_base_size(model_type, Path(directory))


def _save_base_size(model_type: ModelType, directory: Path) -> Path:
    config: PreTrainedConfig = ASTConfig() if model_type is ModelType.AST else Wav2Vec2Config()
    torch.manual_seed(0)
    model = ASTModel(config) if model_type is ModelType.AST else Wav2Vec2Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embeddings" in name or name.endswith("_token"):
                parameter.normal_(std=0.02)  # zeros otherwise, which would hide a wrong crop
    model.save_pretrained(directory)
    return directory


def hugging_face_module(
    directory: Path, cell: Cell, device: torch.device, dtype: torch.dtype, attention: str = "sdpa"
) -> nn.Module:
    """The backbone as Hugging Face runs it; for AST with the position embeddings of the cell's length."""
    model: nn.Module = AutoModel.from_pretrained(directory, attn_implementation=attention, dtype=dtype)
    model = model.eval().requires_grad_(False).to(device)
    if cell.model_type is ModelType.AST:
        _crop_positions(model, cell.frames)
    return model


def bare_flops(cell: Cell, directory: Path) -> int:
    """Floating-point operations of the bare backbone on one clip: products, attention and convolutions."""
    cpu = torch.device("cpu")
    model = hugging_face_module(directory, cell, cpu, torch.float32, attention="eager")  # fused, it is not counted
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros((1, *input_shape(cell.model_type, cell.frames))))
    return counter.get_total_flops()


def input_shape(model_type: ModelType, frames: int) -> tuple[int, ...]:
    """Shape of one clip as the backbone reads it."""
    return (frames, 128) if model_type is ModelType.AST else (frames * 160,)


def _crop_positions(model: nn.Module, frames: int) -> None:
    config, embeddings = model.config, model.get_submodule("embeddings")
    positions: Tensor = embeddings.position_embeddings
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (frames - config.patch_size) // config.time_stride + 1
    grid = positions[:, 2:].unflatten(1, (rows, -1))
    start = grid.shape[2] // 2 - columns // 2
    cropped = grid[:, :, start : start + columns].flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat((positions[:, :2], cropped), dim=1), requires_grad=False)


def pool(model_type: ModelType, hidden: Tensor) -> Tensor:
    """The last hidden states as the embedding that heads read."""
    if model_type is ModelType.AST:
        return hidden[:, :2].mean(dim=1)
    return torch.cat((hidden.mean(dim=1), hidden.std(dim=1)), dim=1)


def audio(cell: Cell, backbone: BackboneSpec, rows: int) -> Tensor:
    """Normalised inputs of the cell's length, row b the same however many there are: `[rows, ...]`."""
    shape = input_shape(backbone.model_type, cell.frames)
    return torch.stack([0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in range(rows)])
