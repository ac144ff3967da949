"""Whatever schemathesis makes of the API's own description: no 5xx, and every answer as documented."""

import base64
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.model.spec import TaskType
from service.registry.bundle import BundleFiles
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CLIP = encode(noise(0.7))
TASKS = {"alpha": TaskType.CLASSIFICATION, "beta": TaskType.CLASSIFICATION, "gamma": TaskType.VERIFICATION}
NAMES = (*TASKS, "alpha@1", "beta@live", "gamma@2", "nobody")
KNOWN = {  # path parameters that lead somewhere, so that more than 404 is seen
    "name": st.sampled_from(NAMES),
    "model": st.sampled_from(NAMES),
    "adapter": st.sampled_from(NAMES),
    "version": st.sampled_from((1, 1, 1, 2, "live", "x")),
    "alias": st.sampled_from(("live", "canary", "1", "Ä")),
    "speaker": st.sampled_from(("ann", "bob", "Ä")),
    "enrolment": st.sampled_from((1, 2, 0)),
}
KEYS = {"inference_keys": "k-inference", "admin_keys": "k-admin"}
BEARERS = (*["Bearer k-admin"] * 5, "Bearer k-inference", "Bearer k-unknown", "Basic Og==", None)


@dataclass(slots=True)
class Fuzz:
    """A service that is asked whatever comes up.

    Args:
        bundles: adapter -> bundles of its own to upload.
        seen: what was answered, by status.
    """

    service: Live
    bundles: dict[str, list[BundleFiles]]
    seen: Counter[int] = field(default_factory=Counter)

    def operations(self) -> Iterator[Any]:
        description = schemathesis.openapi.from_url(f"{self.service.url}/openapi.json")
        for found in description.get_all_operations():
            yield found.ok()

    def publish(self) -> None:
        """The adapters that NAMES has, again where a request before has deleted them."""
        for name, bundles in self.bundles.items():
            if self.service.http.get(f"/v1/adapters/{name}").status_code == 404:
                for number, bundle in enumerate(bundles[:2]):
                    answer = self.service.upload(bundle, name, activate=str(number == 0))
                    assert answer.status_code == 201, answer.text

    def ask(self, operation: Any, mode: GenerationMode, examples: int) -> None:
        """So many requests of one operation; the first wrong answer fails."""

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode), st.integers(0, 5), st.data())
        def ask(case: Any, chance: int, draw: st.DataObject) -> None:
            if operation.method == "delete":
                self.publish()
            if chance:  # five in six are steered to what is there
                self.steer(case, draw, whole=chance >= 4)
            bearer = draw.draw(st.sampled_from(BEARERS))
            case.headers = {**(case.headers or {}), **({"Authorization": bearer} if bearer else {})}
            answer = case.call()
            self.seen[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        with suppress(Unsatisfiable):  # an operation without parameters cannot be asked wrongly
            ask()

    def steer(self, case: Any, draw: st.DataObject, whole: bool) -> None:
        """Names something that exists; in `whole` cases the body is a good one, with what it belongs to."""
        for name in case.path_parameters or {}:
            jobs = self.service.http.get("/v1/jobs").json()["jobs"] if name == "job" else []
            known = st.sampled_from([*(job["id"] for job in jobs), "0"]) if name == "job" else KNOWN[name]
            case.path_parameters[name] = draw.draw(known)
        if "adapter" in (case.query or {}):
            case.query["adapter"] = draw.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
        if case.media_type in ("application/octet-stream", "audio/*"):
            case.body = CLIP
        if whole:
            case.body = self.good_body(case, draw)

    def good_body(self, case: Any, draw: st.DataObject) -> Any:
        kind = case.media_type
        match case.path.rsplit("/", 1)[-1]:
            case "versions":
                name = case.path_parameters["name"] = draw.draw(st.sampled_from(tuple(TASKS)))
                bundle = draw.draw(st.sampled_from(self.bundles[name]))
                return {"config": bundle.config, "weights": bundle.weights}
            case "score":
                case.query = {"adapter": "gamma"}
                vectors = {"enrolment": [[1.0] * 6, [0.5] * 6], "test": [0.1] * 6}
                return vectors if kind == "application/json" else {"enrolment": [CLIP, CLIP], "test": CLIP}
            case "classify" | "embed" if kind == "multipart/form-data":
                return {"audio": [CLIP]}
            case "events" | "jobs" if kind == "multipart/form-data":
                if "speakers" in case.path:
                    case.query = {"adapter": "gamma"}
                return {"ann": [CLIP, CLIP]} if "speakers" in case.path else {"audio": CLIP}
            case "infer":
                text = base64.b64encode(CLIP).decode()
                return {"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [1], "data": [text]}]}
            case "{adapter}" if kind == "application/json":
                return {"inputs": base64.b64encode(CLIP).decode()}
            case "{alias}" if case.method == "PUT":
                return {"version": draw.draw(st.sampled_from((1, 1, 2, 9)))}
        return case.body


@pytest.fixture(scope="module")
def fuzz(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    directory = tmp_path_factory.mktemp("fuzz")
    limits = {"max_clips": 8, "max_adapters": 8}
    with running(settings_for(tiny_ast_dir, directory / "data", **KEYS, **limits)) as live:
        live.http.headers["Authorization"] = "Bearer k-admin"
        bundles = {
            name: [random_bundle(directory, live.backbone, name, seed, task=task) for seed in range(4)]
            for name, task in TASKS.items()
        }
        yield Fuzz(live, bundles)


def ask_all(fuzz: Fuzz, mode: GenerationMode, examples: int) -> Counter[int]:
    """Asks `examples` of every operation; what was answered, by status."""
    fuzz.seen.clear()
    for operation in fuzz.operations():
        fuzz.publish()
        fuzz.ask(operation, mode, examples)
    return fuzz.seen


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_every_operation_answers_as_documented(fuzz: Fuzz, mode: GenerationMode) -> None:
    seen = ask_all(fuzz, mode, examples=2)
    assert {200, 401, 404, 422} <= set(seen), seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_every_operation_answers_as_documented_at_length(fuzz: Fuzz, mode: GenerationMode) -> None:
    seen = ask_all(fuzz, mode, examples=60)
    assert {200, 204, 401, 403, 404, 409, 422} <= set(seen), seen  # an upload that is known already is 200, not 201
