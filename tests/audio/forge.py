"""Builders of audio files that no encoder would write: chunks, boxes, pages and elements of any content."""

import struct

import numpy as np

from tests.synthesis import ContainerName, encode, noise

_SHORT: dict[ContainerName, bytes] = {}
OPUS_HEAD = b"OpusHead\x01" + struct.pack("<BHIhB", 1, 312, 48_000, 0, 0)
OPUS_TAGS = b"OpusTags" + struct.pack("<II", 0, 0)


def short(container: ContainerName) -> bytes:
    """A valid file of 0.3 s of stereo noise."""
    if container not in _SHORT:
        _SHORT[container] = encode(noise(0.3, 16_000, 2), 16_000, container)
    return _SHORT[container]


def noise_bytes(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def id3(content: bytes) -> bytes:
    return b"ID3\x04\0\0" + bytes((len(content) >> shift) & 0x7F for shift in (21, 14, 7, 0)) + content


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def nested(kind: bytes, depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = box(kind, content)
    return content


def page(packets: list[bytes], number: int, serial: int = 1, flags: int = 0, position: int = 0) -> bytes:
    """An ogg page of packets under 255 bytes."""
    table = bytes(len(packet) for packet in packets)
    head = b"OggS\0" + struct.pack("<BqII", flags, position, serial, number)
    rest = bytes([len(table)]) + table + b"".join(packets)
    return head + struct.pack("<I", _checksum(head + bytes(4) + rest)) + rest


def _checksum(content: bytes) -> int:
    """Ogg's CRC-32: zlib's polynomial, its bits in the other order."""
    register = 0
    for byte in content:
        register = (register << 8) & 0xFFFFFFFF ^ _CHECKSUMS[(register >> 24) ^ byte]
    return register


def _checksum_of(byte: int) -> int:
    register = byte << 24
    for _ in range(8):
        register = (register << 1) ^ (0x104C11DB7 if register & 0x80000000 else 0)
    return register


_CHECKSUMS = [_checksum_of(byte) for byte in range(256)]


def ogg(packets: list[bytes], samples: int = 2_880) -> bytes:
    """The first two packets on pages of their own, the others, of so many samples each, 200 to a page."""
    pages = [page([packet[:254]], at, flags=2 * (at == 0)) for at, packet in enumerate(packets[:2])]
    for at in range(2, len(packets), 200):
        some = [packet[:254] for packet in packets[at : at + 200]]
        pages.append(page(some, at, position=(at - 2 + len(some)) * samples))
    return b"".join(pages)


def element(kind: int, content: bytes) -> bytes:
    return kind.to_bytes((kind.bit_length() + 7) // 8) + (len(content) | 1 << 56).to_bytes(8) + content


def webm(
    audio: bytes = element(0x9F, b"\x01"),
    codec: bytes = b"A_OPUS",
    extra: bytes = b"",
    info: bytes = b"",
    tracks: int = 1,
    blocks: list[bytes] | None = None,
) -> bytes:
    """A webm file with the given elements in its track and segment information."""
    entry = element(0xD7, b"\x01") + element(0x83, b"\x02") + element(0x86, codec) + element(0x63A2, OPUS_HEAD)
    entry += element(0xE1, audio) + extra
    found = [b"\x81\0\0\0\x18\x00"] * 20 if blocks is None else blocks
    cluster = element(0xE7, b"\0") + b"".join(element(0xA3, block) for block in found)
    segment = (
        element(0x1549A966, info) + element(0x1654AE6B, element(0xAE, entry) * tracks) + element(0x1F43B675, cluster)
    )
    return element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, segment)
