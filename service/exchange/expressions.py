"""A stranger's regular expressions, matched by sets of places in a name and in bounded time, never by backtracking."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from service.errors import InvalidBundle

MAX_CHARACTERS: Final = 2000  # of one expression
MAX_DEPTH: Final = 20  # of groups in groups
MAX_STEPS: Final = 2_000_000  # of all matches of one config: about a second; what PEFT writes takes some 50,000

_PLAIN = re.compile(r"(?:[\w-]|\\?\.)*")  # names, whose dots match anything: nothing in them repeats
_SINGLE = re.compile(r"\\[dDwWsS]|\\[\W_]|\[\^?(?:[\w.-]|\\[dws.-])+\]|[^\\()\[\]{}*+?|^$]", re.DOTALL)
_REPEATS = re.compile(r"(?:([*+?])|\{([0-9]{1,2})(?:(,)([0-9]{1,2})?)?\})\??(?![*+?{])")
_OPENS = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_TIMES = {"*": (0, None), "+": (1, None), "?": (0, 1)}

# From the places where it may begin to those where it may end; bit i is before character i.
_Node = Callable[[int], int]


class Matcher:
    """Matches the expressions of one config's within one number of steps. Not thread-safe."""

    def __init__(self) -> None:
        self._left = MAX_STEPS
        self._known: dict[tuple[str, str, str], Callable[[str], object]] = {}
        self._name = ""
        self._where: dict[str, int] = {}  # the characters of the name that a single one of an expression's may be

    def matches(self, option: str, expression: str, name: str, before: str = "", after: str = "") -> bool:
        """Whether an expression, between two of our own, is a whole name.

        Raises:
            InvalidBundle: names the option, whose expression is too long, takes too long, or is not of the kind read.
        """
        try:
            whole = self._known.get((before, expression, after)) or self._read(before, expression, after)
            self._spend()
            return bool(whole(name))
        except (ValueError, re.error) as error:
            raise InvalidBundle(
                f"{option}: {expression[:40]!r} is no regular expression that is read here: {error}; expected "
                "characters, classes, groups of alternatives and repetition, or the modules' names themselves"
            ) from None

    def _read(self, before: str, expression: str, after: str) -> Callable[[str], object]:
        if len(expression) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(expression):,} characters, over {MAX_CHARACTERS:,}")
        text = before + expression + after
        self._spend(len(text))
        whole = re.compile(text).fullmatch if _PLAIN.fullmatch(expression) else self._whole(text)
        self._known[before, expression, after] = whole
        return whole

    def _whole(self, text: str) -> Callable[[str], bool]:
        node, end = self._alternatives(text, 0, 0)
        if end < len(text):
            raise ValueError(f"{text[end : end + 10]!r} is not expected")

        def whole(name: str) -> bool:
            self._name, self._where = name, {}
            return bool(node(1) >> len(name) & 1)

        return whole

    def _spend(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left < 0:
            raise ValueError("it takes too long")

    # Each reads a part of an expression from a character on: what it matches, and where the part ends

    def _alternatives(self, text: str, at: int, depth: int) -> tuple[_Node, int]:
        if depth > MAX_DEPTH:
            raise ValueError(f"over {MAX_DEPTH} groups in groups")
        first, at = self._sequence(text, at, depth)
        nodes = [first]
        while text[at : at + 1] == "|":
            node, at = self._sequence(text, at + 1, depth)
            nodes.append(node)

        def either(places: int) -> int:
            ends = 0
            for node in nodes:
                ends |= node(places)
            return ends

        return (either if len(nodes) > 1 else first), at

    def _sequence(self, text: str, at: int, depth: int) -> tuple[_Node, int]:
        nodes: list[_Node] = []
        while at < len(text) and text[at] not in "|)":
            if text[at] in "^$":
                nodes.append(self._anchor(text[at]))
                at += 1
                continue
            node, at = self._one(text, at, depth)
            if repeats := _REPEATS.match(text, at):
                node, at = _repeated(node, repeats), repeats.end()
            nodes.append(node)
        return self._after_another(nodes), at

    def _one(self, text: str, at: int, depth: int) -> tuple[_Node, int]:
        if single := _SINGLE.match(text, at):
            return self._single(single[0]), single.end()
        opens = _OPENS.match(text, at)
        if opens is None:
            raise ValueError(f"{text[at : at + 10]!r} is not expected")
        node, at = self._alternatives(text, opens.end(), depth + 1)
        if text[at : at + 1] != ")":
            raise ValueError("a group is not closed")
        return node, at + 1

    # What parts match

    def _single(self, one: str) -> _Node:
        is_one = re.compile(one).fullmatch

        def single(places: int) -> int:
            self._spend()
            if one not in self._where:
                self._spend(len(self._name))
                self._where[one] = sum(1 << i for i, character in enumerate(self._name) if is_one(character))
            return (places & self._where[one]) << 1

        return single

    def _anchor(self, which: str) -> _Node:
        return lambda places: places & (1 if which == "^" else 1 << len(self._name))

    def _after_another(self, nodes: Sequence[_Node]) -> _Node:
        def sequence(places: int) -> int:
            self._spend()
            for node in nodes:
                if not places:
                    break
                places = node(places)
            return places

        return sequence


def _repeated(node: _Node, repeats: re.Match[str]) -> _Node:
    sign, fewest, comma, largest = repeats.groups()
    most: int | None
    if sign:
        least, most = _TIMES[sign]
    else:
        least = int(fewest)
        most = (int(largest) if largest else None) if comma else least
    if most is not None and most < least:
        raise ValueError(f"{repeats[0]!r} is not expected")

    def repeated(places: int) -> int:
        for _ in range(least):
            places = node(places)
        reached = new = places
        more = 0
        while new and (most is None or more < most - least):  # only from places that were not reached before
            new = node(new) & ~reached
            reached |= new
            more += 1
        return reached

    return repeated
