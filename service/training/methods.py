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

# The size of the `[adapter]` table that a method other than ipet trains, and what belongs to it; the others are zero.
_SIZE = {"prompt": "prompt_length", "adapter": "bottleneck_dim", "input-prompt": "input_prompt"}
_WITH = {"bottleneck_dim": ("conv_kernel",)}
_SIZES = ("prompt_length", "bottleneck_dim", "conv_kernel", "input_prompt")

Table = Mapping[str, Any]


def of_method(table: Table, method: str) -> dict[str, Any]:
    """A recipe's table as it is for one method: overrides laid over it, the sizes that it lacks at zero."""
    plain = {key: value for key, value in table.items() if key != "methods"}
    overrides = table.get("methods", {}).get(method, {})
    merged = merge(plain, overrides)
    merged["method"] = method
    if method != DEFAULT:
        size = _SIZE.get(method, "")
        dropped = set(_SIZES) - {size, *_WITH.get(size, ())}
        merged["adapter"] = dict(merged.get("adapter", {})) | dict.fromkeys(sorted(dropped), 0)
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
    size = _SIZE.get(method)
    return None if size is None or sizes.get(size) else f"method {method!r} needs adapter.{size} above 0"
