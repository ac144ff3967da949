"""The adapters of the rows of one batch, place by place of the forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from service.model.groups import Groups
from service.model.layers import Projection
from service.model.parts import aggregation, bottleneck, head, input_prompt, prefix
from service.model.parts.aggregation import Aggregation
from service.model.parts.bottleneck import add_bottlenecks
from service.model.parts.convolution import TokenLayout
from service.model.parts.head import read_heads
from service.model.parts.input_prompt import add_pictures
from service.model.parts.prefix import RowPrefixes, row_prefixes
from service.model.parts.targets import change_columns, place_of, project


@dataclass(slots=True)
class Selection:
    """What the rows of a batch hold, on the device; tensors are gathered layer by layer.

    Args:
        places: by place of the forward; absent where no row holds anything.
        windows: numbers of `input_prompt.Windows`; empty where row b sees window b.
    """

    places: Mapping[str, Groups]
    windows: tuple[Tensor, ...]
    layout: TokenLayout
    dropout: float = 0.0
    prefixes: Sequence[RowPrefixes] = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = row_prefixes(self.places.get(prefix.PLACE))

    def layer(self, i: int) -> "RowAdapters":
        """Layer i's adapters."""
        return RowAdapters(self, i)

    def with_pictures(self, windows: Tensor) -> Tensor:
        """The windows that the front end sees: `[U, ...]` -> `[V, ...]`, with the rows' input prompts."""
        if input_prompt.PLACE not in self.places:
            return windows
        chosen, prompted, pictures, _ = self.windows
        return add_pictures(windows.index_select(0, chosen), prompted, pictures, self.places[input_prompt.PLACE])

    def spread(self, hidden: Tensor) -> Tensor:
        """The front end's output for each row: `[V, T, D]` -> `[B, T, D]`."""
        return hidden.index_select(0, self.windows[3]) if self.windows else hidden

    def aggregation(self) -> Aggregation | None:
        """Sums over layers to be filled, for the rows whose heads read them; None where there are none."""
        return Aggregation.of(self.places.get(aggregation.PLACE))

    def outputs(self, embeddings: Tensor) -> Tensor:
        """What the rows' heads say: `[B, E]` -> `[B, widest]`, zeros behind a row's own outputs."""
        return read_heads(self.places.get(head.PLACE), embeddings)


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """One layer's adapters of the rows of a batch."""

    selection: Selection
    index: int  # of the layer

    @property
    def prefixes(self) -> Sequence[RowPrefixes]:
        """Keys and values before the layer's own; empty where no row has any."""
        return self.selection.prefixes

    def project(self, target: str, projection: Projection, x: Tensor) -> Tensor:
        """A linear layer `[B, T, in]` -> `[B, T, out]` as each row's adapter changes it, then its activation."""
        groups = self.selection.places.get(place_of(target))
        if groups is None:
            return projection(x)
        out = project(groups, self.index, x, projection.linear)
        return out if projection.activation is None else projection.activation(out)

    def change_columns(self, target: str, projection: Projection, x: Tensor, y: Tensor, columns: slice) -> Tensor:
        """As `project`, for some `columns` of a stacked layer whose output for `x` is `y`; without an activation."""
        groups = self.selection.places.get(place_of(target))
        mine = y[..., columns]
        return mine if groups is None else change_columns(groups, self.index, x, mine, projection.linear, columns)

    @property
    def mixes_frames(self) -> bool:
        """Whether some row's bottleneck lets frames meet their neighbours."""
        groups = self.selection.places.get(bottleneck.PLACE)
        return groups is not None and any(group.kind.conv_kernel for group in groups.groups)

    def add_bottlenecks(self, x: Tensor, fed: Tensor, out: Tensor) -> Tensor:
        """`out` plus each row's `a(x)`, or `a(fed)` where it comes behind the feed-forward; `[B, T, D]`, float32."""
        groups = self.selection.places.get(bottleneck.PLACE)
        if groups is None:
            return out
        return add_bottlenecks(groups, self.index, x, fed, out, self.selection.layout, self.selection.dropout)
