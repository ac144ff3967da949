"""What is pre-trained: a small wav2vec 2.0, with readouts that predict its teachers' targets.

wav2vec 2.0's architecture leaves its convolutional front end to the configuration. Here the first convolution starts as
pre-emphasised, mel-spaced, windowed sinusoids in three phases, which GELU then rectifies.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model
from transformers.utils.logging import disable_progress_bar

from service.audio.waveform import SAMPLING_RATE
from service.training.pretraining.batches import Batch
from service.training.pretraining.recipe import Geometry, PretrainRecipe

PHASES = 3
LEVEL_CHANNELS = 4  # constant before the layer norm, hence 1 / level of the frame after it
RECTIFIER_GAIN = 15.0  # brings the bands well into the rectifying range of GELU
FRAME, FRAME_HOP, BANDS = 400, 160, 40  # of the log-mel spectrogram that is predicted
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")


class Readout(nn.Module):
    """Linear predictions of every target from the frames `[B, T, width]` of one place in the backbone."""

    def __init__(self, recipe: PretrainRecipe, width: int, bands: int, sizes: Sequence[int], of_clip: Sequence[bool]):
        super().__init__()
        self._recipe, self._of_clip = recipe, of_clip
        self.teachers = nn.ModuleList(
            nn.Linear(width * (1 + whole), size) for size, whole in zip(sizes, of_clip, strict=True)
        )
        self.spectrum = nn.Linear(width, bands)

    def forward(self, frames: Tensor, spectrum: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses by name."""
        weights = self._recipe.weights
        pooled = torch.cat([frames.mean(dim=1), frames.var(dim=1).clamp_min(1e-6).sqrt()], dim=1)  # as adapters do
        losses = {"spectrum": weights.spectrum * functional.mse_loss(self.spectrum(frames).float(), spectrum)}
        for number, head in enumerate(self.teachers):
            told, target = self._recipe.teachers[number], batch.targets[number]
            if self._of_clip[number]:
                one, other = functional.normalize(head(pooled).float()), functional.normalize(target)
                likeness = functional.mse_loss(one @ one.T, other @ other.T)  # of the clips with each other
                loss = (1 - (one * other).sum(dim=1)).mean() + weights.likeness * likeness
            else:
                there = ~target.isnan()
                error = (head(frames).float() - target)[there].square().sum()
                loss = error / there.sum().clamp_min(1)
            losses[told.name] = losses.get(told.name, 0.0) + told.weight * loss
        return losses


class Student(nn.Module):
    """A backbone with its readouts, which are thrown away.

    The convolutions have one too, as layers that start at random pass what is below them little of the gradient.

    Args:
        sizes: of the teachers' targets.
        of_clip: which teachers' are of whole clips.
    """

    def __init__(self, recipe: PretrainRecipe, sizes: Sequence[int], of_clip: Sequence[bool]) -> None:
        super().__init__()
        geometry = recipe.geometry
        self.recipe, self.backbone = recipe, make_backbone(geometry)
        self.mask = nn.Parameter(0.1 * torch.randn(geometry.width))
        self.parts = max(1, geometry.hop // FRAME_HOP)  # frames of the spectrogram in one of the backbone's
        self.top = Readout(recipe, geometry.width, BANDS * self.parts, sizes, of_clip)
        self.middle = Readout(recipe, geometry.conv_dim[-1], BANDS * self.parts, sizes, of_clip)
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLING_RATE, FRAME, FRAME, FRAME_HOP, f_min=50.0, f_max=7800.0, n_mels=BANDS, center=False
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss of the windows of one length, weighted; names that end in `_middle` are the convolutions'."""
        convolved = self._convolve(batch.heard)
        hidden, normed = self.backbone.feature_projection(convolved)
        hidden = torch.where(batch.masked[:, :, None], self.mask.to(hidden.dtype), hidden)
        top, spectrum = self.backbone.encoder(hidden).last_hidden_state, self._spectrum(batch.clean)
        losses: dict[str, Tensor] = self.top(top.float(), spectrum, batch)
        for name, loss in self.middle(normed.float(), spectrum, batch).items():
            losses[f"{name}_middle"] = self.recipe.weights.middle * loss
        return losses

    def _convolve(self, heard: Tensor) -> Tensor:
        """The front end, `[B, N]` -> `[B, T, C]`; the library transposes for longer than it computes."""
        first, *others = self.backbone.feature_extractor.conv_layers
        frames = heard.unfold(1, first.conv.kernel_size[0], first.conv.stride[0])
        x: Tensor = functional.linear(frames, first.conv.weight.squeeze(1), first.conv.bias)
        x = first.activation(first.layer_norm(x))
        for layer in others:
            weight = layer.conv.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            side_by_side = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], in memory [B, 1, T, C]
            x = functional.conv2d(side_by_side, weight, layer.conv.bias, (1, layer.conv.stride[0]))
            x = layer.activation(layer.layer_norm(x.squeeze(2).transpose(1, 2)))
        return x

    @torch.no_grad()
    def _spectrum(self, clean: Tensor) -> Tensor:
        """Log-mel power, roughly standardised, of the frames around each of the backbone's: `[B, T, parts * BANDS]`."""
        geometry = self.recipe.geometry
        first = geometry.receptive_field // 2 - FRAME_HOP * (self.parts - 1) // 2 - FRAME // 2
        frames = geometry.frames(clean.shape[1])
        with torch.autocast(clean.device.type, enabled=False):
            power = self.mel(clean[:, max(0, first) :])[..., : frames * self.parts]
        return ((torch.log(power + 1e-5) + 5.0) / 4.0).transpose(1, 2).reshape(len(clean), frames, -1)

    def export(self, out: Path) -> None:
        """Write the backbone alone as a Hugging Face directory in float16; the student itself stays as it is."""
        disable_progress_bar()
        state = {name: value.half().cpu() for name, value in self.backbone.state_dict().items()}
        self.backbone.save_pretrained(out, state_dict=state)


def make_backbone(geometry: Geometry) -> Any:
    """A fresh `Wav2Vec2Model`: random but for its first convolution."""
    config = Wav2Vec2Config(
        vocab_size=32,
        hidden_size=geometry.width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        intermediate_size=geometry.feed_forward,
        conv_dim=geometry.conv_dim,
        conv_kernel=geometry.conv_kernel,
        conv_stride=geometry.conv_stride,
        conv_bias=True,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        attn_implementation="eager",  # on short windows, and in bfloat16 on a CPU, the faster one
        **dict.fromkeys(DROPOUTS, 0.0),
    )
    backbone = Wav2Vec2Model(config)
    _start_as_sinusoids(backbone.feature_extractor.conv_layers[0])
    return backbone


@torch.no_grad()
def _start_as_sinusoids(layer: Any) -> None:
    """Overwrite the first convolution `[channels, 1, kernel]`: PHASES sinusoids for each mel-spaced band."""
    channels, _, length = layer.conv.weight.shape
    filled = (channels - LEVEL_CHANNELS) // PHASES * PHASES
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (60, 7600))
    mel = np.linspace(low, high, filled // PHASES)
    centre = 700 * (10 ** (mel / 2595) - 1)
    span = np.clip(1.5 / np.maximum(np.gradient(centre) * 2.0, 60.0), 0.008, length / SAMPLING_RATE)  # seconds
    centre, span = (np.repeat(each, PHASES)[:, None] for each in (centre, span))
    time = (np.arange(length) - (length - 1) / 2) / SAMPLING_RATE
    window = np.where(np.abs(time) < span / 2, 0.5 + 0.5 * np.cos(2 * np.pi * time / span), 0.0)
    phase = np.tile(np.arange(PHASES) / PHASES, filled // PHASES)[:, None]
    rows = window * np.cos(2 * np.pi * (centre * time + phase))
    rows -= window * rows.sum(axis=1, keepdims=True) / window.sum(axis=1, keepdims=True)  # none to a constant offset
    rows *= abs(1 - 0.97 * np.exp(-2j * np.pi * centre / SAMPLING_RATE)) / np.linalg.norm(rows, axis=1, keepdims=True)
    layer.conv.weight.zero_()
    layer.conv.weight[:filled, 0] = torch.from_numpy(rows).float()
    layer.conv.bias.zero_()
    layer.conv.bias[filled:] = 0.03
    layer.layer_norm.weight[:filled] = RECTIFIER_GAIN
    layer.layer_norm.bias[filled:] = -torch.arange(channels - filled, dtype=torch.float32)
