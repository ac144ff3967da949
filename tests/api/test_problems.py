"""The table of error codes is whole: every typed error has its row, the contract's statuses stand."""

import json
from importlib import import_module
from inspect import getmembers, isclass

from service import errors
from service.api.problems import KINDS, describe, of_error, problem

CONTRACT = """invalid_request 422, bad_audio 422, audio_too_long 413, payload_too_large 413, unknown_adapter 404,
unknown_version 404, wrong_task 409, backbone_mismatch 409, invalid_bundle 422, unauthorized 401, forbidden 403,
version_is_live 409, no_free_slot 409, adapter_failed 503, overloaded 429, rate_limited 429, not_ready 503,
deadline_exceeded 504, storage_full 507, internal 500"""


def test_every_typed_error_is_in_the_table() -> None:
    classes = [c for _, c in getmembers(import_module("service.errors"), isclass) if c.__module__ == errors.__name__]
    assert len(classes) > 15
    assert {c.code for c in classes} <= KINDS.keys()


def test_statuses_are_the_contracts() -> None:
    promised = dict(row.split() for row in CONTRACT.replace("\n", " ").split(", "))
    assert {code: str(KINDS[code].status) for code in promised} == promised


def test_an_error_names_clip_adapter_and_wait() -> None:
    response = of_error(errors.Overloaded("busy", clip=0, adapter="a@2", retry_after=1.2))
    body = json.loads(bytes(response.body))
    assert response.media_type == "application/problem+json"
    assert response.headers["retry-after"] == "2"
    assert body == {
        "type": "about:blank",
        "title": KINDS["overloaded"].title,
        "status": 429,
        "code": "overloaded",
        "detail": "busy",
        "clip": 0,
        "adapter": "a@2",
    }


def test_every_429_says_when_to_try_again() -> None:
    assert of_error(errors.Overloaded("busy")).headers["retry-after"] == "1"


def test_members_that_are_unknown_are_left_out() -> None:
    assert "clip" not in json.loads(bytes(problem("internal", "x").body))


def test_long_values_are_cut() -> None:
    text = describe({"loc": ("query", "top_k"), "msg": "should be a number", "input": "9" * 10_000})
    assert text.startswith("query.top_k: should be a number, got '999")
    assert len(text) < 200
