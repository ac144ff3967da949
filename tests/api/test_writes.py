"""Changes over HTTP: what was answered 504 does not happen later, and a lost database is told as one."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.database import DATABASE_FILE
from tests.api.live import Live, running, settings_for
from tests.api.test_adapters import refused
from tests.bundles import random_bundle

TIMEOUT = "X-Request-Timeout-Ms"


def history(live: Live, name: str) -> list[tuple[str, int | None]]:
    """What was done, oldest first."""
    changes = live.http.get(f"/v1/adapters/{name}/history").json()["history"]
    return [(change["action"], change["version"]) for change in reversed(changes)]


def test_uploads_cut_off_at_any_moment_leave_whole_versions(live: Live, tmp_path: Path, clip: bytes) -> None:
    bundles = [random_bundle(tmp_path, live.backbone, "swept", seed) for seed in range(41)]
    started = time.monotonic()
    answered = {live.upload(bundles[0], "swept").json()["version"]}
    duration = time.monotonic() - started
    last = len(bundles) - 1
    for step, files in enumerate(bundles[1:], start=1):
        parts = {"config": files.config, "weights": files.weights}
        moment = max(1, round(1500 * duration * step / len(bundles)))
        timeout = str({1: 1, last: 60_000}.get(step, moment))  # one that comes too late, one that does not
        answer = live.http.post("/v1/adapters/swept/versions", files=parts, headers={TIMEOUT: timeout})
        if answer.status_code == 201:
            answered.add(answer.json()["version"])
            continue
        assert refused(answer) == (504, "deadline_exceeded")
        if "not known yet" in answer.json()["detail"]:
            time.sleep(2)
            answered |= {one["version"] for one in live.http.get("/v1/adapters/swept").json()["versions"]}
        else:
            live_now = live.http.post("/v1/classify?adapter=swept", content=clip)
            assert live_now.status_code == 200, live_now.text
            assert live_now.json()["results"][0]["version"] == max(answered)
    time.sleep(0.5)  # for what goes on behind an answer
    there = {one["version"]: one for one in live.http.get("/v1/adapters/swept").json()["versions"]}
    assert there.keys() == answered
    for version in there:
        assert there[version]["state"] in ("registered", "resident"), there[version]
        assert live.http.get(f"/v1/adapters/swept/versions/{version}/weights").status_code == 200
    assert 1 < len(answered) < len(bundles)


def test_a_move_that_was_answered_504_does_not_happen(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data")) as live:
        for seed in (1, 2):
            live.publish(tmp_path, "moved", seed=seed)
        live.http.put("/v1/adapters/moved/aliases/old", json={"version": 1})
        before, adapter = history(live, "moved"), live.http.get("/v1/adapters/moved").json()
        files = random_bundle(tmp_path, live.backbone, "moved", 3)
        calls: list[Callable[[httpx.Client], httpx.Response]] = [
            lambda http: http.put("/v1/adapters/moved/aliases/live", json={"version": 1}),
            lambda http: http.delete("/v1/adapters/moved/aliases/old"),
            lambda http: http.delete("/v1/adapters/moved/versions/1"),
            lambda http: http.delete("/v1/adapters/moved"),
            lambda http: http.post(
                "/v1/adapters/moved/versions", files={"config": files.config, "weights": files.weights}
            ),
        ]
        other = sqlite3.connect(tmp_path / "data" / DATABASE_FILE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # as another process would have it
        try:
            with httpx.Client(base_url=live.url, headers={TIMEOUT: "800"}, timeout=20) as http:
                for call in calls:
                    started = time.monotonic()
                    answer = call(http)
                    assert refused(answer) == (504, "deadline_exceeded")
                    assert answer.json()["detail"].endswith("nothing was changed")
                    assert time.monotonic() - started < 5.0  # a busy database is waited for much longer
        finally:
            other.execute("ROLLBACK")
            other.close()
        time.sleep(0.5)
        assert history(live, "moved") == before
        assert live.http.get("/v1/adapters/moved").json() == adapter


def test_moves_happen_as_they_are_answered(tiny_ast_dir: Path, tmp_path: Path) -> None:
    """A dozen clients move one alias while another process holds the database now and then."""
    with running(settings_for(tiny_ast_dir, tmp_path / "data")) as live:
        for seed in range(1, 7):
            live.publish(tmp_path, "moved", seed=seed)
        before = len(history(live, "moved"))
        moved: list[int] = []
        ended = threading.Event()

        def hold() -> None:
            other = sqlite3.connect(tmp_path / "data" / DATABASE_FILE, isolation_level=None, timeout=30)
            while not ended.wait(0.05):
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.4)
                other.execute("ROLLBACK")
            other.close()

        def move(client: int) -> Counter[str]:
            failed: Counter[str] = Counter()
            with httpx.Client(base_url=live.url, headers={TIMEOUT: "500"}, timeout=20) as http:
                for turn in range(4):
                    version = 1 + (client + turn) % 6
                    answer = http.put(f"/v1/adapters/moved/aliases/a{client}", json={"version": version})
                    if answer.status_code == 200:
                        assert answer.json()["aliases"][f"a{client}"] == version
                        moved.append(version)
                    else:
                        assert refused(answer) == (504, "deadline_exceeded")
                        failed["unknown" if "not known yet" in answer.json()["detail"] else "unchanged"] += 1
            return failed

        holder = threading.Thread(target=hold)
        holder.start()
        with ThreadPoolExecutor(12) as pool:
            failed = sum(pool.map(move, range(12)), Counter[str]())
        ended.set()
        holder.join()
        time.sleep(0.5)
        happened = Counter(version for _, version in history(live, "moved")[before:])
        assert not Counter(moved) - happened
        assert (happened - Counter(moved)).total() <= failed["unknown"]  # commits that took long
        assert failed.total() + len(moved) == 48


def removed(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    path.write_bytes(b"no database" * 1000)


def another(path: Path) -> None:
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE versions (name TEXT)").connection.close()


def moved_away(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def tables_dropped(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        for table in ("audit", "changes", "answers", "identity"):
            connection.execute(f"DROP TABLE {table}")
    connection.close()


@pytest.mark.parametrize("lose", [removed, emptied, overwritten, another, moved_away, tables_dropped])
def test_a_lost_database_is_told_as_one(
    lose: Callable[[Path], None], tiny_ast_dir: Path, tmp_path: Path, clip: bytes
) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data")) as live:
        for seed in (1, 2):
            live.publish(tmp_path, "kept", seed=seed)
        live.http.put("/v1/adapters/kept/aliases/old", json={"version": 1})
        assert live.http.post("/v1/classify?adapter=kept", content=clip).status_code == 200
        files = random_bundle(tmp_path, live.backbone, "kept", 3)
        lose(tmp_path / "data" / DATABASE_FILE)
        answers = [
            live.http.get("/v1/adapters/kept/history"),
            live.upload(files, "kept"),
            live.http.put("/v1/adapters/kept/aliases/live", json={"version": 1}),
            live.http.delete("/v1/adapters/kept/aliases/old"),
            live.http.delete("/v1/adapters/kept/versions/1"),
            live.http.delete("/v1/adapters/kept"),
        ]
        assert [refused(answer) for answer in answers] == [(503, "registry_unavailable")] * len(answers)
        assert "Retry-After" in answers[0].headers
        assert live.http.get("/v1/adapters/kept").json()["live"] == 2
        assert live.http.post("/v1/classify?adapter=kept", content=clip).status_code == 200
        assert not (tmp_path / "data" / DATABASE_FILE).exists() or lose is not removed, "nobody makes a new one"
