"""The header of a safetensors file, read within limits before anything is allocated.

Format: 8 bytes little-endian header length, the header (JSON), then the tensors' bytes. The header maps each
tensor's name to `dtype`, `shape` and `data_offsets` [begin, end) into those bytes. The library checks numbers,
offsets and lengths; here is what it leaves open: the header's size, keys that come twice, and which tensors these are.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidBundle
from service.registry.strict_json import parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 2**20  # some 8,000 tensors; an adapter on 24 layers has 124
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
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


def check_header(start: bytes, expected: Expected) -> int:
    """Bytes of a file with this header, which must tell of exactly the expected tensors.

    Args:
        start: the file's first bytes, the whole header among them.
        expected: the tensors that it may have.

    Raises:
        InvalidBundle: anything else than that.
    """
    end = _header_end(start)
    if end > len(start):
        raise InvalidBundle(f"{WEIGHTS_FILE} is cut off: its header of {end - 8:,} bytes ends behind the file")
    header = parse_object(start[_LENGTH_BYTES:end], f"{WEIGHTS_FILE}: the header", MAX_HEADER_BYTES)
    header.pop("__metadata__", None)
    shapes = expected.of(header)
    _check_names(header, shapes)
    return end + sum(
        math.prod(shape) * ITEM_BYTES[_check_entry(name, header[name], shape)] for name, shape in shapes.items()
    )


class HeaderGate:
    """Looks at a file while it arrives: refuses it at its header, and at the first byte behind its tensors.

    Args:
        expected: the tensors that it may have; None while the manifest is not known, when only sizes count.
        max_bytes: largest file let through in any case.

    Attributes:
        has_checked: whether the header has arrived and tells of the expected tensors.
    """

    def __init__(self, expected: Expected | None, max_bytes: int) -> None:
        self.has_checked = False
        self._expected = expected
        self._most = max_bytes
        self._start = bytearray()  # until the header is whole
        self._received = 0

    def check(self, content: bytes) -> None:
        """Let the next bytes through. Raises InvalidBundle."""
        if self._received < _LENGTH_BYTES or (self._expected is not None and not self.has_checked):
            self._start += content
            if len(self._start) >= _LENGTH_BYTES:
                end = _header_end(self._start)
                if self._expected is not None and len(self._start) >= end:
                    self._most = min(self._most, check_header(bytes(self._start), self._expected))
                    self.has_checked = True
                    self._start.clear()
        self._received += len(content)
        if self._received > self._most:
            raise InvalidBundle(
                f"{WEIGHTS_FILE} is larger than {self._most:,} bytes, the most that these tensors may take"
            )


def _header_end(start: bytes | bytearray) -> int:
    if len(start) < _LENGTH_BYTES:
        raise InvalidBundle(f"{WEIGHTS_FILE} has {len(start)} bytes; a safetensors file has at least 8")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidBundle(
            f"{WEIGHTS_FILE} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted "
            "(is it a safetensors file?)"
        )
    return _LENGTH_BYTES + length


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


def _check_entry(name: str, entry: Any, shape: tuple[int, ...]) -> str:
    """The dtype of a tensor that is as expected."""
    got, right = entry, "dtype, shape and data_offsets"
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        dtype = entry["dtype"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            got, right = dtype, f"dtype {', '.join(ITEM_BYTES)}"
        elif entry["shape"] != list(shape):
            got, right = entry["shape"], f"shape {list(shape)}"
        else:
            return dtype
    raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: expected {right}, got {str(got)[:80]}")


def _list(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:80])[1:-1] for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
