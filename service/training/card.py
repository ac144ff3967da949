"""The model card that a bundle carries: what it is, what it learnt from, what it reached. Plain text in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.registry.manifest import Manifest
from service.training.datasets.dataset import Clip, Dataset
from service.training.export import original_name, part_fields
from service.training.figures import FEW
from service.training.recipe import Recipe
from service.training.tables import aligned, markdown, span

NAMED_FAULTS = 10  # faulty files named in a card
_PICTURES = {
    "training.png": "Loss and selection figure by epoch",
    "confusion.png": "Confusion matrix of the report part",
    "det.png": "Detection error trade-off of the report part",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card states beside recipe and manifest."""

    counts: Mapping[str, int]  # clips by part, classes
    split: Sequence[str]  # sentences
    epochs: int  # trained
    seconds: float
    faults: Mapping[str, str]  # file name -> reason
    pictures: Sequence[str] | None = ()  # files beside the card; None where there was nothing to draw with


def model_card(recipe: Recipe, manifest: Manifest, settled: Mapping[str, Any], facts: CardFacts) -> str:
    """The bundle's README.md.

    Args:
        settled: of the manifest's fields those that the selection part gave.
    """
    tag = "audio-classification" if recipe.task == "classification" else "speaker-verification"
    front = (
        "---",
        "library_name: ipet-serve",
        f"pipeline_tag: {tag}",
        f"license: {recipe.license or 'unknown'}",
        "---",
    )
    what = "An IPET adapter (prompt and bottleneck in every layer, and a head) for one frozen audio backbone"
    if recipe.method == "full":
        what = "A head, and the audio backbone in `backbone/` that was fine-tuned with it and that it is for"
    elif recipe.method != "ipet":
        what = f"An adapter of the method `{recipe.method}` for one frozen audio backbone"
    small = " It is a demonstration: its figures below are those of a small data set."
    sections = [
        "\n".join(front),
        f"# {recipe.name}",
        recipe.description or "",
        f"{what}, trained by `ipet train`.{small if recipe.backbone == 'embedded' else ''}",
        *("\n".join(lines) for lines in (_data(recipe, facts), _method(recipe, manifest, facts))),
        "\n".join(_figures(manifest, settled)),
    ]
    if facts.pictures is None:
        sections.append("Pictures are left out: matplotlib was not installed (`pip install matplotlib`).")
    sections += [f"![{_PICTURES.get(name, name)}]({name})" for name in facts.pictures or ()]
    return "\n\n".join(section for section in sections if section) + "\n"


def _data(recipe: Recipe, facts: CardFacts) -> list[str]:
    lines = ["## Data", "", *(f"- {source}" for source in recipe.sources or ("not named by the recipe",))]
    lines += ["", *markdown(("part", "count"), [(name, f"{count:,}") for name, count in facts.counts.items()])]
    lines += ["", *facts.split]
    if facts.faults:
        lines += ["", f"{len(facts.faults)} clips were left out:"]
        lines += [f"- `{name}`: {reason}" for name, reason in list(facts.faults.items())[:NAMED_FAULTS]]
    return lines


def _method(recipe: Recipe, manifest: Manifest, facts: CardFacts) -> list[str]:
    optimiser, training = recipe.optimiser, manifest.training or {}
    counts, state = training["parameters"], "fine-tuned" if recipe.method == "full" else "frozen"
    rows = [
        ("method", f"`{recipe.method}`"),
        ("backbone", f"`{original_name(recipe)}`, {counts['backbone']:,} {state} parameters"),
        ("fingerprint", f"`{manifest.backbone.fingerprint}`"),
        *((name.replace("_", " "), str(value)) for name, value in part_fields(recipe).items() if value),
        ("in prompts and prefixes", f"{counts['prompt']:,} parameters"),
        ("in bottlenecks and other parts", f"{counts['adapter']:,} parameters"),
        ("head", f"{counts['head']:,} parameters"),
        ("trainable, in the bundle", f"{counts['bundle']:,} parameters"),
        ("trainable, in training only", f"{counts['training_only']:,} parameters"),
        ("trainable, in all", f"{counts['trainable']:,} parameters"),
        ("optimiser", f"Adam, batch {optimiser.batch}, rate {optimiser.lr:g} ({optimiser.schedule})"),
        ("loss", recipe.loss.kind),
        ("epochs", f"{training['epoch']} chosen of {facts.epochs}"),
        ("seed", str(recipe.seed)),
        ("time", f"{facts.seconds:,.0f} s"),
    ]
    return ["## Method", "", *markdown(("", ""), rows)]


def _figures(manifest: Manifest, settled: Mapping[str, Any]) -> list[str]:
    metrics = manifest.metrics or {}
    flat = dict(_flat(metrics))
    lines = ["## Figures", "", *markdown(("figure", "value", "95 % interval"), figure_rows(metrics))]
    if resampled := {value for name, value in flat.items() if name.endswith(".bootstrap.resampled")}:
        lines += ["", f"Intervals: percentile bootstrap over the report part's {' or '.join(sorted(resampled))}."]
    lines += [line for warning in warnings(metrics, manifest.labels or ()) for line in ("", warning)]
    if settled:
        lines += ["", *markdown(("stored in the bundle", "value"), [(n, str(v)) for n, v in _flat(settled)])]
    if per_class := [(name.split(".per_class.")[1], str(v)) for name, v in flat.items() if ".per_class." in name]:
        figure = "accuracy" if "report.accuracy" in flat else "average precision"
        lines += ["", *markdown(("class", f"{figure} on the report part"), per_class)]
    return lines


def figure_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of every figure, without those of single classes."""
    flat = dict(_flat(metrics))
    spans = {name.replace(".intervals.", "."): value for name, value in flat.items() if ".intervals." in name}
    aside = (".intervals.", ".bootstrap.", ".per_class.")
    shown = {name: value for name, value in flat.items() if not any(part in name for part in aside)}
    return [(name, str(value), span(spans.get(name))) for name, value in shown.items()]


def warnings(metrics: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """What to mind about the figures of these classes."""
    counts = {name: value for name, value in _flat(metrics) if name.endswith((".clips", ".trials"))}
    few = [f"{name.rpartition('.')[0]} ({value})" for name, value in counts.items() if value < FEW]
    lines = [f"Of fewer than {FEW} clips, so rough: {', '.join(few)}."] if few else []
    told = metrics.get("report", {}).get("per_class")
    unheard = [] if told is None else [label for label in labels if label not in told]
    return lines + ([f"No readable clip of the report part is of {', '.join(unheard)}."] if unheard else [])


def figures_table(metrics: Mapping[str, Any], labels: Sequence[str]) -> str:
    """The figures of a run for a terminal, with what to mind about them."""
    rows = [("figure", "value", "95 % interval"), *figure_rows(metrics)]
    return "\n".join([aligned(rows), *warnings(metrics, labels)])


def trainable_line(method: str, counts: dict[str, int]) -> str:
    """What is trained, in one line."""
    parts = {"backbone": counts["backbone"] if method == "full" else 0}
    parts |= {name: counts[name] for name in ("prompt", "adapter", "head")} | {
        "in training only": counts["training_only"]
    }
    told = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    return f"{method}: {counts['trainable']:,} trainable parameters ({told})"


def split_sentences(
    dataset: Dataset, learnt: Sequence[Clip], folds: int, settled: Iterable[str], report: Sequence[Clip] | None
) -> list[str]:
    """What is true of how this run's parts were held apart.

    Args:
        learnt: clips that the bundle was trained on.
        folds: by which the epoch was chosen; 0 where the selection part did.
        settled: what of the bundle was found on clips that were left out.
        report: clips of the report part, empty where there are trials instead; None where it was not read.
    """
    anew = "Then the adapter was trained anew, for as many epochs, on"
    found = [name for name in ("threshold", "calibration", "reject_below") if name in settled]
    of = ", ".join([*found, "selection figures"])
    if folds:
        lines = [
            f"Training and selection part together make {folds} folds. Each was answered by an adapter trained "
            f"on the others, and these answers chose the epoch. {anew} all of them.",
            f"{of.capitalize()} are of the folds' answers.",
        ]
    else:
        lines = [*_apart("selection", dataset, dataset.train, dataset.selection), "Epochs were chosen on it."]
        where = f"{of.capitalize()} are of the chosen epoch on it."
        if len(learnt) > len(dataset.train):
            where = f"{of.capitalize()} are of these weights on the other half."
            lines.append(f"{anew} the training part and half of the selection part.")
        lines.append(where)
    if report is None:
        return [*lines, "The report part was not read."]
    apart = _apart("report", dataset, learnt, report) if report else []
    return [*lines, *apart, "The report part was read once, after that."]


def _apart(part: str, dataset: Dataset, learnt: Sequence[Clip], clips: Sequence[Clip]) -> list[str]:
    by, both = dataset.grouped_by, [*learnt, *clips]
    theirs, ours = ({clip.group for clip in each if clip.group is not None} for each in (clips, learnt))
    shared, unknown = len(theirs & ours), sum(clip.group is None for clip in both)
    lines = []
    if unknown:
        files = {clip.span.path for clip in clips} & {clip.span.path for clip in learnt}
        whose = f"of {unknown:,} of these {len(both):,} clips" if unknown < len(both) else "of any clip"
        lines.append(f"The {part} part has {len(files) or 'no'} file of the training part; no {by} {whose} is known.")
    if shared:
        lines.append(f"The {part} part shares {shared} of its {len(theirs)} known {by}s with the training part.")
    return lines or [f"The {part} part shares no {by} with the training part."]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows
