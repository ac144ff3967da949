"""What every part of an adapter says of itself: its manifest fields, its tensors, and what it holds in a slot."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor
from torch.nn import functional

from service.model.layers import Module
from service.model.spec import BackboneSpec

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
        along: the dimension of each tensor that is padded.
        exact: whether it stays in float32 whatever the backbone's dtype.
    """

    place: str
    kind: Hashable
    tensors: Mapping[str, Tensor]
    size: int = 0
    along: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False

    def padded(self, length: int) -> "Holding":
        """The same with zeros behind each tensor's end, along its dimension of `along`."""
        held = {name: pad(t, self.along[name], length) if name in self.along else t for name, t in self.tensors.items()}
        return replace(self, tensors=held)


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter changes in one target, a linear map, in all layers; None where nothing.

    The target's output becomes `y * scale + (x a) b + shift`, y being the frozen map's output for `x` scaled by
    `input` (contract, section 5).
    """

    a: Tensor | None = None  # [L, in, r]
    b: Tensor | None = None  # [L, r, out], with all that multiplies it
    scale: Tensor | None = None  # [L, 1, out]
    shift: Tensor | None = None  # [L, 1, out]
    input: Tensor | None = None  # [L, 1, in]

    def to(self, device: torch.device) -> "Change":
        moved = {each.name: getattr(self, each.name) for each in fields(self)}
        return Change(**{name: None if tensor is None else tensor.to(device) for name, tensor in moved.items()})

    def apply(self, layer: int, x: Tensor, linear: Module) -> Tensor:
        """The changed map `[..., in]` -> `[..., out]` of one layer, for one adapter alone."""
        x = x if self.input is None else x * self.input[layer]
        y = linear(x)
        y = y if self.scale is None else y * self.scale[layer]
        y = y if self.a is None or self.b is None else y + x @ self.a[layer] @ self.b[layer]
        return y if self.shift is None else y + self.shift[layer]


Changes = Mapping[str, Change]  # by target; those that an adapter leaves alone are absent


class Frozen(Protocol):
    """The frozen backbone, as far as what adapters hold depends on it."""

    spec: BackboneSpec
    device: torch.device
    dtype: torch.dtype

    def exact_linear(self, i: int, target: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Weight `[out, in]` and bias `[out]` of a target in layer i, in float32, as the checkpoint has them."""
        ...

    def fold_prompt(self, i: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        """The prompt `[P, D]` of layer i as keys and values, each `[H, P, d]`, in float32.

        Args:
            changes: what the prompt's own adapter changes in the layers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What a slot's content is computed from: an adapter's tensors in float32, and the backbone that it is for."""

    tensors: Mapping[str, Tensor]
    backbone: Frozen

    def stack(self, part: str) -> Tensor:
        """The tensors `layers.{i}.{part}` of all layers, `[L, ...]`."""
        return torch.stack([self.tensors[f"layers.{i}.{part}"] for i in range(self.backbone.spec.num_hidden_layers)])


class Part(BaseModel):
    """One thing that an adapter may hold, as its manifest describes it; the fields are the manifest's own.

    A part adds to the forward by `hold`, or where several parts meet in one place by what that place asks of them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    since: ClassVar[Mapping[str, int]] = {}  # fields that are newer than version 1 of the format
    always: ClassVar[tuple[str, ...]] = ()  # fields that versions below 3 must have
    counted_as: ClassVar[str] = "adapter"  # `prompt`, `adapter` or `head` in counts of parameters
    limits: ClassVar[Mapping[str, int]] = {}  # fields that have a largest value, and that
    family: ClassVar[str] = ""  # of adapters, by the name of the training method; what heads are made of has none

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
        return {name: size for name in self.limits if (size := getattr(self, name))}

    def hold(self, source: Source) -> Iterable[Holding]:
        """What a slot holds of it: all that can be computed once has been, in float32; gradients pass through."""
        return ()

    def change(self, target: str, change: Change, source: Source) -> Change:
        """What the adapter changes in a layer's linear map, after the parts before this one."""
        return change

    def prefix(self, source: Source, changes: Changes) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[L, H, P, d]` before each layer's own."""
        return None

    def initialise(self, name: str, parameter: Tensor) -> None:
        """Fill a parameter, zeros so far, with what training starts from."""

    def start(self, parameters: Mapping[str, Tensor], backbone: Frozen) -> None:
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


def pad(tensor: Tensor, dim: int, length: int) -> Tensor:
    """`tensor` with zeros behind its end along `dim`, `length` long."""
    missing = length - tensor.shape[dim]
    return (
        functional.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim % tensor.dim()) + (0, missing)) if missing else tensor
    )
