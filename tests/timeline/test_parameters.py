import math
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.timeline.parameters import Parameters


def test_defaults_are_told() -> None:
    told = Parameters().told()
    assert told == {
        "hop": 0.5,
        "threshold": 0.5,
        "hysteresis": 0.5,
        "smoothing": 0.0,
        "min_seconds": 0.5,
        "merge_gap": 0.5,
    }


def test_a_request_goes_before_the_manifest() -> None:
    manifest = {"threshold": {"dog": 0.7, "rain": 0.2}, "hysteresis": 0.3, "smoothing": 1.0}
    own = Parameters.of(manifest, hop=0.1, threshold=None, smoothing=0.0)
    assert own.told()["threshold"] == {"dog": 0.7, "rain": 0.2}
    assert (own.hop, own.smoothing, own.told()["min_seconds"]) == (0.1, 0.0, 0.1)
    begin, end = own.levels(("dog", "cat", "rain"))
    assert begin.tolist() == [0.7, 0.5, 0.2]
    assert end.tolist() == [0.3, 0.3, 0.2]  # never above the threshold
    assert own.told()["hysteresis"] == {"dog": 0.3, "rain": 0.2}
    flat = Parameters.of(manifest, threshold=0.25)
    assert flat.told()["hysteresis"] == 0.25
    assert Parameters.of({"threshold": 0.6, "hysteresis": 0.4}).told()["hysteresis"] == 0.4
    assert flat.levels(("dog",))[1].tolist() == [0.25]
    assert Parameters.of(None) == Parameters()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hop": 0.0}, "hop: expected a number from 0.01 to 3600, got 0"),
        ({"hop": 0.015}, "hop: expected a multiple of 0.01 s, got 0.015"),
        ({"hop": math.nan}, "hop"),
        ({"threshold": 1.5}, "threshold: expected a number from 0 to 1, got 1.5"),
        ({"threshold": {"dog": -1}}, "threshold.dog: expected a number from 0 to 1"),
        ({"hysteresis": 0.6}, "hysteresis: expected at most the threshold, 0.5, got 0.6"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"min_seconds": math.inf}, "min_seconds"),
        ({"merge_gap": 1e9}, "merge_gap: expected a number from 0 to 3600"),
    ],
)
def test_nonsense_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Parameters.of({}, **asked)
    assert message in caught.value.detail
