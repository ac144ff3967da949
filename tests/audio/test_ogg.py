"""Ogg: checksums and numbers of pages, chains of links that differ, FLAC inside."""

import struct

import numpy as np
import pytest

from service.audio.decode import DecodeLimits, decode
from service.audio.ogg import MAX_LINKS, check_books, split_links
from service.errors import AudioTooLong, BadAudio
from tests.audio.forge import OPUS_HEAD, OPUS_TAGS, page, short
from tests.audio.structures import boundaries
from tests.synthesis import encode, loudest_hz, noise, tone


def pages(encoded: bytes) -> list[bytes]:
    starts = [at for at in [0, *boundaries("ogg", encoded)] if encoded[at : at + 4] == b"OggS"]
    return [encoded[a:b] for a, b in zip(starts, [*starts[1:], len(encoded)], strict=True)]


LONG = encode(noise(4.0, 16_000, 2), 16_000, "ogg")


def test_one_file_is_one_link() -> None:
    assert split_links(LONG) == [LONG]
    assert len(pages(LONG)) > 3


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_a_flipped_bit_is_seen_wherever_it_is(name: str) -> None:
    encoded = short("ogg" if name == "ogg" else "opus")
    for at in range(0, len(encoded), 7):
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(BadAudio):
            decode(bytes(damaged))


@pytest.mark.parametrize("lost", [1, 2, -2])
def test_a_lost_page_is_missed_by_its_number(lost: int) -> None:
    whole = pages(LONG)
    del whole[lost]
    with pytest.raises(BadAudio, match=r"missing|begins"):
        decode(b"".join(whole))


def test_pages_that_changed_places() -> None:
    whole = pages(LONG)
    whole[2], whole[3] = whole[3], whole[2]
    with pytest.raises(BadAudio, match="missing"):
        decode(b"".join(whole))


def test_bytes_between_pages_are_damage_and_behind_them_are_not() -> None:
    whole = pages(LONG)
    with pytest.raises(BadAudio, match="no page begins"):
        decode(b"".join([*whole[:3], b"\0" * 9, *whole[3:]]))
    np.testing.assert_array_equal(decode(LONG + b"TAG" + bytes(125)).samples, decode(LONG).samples)


def test_links_of_a_chain_may_differ_in_everything() -> None:
    links = [
        encode(tone(1.0, 300.0, 44_100, 2), 44_100, "ogg"),
        encode(tone(1.0, 500.0, 16_000, 1), 16_000, "opus"),
        encode(tone(1.0, 700.0, 48_000, 2), 48_000, "ogg"),
    ]
    alone = [decode(link).samples for link in links]
    chained = decode(b"".join(links))
    np.testing.assert_array_equal(chained.samples, np.concatenate(alone))
    assert (chained.source_rate, chained.channels) == (44_100, 2)
    assert [round(loudest_hz(samples)) for samples in alone] == [300, 500, 700]


def test_links_of_one_rate_are_still_one_clip() -> None:
    link = encode(tone(1.0, 440.0, 16_000, 2), 16_000, "ogg")
    assert len(decode(link * 3).samples) == 3 * len(decode(link).samples)


def test_a_link_that_is_not_accepted_is_named() -> None:
    rate, mode, channels, frame = 16_000, 1, 1, 320
    head = b"Speex   1.2.0".ljust(28, b"\0") + struct.pack(
        "<13I", 1, 80, rate, mode, 4, channels, 0, frame, 0, 1, 0, 0, 0
    )
    speex = page([head], 0, 9, 2) + page([bytes(20)], 1, 9) + page([bytes(60)], 2, 9, 4, position=320)
    with pytest.raises(BadAudio, match="speex"):
        decode(short("ogg") + speex)


def test_a_chain_is_bounded() -> None:
    link = page([OPUS_HEAD], 0, flags=2) + page([OPUS_TAGS], 1) + page([b"\x18"], 2, flags=4, position=2_880)
    with pytest.raises(BadAudio, match="links"):
        decode(link * (MAX_LINKS + 1))
    with pytest.raises(AudioTooLong):
        decode(encode(tone(1.0, channels=2), 16_000, "ogg") * 4, DecodeLimits(max_seconds=3.0))


def test_flac_inside() -> None:
    sound = noise(1.0, 16_000, 2)
    encoded = encode(sound, 16_000, "ogg", codec="flac")
    np.testing.assert_array_equal(decode(encoded).samples, decode(encode(sound, 16_000, "flac")).samples)


@pytest.mark.parametrize("shift", range(8))
def test_vorbis_books_at_every_bit(shift: int) -> None:
    book = b"BCV" + struct.pack("<H", 16) + (65_536).to_bytes(3, "little")
    bits = int.from_bytes(book * 8, "little") << shift
    with pytest.raises(BadAudio, match="code books"):
        check_books(bits.to_bytes(len(book) * 8 + 1, "little"))
