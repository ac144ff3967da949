"""The adapters of the rows of one batch, place by place of the forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from service.model.groups import Group
from service.model.layers import Projection
from service.model.noise import QUIET, LayerNoise
from service.model.parts import aggregation, bottleneck, head, input_prompt, prefix
from service.model.parts.aggregation import Aggregation
from service.model.parts.bottleneck import add_bottlenecks
from service.model.parts.head import read_heads
from service.model.parts.input_prompt import add_pictures
from service.model.parts.prefix import RowPrefixes
from service.model.parts.targets import change_columns, project


@dataclass(slots=True)
class Selection:
    """What the rows of a batch hold, on the device; tensors are gathered layer by layer.

    Args:
        places: by place of the forward, a linear map's being its target's name; absent where no row holds anything.
        seen: which of the windows given the front end sees, where rows have input prompts.
        windows: which of these each row has; empty where row b has window b.
        noise: in training only.
        prefixes: keys and values before the layers' own; empty where no row has any.
    """

    places: Mapping[str, Sequence[Group]]
    seen: Tensor
    windows: Tensor
    noise: LayerNoise = QUIET
    prefixes: Sequence[RowPrefixes] = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = [RowPrefixes(group) for group in self.places.get(prefix.PLACE, ())]

    def with_pictures(self, windows: Tensor) -> Tensor:
        """The windows that the front end sees: `[U, ...]` -> `[V, ...]`, with the rows' input prompts."""
        if input_prompt.PLACE not in self.places:
            return windows
        return add_pictures(windows.index_select(0, self.seen), self.places[input_prompt.PLACE][0])

    def spread(self, hidden: Tensor) -> Tensor:
        """The front end's output for each row: `[V, T, D]` -> `[B, T, D]`."""
        return hidden.index_select(0, self.windows) if len(self.windows) else hidden

    def aggregation(self) -> Aggregation | None:
        """Sums over layers to be filled, for the rows whose heads read them; None where there are none."""
        groups = self.places.get(aggregation.PLACE, ())
        return Aggregation(groups[0].take("shares"), groups[0].rows) if groups else None

    def outputs(self, embeddings: Tensor) -> Tensor:
        """What the rows' heads say: `[B, E]` -> `[B, widest]`, zeros behind a row's own outputs."""
        return read_heads(self.places.get(head.PLACE, ()), embeddings)


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """One layer's adapters of the rows of a batch."""

    selection: Selection
    index: int  # of the layer

    def project(self, target: str, projection: Projection, x: Tensor) -> Tensor:
        """A linear layer `[B, T, in]` -> `[B, T, out]` as each row's adapter changes it, then its activation."""
        groups, noise = self.selection.places.get(target), self.selection.noise
        if groups is None:
            out = projection(x)
        else:
            out = project(groups, self.index, x, projection.linear)
            out = out if projection.activation is None else projection.activation(out)
        return out if noise is QUIET else noise.behind(target, out)

    def project_stacked(self, targets: Sequence[str], projection: Projection, x: Tensor) -> list[Tensor]:
        """As `project`, of targets of one width whose maps are stacked in one, without an activation: each's output."""
        places, outs = self.selection.places, list(projection(x).chunk(len(targets), dim=-1))
        for i, target in enumerate(targets):
            if target in places:
                columns = slice(i * outs[i].shape[-1], (i + 1) * outs[i].shape[-1])
                outs[i] = change_columns(places[target], self.index, x, outs[i], projection.linear, columns)
        return outs

    def add_bottlenecks(self, x: Tensor, fed: Tensor, out: Tensor) -> Tensor:
        """`out` plus each row's `a(x)`, or `a(fed)` where it comes behind the feed-forward; `[B, T, D]`, float32."""
        groups = self.selection.places.get(bottleneck.PLACE, ())
        return add_bottlenecks(groups, self.index, x, fed, out, self.selection.noise.bottleneck)
