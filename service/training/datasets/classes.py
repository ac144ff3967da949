"""Classification data sets as they are laid out on disk: ESC, keyword lists, spoken digits. Opens no audio."""

from collections.abc import Callable
from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, last_groups, read_table, target_of
from service.training.recipe import DigitSource, EscSource, KeywordSource

ESC_COLUMNS = ("filename", "fold", "category")
KEYWORD_COLUMNS = ("file", "class")
DIGIT_COLUMNS = ("filename", "digit", "speaker", "split")


def read_esc(root: Path, source: EscSource) -> Dataset:
    """ESC-50 or ESC-10: clips of one source recording stay in one fold. Raises BadDataset."""
    path = root / "meta" / "esc50.csv"
    rows = read_table(path, ESC_COLUMNS)
    folds = sorted({row["fold"] for row in rows})
    for fold in (*source.train_folds, source.report_fold):
        if str(fold) not in folds:
            raise BadDataset(f"{path} has no fold {fold}; it has {', '.join(folds)}")
    train_folds = {str(fold) for fold in source.train_folds}
    labels = tuple(sorted({row["category"] for row in rows if row["fold"] in train_folds}))

    def clips(wanted: set[str]) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / "audio" / row["filename"], target_of(row["category"], labels, path), row["fold"])
            for row in rows
            if row["fold"] in wanted
        )

    selection = {str(source.selection_fold)}
    return Dataset(
        root,
        labels,
        train=clips(train_folds - selection),
        selection=clips(selection),
        report=lambda: Report(clips=clips({str(source.report_fold)})),
    )


def read_keywords(root: Path, source: KeywordSource) -> Dataset:
    """Keyword lists; the speaker is what stands before the first underscore of a file name. Raises BadDataset."""
    rows = read_table(root / "train.csv", KEYWORD_COLUMNS)
    labels = tuple(sorted({row["class"] for row in rows}))

    def clips(name: str, rows: list[dict[str, str]]) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / row["file"], target_of(row["class"], labels, root / name), _speaker(row["file"]))
            for row in rows
        )

    return _split(
        root,
        labels,
        clips("train.csv", rows),
        source.selection_speakers,
        lambda: Report(clips=clips("val.csv", read_table(root / "val.csv", KEYWORD_COLUMNS))),
    )


def read_digits(root: Path, source: DigitSource) -> Dataset:
    """Spoken digits, split by speaker in `metadata.csv`. Raises BadDataset."""
    path = root / "metadata.csv"
    rows = read_table(path, DIGIT_COLUMNS)
    labels = tuple(sorted({row["digit"] for row in rows if row["split"] == "train"}))

    def clips(split: str) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / row["filename"], target_of(row["digit"], labels, path), row["speaker"])
            for row in rows
            if row["split"] == split
        )

    return _split(root, labels, clips("train"), source.selection_speakers, lambda: Report(clips=clips("val")))


def _split(
    root: Path, labels: tuple[str, ...], clips: tuple[Clip, ...], speakers: int, report: Callable[[], Report]
) -> Dataset:
    if not clips:
        raise BadDataset(f"{root} has no clips in its training split")
    held_out = last_groups((clip.group for clip in clips), speakers)
    return Dataset(
        root,
        labels,
        train=tuple(clip for clip in clips if clip.group not in held_out),
        selection=tuple(clip for clip in clips if clip.group in held_out),
        report=report,
    )


def _speaker(file: str) -> str:
    return Path(file).name.split("_", 1)[0]
