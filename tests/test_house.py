"""The house's own rules: format, lint, types and layers hold, and other files agree with the package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
LINES_AT_MOST = 400
FORBIDDEN_IN_SERVICE = re.compile(
    r"\bimport pickle\b|\bpickle\.|(?<!safetensors\.)\btorch\.load\((?![^\n]*weights_only=True)"
    r"|(?<![\w.])eval\(|(?<![\w.])exec\(|\btorch\.hub\b"
    r"|trust_remote_code=True|\bshell=True|\b(?:joblib|dill|cloudpickle|shelve|marshal)\b|\bfrom pickle\b"
    r"|\ballow_pickle\b(?!=False)|\bread_pickle\b|\byaml\.(?:unsafe_|full_)?load\b|use_safetensors=False|\bos\.system\("
)
FETCHES = re.compile(
    r"\b(?:import|from) (?:httpx|requests|aiohttp|urllib3|http\.client|ftplib|fsspec)\b|\burllib\.request\b|\burlopen\b"
    r"|\bfrom service\.client\b|\bhf_hub_download\b|\bsnapshot_download\b|\bcreate_connection\("
)
FETCHERS = (
    "client.py",
    "cli/clips.py",
    "cli/connection.py",
    "cli/recordings.py",
    "cli/speakers.py",
)  # clients; the server imports none of them
MACHINE_PATHS = re.compile(r"(?<![\w./])/(?:work|farm|root|home)/")


def files(*suffixes: str) -> list[Path]:
    """Text files of the repository: tracked ones and new ones, nothing that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name]
    return [path for path in paths if path.is_file() and (not suffixes or path.name.endswith(suffixes))]


@pytest.mark.parametrize(
    "command",
    [("ruff", "format", "--check", "."), ("ruff", "check", "."), ("mypy",), ("lint-imports",)],
    ids=["format", "lint", "types", "layers"],
)
def test_checker_is_content(command: tuple[str, ...]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"


def test_no_module_grows_past_its_seam() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files(".py") if (n := p.read_text().count("\n")) > LINES_AT_MOST}
    assert not long, f"files over {LINES_AT_MOST} lines: {long}"


def test_no_machine_paths() -> None:
    suffixes = (".py", ".md", ".toml", ".yml", ".sh", ".json", "Makefile", "Dockerfile", "run")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(*suffixes)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert not found, "\n".join(found)


def test_nothing_executes_what_it_reads() -> None:
    """Bundles are safetensors and JSON: no pickle, no evaluated code, no remote code."""
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files(".py")
        if path.is_relative_to(ROOT / "service")
        for match in FORBIDDEN_IN_SERVICE.finditer(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_the_server_fetches_nothing() -> None:
    """No URL that a request could name is ever opened; a Hub id of `--backbone` is the operator's, by transformers."""
    service = ROOT / "service"
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files(".py")
        if path.is_relative_to(service) and str(path.relative_to(service)) not in FETCHERS
        for match in FETCHES.finditer(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_adapters_holds_no_python() -> None:
    assert not [path for path in files(".py", ".pyc", ".pkl", ".pt", ".bin") if path.is_relative_to(ROOT / "adapters")]


@pytest.mark.parametrize("place", ["docker/Dockerfile", "Makefile"])
def test_every_installer_asks_for_the_same_torch(place: str) -> None:
    """torch and torchaudio must import together, so their bounds are the same wherever they are installed."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [name for name in dependencies if name.startswith("torch")]
    assert bounds
    text = (ROOT / place).read_text()
    missing = [bound for bound in bounds if bound not in text]
    assert not missing, f"{place} does not install {missing}"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "make --no-print-directory test" in script.read_text()


def test_compose_publishes_on_loopback_and_needs_a_key() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'^ +- "(\S+:\d+)"$', text, flags=re.MULTILINE)
    assert len(published) == 2
    assert all("127.0.0.1" in entry for entry in published), published
    assert "${IPET_ADMIN_KEYS:?" in text


def test_the_second_server_of_the_fleet_is_the_first_ones_twin() -> None:
    base, fleet = (
        yaml.safe_load((ROOT / name).read_text())["services"]
        for name in ("docker-compose.yml", "docker/compose.fleet.yml")
    )
    first = {**base["ipet"], **fleet["ipet"], "environment": base["ipet"]["environment"] | fleet["ipet"]["environment"]}
    assert first["environment"]["IPET_ADMIN_KEYS"] == base["ipet"]["environment"]["IPET_ADMIN_KEYS"]
    assert fleet["ipet-2"] == {name: value for name, value in first.items() if name not in ("build", "ports")}
    published = [port for service in fleet.values() for port in service.get("ports", ())]
    assert published
    assert all("127.0.0.1" in port for port in published), published
    assert "${POSTGRES_PASSWORD:?" in (ROOT / "docker/compose.fleet.yml").read_text()
    hardened = ("read_only", "cap_drop", "security_opt", "restart")
    assert all(fleet["proxy"][name] == base["ipet"][name] for name in hardened)
