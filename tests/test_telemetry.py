"""Metrics keep their cardinality, logs their shape."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest

from service.telemetry import (
    MAX_ADAPTER_LABELS,
    MAX_KEY_LABELS,
    MAX_LINES_WAITING,
    REQUEST_ID,
    JsonFormatter,
    LogWriter,
    Telemetry,
)


def test_adapter_names_are_bounded() -> None:
    telemetry = Telemetry()
    for index in range(MAX_ADAPTER_LABELS + 50):
        telemetry.adapters[f"a{index}"].inc()
    telemetry.adapters["a3"].inc(4)
    text = telemetry.exposition(lambda label, value: True)[0].decode()
    assert text.count("\nipet_adapter_requests_total{") == MAX_ADAPTER_LABELS + 1
    assert 'ipet_adapter_requests_total{adapter="other"} 50.0' in text
    assert 'ipet_adapter_requests_total{adapter="a3"} 5.0' in text


def test_ids_of_keys_are_bounded() -> None:
    telemetry = Telemetry()
    for index in range(MAX_KEY_LABELS + 50):
        telemetry.count_key(f"{index:012x}", "rate")
    text = telemetry.exposition(lambda label, value: True)[0].decode()
    for metric in ("ipet_key_requests_total", "ipet_key_refusals_total"):
        assert text.count(f"\n{metric}{{") == MAX_KEY_LABELS + 1
    assert 'ipet_key_requests_total{key="other"} 50.0' in text


def test_two_services_in_one_process_count_apart() -> None:
    one, two = Telemetry(), Telemetry()
    one.count_request("/healthz", 200)
    assert b'route="/healthz"' in one.exposition(lambda label, value: True)[0]
    assert b'route="/healthz"' not in two.exposition(lambda label, value: True)[0]


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    target = logging.StreamHandler(stream)
    target.setFormatter(JsonFormatter())
    logger = logging.Logger("room")
    logger.addHandler(target)
    return logger, stream


def test_a_log_record_is_one_line_of_json(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    token = REQUEST_ID.set("abc")
    try:
        logger.info("two\nlines %s", "here", extra={"status": 200})
    finally:
        REQUEST_ID.reset(token)
    assert stream.getvalue().count("\n") == 1
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    expected = {"level": "info", "logger": "room", "message": "two\nlines here", "request_id": "abc", "status": 200}
    assert line == expected


def test_an_exception_is_part_of_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: why" in json.loads(stream.getvalue())["exception"]


def test_a_stored_key_that_gets_into_a_message_is_cut(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.info("asked with %s", "ipet_0123456789ab_" + "S" * 43, extra={"header": "ipet_0123456789ab_" + "T" * 43})
    line = json.loads(stream.getvalue())
    assert line["message"] == "asked with ipet_0123456789ab_..."
    assert line["header"] == "ipet_0123456789ab_..."


def test_who_logs_waits_for_no_reader_and_what_is_lost_is_counted() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader) as read:
        log, count = LogWriter(stream), MAX_LINES_WAITING + 500
        for number in range(count):
            log.handle(logging.makeLogRecord({"msg": "line", "number": number, "filling": "x" * 200}))
        lines = [json.loads(read.readline()) for _ in range(MAX_LINES_WAITING)]  # from here on there is room again
        log.handle(logging.makeLogRecord({"msg": "the last"}))
        while lines[-1]["message"] != "the last":
            lines.append(json.loads(read.readline()))
        log.flush()
    lost, expected = 0, 0
    for line in lines[:-1]:  # a thread that begins late drops some in between, too; each time says how many
        if "number" in line:
            assert line["number"] == expected
            expected += 1
        else:
            dropped, _, told = line["message"].partition(" ")
            assert told == "lines were dropped here, as nobody read the log"
            lost, expected = lost + int(dropped), expected + int(dropped)
    assert lost > 0
    assert expected == count


def test_all_that_a_process_says_is_json() -> None:
    """Warnings, dying threads and every library's logger go through the one formatter."""
    code = """
import logging, threading, warnings
from service.telemetry import configure_logging
configure_logging()
warnings.warn("old ways")
logging.getLogger("uvicorn.error").error("from the server")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "uvicorn.error", "service.telemetry"]
    assert "old ways" in lines[0]["message"]
    assert lines[2]["message"] == "the thread worker died"
    assert "ZeroDivisionError" in lines[2]["exception"]
