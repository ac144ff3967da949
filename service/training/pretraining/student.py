"""What is pre-trained: a backbone with the heads that teach it, here a small wav2vec 2.0 with a filter-bank start.

wav2vec 2.0's architecture leaves its convolutional front end to the configuration. Here the first three
convolutions are first taught to compute a log-mel spectrogram (`FilterBank`), starting from pre-emphasised,
mel-spaced, windowed sinusoids in three phases which GELU then rectifies; the others are a time-delay network
on it; then come the transformer layers. It knows no corpora and no schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from service.model.loading import load_backbone_checkpoint
from service.training.pretraining.recipe import Geometry
from service.training.pretraining.sampling import Classes, Utterances

SAMPLE_RATE = 16_000
PHASES = 3
LEVEL_CHANNELS = 4  # constant before the layer norm, hence 1 / level of the frame after it
RECTIFIER_GAIN = 15.0  # brings the bands well into the rectifying range of GELU
FRONT_LAYERS = 3  # convolutions that learn the filter bank
FRAME = 400  # samples of a log-mel frame
FRAME_HOP = 160
FRONT_BANDS = 64
SPECTRUM_BANDS = 40
LOUD_SHARE = 0.6  # of a window's frames, the loudest ones: those that speak


class LogMel(nn.Module):
    """Log-mel power, roughly standardised, of frames whose place is given: the target of regressions."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, FRAME, FRAME, FRAME_HOP, f_min=50.0, f_max=7800.0, n_mels=bands, center=False
        )

    @torch.no_grad()
    def forward(self, waveform: Tensor, centre: int, frames: int) -> Tensor:
        """`[B, N]` -> `[B, frames, bands]`, the first frame centred on sample `centre`."""
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.mel(waveform[:, centre - FRAME // 2 :])[..., :frames]
        level: Tensor = (torch.log(power + 1e-5) + 5.0) / 4.0
        return level.transpose(1, 2)

    @torch.no_grad()
    def statistics(self, waveform: Tensor) -> Tensor:
        """Mean and deviation of each band over the loudest frames: `[B, N]` -> `[B, 2 bands]`."""
        level = self(waveform, FRAME // 2, 1 + (waveform.shape[1] - FRAME) // FRAME_HOP)
        loudness = level.mean(dim=2)
        loud = (loudness >= loudness.quantile(1 - LOUD_SHARE, dim=1, keepdim=True)).float().unsqueeze(2)
        count = loud.sum(dim=1)
        mean = (level * loud).sum(dim=1) / count
        variance = ((level - mean.unsqueeze(1)).square() * loud).sum(dim=1) / count
        return torch.cat([mean, variance.clamp_min(1e-6).sqrt()], dim=1)


class ContiguousGELU(nn.GELU):
    """GELU behind a layer norm over channels, whose transposed output makes the library's backward slow."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.contiguous())


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
        do_stable_layer_norm=False,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        hidden_dropout=geometry.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=geometry.dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        attn_implementation="eager",  # on short windows, and in bfloat16 on a CPU, the faster one
    )
    backbone = Wav2Vec2Model(config)
    for layer in backbone.feature_extractor.conv_layers:
        layer.activation = ContiguousGELU()
    _start_as_sinusoids(backbone.feature_extractor.conv_layers[0], geometry)
    return backbone


def _start_as_sinusoids(layer: Any, geometry: Geometry) -> None:
    """Overwrite the first convolution `[channels, 1, kernel]`: PHASES sinusoids for each mel-spaced band."""
    length, channels = geometry.conv_kernel[0], geometry.conv_dim[0]
    bands = (channels - LEVEL_CHANNELS) // PHASES
    mel = np.linspace(_mel(60), _mel(7600), bands)
    centres = 700 * (10 ** (mel / 2595) - 1)
    widths = np.maximum(np.gradient(centres) * 2.0, 60.0)  # hertz
    time = (np.arange(length) - (length - 1) / 2) / SAMPLE_RATE
    weight = np.zeros((channels, length))
    for band, (centre, width) in enumerate(zip(centres, widths, strict=True)):
        span = min(max(1.5 / width, 0.008), length / SAMPLE_RATE)  # seconds
        window = np.where(np.abs(time) < span / 2, 0.5 + 0.5 * np.cos(2 * np.pi * time / span), 0.0)
        emphasis = abs(1 - 0.97 * np.exp(-2j * np.pi * centre / SAMPLE_RATE))
        for phase in range(PHASES):
            row = window * np.cos(2 * np.pi * (centre * time + phase / PHASES))
            row -= window * row.sum() / max(window.sum(), 1e-9)  # no response to a constant offset
            weight[band * PHASES + phase] = row / max(float(np.linalg.norm(row)), 1e-9) * emphasis
    filled = bands * PHASES
    with torch.no_grad():
        layer.conv.weight.copy_(torch.from_numpy(weight)[:, None, :])
        layer.conv.bias.zero_()
        layer.conv.bias[filled:] = 0.03
        layer.layer_norm.weight[:filled] = RECTIFIER_GAIN
        layer.layer_norm.bias[filled:] = -torch.arange(channels - filled, dtype=torch.float32)


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


class FilterBank(nn.Module):
    """The first FRONT_LAYERS convolutions of a backbone, and the linear layer that reads log-mel off them."""

    def __init__(self, backbone: Any, geometry: Geometry) -> None:
        super().__init__()
        self.layers = backbone.feature_extractor.conv_layers[:FRONT_LAYERS]
        self.readout = nn.Linear(geometry.conv_dim[FRONT_LAYERS - 1], FRONT_BANDS)
        self.log_mel = LogMel(FRONT_BANDS)
        self.centre = geometry.receptive_field(FRONT_LAYERS) // 2

    def loss(self, waveform: Tensor) -> Tensor:
        """Mean squared error of the log-mel spectrogram, in units of about its deviation."""
        hidden = waveform[:, None]
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = hidden.transpose(1, 2)
        return functional.mse_loss(self.readout(hidden), self.log_mel(waveform, self.centre, hidden.shape[1]))

    @torch.no_grad()
    def hand_over(self, following: Any) -> None:
        """Make the next convolution one of the log-mel spectrogram: a random one, behind the readout.

        `following` has `[channels, conv_dim, kernel]`; its start is the product of a random
        `[channels, FRONT_BANDS, kernel]` and the readout `[FRONT_BANDS, conv_dim]`.
        """
        channels, _, kernel = following.conv.weight.shape
        start = torch.randn(channels, FRONT_BANDS, kernel) * (2 / (FRONT_BANDS * kernel)) ** 0.5
        following.conv.weight.copy_(torch.einsum("obk,bc->ock", start, self.readout.weight))
        following.conv.bias.copy_(torch.einsum("obk,b->o", start, self.readout.bias))


class Heads(nn.Module):
    """What is read off the pooled output `[B, size]` of one place in the backbone."""

    def __init__(self, size: int, classes: Classes, embedding: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.words = nn.Linear(size, classes.words)
        self.events = nn.Linear(size, classes.events)
        self.sounds = nn.Linear(size, classes.sounds)
        self.embedding = nn.Linear(size, embedding)
        self.speakers = nn.Parameter(torch.randn(classes.speakers, embedding))

    def speaker_logits(self, pooled: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
        """Additive-margin softmax: `scale * (cosine - margin on the right class)`, `[B, speakers]`."""
        cosine = functional.normalize(self.embedding(pooled)) @ functional.normalize(self.speakers).T
        return scale * (cosine - margin * functional.one_hot(labels, cosine.shape[1]))


@dataclass(frozen=True, slots=True)
class Seen:
    """What a student makes of windows: frames `[B, T, D]`, and pooled `[B, E]` what two places in it hold.

    `layers`: the tokens `[B, L, D]` between two layers, where they have targets of their own.
    """

    frames: Tensor
    top: Tensor
    middle: Tensor
    layers: tuple[Tensor, ...] = ()


DenseLoss = Callable[[Seen, Tensor], Tensor]


class Student(nn.Module):
    """A backbone with every head of pre-training, whatever its architecture. Only `backbone` is kept.

    The same tasks are read off a place in the middle too: layers that start at random pass what is below them
    little of the gradient.
    """

    backbone: Any
    filter_bank: FilterBank | None  # wav2vec 2.0's
    top: Heads
    middle: Heads
    log_mel: LogMel
    statistics: nn.Linear

    def matrices(self) -> list[nn.Parameter]:
        """The backbone's weights that multiply vectors, which an optimiser for matrices can have."""
        return [parameter for parameter in self.backbone.parameters() if parameter.ndim == 2]

    def dense_losses(self) -> dict[str, DenseLoss]:
        """The losses that need no labels, by the names of their weights."""
        return {"statistics": self.statistics_loss}

    def statistics_loss(self, seen: Seen, waveform: Tensor) -> Tensor:
        """Mean squared error of the long-term spectrum of the loud frames, read linearly off the pooled top.

        What tells voices apart best without any learning is just that, so the pooled embedding has to keep it.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            return functional.mse_loss(self.statistics(seen.top), self.log_mel.statistics(waveform))

    def phoneme_losses(self, said: Utterances) -> dict[str, Tensor]:
        """Connectionist temporal classification, for each phoneme: none where frames are too few for it."""
        return {}

    def export(self, out: Path) -> None:
        """Write the backbone alone as a Hugging Face directory in float16; the student itself stays as it is."""
        state = {name: value.half() for name, value in self.backbone.state_dict().items()}
        self.backbone.save_pretrained(out, state_dict=state)


class Wav2Vec2Student(Student):
    """wav2vec 2.0; its middle is what the convolutions give to the transformer."""

    def __init__(self, geometry: Geometry, classes: Classes) -> None:
        super().__init__()
        self.geometry = geometry
        self.backbone = make_backbone(geometry)
        self.filter_bank = FilterBank(self.backbone, geometry)
        self.top = Heads(2 * geometry.width, classes)
        self.middle = Heads(2 * geometry.conv_dim[-1], classes)
        self.frames_per_step = geometry.hop() // FRAME_HOP
        self.spectrum = nn.Linear(geometry.width, SPECTRUM_BANDS * self.frames_per_step)
        self.log_mel = LogMel(SPECTRUM_BANDS)
        self.statistics = nn.Linear(2 * geometry.width, 2 * SPECTRUM_BANDS)
        if classes.phonemes:
            self.phonemes = nn.Linear(geometry.width, 1 + classes.phonemes)
            self.phonemes_middle = nn.Linear(geometry.conv_dim[-1], 1 + classes.phonemes)

    def forward(self, waveform: Tensor) -> Seen:
        """Windows `[B, N]`."""
        out = self.backbone(waveform)
        frames = out.last_hidden_state.float()
        return Seen(frames, pool(frames), pool(out.extract_features.float()))

    def start_from(self, name: str) -> None:
        """Take over a backbone's weights. Raises ValueError or OSError where it has none of this geometry."""
        checkpoint = load_backbone_checkpoint(name)
        try:
            self.backbone.load_state_dict(checkpoint.module.state_dict())
        except RuntimeError as error:
            raise ValueError(f"start {name!r} has not the geometry of the recipe: {error}") from None

    def phoneme_losses(self, said: Utterances) -> dict[str, Tensor]:
        out = self.backbone(said.waveform)
        frames = ((said.samples - self.geometry.receptive_field()) // self.geometry.hop() + 1).clamp_min(1)

        def loss(hidden: Tensor, head: nn.Linear) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                scores = head(hidden.float()).log_softmax(dim=2).transpose(0, 1)
                return functional.ctc_loss(scores, said.phonemes, frames, said.counts, zero_infinity=True)

        return {
            "phonemes": loss(out.last_hidden_state, self.phonemes),
            "phonemes_middle": loss(out.extract_features, self.phonemes_middle),
        }

    def dense_losses(self) -> dict[str, DenseLoss]:
        return {"spectrum": self.spectrum_loss, **super().dense_losses()}

    def spectrum_loss(self, seen: Seen, waveform: Tensor) -> Tensor:
        """Mean squared error of the log-mel spectrogram that a linear layer reads off each frame of the top."""
        rows, frames, _ = seen.frames.shape
        centre = self.geometry.receptive_field() // 2 - FRAME_HOP * (self.frames_per_step - 1) // 2
        target = self.log_mel(waveform, centre, frames * self.frames_per_step)
        return functional.mse_loss(self.spectrum(seen.frames), target.reshape(rows, frames, -1))


def pool(hidden: Tensor) -> Tensor:
    """`[B, T, D]` -> `[B, 2 D]`: mean and standard deviation over time, as adapters see them."""
    return torch.cat([hidden.mean(dim=1), hidden.var(dim=1).clamp_min(1e-6).sqrt()], dim=1)
