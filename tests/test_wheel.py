"""The wheel, installed where there is no checkout: commands, recipes, console and backbone are all in it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.test_house import ROOT, files

SOURCES = ("service", "adapters/recipes", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel, and the dependencies of this one."""
    place = tmp_path_factory.mktemp("wheel")
    for path in files():
        name = path.relative_to(ROOT)
        if any(name.is_relative_to(source) for source in SOURCES):
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, place / "source")
    shutil.rmtree(place / "source")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv")
    (wheel,) = place.glob("*.whl")
    run(*pip, "--python", place / "venv/bin/python", "install", "--no-deps", wheel)
    (own,) = (place / "venv").glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv/bin"


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd="/", env=clean())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("IPET_")}


@pytest.fixture(scope="module")
def url(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `ipet serve`, with nothing but the wheel's own files."""
    place = tmp_path_factory.mktemp("empty")
    words = [bin_dir / "ipet", "serve", "--port", "0", "--data-dir", place / "data", "--device", "cpu"]
    with subprocess.Popen(
        words, cwd=place, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"ipet-serve is ready on (http://\S+) ", process.stdout.readline())
            assert found, process.communicate()[1]
            yield found[1]
        finally:
            process.kill()


def test_its_code_is_the_wheels(bin_dir: Path) -> None:
    where = run(bin_dir / "python", "-c", "import service.settings; print(service.settings.__file__)")
    assert where.startswith(str(bin_dir.parent))


def test_its_recipes_are_there(bin_dir: Path) -> None:
    told = run(bin_dir / "ipet", "train", "--recipe-list")
    shipped = {
        path.stem for path in (ROOT / "adapters/recipes").rglob("*.toml") if not path.stem.startswith("pretrain")
    }
    assert shipped <= set(told.split())


def test_every_file_of_its_pages_is_there(url: str) -> None:
    for page in ("/", "/docs"):
        shown = httpx.get(url + page)
        assert shown.status_code == 200
        named = re.findall(r'(?:src|href)="(/console/[^"]+)"', shown.text)
        assert "/console/icon.svg" in named
        for name in named:
            assert httpx.get(url + name).status_code == 200, name
    icon = httpx.get(f"{url}/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")
    folder = ROOT / "service/console"
    shipped = [path for path in folder.rglob("*") if path.is_file()]
    assert len(shipped) > 20
    for path in shipped:
        assert httpx.get(f"{url}/console/{path.relative_to(folder)}").content == path.read_bytes(), path


def test_its_backbone_answers(url: str) -> None:
    assert httpx.get(f"{url}/v1/backbone").json()["name"] == "embedded"


def test_the_image_is_made_of_the_same() -> None:
    """What the image copies is let through to its build, recipes among it."""
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "docker/Dockerfile").read_text(), flags=re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"service", "adapters/bundles", "adapters/recipes"} <= sources
    assert sources <= let
