"""The recipe of a pre-training run, read from TOML and checked key by key."""

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from service.audio.waveform import SAMPLING_RATE
from service.training.recipe import Augmentation, Positive, Share, read_toml, validate
from service.training.sources import Section

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]

USED = {"room", "noise", "noise_snr", "codec", "telephone", "tilt", "gain"}  # keys of [augment]


class Geometry(Section):
    """The shape of the backbone, a wav2vec 2.0; whoever serves it reads the same from config.json."""

    width: Count = 256
    layers: Count = 4
    heads: Count = 4
    feed_forward: Count = 640
    conv_dim: tuple[int, ...] = (256, 256, 256, 192, 192, 192, 192, 192)
    conv_kernel: tuple[int, ...] = (400, 3, 1, 3, 3, 3, 3, 3)
    conv_stride: tuple[int, ...] = (80, 2, 1, 1, 2, 1, 2, 1)

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return int(np.prod(self.conv_stride))

    @property
    def receptive_field(self) -> int:
        """Samples that the convolutions see for one frame."""
        steps = np.cumprod((1, *self.conv_stride[:-1]))
        return 1 + int(sum((kernel - 1) * step for kernel, step in zip(self.conv_kernel, steps, strict=True)))

    def frames(self, samples: int) -> int:
        """Frames of a window."""
        return (samples - self.receptive_field) // self.hop + 1


class TeacherSection(Section):
    name: str = Field(description="resemblyzer, pyopen-wakeword, or a directory or Hub id of an encoder")
    of_clip: bool = Field(default=False, description="the mean of an encoder's frames is learnt, not each of them")
    weight: Positive = 1.0


class Rows(Section):
    """A share of every batch."""

    rows: Count = 32
    window: Annotated[float, Field(ge=0.3, le=60)] = Field(default=2.0, description="seconds")
    speeds: tuple[Positive, ...] = Field(default=(1.0,), min_length=1, description="a voice at each is another one")
    noise: bool = Field(default=False, description="these clips are mixed into the others, too")

    @property
    def samples(self) -> int:
        return int(self.window * SAMPLING_RATE)


class AudioSection(Rows):
    """Recordings. A table is `file` with a name a line, or `file:column` of a CSV file, seen from a folder of audio."""

    files: str = Field(default="**/*", description="a glob, seen from a folder of audio")
    listed: str | None = Field(default=None, description="only files that this table names")
    unlisted: str | None = Field(default=None, description="no file that this table names")


class SpeechSection(Rows):
    """Phrases of random words, said by espeak-ng and flite in random voices."""

    clips: Count = 2000
    words: tuple[Annotated[str, Field(pattern=r"^\w")], ...] = Field(min_length=1)
    phrase: tuple[Count, Count] = Field(default=(1, 4), description="fewest and most words")


class Weights(Section):
    """What each loss counts."""

    likeness: Weight = Field(default=2.0, description="of two clips, relative to a teacher of clips")
    spectrum: Weight = 1.0
    middle: Weight = Field(default=0.3, description="of all losses read off the convolutions too")


class PretrainRecipe(Section):
    """Everything that decides a run, but the audio."""

    seed: int = 1
    threads: int = Field(default=0, ge=0, description="0: as many as torch chooses")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="float32", description="of matrix products")
    checkpoint_minutes: float = Field(default=10.0, gt=0, le=15)
    steps: Count = 10_000
    warm_up: Count = 300
    cool_down: Count = Field(default=2000, description="last steps, in which the learning rate falls to zero")
    learning_rate: Positive = 1e-3
    weight_decay: Weight = 0.02
    mask: Share = Field(default=0.5, description="chance of a window to lose stretches of its frames")
    geometry: Geometry = Geometry()
    teachers: tuple[TeacherSection, ...] = ()
    audio: tuple[AudioSection, ...] = (AudioSection(),)
    speech: SpeechSection | None = None
    augment: Augmentation = Augmentation(
        room=0.3, noise=0.7, noise_snr=(5.0, 25.0), codec=0.1, telephone=0.1, tilt=0.6, gain=10.0
    )
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cool_down > self.steps:
            raise ValueError(f"cool_down: {self.cool_down} is more than all {self.steps} steps")
        if unused := sorted(self.augment.model_fields_set - USED):
            raise ValueError(f"augment.{unused[0]}: not used in pre-training; {', '.join(sorted(USED))} are")
        for rows in (*self.audio, *filter(None, (self.speech,))):
            if self.geometry.frames(rows.samples) < 2:
                raise ValueError(f"window: {rows.window} s are less than two frames of the geometry")
        return self


def read_recipe(path: Path) -> PretrainRecipe:
    """Read a recipe. Raises BadRecipe, naming the file, the key, the value it got and what would be right."""
    return validate(PretrainRecipe, read_toml(path), str(path))
