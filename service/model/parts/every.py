"""The list of parts, in the order in which they change a linear map: a new one is a file and a line here."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from service.model.parts.aggregation import LayerAggregation
from service.model.parts.bias import Bias
from service.model.parts.bottleneck import Bottleneck
from service.model.parts.head import Head
from service.model.parts.ia3 import IA3
from service.model.parts.input_prompt import InputPrompt
from service.model.parts.low_rank import LowRank
from service.model.parts.part import Part
from service.model.parts.prefix import Prefix
from service.model.parts.prompt import Prompt

PARTS: Final[tuple[type[Part], ...]] = (
    InputPrompt,
    Prompt,
    Prefix,
    Bottleneck,
    LowRank,
    Bias,
    IA3,
    LayerAggregation,
    Head,
)

LIMITS: Final[Mapping[str, int]] = {name: limit for part in PARTS for name, limit in part.limits.items()}


def read_parts(fields: Mapping[str, Any]) -> tuple[list[Part], list[ValidationError]]:
    """The parts that a manifest's fields describe, and what is wrong with those that cannot be read."""
    parts, errors = [], []
    for kind in PARTS:
        try:
            part = kind.read(fields)
        except ValidationError as error:
            errors.append(error)
        else:
            parts += [part] if part.is_held else []
    return parts, errors
