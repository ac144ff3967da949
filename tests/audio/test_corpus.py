"""Hostile files through the decoder, in a process of its own: a typed error or a clip within limits, soon and small."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.audio.decode import DEFAULT_LIMITS, PADDING_SECONDS
from tests.audio.corpus import floods, hostile_files
from tests.audio.forge import short
from tests.audio.structures import boundaries
from tests.sandbox import Sandbox, Verdict
from tests.synthesis import CONTAINERS, ContainerName

OUTCOMES = {"audio", "bad_audio", "audio_too_long", "invalid_request"}
NUMBERS = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\x01",
    b"\x01\0\0\0",
    b"\xff\xff\xff\x7f",
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox("audio") as started:
        yield started


def faults(verdict: Verdict) -> list[str]:
    """What is wrong with how a file was taken."""
    longest = DEFAULT_LIMITS.max_seconds + PADDING_SECONDS
    wrong = {
        f"gave {verdict.length:.1f} s": verdict.length > longest,
        f"is told as {verdict.detail}": "Errno" in verdict.detail,
    }
    return verdict.faults(OUTCOMES) + [fault for fault, holds in wrong.items() if holds]


def check(sandbox: Sandbox, files: Iterable[tuple[str, bytes]]) -> list[Verdict]:
    verdicts, wrong = [], []
    for name, encoded in files:
        try:
            verdicts.append(sandbox.take(encoded))
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
        else:
            wrong += [f"{name} {fault}" for fault in faults(verdicts[-1])]
    assert not wrong, "\n".join(wrong)
    return verdicts


def test_the_corpus(sandbox: Sandbox) -> None:
    verdicts = check(sandbox, hostile_files().items())
    assert len(verdicts) > 800
    assert {verdict.outcome for verdict in verdicts} == {"audio", "bad_audio", "audio_too_long"}


def test_floods_of_empty_structures(sandbox: Sandbox) -> None:
    check(sandbox, floods(2**22))


@pytest.mark.slow
def test_floods_as_large_as_a_body_may_be(sandbox: Sandbox) -> None:
    check(sandbox, floods(2**26))


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file of any container after one to five accidents, at its structures more often than elsewhere."""
    container: ContainerName = draw(st.sampled_from(CONTAINERS))
    encoded = short(container)
    places = st.sampled_from([0, *boundaries(container, encoded)])
    anywhere = st.integers(0, len(encoded) - 1)
    for _ in range(draw(st.integers(1, 5))):
        at = min(draw(places) + draw(st.integers(0, 40)) if draw(st.booleans()) else draw(anywhere), len(encoded))
        length = draw(st.sampled_from((1, 2, 4, 8, 64, 1_000)))
        content = draw(st.sampled_from(NUMBERS) | st.binary(min_size=1, max_size=16))
        accident = draw(st.sampled_from(("overwrite", "insert", "delete", "repeat", "move", "cut")))
        match accident:
            case "overwrite":
                encoded = encoded[:at] + content + encoded[at + len(content) :]
            case "insert":
                encoded = encoded[:at] + content + encoded[at:]
            case "delete":
                encoded = encoded[:at] + encoded[at + length :]
            case "repeat":
                encoded = encoded[:at] + encoded[at : at + length] * draw(st.integers(2, 200)) + encoded[at + length :]
            case "move":
                other = draw(anywhere)
                encoded = encoded[:at] + encoded[other : other + length] + encoded[at + length :]
            case "cut":
                encoded = encoded[: max(1, at)]
        encoded = encoded or b"\0"
    return container, encoded


def mutate(sandbox: Sandbox, examples: int) -> int:
    """Decodes so many mutants; how many still were audio."""
    heard = []

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutants())
    def decode(mutant: tuple[str, bytes]) -> None:
        verdict = sandbox.take(mutant[1])
        assert not faults(verdict), mutant[0]
        heard.append(verdict.outcome == "audio")

    decode()
    return int(np.sum(heard))


def test_mutants(sandbox: Sandbox) -> None:
    assert mutate(sandbox, 200) > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_mutants(sandbox: Sandbox) -> None:
    assert mutate(sandbox, 8_000) > 400
