"""What routers and operators read: who holds a slot, who was evicted, how long; and Prometheus's own tools on it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.version import service_version
from tests.api.live import Live, running, settings_for

DOCKER = Path(__file__).parents[2] / "docker"
RULES = Path(__file__).parent / "alerts.test.yml"

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def samples(live: Live, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """Series of a sample's name, by their labels."""
    families = text_string_to_metric_families(live.http.get("/metrics").text)
    return {
        frozenset(sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def value(live: Live, name: str, **labels: str) -> float | None:
    return samples(live, f"ipet_{name}").get(frozenset(labels.items()))


def test_what_is_loaded_is_a_series_and_nothing_else(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", adapter_slots=2)) as live:
        for name in ("one", "two", "three"):
            live.publish(tmp_path, name)
        for name in ("one", "two"):
            live.http.post(f"/v1/classify?adapter={name}", content=clip)
        live.http.post("/v1/adapters/two/pin")
        before = value(live, "adapter_evictions_total")
        assert (value(live, "slots"), value(live, "slots_used"), value(live, "adapters_resident")) == (2, 2, 2)
        live.http.post("/v1/classify?adapter=three", content=clip)
        shown = {tuple(sorted(labels)) for labels in samples(live, "ipet_adapter_resident")}
        assert shown == {
            (("adapter", "three"), ("pinned", "false"), ("tier", "device"), ("version", "1")),
            (("adapter", "two"), ("pinned", "true"), ("tier", "device"), ("version", "1")),
        }
        assert before is not None
        assert value(live, "adapter_evictions_total") == before + 1
        assert value(live, "queue_audio_seconds") == 0
        assert value(live, "adapter_seconds_count", adapter="one") == 1
        live.http.post("/v1/adapters/three/unload")
        assert value(live, "slots_used") == 1
        info = live.http.get("/v1/backbone").json()
        build = {"version": service_version(), "backbone": info["name"], "device": "cpu", "dtype": info["dtype"]}
        assert value(live, "build_info", **build) == 1


def test_times_are_by_route_and_probes_have_none(live: Live) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/adapters/nobody"):
        live.http.get(path)
    timed = {dict(labels)["route"] for labels in samples(live, "ipet_request_seconds_count")}
    assert "/v1/adapters/{name}" in timed
    assert not timed & {"/healthz", "/readyz", "/metrics"}


@promtool
def test_prometheus_finds_nothing_to_object_to(live: Live, clip: bytes) -> None:
    live.http.post("/v1/classify?adapter=alpha", content=clip)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=live.http.get("/metrics").text, capture_output=True, text=True
    )
    objections = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ipet_")]
    assert not objections


@promtool
def test_alerts_say_what_is_wrong_and_nothing_when_all_is_well(tmp_path: Path) -> None:
    for name, source in (("alerts.yml", DOCKER), (RULES.name, RULES.parent)):
        (tmp_path / name).write_text((source / name).read_text())
    done = subprocess.run(["promtool", "test", "rules", RULES.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_ask_for_metrics_that_there_are(live: Live) -> None:
    asked = set(re.findall(r"\bipet_\w+", (DOCKER / "alerts.yml").read_text()))
    text = live.http.get("/metrics").text
    assert asked
    assert not [name for name in asked if re.sub(r"_(bucket|sum|count)$", "", name) not in text and ":" not in name]
