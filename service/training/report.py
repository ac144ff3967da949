"""The model card that a bundle carries: what it is, what it learnt from, what it reached. Plain text in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.training.recipe import AdapterSection, Recipe

NAMED_FAULTS = 10  # faulty files named in a card
_PICTURES = {
    "training.png": "Loss and selection figure by epoch",
    "confusion.png": "Confusion matrix of the report part",
    "det.png": "Detection error trade-off of the report part",
}


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """One epoch of training.

    Args:
        loss: mean over its steps.
        figure: on the selection part, larger is better.
    """

    epoch: int
    loss: float
    figure: float


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card states beside the recipe."""

    backbone: str
    fingerprint: str
    parameters: Mapping[str, int]
    counts: Mapping[str, int]  # clips by part, classes
    epochs: Sequence[EpochFigures]
    figure: str  # name of what the epochs compare
    chosen_epoch: int
    seconds: float
    faults: Mapping[str, str]  # file name -> reason
    metrics: Mapping[str, Any]
    settled: Mapping[str, Any]
    pictures: Sequence[str] | None = ()  # files beside the card; None where there was nothing to draw with


def model_card(recipe: Recipe, facts: CardFacts) -> str:
    """The bundle's README.md."""
    sections = [
        _front_matter(recipe),
        f"# {recipe.name}",
        recipe.description or "",
        _introduction(recipe),
        _data(recipe, facts),
        _method(recipe, facts),
        _figures(facts),
        _epochs(facts),
        _pictures(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(recipe: Recipe) -> str:
    what = "An IPET adapter (prompt and bottleneck in every layer, and a head) for one frozen audio backbone"
    if recipe.method == "full":
        what = "A head, and the audio backbone in `backbone/` that was fine-tuned with it and that it is for"
    elif recipe.method != "ipet":
        what = f"An adapter for one frozen audio backbone, trained by the method `{recipe.method}`"
    if recipe.backbone != "embedded":
        return f"{what}, trained by `ipet train`."
    return f"{what}, trained by `ipet train`. It is a demonstration: its figures below are those of a small data set."


def _front_matter(recipe: Recipe) -> str:
    tag = "audio-classification" if recipe.task == "classification" else "speaker-verification"
    lines = ["---", "library_name: ipet-serve", f"pipeline_tag: {tag}"]
    return "\n".join([*lines, f"license: {recipe.license}" if recipe.license else "license: unknown", "---"])


def _data(recipe: Recipe, facts: CardFacts) -> str:
    lines = ["## Data", ""]
    lines += [f"- {source}" for source in recipe.sources] or ["- not named by the recipe"]
    lines += ["", *_table(("part", "count"), [(name, f"{count:,}") for name, count in facts.counts.items()])]
    lines += [
        "",
        "The selection part is held out of the training split and shares no speaker (or fold) with the rest of it. "
        "Epochs, threshold and calibration were chosen on it. The report part was read once, after that.",
    ]
    if recipe.refit:
        lines.append("With the epochs chosen, the adapter was trained anew on training and selection parts together.")
    if facts.faults:
        lines += ["", f"{len(facts.faults)} files could not be read and were left out:"]
        lines += [f"- `{name}`: {reason}" for name, reason in list(facts.faults.items())[:NAMED_FAULTS]]
    return "\n".join(lines)


def _method(recipe: Recipe, facts: CardFacts) -> str:
    adapter, optimiser, counts = recipe.adapter, recipe.optimiser, facts.parameters
    rows = [
        ("method", f"`{recipe.method}`"),
        ("backbone", f"`{facts.backbone}`, {counts['backbone']:,} {_backbone_state(recipe)} parameters"),
        ("fingerprint", f"`{facts.fingerprint}`"),
        ("prompt", f"{adapter.prompt_length} tokens in each layer: {counts['prompt']:,} parameters"),
        ("bottleneck", f"{adapter.bottleneck_dim} wide in each layer: {counts['adapter']:,} parameters"),
        *_parts(adapter),
        ("head", f"{counts['head']:,} parameters"),
        ("trainable, in the bundle", f"{counts['bundle']:,} parameters"),
        ("trainable, in training only", f"{counts['training_only']:,} parameters"),
        ("trainable, in all", f"{counts['trainable']:,} parameters"),
        ("optimiser", f"Adam, batch {optimiser.batch}, rate {optimiser.lr:g} ({optimiser.schedule})"),
        ("loss", recipe.loss.kind),
        ("epochs", f"{facts.chosen_epoch} chosen of {optimiser.epochs}"),
        ("seed", str(recipe.seed)),
        ("time", f"{facts.seconds:,.0f} s"),
    ]
    return "\n".join(["## Method", "", *_table(("", ""), rows)])


def _parts(adapter: AdapterSection) -> list[tuple[str, str]]:
    """What the adapter has beside the paper's parts, whose parameters are counted with those."""
    rows = []
    if adapter.input_prompt:
        rows.append(("input prompt", f"{adapter.input_prompt} wide around the spectrogram, counted with the prompt"))
    if adapter.lora:
        kind = "DoRA" if adapter.lora.dora else "LoRA"
        rows.append((kind, f"rank {adapter.lora.r} on {' '.join(adapter.lora.targets or ())}, counted as bottleneck"))
    if adapter.prefix_length:
        rows.append(("prefix", f"{adapter.prefix_length} keys and values in each layer, counted with the prompt"))
    if adapter.ia3:
        rows.append(("IA3", f"vectors on {' '.join([*adapter.ia3.output, *adapter.ia3.input])}, counted as bottleneck"))
    if adapter.bias:
        rows.append(("BitFit", f"biases of {' '.join(adapter.bias)}, counted as bottleneck"))
    if adapter.layer_aggregation:
        rows.append(("layer aggregation", "the head reads a weighted sum of all layers"))
    return rows


def _backbone_state(recipe: Recipe) -> str:
    return "fine-tuned" if recipe.method == "full" else "frozen"


def _figures(facts: CardFacts) -> str:
    flat = dict(_flat(facts.metrics))
    intervals = {name.replace(".intervals.", "."): value for name, value in flat.items() if ".intervals." in name}
    aside = (".intervals.", ".bootstrap.", ".per_class.")
    rows = [
        (name, str(value), _span(intervals.get(name)))
        for name, value in flat.items()
        if not any(part in name for part in aside)
    ]
    lines = ["## Figures", "", *_table(("figure", "value", "95 % interval"), rows)]
    resampled = {value for name, value in flat.items() if name.endswith(".bootstrap.resampled")}
    if resampled:
        lines += ["", f"Intervals: percentile bootstrap over the report part's {' or '.join(sorted(resampled))}."]
    if facts.settled:
        lines += ["", *_table(("stored in the bundle", "value"), [(n, str(v)) for n, v in _flat(facts.settled)])]
    per_class = [(name.split(".per_class.")[1], str(v)) for name, v in flat.items() if ".per_class." in name]
    if per_class:
        figure = "accuracy" if "report.accuracy" in flat else "average precision"
        lines += ["", *_table(("class", f"{figure} on the report part"), per_class)]
    return "\n".join(lines)


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _epochs(facts: CardFacts) -> str:
    rows = [(str(each.epoch), f"{each.loss:.4f}", f"{each.figure:.4f}") for each in facts.epochs]
    return "\n".join(["## Training", "", *_table(("epoch", "loss", f"selection {facts.figure}"), rows)])


def _pictures(facts: CardFacts) -> str:
    if facts.pictures is None:
        return "Pictures are left out: matplotlib was not installed (`pip install matplotlib`)."
    return "\n\n".join(f"![{_PICTURES.get(name, name)}]({name})" for name in facts.pictures)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
