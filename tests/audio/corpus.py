"""Hostile audio files, made here from valid ones: name -> bytes. None of them may harm the decoder."""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from tests.audio.forge import (
    OPUS_HEAD,
    OPUS_TAGS,
    box,
    chunk,
    element,
    id3,
    nested,
    noise_bytes,
    ogg,
    page,
    short,
    webm,
)
from tests.audio.structures import boundaries
from tests.synthesis import CONTAINERS, encode, tone

Named = Iterator[tuple[str, bytes]]

PLAYLISTS = {
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\nfile 'http://127.0.0.1:1/x.wav'\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "smil": b'<smil><body><audio src="file:///etc/passwd"/></body></smil>',
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "xml-bomb": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>',
    "html": b"<!doctype html><audio src=file:///etc/passwd autoplay></audio>",
    "pls": b"[playlist]\nFile1=file:///etc/passwd\nLength1=1\nNumberOfEntries=1\n",
    "asx": b'<asx version="3.0"><entry><ref href="file:///etc/passwd"/></entry></asx>',
    "mpd": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
}


def hostile_files() -> dict[str, bytes]:
    """The whole corpus, the same each time."""
    makers = (truncations, wavs, flacs, mp3s, adts_files, oggs, mp4s, webms, bombs, foreigners, polyglots, videos)
    files: dict[str, bytes] = {}
    for maker in makers:
        for name, encoded in maker():
            assert name not in files
            files[name] = encoded
    return files


def truncations() -> Named:
    """Every container cut at, just before and just behind the beginning of each of its structures."""
    for container in CONTAINERS:
        encoded = short(container)
        for at in boundaries(container, encoded):
            for shift in (-1, 0, 1):
                yield f"{container} cut at {at}{shift:+}", encoded[: at + shift]


def wavs() -> Named:
    def header(channels: int, rate: int, bits: int, tag: int = 1) -> bytes:
        align = channels * bits // 8 & 0xFFFF
        return struct.pack("<HHIIHH", tag, channels, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align, bits)

    def wav(fmt: bytes, body: bytes = bytes(32_000), size: int | None = None) -> bytes:
        data = b"data" + struct.pack("<I", len(body) if size is None else size) + body
        return b"RIFF" + struct.pack("<I", 12 + len(fmt) + len(data)) + b"WAVE" + chunk(b"fmt ", fmt) + data

    for rate in (0, 1, 3, 3_999, 192_001, 2**31, 2**32 - 1):
        yield f"wav at {rate} Hz", wav(header(1, rate, 16))
    for channels in (0, 9, 192, 65_535):
        yield f"wav of {channels} channels", wav(header(channels, 16_000, 16))
    for bits in (0, 1, 7, 17, 33, 64, 255, 65_535):
        yield f"wav of {bits} bits", wav(header(1, 16_000, bits))
    for tag in (0, 2, 0x11, 0x50, 0x55, 0x161, 0x2000, 0xFFFE, 0xFFFF):
        yield f"wav of format {tag:#x}", wav(header(2, 48_000, 16, tag))
    for value in (np.nan, np.inf, -np.inf, 3e38):
        for bits, dtype in ((32, "<f4"), (64, "<f8")):
            yield (
                f"wav of {value} in {bits} bits",
                wav(header(1, 16_000, bits, 3), np.full(9_000, value, dtype).tobytes()),
            )
    for size in (1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        yield f"wav whose data claims {size} bytes", wav(header(1, 16_000, 16), size=size)
    yield "wav whose fmt chunk claims 2 GB", b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 2**31) + bytes(64)
    yield "wav with a thousand fmt chunks", b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", header(1, 16_000, 16)) * 1_000
    yield "wav with endless empty chunks", b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * 100_000
    yield "wav with a list in a list", b"RIFF\0\0\0\0WAVE" + chunk(b"LIST", chunk(b"LIST", b"INFO") * 5_000) * 10
    yield (
        "rf64 of 2**62 bytes",
        b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", struct.pack("<QQQI", 2**62, 2**62, 2**62, 0)),
    )


def flacs() -> Named:
    encoded = short("flac")
    info = int.from_bytes(encoded[18:26])  # rate 20 bits, channels 3, bits 5, samples 36
    for name, mask, shift, value in (
        ("rate 0", 2**20 - 1, 44, 0),
        ("rate 1", 2**20 - 1, 44, 1),
        ("rate 1048575", 2**20 - 1, 44, 2**20 - 1),
        ("8 channels", 7, 41, 7),
        ("1 bit", 31, 36, 0),
        ("32 bits", 31, 36, 31),
        ("2**36 samples", 2**36 - 1, 0, 2**36 - 1),
        ("1 sample", 2**36 - 1, 0, 1),
    ):
        changed = info & ~(mask << shift) | value << shift
        yield f"flac that claims {name}", encoded[:18] + changed.to_bytes(8) + encoded[26:]
    picture = struct.pack(">IIIIIIII", 3, 0, 0, 60_000, 60_000, 32, 0, 2**24 - 40)
    yield "flac with a picture that is not there", encoded[:42] + b"\x06\xff\xff\xff" + picture + encoded[42:]
    yield "flac with cover art", encoded[:42] + b"\x06\x0f\x00\x00" + bytes(0x0F0000) + encoded[42:]
    yield (
        "flac with a comment of 4 GB",
        encoded[:42] + b"\x04\0\0\x08" + struct.pack("<II", 2**32 - 1, 1) + encoded[42:],
    )
    yield "flac of blocks alone", encoded[:42] + b"\x01\0\0\0" * 100_000
    yield "flac without frames", encoded[: boundaries("flac", encoded)[-4]]


def mp3s() -> Named:
    encoded = short("mp3")
    frame = b"\xff\xfb\x90\x64" + bytes(413)  # 128 kbit/s at 44.1 kHz
    other = b"\xff\xfb\x94\x64" + bytes(380)  # at 48 kHz
    yield "mp3 that changes its rate", (frame + other) * 40
    yield "mp3 that changes its channels", (frame + frame[:3] + b"\xc4" + frame[4:]) * 40
    yield "mp3 of headers alone", b"\xff\xfb\x90\x64" * 20_000
    yield "mp3 with cover art", id3(b"APIC\0\x3f\x7f\x7f\0\0" + bytes(2**20)) + encoded
    yield "mp3 in tags in tags", id3(b"") * 5_000 + encoded
    yield "mp3 whose tag is not there", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + encoded
    yield "mp3 with a xing of 2**32 frames", frame[:36] + b"Xing\0\0\0\x03" + b"\xff" * 8 + bytes(369) + frame * 20


def adts_files() -> Named:
    encoded = short("aac")
    yield "aac of headers alone", b"\xff\xf1\x50\x80\x00\xff\xfc" * 20_000
    yield "aac with frames of length 0", b"\xff\xf1\x50\x80\x00\x1f\xfc" * 20_000
    yield "aac that changes its rate", encode(tone(0.5), 16_000, "aac") + encode(tone(0.5, rate=48_000), 48_000, "aac")
    yield "aac of noise in frames", b"".join(encoded[:7] + noise_bytes(1_200, at) for at in range(60))


def oggs() -> Named:
    for channels, rate, family in ((0, 48_000, 0), (192, 48_000, 255), (255, 1, 255), (9, 2**32 - 1, 1)):
        head = b"OpusHead\x01" + struct.pack("<BHIhB", channels, 312, rate, 0, family) + bytes(min(channels, 9) + 2)
        yield f"opus of {channels} channels in family {family}", ogg([head, OPUS_TAGS] + [b"\x18\x00"] * 20)
    for channels, rate, sizes in (
        (0, 16_000, 0xB8),
        (192, 16_000, 0xB8),
        (1, 1, 0xB8),
        (2, 2**32 - 1, 0xFF),
        (1, 8_000, 0),
    ):
        head = b"\x01vorbis" + struct.pack("<IBIIIIBB", 0, channels, rate, 0, 0, 0, sizes, 1)
        yield (
            f"vorbis of {channels} channels at {rate} Hz, {sizes:x}",
            ogg([head, b"\x03vorbis" + bytes(20), b"\x05vorbis" * 9]),
        )
    yield "opus whose tags claim 4 GB", ogg([OPUS_HEAD, b"OpusTags" + struct.pack("<II", 2**32 - 1, 2**32 - 1)])
    yield "opus without packets", ogg([OPUS_HEAD, OPUS_TAGS])
    yield "ogg of empty pages", b"".join(page([], at) for at in range(5_000))
    yield "ogg of a hundred streams", b"".join(page([OPUS_HEAD], 0, serial=at, flags=2) for at in range(100))
    yield "opus that never begins", page([OPUS_HEAD], 0, flags=2) + b"".join(page([b"x"], at) for at in range(2_000))
    encoded = short("opus")
    yield "opus with pages out of order", encoded[:200] + encoded[4_000:] + encoded[200:4_000]
    yield "ogg chained a hundred times", short("ogg") * 100


def mp4s() -> Named:
    encoded = short("m4a")
    for kind, offset, value in (
        (b"mdhd", 16, 0),
        (b"mdhd", 16, 1),
        (b"mdhd", 16, 2**32 - 1),
        (b"mdhd", 20, 2**32 - 1),
        (b"mp4a", 20, 192 << 16),
        (b"mp4a", 20, 0),
        (b"mp4a", 28, 0),
        (b"mp4a", 28, 1),
        (b"stsz", 8, 2**31),
        (b"stsz", 12, 2**32 - 1),
        (b"stsc", 8, 2**32 - 1),
        (b"stco", 8, 2**32 - 1),
        (b"stco", 12, 2**32 - 1),
        (b"stts", 8, 2**32 - 1),
        (b"stts", 16, 2**31),
        (b"elst", 12, 2**32 - 1),
        (b"esds", 4, 2**32 - 1),
        (b"stsd", 8, 2**31),
    ):
        at = encoded.index(kind) + offset
        yield (
            f"m4a with {value} in {kind.decode()} {offset}",
            encoded[:at] + struct.pack(">I", value) + encoded[at + 4 :],
        )
    reference = b"\0\0\0\x1eurl \0\0\0\0file:///etc/passwd"
    yield "m4a that refers to a file", encoded.replace(b"\0\0\0\x0curl \0\0\0\x01", reference)
    yield "m4a in a thousand boxes", b"\0\0\0\x14ftypM4A \0\0\0\0isom" + nested(b"moov", 1_000)
    yield "m4a without samples", encoded[: encoded.index(b"mdat") - 4] + b"\0\0\0\x08mdat"
    yield "m4a with a picture", encoded + box(b"meta", bytes(4) + box(b"iinf", bytes(100)))
    yield (
        "m4a with cover art",
        encoded + box(b"udta", box(b"meta", bytes(4) + box(b"ilst", box(b"covr", bytes(2**20))))),
    )


def webms() -> Named:
    for rate in (0.0, 1.0, -48_000.0, float("nan"), float("inf"), 1e300):
        yield f"webm at {rate} Hz", webm(audio=element(0xB5, struct.pack(">d", rate)) + element(0x9F, b"\x02"))
    for channels in (0, 192, 255):
        yield f"webm of {channels} channels", webm(audio=element(0x9F, bytes([channels])))
    for codec in (b"A_PCM/INT/LIT", b"A_MS/ACM", b"A_FLAC", b"A_VORBIS", b"A_AAC", b"A_REAL/COOK", b"V_VP8", b"S_TEXT"):
        yield f"webm of {codec.decode()}", webm(codec=codec)
    for algorithm in (0, 1, 2, 3):
        scheme = element(0x5034, element(0x4254, bytes([algorithm])) + element(0x4255, noise_bytes(64, algorithm)))
        yield f"webm compressed by {algorithm}", webm(extra=element(0x6D80, element(0x6240, scheme)))
    yield "webm of elements of unknown size", b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" * 2_000
    yield "webm with a void of 2**56 bytes", webm() + b"\xec\x01\xff\xff\xff\xff\xff\xff\xfe"
    yield "webm with an attachment", webm() + element(0x1941A469, element(0x61A7, element(0x465C, bytes(2**20))))
    yield "webm with a timestamp scale of 2**63", webm(info=element(0x2AD7B1, b"\x7f" + b"\xff" * 7))
    yield "webm with a codec delay of 2**63", webm(extra=element(0x56AA, b"\x7f" + b"\xff" * 7))
    yield "webm without tracks", element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, b"")
    yield "webm of 5000 tracks", webm(tracks=5_000)
    yield "webm laced to nothing", webm(blocks=[b"\x81\0\0\x06" + b"\xff" * 400] * 50)


def bombs() -> Named:
    """Minutes and hours of silence in a few kilobytes."""
    for minutes in (4, 6, 60):
        yield f"opus of {minutes} minutes", ogg([OPUS_HEAD, OPUS_TAGS] + [b"\x18"] * (minutes * 1_000))
        yield (
            f"opus of {minutes} minutes in 120 ms",
            ogg([OPUS_HEAD, OPUS_TAGS] + [b"\x1b\x02"] * (minutes * 500), 5_760),
        )
        yield f"mp3 of {minutes} minutes", (b"\xff\xe3\x18\xc4" + bytes(68)) * (minutes * 833)
        yield f"webm of {minutes} minutes", webm(blocks=[b"\x81\0\0\0\x18"] * (minutes * 1_000))
    yield "flac of 6 minutes", encode(np.zeros((8_000 * 360, 1), np.float32), 8_000, "flac")
    yield "flac of 8 channels at 192 kHz", encode(np.zeros((192_000 * 5, 8), np.float32), 192_000, "flac")
    yield "aac of an hour", encode(np.zeros((16_000, 1), np.float32), 16_000, "aac") * 3_600


def foreigners() -> Named:
    """What is no audio, as it is and where audio is expected inside."""
    yield from ((f"{name} alone", text) for name, text in PLAYLISTS.items())
    yield from ((f"{name} behind a tag", id3(b"") + text * 50) for name, text in PLAYLISTS.items())
    yield from ((f"{name} in riff", b"RIFF\xff\0\0\0WAVE" + text) for name, text in PLAYLISTS.items())
    yield from ((f"{name} in ogg", ogg([text] * 3)) for name, text in PLAYLISTS.items())
    yield "zip", b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(4_000)
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(4_000)
    yield "png", b"\x89PNG\r\n\x1a\n" + bytes(4_000)
    yield "gif", b"GIF89a\xff\xff\xff\xff" + bytes(4_000)
    yield "pdf", b"%PDF-1.7\n" + bytes(4_000)
    yield "midi", b"MThd\0\0\0\x06\0\x01\xff\xff\0\x60" + bytes(4_000)
    yield "caf", b"caff\0\x01\0\0desc" + bytes(4_000)
    yield "aiff", b"FORM\0\0\xff\xffAIFFCOMM" + bytes(4_000)
    yield "avi", b"RIFF\xff\xff\0\0AVI LIST" + bytes(4_000)
    yield "zeros", bytes(100_000)
    yield "ones", b"\xff" * 100_000
    yield "noise", noise_bytes(100_000, 1)


def polyglots() -> Named:
    for container in CONTAINERS:
        encoded = short(container)
        yield f"{container} with a zip behind", encoded + b"PK\x03\x04" + bytes(200) + b"PK\x05\x06" + bytes(18)
        yield f"{container} with a playlist behind", encoded + PLAYLISTS["m3u8"]
        yield f"{container} with html behind a tag", id3(PLAYLISTS["html"]) + encoded
    for first in CONTAINERS:
        second = CONTAINERS[(CONTAINERS.index(first) + 3) % len(CONTAINERS)]
        yield f"{first} and then {second}", short(first) + short(second)
        yield f"{second} with the head of {first}", short(first)[:64] + short(second)[64:]


def videos() -> Named:
    for container, codec in (("mp4", "mpeg4"), ("webm", "vp8"), ("matroska", "mjpeg")):
        target = io.BytesIO()
        with av.open(target, "w", format=container) as output:
            stream = output.add_stream(codec, rate=10, options={"strict": "-2"})
            stream.width, stream.height, stream.time_base = 64, 64, Fraction(1, 10)
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for _ in range(5):
                output.mux(stream.encode(av.VideoFrame(64, 64, stream.pix_fmt)))
            output.mux(stream.encode(None))
        yield f"{container} with pictures alone", target.getvalue()


def floods(size: int) -> Named:
    """About `size` bytes of one empty structure after the other."""
    mp4 = b"\0\0\0\x14ftypM4A \0\0\0\0isom"
    yield "flood of tags", id3(b"") * (size // 10)
    yield "flood of wav chunks", b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * (size // 8)
    yield "flood of ogg pages", page([], 0) * (size // 27)
    yield "flood of opus streams", page([OPUS_HEAD], 0, flags=2) * (size // 46)
    yield "flood of capture patterns", short("ogg")[:58] + b"OggS" * (size // 4)
    yield "flood of mp3 headers", b"\xff\xfb\x90\x64" * (size // 4)
    yield "flood of adts headers", b"\xff\xf1\x50\x80\x00\xff\xfc" * (size // 7)
    yield "flood of mp4 boxes", mp4 + box(b"free", b"") * (size // 8)
    yield "flood of boxes in moov", mp4 + box(b"moov", box(b"free", b"") * (size // 8))
    yield "flood of mp4 tracks", mp4 + box(b"moov", box(b"trak", b"") * (size // 8))
    yield "flood of mp4 tags", mp4 + box(b"moov", box(b"udta", box(b"\xa9nam", b"\0\x01\0\0a") * (size // 13)))
    yield "flood of voids", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff" + b"\xec\x80" * (size // 2)
    yield "flood of webm blocks", webm(blocks=[b"\x81\0\0\0"] * (size // 13))
    yield "flood of flac blocks", short("flac")[:42] + b"\x01\0\0\0" * (size // 4)
    yield "flood of flac syncs", short("flac")[:92] + b"\xff\xf8" * (size // 2)
