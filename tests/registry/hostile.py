"""Weights files that lie: lengths, headers, shapes, offsets, values and other formats. Knows no test."""

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch

from service.registry.bundle import MAX_HEADER_BYTES
from tests.registry.bundles import bundle

WEIGHTS = bundle().weights
HEADER_END = 8 + int.from_bytes(WEIGHTS[:8], "little")
HEADER: dict[str, Any] = json.loads(WEIGHTS[8:HEADER_END])
NAME = "layers.0.prompt"


def file(header: bytes, payload: bytes = WEIGHTS[HEADER_END:], length: int | None = None) -> bytes:
    """A file of this header, which claims `length` for it."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + payload


def headed(header: object, payload: bytes = WEIGHTS[HEADER_END:]) -> bytes:
    return file(json.dumps(header, separators=(",", ":")).encode(), payload)


def boundaries() -> list[int]:
    """Where the parts of a valid file begin: its length, its header, every tensor."""
    offsets = {offset for entry in HEADER.values() for offset in entry.get("data_offsets", ())}
    return sorted({0, 8, *(HEADER_END + offset for offset in offsets)})


def hostile_weights() -> dict[str, bytes]:
    """All of them, by name. None is a valid bundle for the config of tests/registry/bundles.py."""
    named = [*_cut(), *_lengths(), *_documents(), *_entries(), *_values(), *_other_formats()]
    assert len(dict(named)) == len(named)
    return dict(named)


def _cut() -> Iterator[tuple[str, bytes]]:
    for at in boundaries():
        for off in (-1, 0, 1):
            if 0 <= at + off < len(WEIGHTS):
                yield f"cut at {at}{off:+}", WEIGHTS[: at + off]
    yield "one byte more", WEIGHTS + b"\0"
    yield "a megabyte more", WEIGHTS + bytes(2**20)
    yield "twice", WEIGHTS * 2


def _lengths() -> Iterator[tuple[str, bytes]]:
    true = HEADER_END - 8
    rest, whole = WEIGHTS[8:], len(WEIGHTS)
    for length in (0, 1, 2, true - 1, true + 1, whole - 8, whole, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 2**31):
        yield f"a header of {length}", length.to_bytes(8, "little") + rest
    for length in (2**32 + true, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1):
        yield f"a header of {length}", length.to_bytes(8, "little") + rest
    yield "a length of the other end", true.to_bytes(8, "big") + rest


def _documents() -> Iterator[tuple[str, bytes]]:
    """Headers that are trouble as JSON."""
    text, most = WEIGHTS[8:HEADER_END].strip(), MAX_HEADER_BYTES
    half = most // 2
    yield "arrays in arrays", file(b'{"a":' + b"[" * half + b"]" * (half - 10) + b"}")
    yield "objects in objects", file(b'{"a":' * (most // 5))
    yield "open brackets", file(b"[" * most)
    yield "a number of a megabyte", file(b'{"a":' + b"9" * (most - 6) + b"}")
    yield "a number of 4,300 digits", file(text[:-1] + b',"a":' + b"9" * 4300 + b"}")
    yield "a text of a megabyte", file(b'{"a":"' + b"a" * (most - 8) + b'"}')
    yield "a name of a megabyte", file(b'{"' + b"a" * (most - 6) + b'":1}')
    yield "escapes", file(b'{"a":"' + b"\\u0000" * ((most - 8) // 6) + b'"}')
    yield "half a pair", file(text[:-1] + b',"\\ud800":1}')
    yield "spaces in front", file(b" " * (most - len(text)) + text + b"x")
    yield "commas", file(b"{" + b"," * (most - 2) + b"}")
    yield "a key ten thousand times", file(b"{" + b'"a":1,' * 10_000 + b'"a":1}')
    yield "a hundred thousand keys", file(b"{" + b",".join(b'"%d":1' % n for n in range(100_000)) + b"}")
    yield "a comment", file(b"/**/" + text)
    yield "something behind it", file(text + b"{}")
    for constant in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1E400"):
        yield f"the number {constant.decode()}", file(text[:-1] + b',"a":' + constant + b"}")
    for encoding in ("utf-16", "utf-32", "utf-8-sig", "utf-7"):
        yield f"in {encoding}", file(text.decode().replace("prompt", "pr\xf6mpt").encode(encoding))
    yield "not UTF-8", file(text[:-1] + b',"\xff\xfe":1}')
    for other in (b"", b"null", b"[]", b"1", b'""', b"\0" * 64, b"{", b"}"):
        yield f"the document {other!r}", file(other)


def _entries() -> Iterator[tuple[str, bytes]]:
    """Headers whose tensors are not what they say."""
    entry: dict[str, Any] = HEADER[NAME]
    begin, end = entry["data_offsets"]
    shapes: list[object] = [[], [0], [-4, -16], [4, 16, 1], [4.0, 16], [True, 64], "4", None, {}, [[4], [16]]]
    shapes += [[2**62, 2**62], [2**64, 1], [10**4000] * 200, [999_999_999] * 95_000, [1] * 300_000, [0, 2**63]]
    for number, shape in enumerate(shapes):
        yield f"shape {number}", headed(HEADER | {NAME: entry | {"shape": shape}})
        yield f"shape {number} of a stranger", headed({"a": entry | {"shape": shape}})
    offsets: list[object] = [
        [end, begin],
        [begin, begin],
        [0, 2**64],
        [-1, end],
        [begin, end + 4],
        [begin + 1, end + 1],
    ]
    offsets += [[2**63, 2**63 + 256], [10**4299, 10**4299 + 256], [0], [], None, [begin, end, end], ["0", "256"]]
    for number, pair in enumerate(offsets):
        yield f"offsets {number}", headed(HEADER | {NAME: entry | {"data_offsets": pair}})
        yield f"offsets {number} of a stranger", headed({"a": entry | {"data_offsets": pair}})
    for dtype in ("F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", "F16", None, 32, ["F32"], {"F32": 1}):
        yield f"dtype {dtype}", headed(HEADER | {NAME: entry | {"dtype": dtype}})
    for metadata in ({"a": 1}, [], {"a": {"b": "c"}}, entry):
        yield f"metadata {metadata}", headed(HEADER | {"__metadata__": metadata})
    for name in ("../../etc/passwd", "a\0b", "__proto__", "__class__", "\u202e", ""):
        yield f"a stranger {name!a}", headed(HEADER | {name: entry})
    same = [0, 4 * 16]
    yield "all in one place", headed({name: one | {"data_offsets": same} for name, one in HEADER.items()})
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "15,000 empty tensors", headed({str(number): empty for number in range(15_000)}, b"")
    yield "no tensors", headed({}, b"")
    yield "no tensors but bytes", headed({})


def _values() -> Iterator[tuple[str, bytes]]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensors = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load(WEIGHTS).items()}
            tensors[NAME][-1, -1] = value
            yield f"{value} in {dtype}", safetensors.torch.save(tensors)
    yield "all bits set", WEIGHTS[:HEADER_END] + b"\xff" * (len(WEIGHTS) - HEADER_END)


def _other_formats() -> Iterator[tuple[str, bytes]]:
    pickled, archive = io.BytesIO(), io.BytesIO()
    torch.save(safetensors.torch.load(WEIGHTS), pickled)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("adapter_model.safetensors", bytes(2**24))
    yield "torch.save's file", pickled.getvalue()
    yield "a zip bomb", archive.getvalue()
    yield "gzip of zeros", gzip.compress(bytes(2**24))
    yield "safetensors in gzip", gzip.compress(WEIGHTS)
    yield "a pickle that runs", b"cos\nsystem\n(S'true'\ntR."
    for magic in (b"GGUF\x03\0\0\0", b"\x89HDF\r\n\x1a\n", b"\x7fELF", b"%PDF-1.7", b"RIFF\xff\xff\xff\x7fWAVE", b"PK"):
        yield f"{magic!r}", magic + bytes(4_000)
    yield "a link of git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    yield "zeros", bytes(2**22)
    yield "nothing", b""
