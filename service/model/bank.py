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

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.folding import FoldedAdapter, hold_all
from service.model.groups import Draft, join_few, send
from service.model.noise import QUIET, LayerNoise
from service.model.parts import bottleneck, head, input_prompt, prefix
from service.model.parts.input_prompt import share_windows
from service.model.parts.part import Frozen, Holding
from service.model.selection import Selection
from service.model.spec import NULL_SLOT, TARGETS

_FIRST_ALLOTMENT = 2  # adapters that a new stack has room for
_JOINED = (bottleneck.PLACE, *TARGETS)  # where rows that hold nothing may run along, as zeros


class Bank:
    """Slots of adapters; slot 0 is the null adapter, the bare backbone.

    Args:
        backbone: whose geometry, device and dtype the slots have.
        slots: number of slots for adapters, beside the null adapter's.
    """

    def __init__(self, backbone: Frozen, slots: int) -> None:
        self._device = backbone.device
        self._noise = QUIET
        self._lock = threading.Lock()
        self._stacks: dict[tuple[str, Hashable], _Stack] = {}
        # Each slot's own, replaced whole: a batch that is being put together sees it before or after a load.
        self._berths: list[Mapping[str, _Berth]] = [{} for _ in range(slots + 1)]
        self.generation = 0  # how often memory of the bank has moved

    @classmethod
    def of(cls, backbone: Frozen, adapters: Sequence[AdapterWeights], noise: LayerNoise = QUIET) -> "Bank":
        """A bank of just these `adapters`, in slots 1, 2, ...; gradients reach their tensors (training)."""
        bank = cls(backbone, len(adapters))
        bank._noise = noise
        by_kind: dict[tuple[str, Hashable], list[Holding]] = {}
        for slot, weights in enumerate(adapters, start=1):
            berths = {}
            for held in hold_all(weights, backbone):
                others = by_kind.setdefault((held.place, held.kind), [])
                others.append(held)
                berths[held.place] = _Berth(held.kind, len(others), held.size)
            bank._berths[slot] = berths
        for key, holdings in by_kind.items():
            dtype, tensors = torch.float32 if holdings[0].exact else backbone.dtype, {}
            for name in holdings[0].tensors:
                mine = [held.tensors[name].to(backbone.device, dtype) for held in holdings]
                tensors[name] = torch.stack([torch.zeros_like(mine[0]), *mine], dim=1)
            bank._stacks[key] = _Stack(tensors, {name: dim + 1 for name, dim in holdings[0].along.items()})
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
        lists = [numbers for each in drafts.values() for draft in each for numbers in zip(*draft.held, strict=True)]
        sent = iter(send([*lists, *_windows(berths, rows, windows)], self._device))
        places = {
            place: [draft.on_device(next(sent), next(sent), next(sent), len(slots)) for draft in each]
            for place, each in drafts.items()
        }
        return Selection(places, next(sent), next(sent), self._noise)

    def _draft(self, berths: Sequence[Mapping[str, "_Berth"]]) -> dict[str, list[Draft]]:
        """The rows that hold something, by place, then by kind; and those that have no prefix where others have."""
        found: dict[str, dict[Hashable, Draft]] = {}
        for row, mine in enumerate(berths):
            for place, berth in mine.items():
                kinds = found.setdefault(place, {})
                if berth.kind not in kinds:
                    stack = self._stacks[place, berth.kind]
                    kinds[berth.kind] = Draft(berth.kind, stack.tensors, stack.along, [])
                kinds[berth.kind].held.append((row, berth.place, berth.size))
        drafts = {place: list(kinds.values()) for place, kinds in found.items()}
        for place in drafts.keys() & {*_JOINED, prefix.PLACE}:
            rest = [row for row, mine in enumerate(berths) if place not in mine]
            if rest and place in _JOINED:
                drafts[place] = join_few(drafts[place], rest)
            elif rest:
                drafts[place].append(Draft(None, {}, {}, [(row, 0, 0) for row in rest]))
        return drafts

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
    along: Mapping[str, int]  # the dimension of each that is padded
    free: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, held: Holding, device: torch.device, places: int) -> "_Stack":
        tensors = {
            name: torch.zeros((len(t), places + 1, *t.shape[1:]), dtype=t.dtype, device=device)
            for name, t in held.tensors.items()
        }
        return cls(tensors, {name: dim + 1 for name, dim in held.along.items()}, list(range(places, 0, -1)))

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


def _windows(
    berths: Sequence[Mapping[str, _Berth]], rows: Sequence[int] | None, windows: int | None
) -> tuple[list[int], list[int]]:
    """What the front end sees, and each row's of these; nothing where that is all windows, and row b's window b."""
    given = list(range(len(berths)) if rows is None else rows)
    framed = [input_prompt.PLACE in mine for mine in berths]
    if any(framed):
        return share_windows(given, framed)
    return [], [] if given == list(range(len(berths) if windows is None else windows)) else given
