"""What is matched without backtracking is what Python's own engine matches, and no expression takes long."""

import itertools
import re
import time

import pytest

from service.errors import InvalidBundle
from service.exchange.expressions import Matcher

NAMES = ("", "q_proj", "a.q_proj", "wav2vec2.encoder.layers.11.attention.q_proj", "layer.1.fc2", "aaaa", "ab12")
READ = (
    *(r".*\.1\..*q_proj", r".*fc1|.*q_proj", r".*\.(q|v|fc)(_proj|2)", r"^.*layers?\.(\d+)\..*$", "q_proj", ""),
    *(r"(?:a|ab)(?P<end>b?1?2?)", r"[a-c]{2,3}[^b]{2}", r"a{4}", r"(a*)*", r"((a*b?)*\d*)*", r"a{2,}", r"(a|aa)+?"),
    *(r".*[\d]+.*", r"[\w.]*?_proj", r"a{0}q.*", r"(.*\.)?(q_proj|fc2)", r".*\.[0-9]\.\D+.", r"(|a)*", "a^b"),
    *("a$|^ab..", r"\w+", "()|a+", r"a-b|q\_proj"),
)
REFUSED = (
    r"(a)\1",
    "(?=a)a",
    "(?!a).*",
    "a**",
    "a*+",
    "*a",
    "(a",
    "a)",
    "[a",
    "[z-a]",
    "a{3,1}",
    r"\bq",
    "a{,2}",
    "(?i)a",
)


@pytest.mark.parametrize("expression", READ)
def test_as_pythons_engine(expression: str) -> None:
    matcher = Matcher()
    for name in (*NAMES, *map("".join, itertools.product("ab1", repeat=4))):
        assert matcher.matches("x", expression, name) == bool(re.fullmatch(expression, name)), name
        assert matcher.matches("x", expression, name, r"(?:.*\.)?(?:", ")") == bool(
            re.fullmatch(rf"(?:.*\.)?(?:{expression})", name)
        )


@pytest.mark.parametrize("expression", REFUSED)
def test_what_is_not_read(expression: str) -> None:
    with pytest.raises(InvalidBundle, match=r"target_modules: .* or the modules' names themselves"):
        Matcher().matches("target_modules", expression, "aa")


@pytest.mark.parametrize(
    "expression",
    [
        "([a-z0-9_.]+)+!",
        "(.*)*" * 300 + "!",
        "(" * 20 + "a?" + "){99}" * 20 + "!",
        "(" * 20 + ")*" * 20 + "!",
        "(((.*x)*.y?)*.*)*!",
        "(" + "|" * 1900 + "){99}",
        "a?" * 990 + "!",
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    def match_many() -> None:
        while time.monotonic() < began + 60:
            assert not matcher.matches("x", expression, NAMES[3] * 2)

    began, matcher = time.monotonic(), Matcher()
    with pytest.raises(InvalidBundle, match="it takes too long"):
        match_many()
    assert time.monotonic() - began < 30
