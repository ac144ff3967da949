"""What one word in a recipe, its method, means for what is trained. Knows plain tables, no files and no tensors.

`ipet` trains prompts, bottlenecks and the head; `prompt`, `adapter` and `input-prompt` only one of these beside the
head; `lora`, `dora`, `prefix`, `ia3` and `bitfit` other families; `linear` the head alone; `full` the backbone itself
and the head. A recipe's table `[methods.<method>]` holds whatever differs from the recipe when it is trained by that
method, a learning rate above all.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Method = Literal[
    "ipet", "prompt", "adapter", "input-prompt", "linear", "full", "lora", "dora", "prefix", "ia3", "bitfit"
]
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT = "ipet"

# What of the `[adapter]` table a method other than ipet trains, and how it is where the recipe does not say; the rest
# is nothing. LoRA's are the usual ones: rank 8, alpha 16, on queries and values.
_TRAINED = {
    "prompt": "prompt_length",
    "adapter": "bottleneck_dim",
    "input-prompt": "input_prompt",
    "lora": "lora",
    "dora": "lora",
    "prefix": "prefix_length",
    "ia3": "ia3",
    "bitfit": "bias",
}
_LORA = {"r": 8, "alpha": 16.0, "targets": ["q", "v"]}
_USUAL: dict[str, Any] = {
    "lora": _LORA,
    "dora": {**_LORA, "dora": True},
    "prefix": 8,
    "ia3": {"output": ["k", "v"], "input": ["fc2"]},
    "bitfit": ["q", "k", "v", "o", "fc1", "fc2"],
}
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("prompt_length", "bottleneck_dim", "input_prompt", "prefix_length"), 0),
    **dict.fromkeys(("lora", "ia3", "bias")),
}

Table = Mapping[str, Any]


def of_method(table: Table, method: str, changes: Table) -> dict[str, Any]:
    """A recipe's table as it is for one method: overrides and then `changes` laid over it, what it lacks at zero."""
    merged = merge(merge(table, table.get("methods", {}).get(method, {})), changes) | {"method": method}
    merged.pop("methods", None)
    given, trained = merged.get("adapter", {}), _TRAINED.get(method, "")
    if method != DEFAULT and isinstance(given, Mapping):
        kept = {trained: given.get(trained) or _USUAL[method]} if method in _USUAL else {}
        if trained == "lora" and isinstance(kept[trained], Mapping):
            kept = {trained: _USUAL[method] | kept[trained]}
        merged["adapter"] = {**given} | {name: value for name, value in _NOTHING.items() if name != trained} | kept
    return merged


def merge(table: Table, over: Table) -> dict[str, Any]:
    """`over` laid over `table`, tables within them alike; over a list of tables, over each."""
    merged = dict(table)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, (list, tuple)):
            merged[key] = [merge(each, value) for each in below]
        else:
            merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def unusable(method: str, sizes: Mapping[str, Any]) -> str | None:
    """Why a method cannot be used with these sizes, if so: what it trains must be there."""
    size = _TRAINED.get(method)
    return None if size is None or sizes.get(size) else f"method {method!r} needs adapter.{size} above 0"
