"""What a day on a card found, as one JSON, and as tables in the document."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.benchmarks.document import between, with_results
from tests.benchmarks.results import read_json

MARKS = "gpu day", "end of day"
OUTCOMES = ("failure", "error", "skipped")  # children of a test that did not pass


def summarise(directory: Path, document: Path) -> bool:
    """Puts together what the tests and the benchmark left in `directory`; whether every test passed."""
    results = read_json(directory / "bench.json")
    tests = list(read_tests(directory / "tests.xml"))
    bench = json.loads((directory / "bench.json").read_text())
    (directory / "day.json").write_text(json.dumps({"tests": tests, "bench": bench}, indent=2) + "\n")
    text = with_results(document.read_text(), results)
    document.write_text(between(text, *MARKS, lines(tests, results.machine)))
    return bool(tests) and all(test["outcome"] == "passed" for test in tests)


def read_tests(path: Path) -> Iterator[dict[str, Any]]:
    """Every test of pytest's report: what became of it, seconds, and the figures that it recorded."""
    for case in ElementTree.parse(path).iter("testcase"):
        outcome = next((name for name in OUTCOMES if case.find(name) is not None), "passed")
        figures = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
        name = f"{case.attrib['classname'].rpartition('.')[2]}: {case.attrib['name']}"
        yield {"name": name, "outcome": outcome, "seconds": float(case.attrib["time"]), "figures": figures}


def lines(tests: list[dict[str, Any]], machine: dict[str, str]) -> Iterator[str]:
    """The tests in Markdown."""
    yield f"{machine['device']}, torch {machine['torch']}, {machine['when']}."
    yield from ("", "| test | outcome | seconds | |", "|---|---|---|---|")
    for test in tests:
        name = re.sub(r"\btest_|_", lambda found: " " if found[0] == "_" else "", test["name"])
        figures = "; ".join(f"{what}: {value}" for what, value in test["figures"].items())
        yield f"| {name} | {test['outcome']} | {test['seconds']:.1f} | {figures} |"
