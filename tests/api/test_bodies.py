"""Bodies: raw or multipart, bounded as they arrive, whatever the pieces they arrive in."""

import asyncio
import tracemalloc
from collections.abc import Sequence

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from service.api.bodies import Budget, Reservation, read_body, read_parts
from service.errors import InvalidRequest, Overloaded, PayloadTooLarge, ServiceError

BOUNDARY = "frontier"
PLENTY = 2**30


def request_of(chunks: Sequence[bytes], **headers: str) -> Request:
    """A request whose body arrives as `chunks`."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def multipart(*parts: tuple[str, bytes], end: str = "--") -> bytes:
    body = b""
    for head, content in parts:
        disposition = f"Content-Disposition: form-data; {head}\r\n\r\n".encode()
        body += f"--{BOUNDARY}\r\n".encode() + disposition + content + b"\r\n"
    return body + f"--{BOUNDARY}{end}\r\n".encode()


def parse(body: bytes, size: int = 7, limit: int = PLENTY, max_parts: int = 3) -> list[tuple[str, bytes]]:
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    request = request_of(chunks, content_type=f'multipart/form-data; boundary="{BOUNDARY}"')
    return asyncio.run(read_parts(request, ("audio", "test"), max_parts, limit, Reservation(Budget(PLENTY))))


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3), st.integers(1, 50))
def test_parts_come_back_whatever_the_chunks(contents: list[bytes], size: int) -> None:
    body = multipart(*(('name="audio"; filename="a.wav"', content) for content in contents))
    assert parse(body, size) == [("audio", content) for content in contents]


def test_parts_need_no_file_name() -> None:
    assert parse(multipart(('name="audio"', b"\xff\x00"))) == [("audio", b"\xff\x00")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no multipart at all",
        multipart(('name="audio"', b"x"), end=""),
        multipart(('name="audio"', b"x"))[:-12],
        multipart(('name="video"', b"x")),
        multipart(('filename="audio"', b"x")),
        multipart(*[('name="audio"', b"x")] * 4),
        multipart(('name="audio"; ' + "x" * 10_000, b"x")),
    ],
    ids=["empty", "text", "no end", "cut off", "other part", "no name", "too many", "long header"],
)
def test_broken_multipart_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(body)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/mixed; boundary=x", "text/plain"])
def test_multipart_without_boundary_is_refused(content_type: str) -> None:
    request = request_of([b"x"], content_type=content_type)
    with pytest.raises(InvalidRequest, match="boundary"):
        asyncio.run(read_parts(request, ("audio",), 1, PLENTY, Reservation(Budget(PLENTY))))


def test_the_limit_holds_while_reading() -> None:
    assert parse(multipart(('name="audio"', b"x" * 50)), limit=200)
    with pytest.raises(PayloadTooLarge, match="200 bytes"):
        parse(multipart(('name="audio"', b"x" * 500)), limit=200)


def read(chunks: Sequence[bytes], limit: int, budget: Budget | None = None, **headers: str) -> bytes | ServiceError:
    try:
        return asyncio.run(read_body(request_of(chunks, **headers), limit, Reservation(budget or Budget(PLENTY))))
    except ServiceError as error:
        return error


def test_raw_bodies() -> None:
    assert read([b"ab", b"", b"c"], 3) == b"abc"
    assert isinstance(read([b"ab", b"cd"], 3), PayloadTooLarge)
    assert isinstance(read([], 3, content_length="4"), PayloadTooLarge)  # before the first byte


def test_the_budget_is_shared_and_given_back() -> None:
    budget = Budget(100)
    first, second, third = (Reservation(budget) for _ in range(3))
    first.add(50)
    second.add(40)
    with pytest.raises(Overloaded):
        third.add(20)
    with pytest.raises(PayloadTooLarge):
        first.add(1)
    assert budget.held == 90
    for one in (first, second, third):
        one.release()
    assert budget.held == 0


@pytest.mark.parametrize("parts", [0, 2])
def test_bodies_take_the_memory_that_is_counted(parts: int) -> None:
    """A body is held once, not once more as it is handed over."""
    size, budget = 16 * 2**20, Budget(PLENTY)
    chunk = bytes(2**16)
    contents = [('name="audio"', chunk * (size // len(chunk) // parts)) for _ in range(parts)]
    whole = multipart(*contents) if parts else chunk * (size // len(chunk))
    kind = {"content_type": f"multipart/form-data; boundary={BOUNDARY}"}
    request = request_of([whole[at : at + 2**16] for at in range(0, len(whole), 2**16)], **(kind if parts else {}))
    reservation = Reservation(budget)

    async def receive() -> int:
        if not parts:
            return len(await read_body(request, PLENTY, reservation))
        return sum(len(part) for _, part in await read_parts(request, ("audio",), 3, PLENTY, reservation))

    tracemalloc.start()
    try:
        held = asyncio.run(receive())
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held == size
    assert reservation.held >= size
    assert taken < 1.2 * reservation.held


@pytest.mark.parametrize("kind", ["multipart/form-data" + ";" * 17, "multipart/form-data; boundary=" + "x" * 1024])
def test_a_long_content_type_is_not_parsed(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="Content-Type"):
        asyncio.run(read_parts(request_of([b"x"], content_type=kind), ("audio",), 1, PLENTY, Reservation(Budget(1))))
