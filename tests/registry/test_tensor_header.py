import json
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import InvalidBundle
from service.registry.bundle import read_tensors
from service.registry.tensor_header import Expected, check_header

EXPECTED = {"a": (2, 3), "b": (4,)}
GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def file(header: object, payload: int = 32) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(payload)


LIBRARY = "not a valid safetensors file"  # what it finds is not looked for twice


def check(raw: bytes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(raw, Expected(EXPECTED)).items()}


def test_reads_entries_in_any_order_with_metadata() -> None:
    raw = file({"__metadata__": {"format": "pt"}, "b": GOOD["b"], "a": GOOD["a"]})
    assert check(raw) == EXPECTED
    assert check_header(raw[:-32], Expected(EXPECTED)) == len(raw)


def change(**changes: Any) -> Callable[[], bytes]:
    return lambda: file({**GOOD, "b": {**GOOD["b"], **changes}})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "has 0 bytes"),
        (lambda: b"1234567", "has 7 bytes"),
        (lambda: b"RIFF" + bytes(100), "claims a header .*is it a safetensors"),
        (lambda: b"\xff" * 100, "claims a header"),
        (lambda: (2**20 + 1).to_bytes(8, "little") + bytes(2**20 + 1), "claims a header"),
        (lambda: (50).to_bytes(8, "little") + b"{}", "cut off"),
        (lambda: file([]), "array"),
        (lambda: file({}), "missing tensors: a, b"),
        (lambda: file({"a": GOOD["a"]}, 24), "missing tensors: b"),
        (lambda: file({**GOOD, "layers.9.prompt": GOOD["b"]}), "unexpected tensors: layers.9.prompt"),
        (lambda: file({**GOOD, **{f"x{i}": {} for i in range(9)}}), "and 4 more"),
        (lambda: file({**GOOD, "__metadata__": {"a": 1}}), LIBRARY),
        (lambda: file({**GOOD, "__metadata__": []}), LIBRARY),
        (lambda: file({**GOOD, "b": 7}), "b: expected dtype, shape and data_offsets"),
        (change(extra=1), "b: expected dtype, shape and data_offsets"),
        (change(dtype="I64"), "b: expected dtype F32, F16, BF16, got I64"),
        (change(dtype=["F32"]), "b: expected dtype"),
        (change(shape=[2, 2]), r"b: expected shape \[4\], got \[2, 2\]"),
        (change(shape=[4.0]), LIBRARY),
        (change(shape=[-4]), "b: expected shape"),
        (change(shape=4), "b: expected shape"),
        (change(data_offsets=[24]), LIBRARY),
        (change(data_offsets=[24, 32, 40]), LIBRARY),
        (change(data_offsets=[True, 8]), LIBRARY),
        (change(data_offsets=[24, 40]), LIBRARY),
        (change(data_offsets=[32, 24]), LIBRARY),
        (change(data_offsets=[16, 24]), LIBRARY),
        (change(data_offsets=[25, 33]), LIBRARY),
        (change(data_offsets=[2**63, 2**63 + 8]), LIBRARY),
        (lambda: file(GOOD, 31), "its header and tensors take"),
        (lambda: file(GOOD, 33), "its header and tensors take"),
    ],
)
def test_refuses(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(InvalidBundle, match=reason) as caught:
        check(make())
    assert caught.value.detail.startswith("adapter_model.safetensors")


def test_a_key_twice_is_refused() -> None:
    raw = b'{"a": 1, "a": 2}'
    with pytest.raises(InvalidBundle, match="twice"):
        check(len(raw).to_bytes(8, "little") + raw)
