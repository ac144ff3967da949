"""What every part of an adapter says of itself: its manifest fields, its tensors, and what it holds in a slot."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor
from torch.nn import functional

from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone
    from service.model.parts.targets import Change, Changes

LATEST_VERSION = 3  # of the bundle format
_OPTIONAL_FROM = 3  # the version from which on a manifest leaves out what its adapter does not have

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one adapter holds at one place of the forward, padded so that all of its kind have the same shapes.

    Args:
        place: where in the forward.
        kind: what rows must have in common to run together: the shapes below, and all that changes what is computed.
        tensors: `[L, ...]` for something in each layer, `[1, ...]` otherwise.
        size: how much of the padded length is the adapter's own.
        exact: whether it stays in float32 whatever the backbone's dtype.
    """

    place: str
    kind: Hashable
    tensors: Mapping[str, Tensor]
    size: int = 0
    exact: bool = False


class Part(BaseModel):
    """One thing that an adapter may hold, as its manifest describes it; the fields are the manifest's own.

    A part adds to the forward by `hold`, or where several parts meet in one place by what that place asks of them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    since: ClassVar[Mapping[str, int]] = {}  # fields that are newer than version 1 of the format
    always: ClassVar[tuple[str, ...]] = ()  # fields that versions below 3 must have
    counted_as: ClassVar[str] = "adapter"  # `prompt`, `adapter` or `head` in counts of parameters
    limits: ClassVar[Mapping[str, int]] = {}  # fields that have a largest value, and that

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The part as a manifest's fields have it, whatever else they hold. Raises ValidationError."""
        version = fields.get("format_version", 1)
        version = version if isinstance(version, int) else LATEST_VERSION
        missing = [name for name in cls.always if name not in fields and version < _OPTIONAL_FROM]
        if missing:
            lines: list[InitErrorDetails] = [
                {"type": "missing", "loc": (name,), "input": dict(fields)} for name in missing
            ]
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return cls.model_validate(cls.gather(fields, version), context={"version": version})

    @classmethod
    def gather(cls, fields: Mapping[str, Any], version: int) -> dict[str, Any]:
        """What of a manifest concerns this part; fields of version 3 are unknown keys, so unread, below it."""
        read = [name for name in cls.model_fields if name in fields]
        known = version >= _OPTIONAL_FROM
        return {name: fields[name] for name in read if known or cls.since.get(name, 1) < _OPTIONAL_FROM}

    @model_validator(mode="after")
    def _check_version(self, info: ValidationInfo) -> Self:
        version = (info.context or {}).get("version", LATEST_VERSION)
        for name, needed in self.since.items():
            if name in self.model_fields_set and version < needed and getattr(self, name):
                raise problem(f"{name}: needs format_version {needed}, got format_version {version}")
        return self

    @property
    def is_held(self) -> bool:
        """Whether the adapter has this part at all."""
        raise NotImplementedError

    @property
    def format_version(self) -> int:
        """The oldest version of the bundle format that can say this."""
        defaults = type(self).model_fields
        return max((v for name, v in self.since.items() if getattr(self, name) != defaults[name].default), default=1)

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        """Names and shapes of its tensors (contract, sections 2 and 5)."""
        raise NotImplementedError

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        """Tensors that a bundle may have beside these: of each table all or none."""
        return []

    @property
    def sizes(self) -> dict[str, int]:
        """What of it is limited, by the names of `limits`."""
        return {name: getattr(self, name) for name in self.limits}

    def hold(self, weights: "AdapterWeights", backbone: "Backbone") -> Iterable[Holding]:
        """What a slot holds of it: all that can be computed once has been, in float32; gradients pass through."""
        return ()

    def change(self, target: str, change: "Change", weights: "AdapterWeights", backbone: "Backbone") -> "Change":
        """What the adapter changes in a layer's linear map, after the parts before this one."""
        return change

    def prefix(
        self, weights: "AdapterWeights", backbone: "Backbone", changes: "Changes"
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[L, H, P, d]` before each layer's own."""
        return None

    def initialise(self, name: str, parameter: Tensor) -> None:
        """Fill a parameter, zeros so far, with what training starts from."""

    def start(self, parameters: Mapping[str, Tensor], backbone: "Backbone") -> None:
        """Fill what starts from the backbone's own weights, by names of parameters."""


def problem(message: str) -> PydanticCustomError:
    """An error of a manifest whose message names the field."""
    return PydanticCustomError("manifest", "{problem}", {"problem": message})


def model_type_of(fields: Mapping[str, Any]) -> str:
    """`backbone.model_type` of a manifest's fields, whatever they hold."""
    backbone = fields.get("backbone")
    found = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    return str(getattr(found, "value", found))


def each_layer(backbone: BackboneSpec, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Shapes of tensors that every layer has, by their names behind `layers.{i}.`."""
    layers = range(backbone.num_hidden_layers)
    return {f"layers.{i}.{name}": shape for i in layers for name, shape in shapes.items()}


def size_class(size: int) -> int:
    """The padded length of `size`: the next power of two, at least 4."""
    return max(4, 1 << (size - 1).bit_length())


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, T, D]` -> `[B, H, T, d]`."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def pad(tensor: Tensor, dim: int, length: int) -> Tensor:
    """`tensor` with zeros behind its end along `dim`, `length` long."""
    missing = length - tensor.shape[dim]
    return (
        functional.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim % tensor.dim()) + (0, missing)) if missing else tensor
    )
