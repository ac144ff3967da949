"""The documents keep up with the code: every setting, error code and metric is named, every file is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from service import answers
from service.api import about, adapters, changes, problems
from service.api.app import ROUTERS
from service.api.call import TIMEOUT_HEADER
from service.api.inference import classify, events, open_inference, tensors, voiceprints
from service.api.openapi import describe
from service.api.problems import KINDS
from service.settings import Settings
from service.telemetry import Telemetry

ROOT = Path(__file__).parent.parent
SHAPES = (answers, about, adapters, changes, classify, events, open_inference, problems, tensors, voiceprints)
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("adapters/**/*.md"))
    if path.name != "CHANGELOG.md"
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
AUDIO = re.compile(r"adapters/examples/[\w.-]+\.\w+")
EXAMPLE = re.compile(r"^<!-- (\w+) -->\n```json\n(.*?)```$", flags=re.MULTILINE | re.DOTALL)  # named by its schema
MAKE = re.compile(r"^\s*(?:\$ )?make ([a-z-]+)", flags=re.MULTILINE)


def settings_row(name: str) -> str:
    """The row of docs/SETTINGS.md for one field of Settings."""
    field = Settings.model_fields[name]
    default = field.default
    shown = "" if default in ((), None) else str(default).lower() if isinstance(default, bool) else str(default)
    flag = "--" + name.replace("_", "-")
    return f"| `{flag}` | `IPET_{name.upper()}` | {f'`{shown}`' if shown else 'none'} | {field.description} |"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_has_its_row(name: str) -> None:
    assert settings_row(name) in (ROOT / "docs/SETTINGS.md").read_text()


def test_no_setting_is_made_up() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    known = {f"IPET_{name.upper()}" for name in Settings.model_fields} | {
        "IPET_DEV_DATA",  # where the tests and recipes find recordings
        "IPET_URL",  # of the commands that talk to a server
        "IPET_KEY",
        "IPET_IMAGE",  # of the compose file
        "IPET_COMPOSE",  # of its test
        "IPET_PUBLISH",
        "IPET_MEMORY",
        "IPET_BIND",  # of docker/haproxy.cfg
        "IPET_SERVER_1",
        "IPET_SERVER_2",
        "IPET_SERVER_3",
    }
    assert set(re.findall(r"\bIPET_[A-Z_]+[A-Z]\b", text)) <= known


@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_error_has_its_row(code: str) -> None:
    assert f"| `{code}` | {KINDS[code].status} |" in (ROOT / "docs/API.md").read_text()


@pytest.mark.parametrize(("name", "example"), EXAMPLE.findall((ROOT / "docs/API.md").read_text()))
def test_every_example_has_the_shape_that_is_answered(name: str, example: str) -> None:
    """Every field of an example exists, and it has every field that is always there."""
    shapes = {name: shape for module in SHAPES for name, shape in vars(module).items()}
    form, given = TypeAdapter[Any](shapes[name]), json.loads(example)
    assert form.dump_python(form.validate_python(given), mode="json", exclude_unset=True) == given


def test_every_parameter_and_header_is_documented() -> None:
    text = (ROOT / "docs/API.md").read_text()
    calls = [call for methods in describe(ROUTERS)["paths"].values() for call in methods.values()]
    names = {one["name"] for call in calls for one in call.get("parameters", ()) if one["in"] == "query"}
    assert {"adapter", "limit", "after", "merge_gap"} <= names
    names |= {TIMEOUT_HEADER, "X-Request-Id", "Retry-After"}
    assert not [name for name in names if f"`{name}`" not in text]


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs/METRICS.md").read_text()
    names = [
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Telemetry().registry.collect()
        if family.name.startswith("ipet_")
    ]
    assert names
    missing = [name for name in names if f"| `{name}" not in text]
    assert not missing, f"docs/METRICS.md does not name {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    broken = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    assert not broken, f"{path.name} links to {broken}"
    missing = [audio for audio in AUDIO.findall(text) if not (ROOT / audio).exists()]
    assert not missing, f"{path.name} names {missing}"


def test_readme_names_only_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(MAKE.findall((ROOT / "README.md").read_text())) <= targets


def test_every_example_is_described() -> None:
    examples = ROOT / "adapters/examples"
    text = (examples / "README.md").read_text()
    undescribed = [
        path.name for path in examples.iterdir() if path.suffix not in {".md", ".sh"} and f"`{path.name}`" not in text
    ]
    assert not undescribed
