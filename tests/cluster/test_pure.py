"""The parts of a cluster that need none: configuration, placement, scaling, errors, the proxy's own answer."""

import asyncio
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from service import errors
from service.api.problems import KINDS
from service.cluster.config import Config, read_config
from service.cluster.placement import Ring, bound
from service.cluster.proxy import Unanswered
from service.cluster.scaling import ByQueuedSeconds
from service.errors import InvalidRequest, ServiceError
from service.model.backbone import Backbone

EVERY = [one for one in vars(errors).values() if isinstance(one, type) and ServiceError in one.__mro__[1:]]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_crosses_with_its_type_and_all_it_tells(kind: type[ServiceError]) -> None:
    error = kind("what was wrong", clip=2, adapter="a@1", retry_after=1.5)
    error.at = 3.0
    found = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(found) is kind
    assert vars(found) == vars(error)
    assert str(found) == "what was wrong"
    assert found.code in KINDS


def test_a_shell_costs_what_its_backbone_does(tiny_ast: Backbone, tiny_wav2vec2: Backbone) -> None:
    for backbone in (tiny_ast, tiny_wav2vec2):
        crossed = pickle.dumps(backbone.shell())
        assert len(crossed) < 10_000, "it has no weights"
        shell = pickle.loads(crossed)  # noqa: S301
        assert (shell.spec, shell.dtype, shell.features) == (backbone.spec, backbone.dtype, backbone.features)
        for frames in (100, 128, 1024):
            assert shell.token_count(frames) == backbone.token_count(frames)


def test_a_name_meets_the_same_replicas_whoever_else_comes() -> None:
    names = [f"adapter-{i}" for i in range(300)]
    three, four = (Ring({str(i): i for i in range(count)}) for count in (3, 4))
    first = {name: three.successors(name)[0] for name in names}
    assert min(Counter(first.values()).values()) > 50
    moved = [name for name in names if four.successors(name)[0] != first[name]]
    assert all(four.successors(name)[0] == 3 for name in moved), "only what the new one takes moves"
    assert 30 < len(moved) < 130
    assert all(sorted(three.successors(name)) == [0, 1, 2] for name in names)


def test_a_replica_that_is_full_is_passed_over_until_all_are() -> None:
    ring = Ring({str(i): i for i in range(3)})
    order = list(ring.successors("hot"))
    load = dict.fromkeys(order, 0)
    for number in range(30):
        chosen = ring.ranked("hot", load.__getitem__)[0]
        assert load[chosen] < bound(number, 3)
        load[chosen] += 1
    assert [load[one] for one in order] == [13, 13, 4], "1.25 times ten is the most that one more may meet"


def context(queued: list[float], least: int = 1, most: int = 4) -> Any:
    metrics = {"queued_seconds": dict(enumerate(queued))}
    bounds = {"capacity_adjusted_min_replicas": least, "capacity_adjusted_max_replicas": most}
    return SimpleNamespace(aggregated_metrics=metrics, **bounds)


@pytest.mark.parametrize(
    ("queued", "wanted"), [([], 1), ([0.0], 1), ([60.0], 1), ([61.0], 2), ([90.0, 91.0], 4), ([1e6], 4)]
)
def test_devices_follow_the_seconds_that_wait(queued: list[float], wanted: int) -> None:
    assert ByQueuedSeconds(60.0)(context(queued)) == (wanted, {})


def test_before_anything_was_told_there_are_as_few_as_may_be() -> None:
    told = SimpleNamespace(aggregated_metrics=None, capacity_adjusted_min_replicas=2, capacity_adjusted_max_replicas=4)
    assert ByQueuedSeconds(60.0)(told) == (2, {})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fronts": 0}, "fronts: .*greater than or equal to 1, got 0"),
        ({"frnts": 1}, "frnts: Extra inputs"),
        ({"devices": []}, "devices: .*at least 1"),
        ({"devices": ["tpu"]}, r"devices.0: .*'cpu' or 'cuda', got 'tpu'"),
        ({"devices": ["cpu", "cuda"]}, "devices: all of one kind"),
        ({"devices": ["cpu", "cpu"], "max_devices": 1}, "at least the 2"),
        ({"fronts": 2}, "2 of them share .* by PostgreSQL: give serve.database_url"),
        ({"serve": {"prot": 1}}, "serve.prot: no setting"),
        ({"serve": {"port": "x"}}, "port: .*got 'x'"),
    ],
)
def test_what_cannot_hold_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        Config.of(given)


def test_settings_hold_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPET_ADMIN_KEYS", "root")
    monkeypatch.chdir(tmp_path)
    text = 'fronts = 2\ndevices = ["cpu", "cpu"]\nmax_devices = 3\n[serve]\ndatabase_url = "postgresql://h/n"\n'
    (tmp_path / "config.toml").write_text(text)
    config = read_config(tmp_path / "config.toml")
    settings = config.settings
    assert (config.fronts, config.most_devices, settings.device, settings.database_url) == (
        2,
        3,
        "cpu",
        "postgresql://h/n",
    )
    assert settings.admin_keys == ("root",)
    assert settings.data_dir == tmp_path / "ipet-data"
    with pytest.raises(InvalidRequest, match=r"none\.toml cannot be read"):
        read_config(tmp_path / "none.toml")


def test_the_file_for_a_real_cluster_is_one_that_would_be_taken() -> None:
    (application,) = yaml.safe_load(Path("docker/ray-serve.yaml").read_text())["applications"]
    config = Config.of(application["args"])
    assert (config.fronts, config.most_devices) == (4, 8)
    module, _, function = application["import_path"].partition(":")
    assert f"def {function}(" in Path(*module.split(".")).with_suffix(".py").read_text()


def answer_of(app: Any, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    asyncio.run(Unanswered(app)({"type": kind, "path": "/", "method": "GET", "headers": []}, receive, send))
    return sent


def test_a_front_that_died_is_answered_for() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    start, body = answer_of(silent)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert b'"code": "not_ready"' in body["body"]
    assert not answer_of(silent, "websocket")


def test_what_was_begun_is_left_as_it_is() -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert len(answer_of(half)) == 1
