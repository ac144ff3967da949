"""Where recordings lie, what is known of each, and how they are split: the `[data]` table of a recipe."""

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Part = Literal["train", "selection", "report"]
FOLDERS = r"(?:(?P<split>train|selection|val|valid|validation|dev|report|test|eval)/(?=.*/))?+(?P<label>[^/._][^/]*)/.+"
OPTIONAL = ("group", "start", "end", "split")  # columns that a table may lack unless the recipe names them


class Section(BaseModel):
    """A table of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Table(Section):
    """A CSV file, or one with tabs (`.tsv`), with a header and a row for each clip."""

    path: str = Field(default="clips.csv", description="Seen from the data folder.")
    file: str = Field(default="{file}", description="Where a row's clip lies, as `audio/{filename}` of its columns.")
    part: Part | None = Field(default=None, description="The part that all its rows are of.")


class Source(Section):
    """Clips with their labels: rows of tables, or the files that a pattern matches."""

    kind: Literal["csv", "folders"] = Field(description="Rows of tables, or files that a pattern matches.")
    tables: tuple[Table, ...] = Field(default=(Table(),), min_length=1, description="csv only; one or several.")
    pattern: str | None = Field(
        default=None,
        description="A regular expression over a clip's path from the data folder on, whose named groups (label, "
        "speaker, split ...) stand in for columns. Without one, folders are classes, below train/, selection/ and "
        "report/ if there are such.",
    )
    label: str = Field(default="label", description="Column or group of the class, or of the speaker to verify.")
    separator: str | None = Field(default=None, min_length=1, description="Of labels, where a clip can have several.")
    group: str = Field(default="speaker", description="Column or group of what no split may tear: speaker, session.")
    start: str = Field(default="start", description="Column of a clip's first second in its file.")
    end: str = Field(default="end", description="Column of its last second.")
    split: str = Field(default="split", description="Column or group that tells a clip's part.")
    parts: dict[Part, tuple[str, ...]] = Field(
        default_factory=dict, description="Values of `split` for each part; others are left out. Else their names."
    )
    lists: dict[Part, str] = Field(default_factory=dict, description="Files that name clips of a part, one a line.")
    labels: tuple[str, ...] = Field(default=(), description="The classes to tell apart, in order; none for all.")
    held_out: int | None = Field(
        default=None, ge=1, description="Groups of the training part, the last by name, that make the selection part."
    )
    selection_clips: int | None = Field(
        default=None, ge=2, description="Clips of each speaker that the selection part judges, evenly spread."
    )
    trials: dict[str, str] = Field(
        default_factory=dict, description="Verification: report lists (label path path) by name."
    )
    others: tuple[str, ...] = Field(
        default=(), description="Patterns under the data folder of clips that are none of the labels, for the report."
    )
    condition: str | None = Field(default=None, description="CSV file of a fixed noisy condition of the same trials.")
    condition_noise: str = Field(default=".", description="Folder of the condition's noise files.")

    @field_validator("tables", mode="before")
    @classmethod
    def _take_one(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value

    @property
    def verification(self) -> bool:
        return bool(self.trials)

    @property
    def folds(self) -> tuple[str, ...]:
        """The values of `split` that the recipe names, which can take turns as report part."""
        return tuple(sorted({value for values in self.parts.values() for value in values}))

    def named(self) -> set[str]:
        """The columns or groups that the recipe names itself and that need not be filled in every row."""
        return {getattr(self, key) for key in OPTIONAL if key in self.model_fields_set}

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            groups = re.compile(self.pattern or FOLDERS).groupindex
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if self.kind == "folders" and self.label not in groups:
            raise ValueError(f"pattern {self.pattern!r} has no group (?P<{self.label}>...)")
        if self.kind == "folders" and (lacking := self.named().difference(groups)):
            raise ValueError(f"pattern {self.pattern!r} has no group (?P<{min(lacking)}>...)")
        values = [value for part in self.parts.values() for value in part]
        if len(values) != len(set(values)):
            raise ValueError(f"parts: {max(values, key=values.count)!r} stands in two parts")
        return self
