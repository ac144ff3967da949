"""Jobs over HTTP: taken in whole, followed, listed by domain and key, cancelled; enrolment in bulk."""

import json
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.api.jobs import hearing
from service.jobs.quota import JobQuota
from tests.api.desk import ANN, DIGIT, SILENCE, Desk
from tests.api.live import Live, running
from tests.synthesis import encode, noise, tone
from tests.waiting import soon

Files = list[tuple[str, bytes]]


def ended(http: httpx.Client, job: str, seconds: float = 120.0) -> dict[str, Any]:
    """The job, once it has ended."""
    until = time.monotonic() + seconds
    while (found := http.get(f"/v1/jobs/{job}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return dict(found)


def enrol(http: httpx.Client, files: Files, status: int = 202, **more: Any) -> Any:
    params = {"adapter": "voice"} | more.pop("params", {})
    answer = http.post("/v1/speakers/jobs", params=params, files=files, **more)
    assert answer.status_code == status, answer.text
    if status == 202:
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()


QUERY = "adapter=alpha&adapter=beta&hop=0.1&threshold=0.169&merge_gap=0"
FORMS = ("application/json", "application/x-ndjson", "text/csv", "text/x-audacity-labels", "text/x-raven-table")


@pytest.fixture(scope="module")
def recording() -> bytes:
    """40 s whose loudness and pitch change, flac."""
    pieces = [
        noise(1.3, level=0.001 * 4.0 ** (n % 5), seed=n) + tone(1.3, 100.0 * 2.0 ** (n % 6), level=0.1 * (n % 3))
        for n in range(30)
    ]
    return encode(np.concatenate(pieces), container="flac")


def listen(http: httpx.Client, content: bytes, query: str = QUERY, status: int = 202, **more: Any) -> Any:
    answer = http.post(f"/v1/jobs?{query}", content=content, **more)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_job_answers_what_events_answers(live: Live, recording: bytes) -> None:
    job = live.http.post(f"/v1/jobs?{QUERY}", files={"audio": ("night.flac", recording)}).json()
    done = ended(live.http, job["id"])
    assert (done["status"], done["kind"], done["progress"]) == ("done", "events", 1.0)
    assert done["adapters"] == ["alpha@1", "beta@1"]
    assert done["seconds"] == pytest.approx(39.0)
    for form in FORMS:
        headers = {"Accept": form}
        direct = live.http.post(f"/v1/events?{QUERY}", files={"audio": ("night.flac", recording)}, headers=headers)
        told = live.http.get(f"/v1/jobs/{job['id']}/result", headers=headers)
        assert told.headers["content-type"].partition(";")[0] == form
        if form == FORMS[1]:  # which tells its progress
            lines = [json.loads(line) for line in direct.text.splitlines()]
            kept = [json.loads(line) for line in told.text.splitlines()]
            assert kept[-1] == lines[-1]
            assert sorted(map(str, kept)) == sorted(str(line) for line in lines if line["type"] != "progress")
        else:
            assert told.text == direct.text
    assert len(told.text.splitlines()) > 12
    refused = live.http.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")


def test_a_recording_that_breaks_leaves_what_was_heard(live: Live, recording: bytes) -> None:
    broken = recording[: len(recording) // 2]
    done = ended(live.http, listen(live.http, broken)["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "bad_audio")
    assert done["error"]["at"] == pytest.approx(done["seconds"], abs=0.7)
    result = live.http.get(f"/v1/jobs/{done['id']}/result").json()
    direct = live.http.post(f"/v1/events?{QUERY}", content=broken).json()
    assert result == direct
    assert result["events"]


def test_what_is_no_recording_fails_without_a_result(live: Live) -> None:
    done = ended(live.http, listen(live.http, b"no audio")["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "bad_audio")
    answer = live.http.get(f"/v1/jobs/{done['id']}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert listen(live.http, b"", status=422)["code"] == "invalid_request"
    assert listen(live.http, b"x", "adapter=gamma", 409)["code"] == "wrong_task"
    assert listen(live.http, b"x", "adapter=alpha&hop=3", 422)["code"] == "invalid_request"


def test_a_job_is_cancelled_while_it_runs(live: Live) -> None:
    job = listen(live.http, encode(noise(600.0), container="flac"), "adapter=alpha&adapter=beta&hop=0.02")["id"]
    soon(lambda: live.http.get(f"/v1/jobs/{job}").json()["status"] != "queued", 60)
    early = live.http.get(f"/v1/jobs/{job}/result")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert live.http.delete(f"/v1/jobs/{job}").status_code == 204
    cancelled = live.http.get(f"/v1/jobs/{job}").json()
    assert (cancelled["status"], cancelled["bytes"]) == ("cancelled", 0)
    soon(lambda: not live.context.runtime.engine.room.held, 60)  # it is heard no more
    assert live.http.delete(f"/v1/jobs/{job}").status_code == 204
    assert live.http.get(f"/v1/jobs/{job}").status_code == 404


def test_one_server_is_at_a_job_and_each_tells_of_it(
    live: Live, recording: bytes, tiny_ast_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    hear = hearing.Recording.blocks
    monkeypatch.setattr(hearing.Recording, "blocks", lambda one: (taken.append("here"), hear(one))[1])
    with running(live.context.settings.model_copy(update={"port": 0})) as other:
        jobs = [listen(http, recording)["id"] for http in (live.http, other.http) for _ in range(3)]
        done = [ended(http, job) for http, job in zip((live.http, other.http) * 3, reversed(jobs), strict=True)]
        assert [one["status"] for one in done] == ["done"] * 6
        results = [http.get(f"/v1/jobs/{job}/result").text for job in jobs for http in (live.http, other.http)]
    assert len(set(results)) == 1
    assert len(taken) == 6


def test_a_retry_is_the_same_job_though_live_has_moved(service: Live, tmp_path: Path) -> None:
    service.publish(tmp_path / "1", "job-moves", labels=("cat", "dog"), seed=1)
    content, headers = encode(noise(2.0)), {"Idempotency-Key": "job-moves"}
    query = "adapter=job-moves&adapter=job-moves@1"
    first = listen(service.http, content, query, headers=headers)
    service.publish(tmp_path / "2", "job-moves", labels=("cat", "dog"), seed=2)
    assert service.http.get("/v1/adapters/job-moves").json()["aliases"]["live"] == 2
    assert listen(service.http, content, query, headers=headers)["id"] == first["id"]
    assert ended(service.http, first["id"])["adapters"] == ["job-moves@1"]  # once


def test_what_is_announced_too_large_is_refused_at_once(live: Live) -> None:
    place = urlsplit(live.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
        head = f"POST /v1/jobs?{QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**10}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")
    assert [path for path in (live.context.settings.data_dir / "jobs").iterdir() if path.name[0] == "."] == []


def test_a_full_quota_is_told_before_the_body_is_read(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobQuota, "of", lambda grant, settings: JobQuota(0, 0))
    place = urlsplit(live.url)
    for path in (f"/v1/jobs?{QUERY}", "/v1/speakers/jobs?adapter=gamma"):
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**6}\r\n\r\n".encode())
            assert raw.recv(65_536).startswith(b"HTTP/1.1 429 ")


def test_many_are_enrolled_each_by_their_clips(service: Live, desk: Desk) -> None:
    desk.ask("POST", "/bulk-out/opt-out")
    files = [("bulk-ann", ANN[0]), ("bulk-out", ANN[0]), ("bulk-bad", b"no audio"), ("bulk-ann", ANN[1])]
    job = enrol(service.http, [*files, ("bulk-mute", SILENCE)])
    done = ended(service.http, job["id"])
    assert (done["status"], done["progress"], done["kind"], done["error"]) == ("done", 1.0, "enrolment", None)
    assert done["adapters"][0].startswith("voice@")
    rows = {row["speaker"]: row for row in service.http.get(f"/v1/jobs/{job['id']}/result").json()["speakers"]}
    assert list(rows) == ["bulk-ann", "bulk-out", "bulk-bad", "bulk-mute"]
    told = {name: (row["clips"], row["result"]) for name, row in rows.items()}
    assert told["bulk-ann"] == (2, "enrolled")
    assert told["bulk-out"] == (1, "speaker_opted_out")
    assert told["bulk-bad"] == (1, "bad_audio")
    assert told["bulk-mute"] == (1, "pending")
    assert rows["bulk-mute"]["note"] == "no_speech"
    table = service.http.get(f"/v1/jobs/{job['id']}/result", headers={"Accept": "text/csv"}).text.splitlines()
    assert table[0] == "speaker,clips,result,speech_seconds,needed_seconds,note"
    assert table[2].startswith("bulk-out,1,speaker_opted_out,,,")
    stored = desk.ask("GET", "/bulk-ann")["adapters"][0]
    assert [one["id"] for one in stored["enrolments"]] == [1, 2]
    assert rows["bulk-ann"]["speech_seconds"] == pytest.approx(stored["speech_seconds"])
    assert desk.verify("bulk-ann")["score"] > 0.5
    assert desk.refused("GET", "/bulk-bad", 404) == "unknown_speaker"


def test_who_is_enrolled_by_as_many_clips_is_skipped(service: Live, desk: Desk) -> None:
    desk.enrol("bulk-old", ANN[0], ANN[1])
    desk.enrol("bulk-begun", SILENCE, DIGIT)
    files = [("bulk-old", ANN[0]), ("bulk-begun", ANN[0]), ("bulk-begun", ANN[1])]
    job = enrol(service.http, files)
    ended(service.http, job["id"])
    rows = service.http.get(f"/v1/jobs/{job['id']}/result").json()["speakers"]
    assert [row["result"] for row in rows] == ["skipped", "enrolled"]
    begun = desk.ask("GET", "/bulk-begun")["adapters"][0]["enrolments"]
    assert [one["id"] for one in begun] == [2, 3]  # what it was begun with does not count beside them


def test_a_worse_enrolment_does_not_replace_a_better_one(service: Live, desk: Desk) -> None:
    desk.enrol("bulk-keeps", ANN[0], ANN[1])
    job = enrol(service.http, [("bulk-keeps", SILENCE)] * 3)
    ended(service.http, job["id"])
    row = service.http.get(f"/v1/jobs/{job['id']}/result").json()["speakers"][0]
    assert (row["result"], row["note"]) == ("not_enough_speech", "older enrolments stay no_speech")
    assert len(desk.ask("GET", "/bulk-keeps")["adapters"][0]["enrolments"]) == 2


def test_a_retry_is_the_same_job(service: Live) -> None:
    files, headers = [("bulk-once", ANN[0])], {"Idempotency-Key": "bulk-once"}
    first = enrol(service.http, files, headers=headers)
    assert enrol(service.http, files, headers=headers)["id"] == first["id"]
    assert enrol(service.http, [("bulk-once", ANN[1])], 422, headers=headers)["code"] == "invalid_request"
    ended(service.http, first["id"])


@pytest.mark.parametrize(
    ("files", "detail"),
    [
        ([("not/an-id", ANN[0])], "no speaker's id"),
        ([("jobs", ANN[0])], "no speaker's id"),
        ([("bulk-empty", b"")], "is empty"),
        ([("bulk-many", b"x")] * 9, "up to 8 clips"),
    ],
)
def test_what_cannot_be_a_job_is_refused_at_once(service: Live, files: Files, detail: str) -> None:
    refused = enrol(service.http, files, 422)
    assert (refused["code"], detail in refused["detail"]) == ("invalid_request", True), refused
    before = service.context.settings.data_dir / "jobs"
    assert [path for path in before.iterdir() if path.name[0] == "."] == []


def test_a_job_is_listed_cancelled_and_removed(service: Live) -> None:
    ids = [enrol(service.http, [(f"bulk-{n}", ANN[0])])["id"] for n in range(3)]
    for job in ids:
        ended(service.http, job)
    page = service.http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == [ids[2], ids[1]]
    rest = service.http.get("/v1/jobs", params={"limit": 2, "after": page["next"]}).json()
    assert rest["jobs"][0]["id"] == ids[0]
    assert service.http.delete(f"/v1/jobs/{ids[0]}").status_code == 204
    for path in (f"/v1/jobs/{ids[0]}", f"/v1/jobs/{ids[0]}/result", "/v1/jobs/0"):
        answer = service.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")
