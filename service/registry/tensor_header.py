"""The header of a safetensors file, read within limits before anything is allocated. Knows no tensors.

Format: 8 bytes little-endian header length, the header (JSON), then the tensors' bytes. The header maps each
tensor's name to `dtype`, `shape` and `data_offsets` [begin, end) into those bytes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidBundle
from service.registry.strict_json import parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 2**20  # some 8,000 tensors; an adapter on 24 layers has 124
MAX_TENSORS = 8192  # of a file whose manifest is not known yet
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_RANK = 8  # dimensions of a tensor; the product of thousands takes seconds
MAX_SIZE = 2**64 - 1  # of one dimension and of an offset: the format's numbers have 64 bits
_LENGTH_BYTES = 8
_NAMED = 5  # tensors named in one message

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Expected:
    """The tensors that follow from a manifest: `required`, and tables of which a file has all or none."""

    required: Shapes
    optional: Sequence[Shapes] = ()

    def of(self, names: Collection[str]) -> Shapes:
        """Name -> shape of every tensor of a file that has these names."""
        begun = [table for table in self.optional if any(name in names for name in table)]
        return {name: shape for table in (self.required, *begun) for name, shape in table.items()}

    @property
    def largest(self) -> Shapes:
        return {name: shape for table in (self.required, *self.optional) for name, shape in table.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file; `begin` and `end` are bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def largest_file(expected: Expected) -> int:
    """Bytes that a file of these tensors can have at most."""
    return _LENGTH_BYTES + MAX_HEADER_BYTES + 4 * sum(math.prod(shape) for shape in expected.largest.values())


def check_header(start: bytes, size: int, expected: Expected) -> dict[str, TensorEntry]:
    """Check that a file holds exactly the expected tensors, back to back.

    Args:
        start: the file's first bytes; all of it, or at least the header.
        size: bytes of the whole file.
        expected: the tensors that it may have.

    Raises:
        InvalidBundle: anything else than that.
    """
    if size < _LENGTH_BYTES or len(start) < _LENGTH_BYTES:
        raise InvalidBundle(f"{WEIGHTS_FILE} has {size} bytes; a safetensors file has at least 8")
    length = _header_length(start)
    if _LENGTH_BYTES + length > min(size, len(start)):
        raise InvalidBundle(f"{WEIGHTS_FILE} is cut off: its header of {length:,} bytes ends behind the file")
    entries = _read_entries(start[_LENGTH_BYTES : _LENGTH_BYTES + length], expected)
    taken = _check_layout(entries)
    available = size - _LENGTH_BYTES - length
    if taken != available:
        raise InvalidBundle(
            f"{WEIGHTS_FILE}: the tensors take {taken:,} bytes, the file has {available:,} behind its header"
        )
    return entries


class HeaderGate:
    """Looks at a file while it arrives: refuses it at its header, and at the first byte behind its tensors.

    Args:
        expected: the tensors that it may have; None while the manifest is not known, when any well-formed
            header of at most `MAX_TENSORS` tensors may pass.
        max_bytes: largest file let through in any case.
    """

    def __init__(self, expected: Expected | None, max_bytes: int) -> None:
        self._expected = expected
        self._max_bytes = max_bytes
        self._start = bytearray()  # until the header is whole
        self._size: int | None = None  # of the file, as its header has it
        self._received = 0

    def check(self, content: bytes) -> None:
        """Let the next bytes through. Raises InvalidBundle."""
        self._received += len(content)
        if self._size is None:
            self._start += content
            self._size = self._read_size()
        most = self._max_bytes if self._size is None else min(self._size, self._max_bytes)
        if self._received > most:
            raise InvalidBundle(f"{WEIGHTS_FILE} is larger than {most:,} bytes, the most that these tensors may take")

    def _read_size(self) -> int | None:
        if len(self._start) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + _header_length(self._start)
        if len(self._start) < end:
            return None
        size = end + _check_layout(_read_entries(bytes(self._start[_LENGTH_BYTES:end]), self._expected))
        self._start.clear()
        return size


def _header_length(start: bytes | bytearray) -> int:
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidBundle(
            f"{WEIGHTS_FILE} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted "
            "(is it a safetensors file?)"
        )
    return length


def _read_entries(raw: bytes, expected: Expected | None) -> dict[str, TensorEntry]:
    header = parse_object(raw, f"{WEIGHTS_FILE}: the header", MAX_HEADER_BYTES)
    _check_metadata(header.pop("__metadata__", {}))
    if expected is not None:
        shapes = expected.of(header)
        _check_names(header, shapes)
        return {name: _entry(name, header[name], shape) for name, shape in shapes.items()}
    if len(header) > MAX_TENSORS:
        raise InvalidBundle(f"{WEIGHTS_FILE} has {len(header):,} tensors; at most {MAX_TENSORS:,} are accepted")
    return {name: _entry(name[:80], entry, None) for name, entry in header.items()}


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidBundle(f"{WEIGHTS_FILE}: __metadata__ must map text to text")


def _check_names(header: Mapping[str, Any], expected: Shapes) -> None:
    missing = [name for name in expected if name not in header]
    unexpected = [name for name in header if name not in expected]
    problems = [
        f"{what} {_list(names)}"
        for what, names in (("missing tensors:", missing), ("unexpected tensors:", unexpected))
        if names
    ]
    if problems:
        raise InvalidBundle(
            f"{WEIGHTS_FILE}: {'; '.join(problems)}; {len(expected)} tensors follow from the config's "
            "task, its parts and the backbone's layers"
        )


def _entry(name: str, entry: Any, shape: tuple[int, ...] | None) -> TensorEntry:
    def problem(got: object, right: str) -> InvalidBundle:
        return InvalidBundle(f"{WEIGHTS_FILE}: {name}: expected {right}, got {str(got)[:80]}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise problem(entry, "dtype, shape and data_offsets")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise problem(dtype, f"dtype {', '.join(ITEM_BYTES)}")
    if not _is_sizes(entry["shape"]) or shape not in (None, tuple(entry["shape"])):
        right = f"at most {MAX_RANK} sizes as shape" if shape is None else f"shape {list(shape)}"
        raise problem(entry["shape"], right)
    shape = tuple(entry["shape"])
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise problem(offsets, "two data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise problem(offsets, f"data_offsets that span {math.prod(shape) * ITEM_BYTES[dtype]:,} bytes")
    return TensorEntry(dtype, shape, begin, end)


def _check_layout(entries: Mapping[str, TensorEntry]) -> int:
    """Bytes that the tensors take; their offsets must begin at 0 and neither overlap nor leave a gap."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: begins at byte {entry.begin} and {what}")
        position = entry.end
    return position


def _is_sizes(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        return False
    return all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


def _list(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:80])[1:-1] for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
