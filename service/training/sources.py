"""Where recordings come from and how they are split: the `[data]` table of a recipe, one class for each layout.

Knows what a layout is called and what can be chosen in it, not how it is read (`datasets/`).
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A table of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassSource(Section):
    """A data set of classes."""

    @property
    def verification(self) -> bool:
        return False


class EscSource(ClassSource):
    """ESC-50's layout, ESC-10 included: `meta/esc50.csv` with folds."""

    kind: Literal["esc"]
    train_folds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    selection_fold: int = Field(default=3, description="One of train_folds, kept out while epochs are chosen.")
    report_fold: int = 4

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if self.report_fold in self.train_folds:
            raise ValueError(f"report_fold {self.report_fold} must not be one of train_folds")
        if self.selection_fold not in self.train_folds or len(self.train_folds) < 2:
            raise ValueError(f"selection_fold {self.selection_fold} must be one of two or more train_folds")
        return self


class KeywordSource(ClassSource):
    """`train.csv` and `val.csv` (file, class); the file name starts with the speaker and an underscore."""

    kind: Literal["keywords"]
    selection_speakers: int = Field(default=3, ge=1)


class DigitSource(ClassSource):
    """Free Spoken Digit Dataset with `metadata.csv` (filename, digit, speaker, split)."""

    kind: Literal["digits"]
    selection_speakers: int = Field(default=1, ge=1)


class GtzanSource(ClassSource):
    """GTZAN: `genres/<genre>/<genre>.00000.wav` or `.au`, split by the last digit of the number or by lists."""

    kind: Literal["gtzan"]
    selection_digit: int = Field(default=8, ge=0, le=9)
    report_digit: int = Field(default=9, ge=0, le=9)
    lists: tuple[str, str, str] | None = Field(
        default=None,
        description="Fault-filtered split instead: files with a `genre/file` a line; train, selection, report.",
    )

    @model_validator(mode="after")
    def _check_digits(self) -> Self:
        if self.selection_digit == self.report_digit:
            raise ValueError(f"selection_digit and report_digit must differ, got {self.report_digit} twice")
        return self


class SpeechCommandsSource(ClassSource):
    """Speech Commands v1 or v2: `<word>/<speaker>_nohash_<n>.wav`, `validation_list.txt`, `testing_list.txt`."""

    kind: Literal["speech-commands"]
    words: tuple[str, ...] = Field(default=(), description="The words to tell apart; none for all of them.")


class Fsd50kSource(ClassSource):
    """FSD50K, several labels a clip: `FSD50K.ground_truth/dev.csv`, `eval.csv`, `FSD50K.dev_audio/`, `.eval_audio/`."""

    kind: Literal["fsd50k"]


class FolderSource(ClassSource):
    """A folder per class, in `train/`, `selection/`, `report/`, or split by position: of ten, one and one held out."""

    kind: Literal["folders"]


class TableSource(Section):
    """A CSV file of your own; with `trials`, labels are speakers."""

    kind: Literal["csv"]
    table: str = Field(default="clips.csv", description="Under the data folder.")
    path: str = Field(default="path", description="Column: the clip, relative to the table's folder.")
    label: str = Field(default="label", description="Column: its class, or speaker.")
    split: str = Field(default="split", description="Column: train, selection (or val, validation), report (or test).")
    separator: str | None = Field(default=None, min_length=1, description="Of labels, where a clip can have several.")
    trials: dict[str, str] = Field(
        default_factory=dict, description="Verification: report lists (label path path) by name."
    )

    @property
    def verification(self) -> bool:
        return bool(self.trials)


class SpeakerSource(Section):
    """VoxCeleb's lists: `train_list.txt` (speaker, path) and trial lists (label, path, path), audio under `wav/`."""

    verification: ClassVar[bool] = True
    kind: Literal["speakers"]
    selection_speakers: int = Field(default=7, ge=2)
    trials: dict[str, str] = Field(
        default={"clean": "veri_test.txt", "hard": "veri_test_hard.txt"}, description="Report lists by name."
    )
    condition: str | None = Field(default="noise15db.csv", description="Fixed noisy condition of the same trials.")
    condition_noise: str = Field(default="../esc10/audio", description="Folder of the condition's noise files.")


class VoxCelebSource(Section):
    """VoxCeleb1: `wav/<speaker>/<video>/<n>.wav` and `veri_test.txt`, whose speakers are never trained on."""

    verification: ClassVar[bool] = True
    kind: Literal["voxceleb"]
    selection_speakers: int = Field(default=40, ge=2)
    selection_clips: int = Field(default=10, ge=2, description="Clips of each held-out speaker that are judged.")
    trials: dict[str, str] = Field(default={"clean": "veri_test.txt"}, description="Report lists by name.")


_AnySource = (
    EscSource
    | KeywordSource
    | DigitSource
    | GtzanSource
    | SpeechCommandsSource
    | Fsd50kSource
    | FolderSource
    | TableSource
    | SpeakerSource
    | VoxCelebSource
)
Source = Annotated[_AnySource, Field(discriminator="kind")]
KINDS = tuple(each.model_fields["kind"].annotation.__args__[0] for each in _AnySource.__args__)
