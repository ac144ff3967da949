"""Device memory for the adapters in use: a slot for each, which costs what its adapter holds.

What adapters hold is kept by place and kind (a prompt of up to 8 tokens, LoRA of rank 16 on the query, ...): all of
one kind lie in one stack of tensors `[L, S, ...]`, whose first place is all zeros. A stack is allotted when the first
adapter of its kind arrives and doubles when it is full, so memory is at most twice what the adapters hold, padded to
the next power of two. Loading writes places of stacks and moves nothing else: what was captured or compiled over a
stack survives every swap, and is made anew only after a stack has doubled (`generation` says so), which happens a few
times in a server's life.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.folding import FoldedAdapter, fold_exactly
from service.model.groups import Draft, Groups, RowSubset, join_few, send
from service.model.parts import bottleneck, head, input_prompt
from service.model.parts.input_prompt import Windows, share_windows
from service.model.parts.part import Holding
from service.model.parts.targets import TARGETS, place_of
from service.model.selection import Selection
from service.model.spec import NULL_SLOT

if TYPE_CHECKING:
    from service.model.backbone import Backbone

_FIRST_ALLOTMENT = 2  # adapters that a new stack has room for
_JOINED = (bottleneck.PLACE, *map(place_of, TARGETS))  # where rows that hold nothing may run along, as zeros


class Bank:
    """Slots of adapters; slot 0 is the null adapter, the bare backbone.

    Args:
        backbone: whose geometry, device and dtype the slots have.
        slots: number of slots for adapters, beside the null adapter's.
    """

    def __init__(self, backbone: "Backbone", slots: int) -> None:
        self._device = backbone.device
        self._layout = backbone.layout
        self._dropout = 0.0
        self._lock = threading.Lock()
        self._stacks: dict[tuple[str, Hashable], _Stack] = {}
        # Each slot's own, replaced whole: a batch that is being put together sees it before or after a load.
        self._berths: list[Mapping[str, _Berth]] = [{} for _ in range(slots + 1)]
        self.generation = 0  # how often memory of the bank has moved

    @classmethod
    def of(cls, backbone: "Backbone", adapters: Sequence[AdapterWeights], dropout: float = 0.0) -> "Bank":
        """A bank of just these `adapters`, in slots 1, 2, ...; gradients reach their tensors (training)."""
        bank = cls(backbone, len(adapters))
        bank._dropout = dropout
        by_kind: dict[tuple[str, Hashable], list[Holding]] = {}
        for slot, weights in enumerate(adapters, start=1):
            berths = {}
            for held in fold_exactly(weights, backbone).holdings:
                others = by_kind.setdefault((held.place, held.kind), [])
                others.append(held)
                berths[held.place] = _Berth(held.kind, len(others), held.size)
            bank._berths[slot] = berths
        for key, holdings in by_kind.items():
            dtype = torch.float32 if holdings[0].exact else backbone.dtype
            bank._stacks[key] = _Stack(
                {
                    name: torch.stack(
                        [torch.zeros_like(tensor, dtype=dtype), *(held.tensors[name].to(dtype) for held in holdings)],
                        dim=1,
                    )
                    for name, tensor in holdings[0].tensors.items()
                }
            )
        return bank

    @property
    def slots(self) -> int:
        """Slots for adapters; they are numbered from 1."""
        return len(self._berths) - 1

    @property
    def nbytes(self) -> int:
        """Bytes allotted on the device."""
        return sum(stack.nbytes for stack in self._stacks.values())

    def outputs(self, slot: int) -> int:
        """How many outputs the head in `slot` has; 0 where the slot is empty or the null adapter's."""
        berth = self._berths[slot].get(head.PLACE)
        return 0 if berth is None else berth.size

    @torch.no_grad()
    def write(self, slot: int, adapter: FoldedAdapter) -> None:
        """Puts `adapter` into `slot`, which no running forward may be reading.

        Raises:
            ValueError: the slot is not one of the bank's.
            torch.OutOfMemoryError: the device has no room for it; the slot is empty then.
        """
        if not NULL_SLOT < slot <= self.slots:
            raise ValueError(f"slot {slot} is not one of 1 to {self.slots}")
        placed = adapter.to_device(self._device)
        with self._lock:
            self._vacate(slot)
            berths: dict[str, _Berth] = {}
            try:
                for held in placed.holdings:
                    berths[held.place] = _Berth(held.kind, self._take_place(held), held.size)
                    self._stacks[held.place, held.kind].write(berths[held.place].place, held)
            finally:
                self._berths[slot] = berths
        if len(berths) < len(placed.holdings):
            self._vacate(slot)

    def select(self, slots: Sequence[int], rows: Sequence[int] | None = None, windows: int | None = None) -> Selection:
        """The adapters of the rows of a batch, `slots[b]` being row b's: one copy of integers to the device.

        Args:
            rows: index of each row's window among the `windows` given; by default row b's is b.
        """
        berths = [self._berths[slot] for slot in slots]
        drafts = self._draft(berths)
        seen = self._windows(berths, slots, rows, windows)
        lists = [numbers for each in drafts.values() for draft in each for numbers in draft.lists()]
        rests = {place: _rest(each, len(slots)) for place, each in drafts.items()}
        extra = [seen.chosen, seen.prompted, seen.pictures, seen.rows] if seen else []
        sent = iter(send([*lists, *rests.values(), *extra], self._device))
        groups = {
            place: [draft.on_device([next(sent), next(sent), next(sent)], len(slots)) for draft in each]
            for place, each in drafts.items()
        }
        return Selection(
            places={
                place: Groups(each, RowSubset(rests[place], index) if len(index := next(sent)) else None)
                for place, each in groups.items()
            },
            windows=tuple(sent),
            layout=self._layout,
            dropout=self._dropout,
        )

    def _draft(self, berths: Sequence[Mapping[str, "_Berth"]]) -> dict[str, list[Draft]]:
        """The rows that hold something, by place, then by kind."""
        found: dict[str, dict[Hashable, Draft]] = {}
        for row, mine in enumerate(berths):
            for place, berth in mine.items():
                kinds = found.setdefault(place, {})
                if berth.kind not in kinds:
                    kinds[berth.kind] = Draft(berth.kind, self._stacks[place, berth.kind].tensors, [], [], [])
                kinds[berth.kind].add(row, berth.place, berth.size)
        return {
            place: join_few(list(kinds.values()), len(berths)) if place in _JOINED else list(kinds.values())
            for place, kinds in found.items()
        }

    def _windows(
        self,
        berths: Sequence[Mapping[str, "_Berth"]],
        slots: Sequence[int],
        rows: Sequence[int] | None,
        windows: int | None,
    ) -> Windows | None:
        """What the front end sees; None where that is row b's window b and no input prompt."""
        prompted = [input_prompt.PLACE in mine for mine in berths]
        plain = range(len(slots))
        given = plain if rows is None else rows
        if not any(prompted):
            shared = list(given) != list(plain) or windows not in (None, len(slots))
            return Windows([], [], [], list(given)) if shared else None
        return share_windows(given, slots, prompted)

    def _take_place(self, held: Holding) -> int:
        key = (held.place, held.kind)
        if key not in self._stacks:
            self._stacks[key] = _Stack.empty(held, self._device, min(_FIRST_ALLOTMENT, self.slots))
        stack = self._stacks[key]
        if not stack.free:
            stack.grow(min(2 * stack.places, self.slots))
            self.generation += 1
        return stack.free.pop()

    def _vacate(self, slot: int) -> None:
        berths, self._berths[slot] = self._berths[slot], {}
        for place, berth in berths.items():
            stack = self._stacks[place, berth.kind]
            stack.free.append(berth.place)
            if len(stack.free) == stack.places:
                del self._stacks[place, berth.kind]
                self.generation += 1


@dataclass(frozen=True, slots=True)
class _Berth:
    """Where an adapter's own is at one place of the forward."""

    kind: Hashable
    place: int  # in the stack of that kind
    size: int


@dataclass(slots=True)
class _Stack:
    """All of one kind: `[L, S, ...]`, replaced whole when it grows, so that a running forward keeps the old one."""

    tensors: dict[str, Tensor]
    free: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, held: Holding, device: torch.device, places: int) -> "_Stack":
        tensors = {
            name: torch.zeros((len(t), places + 1, *t.shape[1:]), dtype=t.dtype, device=device)
            for name, t in held.tensors.items()
        }
        return cls(tensors, list(range(places, 0, -1)))

    @property
    def places(self) -> int:
        return next(iter(self.tensors.values())).shape[1] - 1

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def grow(self, places: int) -> None:
        had, larger = self.places, {}
        for name, old in self.tensors.items():
            larger[name] = old.new_zeros((len(old), places + 1, *old.shape[2:]))
            larger[name][:, : had + 1] = old
        self.tensors = larger
        self.free += range(places, had, -1)

    def write(self, place: int, held: Holding) -> None:
        for name, tensor in held.tensors.items():
            self.tensors[name][:, place].copy_(tensor)


def _rest(drafts: Sequence[Draft], batch: int) -> list[int]:
    """The rows of none of the drafts."""
    held = {row for draft in drafts for row in draft.rows}
    return [row for row in range(batch) if row not in held] if len(held) < batch else []
