"""Hostile weights through an upload's checks, in a process of its own: refused, soon and small."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.registry.hostile import WEIGHTS, boundaries, hostile_weights
from tests.sandbox import Sandbox

NUMBERS = tuple(number.to_bytes(8, "little") for number in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
TOKENS = (
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"\\",
    b"-",
    b"9" * 30,
    b"1e9",
    b"null",
    b"\xff",
    b"\\ud800",
    b"F64",
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox("weights") as started:
        yield started


def test_the_corpus_is_refused(sandbox: Sandbox) -> None:
    files = hostile_weights()
    wrong = []
    for name, encoded in files.items():
        wrong += [f"{name} {fault}" for fault in sandbox.take(encoded).faults({"invalid_bundle"})]
    assert not wrong, "\n".join(wrong)
    assert len(files) > 150


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A valid file after one to five accidents: three in four of them in its header, where they matter."""
    encoded = WEIGHTS
    ends = boundaries()
    for _ in range(draw(st.integers(1, 5))):
        in_header = draw(st.integers(0, ends[2] - 1))
        near = draw(st.sampled_from(ends)) + draw(st.integers(-2, 8))
        at = max(0, draw(st.sampled_from((in_header, in_header, near, draw(st.integers(0, len(encoded)))))))
        content = draw(st.sampled_from(NUMBERS) | st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8))
        length = draw(st.sampled_from((1, 2, 8, 64)))
        match draw(st.sampled_from(("overwrite", "insert", "delete", "repeat", "cut"))):
            case "overwrite":
                encoded = encoded[:at] + content + encoded[at + len(content) :]
            case "insert":
                encoded = encoded[:at] + content + encoded[at:]
            case "delete":
                encoded = encoded[:at] + encoded[at + length :]
            case "repeat":
                encoded = encoded[:at] + encoded[at : at + length] * draw(st.integers(2, 500)) + encoded[at + length :]
            case "cut":
                encoded = encoded[:at]
    if draw(st.booleans()):  # a length that fits again, so that the header is read
        end = len(encoded) - (len(WEIGHTS) - ends[2])
        encoded = max(0, end - 8).to_bytes(8, "little") + encoded[8:]
    return encoded


def mutate(sandbox: Sandbox, examples: int) -> None:
    """Takes so many mutants of weights that are good."""
    assert sandbox.take(WEIGHTS).outcome == "weights"

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutants())
    def take(mutant: bytes) -> None:
        assert not sandbox.take(mutant).faults({"weights", "invalid_bundle"})

    take()


def test_mutants(sandbox: Sandbox) -> None:
    mutate(sandbox, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_mutants(sandbox: Sandbox) -> None:
    mutate(sandbox, 20_000)
