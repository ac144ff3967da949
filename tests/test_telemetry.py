"""Metrics keep their cardinality, logs their shape."""

import io
import json
import logging

import pytest

from service.telemetry import MAX_ADAPTER_LABELS, REQUEST_ID, JsonFormatter, Telemetry


def test_adapter_names_are_bounded() -> None:
    telemetry = Telemetry()
    for index in range(MAX_ADAPTER_LABELS + 50):
        telemetry.count_adapter(f"a{index}")
    telemetry.count_adapter("a3", 4)
    text = telemetry.exposition()[0].decode()
    assert text.count("\nipet_adapter_requests_total{") == MAX_ADAPTER_LABELS + 1
    assert 'ipet_adapter_requests_total{adapter="other"} 50.0' in text
    assert 'ipet_adapter_requests_total{adapter="a3"} 5.0' in text


def test_two_services_in_one_process_count_apart() -> None:
    one, two = Telemetry(), Telemetry()
    one.count_request("/healthz", 200)
    assert b'route="/healthz"' in one.exposition()[0]
    assert b'route="/healthz"' not in two.exposition()[0]


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
