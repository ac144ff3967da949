"""What one word in a recipe, its method, means for what is trained. Knows plain tables, no files and no tensors.

`ipet` trains prompts, bottlenecks and the head; `prompt`, `adapter` and `input-prompt` only one of these beside the
head; `linear` the head alone; `full` the backbone itself and the head. A recipe's table `[methods.<method>]` holds
whatever differs from the recipe when it is trained by that method, a learning rate above all.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Method = Literal["ipet", "prompt", "adapter", "input-prompt", "linear", "full"]
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT = "ipet"

# Sizes of the `[adapter]` table that each method keeps; the others are set to zero.
_KEPT: dict[str, frozenset[str]] = {
    "ipet": frozenset({"prompt_length", "bottleneck_dim"}),
    "prompt": frozenset({"prompt_length"}),
    "adapter": frozenset({"bottleneck_dim"}),
    "input-prompt": frozenset({"input_prompt"}),
    "linear": frozenset(),
    "full": frozenset(),
}
_SIZES = ("prompt_length", "bottleneck_dim")

Table = Mapping[str, Any]


def of_method(table: Table, method: str) -> dict[str, Any]:
    """A recipe's table as it is for one method: overrides laid over it, the sizes that it lacks at zero."""
    plain = {key: value for key, value in table.items() if key != "methods"}
    overrides = table.get("methods", {}).get(method, {})
    merged = merge(plain, overrides)
    merged["method"] = method
    if method != DEFAULT:
        adapter = dict(merged.get("adapter", {}))
        merged["adapter"] = adapter | {size: 0 for size in _SIZES if size not in _KEPT[method]}
    return merged


def merge(table: Table, over: Table) -> dict[str, Any]:
    """`over` laid over `table`, tables within them alike."""
    merged = dict(table)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def unusable(method: str, sizes: Mapping[str, int]) -> str | None:
    """Why a method cannot be used with these sizes, if so: what it trains must be there."""
    needed = _KEPT[method] if method != DEFAULT else frozenset()
    missing = sorted(size for size in needed if not sizes.get(size))
    return f"method {method!r} needs adapter.{missing[0]} above 0" if missing else None
