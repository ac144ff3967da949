"""A small Audio Spectrogram Transformer that is pre-trained, and the teacher whose outputs it learns to predict.

A transformer on patches learns little from a few hours of labels. Two things help: positions that start as
two-dimensional sinusoids (the library's start at zero, which makes all bands alike), and a pre-trained wav2vec 2.0
whose frames and pooled embeddings are a target that is dense and needs no labels. What the teacher's last layer holds
is far from a spectrogram, so every layer of the student has a level of the teacher to learn, the lowest first. It
knows no corpora and no schedule.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from service.audio.features import FRAME_SAMPLES, HOP_SAMPLES, MEL_BINS, POWER_FLOOR, fbank
from service.model.loading import load_backbone_checkpoint
from service.model.spec import ModelType
from service.training.pretraining.recipe import ASTGeometry
from service.training.pretraining.sampling import Classes
from service.training.pretraining.student import (
    SPECTRUM_BANDS,
    DenseLoss,
    Heads,
    LogMel,
    Seen,
    Student,
    pool,
)

EXTRA_TOKENS = 2  # CLS and distillation
INITIAL_RANGE = 0.06  # deviation of initial weights, about width ** -0.5: the library's 0.02 suits wider layers
POSITION_LEVEL = 0.3  # of the initial sinusoids, about half of the patches' own deviation
FILLED_SHARE = 0.5  # of rows whose digital silence becomes what the service fills short clips with


class Teacher:
    """A frozen wav2vec 2.0. Not a module, so that a student's checkpoint does not hold it."""

    def __init__(self, name: str) -> None:
        """Raises ValueError or OSError where the name is not that of a wav2vec 2.0."""
        checkpoint = load_backbone_checkpoint(name)
        if checkpoint.model_type is not ModelType.WAV2VEC2:
            raise ValueError(f"teacher {name!r} has model_type {checkpoint.model_type!s}; it has to be a wav2vec2")
        self.model, config = checkpoint.module, checkpoint.config
        self.sizes = [config.conv_dim[-1]] + config.num_hidden_layers * [config.hidden_size]  # of the levels
        self.hop: int = math.prod(config.conv_stride)
        field, step = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            field, step = field + (kernel - 1) * step, step * stride
        self.centre = field // 2  # of the first frame, samples

    @torch.no_grad()
    def levels(self, waveform: Tensor) -> list[Tensor]:
        """`[B, N]` -> `[B, T, size]` of what the convolutions make of it, and then of each layer."""
        out = self.model(waveform, output_hidden_states=True)
        return [level.float() for level in (out.extract_features, *out.hidden_states[1:])]


class Rung(nn.Module):
    """Reads a level of the teacher off the tokens behind a layer of the student."""

    def __init__(self, width: int, rows: int, target: int) -> None:
        super().__init__()
        self.rows = rows
        self.norm = nn.LayerNorm(width)
        self.frames = nn.Linear(rows * width, target)
        self.pooled = nn.Linear(width, 2 * target)

    def forward(self, tokens: Tensor, level: Tensor, nearest: Tensor) -> Tensor:
        """Mean squared errors of the level `[B, T, size]`, standardised over the batch.

        Its frames are read off all patches of a column, its pooled frames off the mean of the other two tokens.
        """
        normed = self.norm(tokens.float())
        columns = normed[:, EXTRA_TOKENS:].unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(2)
        frames = functional.mse_loss(self.frames(columns).float(), standardised(level[:, nearest]))
        pooled = self.pooled(normed[:, :EXTRA_TOKENS].mean(dim=1)).float()
        return frames + functional.mse_loss(pooled, standardised(pool(level)))


class ASTStudent(Student):
    """AST; its middle is what the last layer's CLS and distillation tokens attend to."""

    def __init__(self, geometry: ASTGeometry, classes: Classes, teacher: str | None) -> None:
        super().__init__()
        self.geometry = geometry
        self.hop = geometry.time_stride * HOP_SAMPLES
        self.centre = (FRAME_SAMPLES + (geometry.patch - 1) * HOP_SAMPLES) // 2  # of the first patches, samples
        self.backbone = make_ast(geometry)
        self.filter_bank = None
        self.frame_norm = nn.LayerNorm(geometry.width)
        self.top = Heads(geometry.width, classes)
        self.middle = Heads(2 * geometry.width, classes)
        self.log_mel = LogMel(SPECTRUM_BANDS)
        self.statistics = nn.Linear(geometry.width, 2 * SPECTRUM_BANDS)
        self.teacher = Teacher(teacher) if teacher is not None else None
        if self.teacher is not None:
            rows, sizes = grid(geometry, geometry.max_length)[0], self.teacher.sizes
            # The last layer's patches reach nothing, so the layer before it is the one to know the teacher's last.
            self.heights = torch.linspace(0, len(sizes) - 1, geometry.layers - 1).round().int().tolist()
            self.ladder = nn.ModuleList(Rung(geometry.width, rows, sizes[height]) for height in self.heights)
            self.teacher_pooled = nn.Linear(geometry.width, 2 * sizes[-1])

    def forward(self, waveform: Tensor) -> Seen:
        """Windows `[B, N]`; they get the positions of a random part of the longest window."""
        features = self.features(waveform)
        rows, columns = grid(self.geometry, features.shape[1])
        positions = self._positions(rows, columns)
        replaced = {"embeddings.position_embeddings": positions}
        out = functional_call(self.backbone, replaced, (features,), {"output_hidden_states": True})
        patches = out.hidden_states[-2][:, EXTRA_TOKENS:].float()
        frames = self.frame_norm(patches.reshape(len(patches), rows, columns, -1).mean(dim=1))
        return Seen(frames, out.pooler_output.float(), pool(frames), tuple(out.hidden_states[1:-1]))

    @torch.no_grad()
    def features(self, waveform: Tensor) -> Tensor:
        """`[B, N]` -> `[B, frames, 128]`, normalised.

        The service fills short clips with zeros behind their filter bank, not behind their samples. The sampler
        does the latter, so the digital silence of a random part of the rows becomes zeros here.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            bank = fbank(waveform)
        silent = (bank <= math.log(POWER_FLOOR) + 1e-3).all(dim=2)
        filled = silent & (torch.rand(len(bank), 1) < FILLED_SHARE)
        bank = bank.masked_fill(filled.unsqueeze(2), 0.0)
        return (bank - self.geometry.mean) / (2 * self.geometry.std)

    def _positions(self, rows: int, columns: int) -> Tensor:
        every: Tensor = self.backbone.embeddings.position_embeddings
        patches = every[:, EXTRA_TOKENS:].reshape(1, rows, -1, self.geometry.width)
        start = int(torch.randint(0, patches.shape[2] - columns + 1, ()))
        return torch.cat((every[:, :EXTRA_TOKENS], patches[:, :, start : start + columns].flatten(1, 2)), dim=1)

    def dense_losses(self) -> dict[str, DenseLoss]:
        known = super().dense_losses()
        return known if self.teacher is None else {**known, "imitation": self.imitation_loss}

    def imitation_loss(self, seen: Seen, waveform: Tensor) -> Tensor:
        """Mean squared errors of the teacher: each rung's of its level, and the top's of the pooled last one."""
        if self.teacher is None:
            raise ValueError("there is no teacher")
        levels = self.teacher.levels(waveform)
        nearest = self.nearest_frames(seen.frames.shape[1], levels[-1].shape[1])
        losses = [functional.mse_loss(self.teacher_pooled(seen.top).float(), standardised(pool(levels[-1])))]
        for rung, tokens, height in zip(self.ladder, seen.layers, self.heights, strict=True):
            losses.append(rung(tokens, levels[height], nearest))
        return torch.stack(losses).sum()

    def nearest_frames(self, columns: int, frames: int) -> Tensor:
        """The teacher's frame, of so many, whose centre is nearest to that of each column of patches."""
        if self.teacher is None:
            raise ValueError("there is no teacher")
        centres = self.centre + self.hop * torch.arange(columns)
        nearest = torch.round((centres - self.teacher.centre) / self.teacher.hop).long()
        return nearest.clamp(0, frames - 1)

    def export(self, out: Path) -> None:
        super().export(out)
        given = self.geometry
        ASTFeatureExtractor(mean=given.mean, std=given.std, max_length=given.max_length).save_pretrained(out)


def make_ast(geometry: ASTGeometry) -> ASTModel:
    """A fresh `ASTModel`: random but for its positions."""
    config = ASTConfig(
        hidden_size=geometry.width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        intermediate_size=geometry.feed_forward,
        hidden_dropout_prob=geometry.dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIAL_RANGE,
        patch_size=geometry.patch,
        frequency_stride=geometry.frequency_stride,
        time_stride=geometry.time_stride,
        max_length=geometry.max_length,
        num_mel_bins=MEL_BINS,
        attn_implementation="eager",  # on few tokens, and in bfloat16 on a CPU, the faster one
    )
    model = ASTModel(config)
    rows, columns = grid(geometry, geometry.max_length)
    band, time = sinusoids(rows, geometry.width // 2), sinusoids(columns, geometry.width - geometry.width // 2)
    both = torch.cat((band[:, None].expand(-1, columns, -1), time[None].expand(rows, -1, -1)), dim=2)
    with torch.no_grad():
        model.embeddings.position_embeddings[:, EXTRA_TOKENS:] = POSITION_LEVEL * both.flatten(0, 1)
        model.embeddings.cls_token.normal_(std=INITIAL_RANGE)
        model.embeddings.distillation_token.normal_(std=INITIAL_RANGE)
    return model


def grid(geometry: ASTGeometry, frames: int) -> tuple[int, int]:
    """Patches along the bands and along so many frames."""
    return (
        (MEL_BINS - geometry.patch) // geometry.frequency_stride + 1,
        (frames - geometry.patch) // geometry.time_stride + 1,
    )


def sinusoids(count: int, size: int) -> Tensor:
    """`[count, size]`: sines and cosines with periods from four places to 4 `count`, evenly on a logarithmic axis."""
    places = torch.arange(count, dtype=torch.float32)[:, None]
    rates = torch.logspace(math.log10(math.pi / 2), math.log10(math.pi / (2 * count)), (size + 1) // 2)
    angles = places * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :size]


def standardised(target: Tensor) -> Tensor:
    """Mean 0 and deviation 1 for each of the last dimension's values over all others."""
    flat = target.flatten(0, -2)
    return (target - flat.mean(dim=0)) / (flat.std(dim=0) + 1e-3)
