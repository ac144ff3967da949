"""Calls about speakers, and voices to send."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.spec import TaskType
from tests.api.keyed import bearer
from tests.api.live import Live
from tests.api.test_inference import parts
from tests.synthesis import encode

EXAMPLES = Path(__file__).parents[2] / "adapters" / "examples"
ANN = [(EXAMPLES / name).read_bytes() for name in ("speaker-ann-1.ogg", "speaker-ann-2.opus")]
BRIAN = (EXAMPLES / "speaker-brian-1.mp3").read_bytes()
DIGIT = (EXAMPLES / "digit-seven.m4a").read_bytes()  # half a second of speech
SILENCE = encode(np.zeros(48_000, np.float32))
CONSENT = {"by": "Jo", "at": "2026-11-28T12:00:00Z", "text": "Yes, record my voice."}
SPEECH = {"speech": {"enrol_seconds": 3.0, "verify_seconds": 1.0}, "thresholds": {"far_1e-3": 0.9, "eer": -0.5}}


@dataclass(frozen=True, slots=True)
class Desk:
    """Calls about speakers, of one service and key."""

    http: httpx.Client
    key: str = ""

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        headers = bearer(self.key) | more.pop("headers", {})
        answer = self.http.request(method, f"/v1/speakers{path}", headers=headers, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def refused(self, method: str, path: str, status: int, **more: Any) -> str:
        return str(self.ask(method, path, status, **more)["code"])

    def enrol(self, speaker: str, *clips: bytes, adapter: str = "voice", status: int = 201, **more: Any) -> Any:
        return self.ask("POST", f"/{speaker}/enrolments?adapter={adapter}", status, files=parts(*clips), **more)

    def verify(self, speaker: str, clip: bytes = ANN[1], query: str = "adapter=voice", status: int = 200) -> Any:
        return self.ask("POST", f"/{speaker}/verify?{query}", status, content=clip)


@pytest.fixture(scope="module")
def service(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    live.publish(tmp_path_factory.mktemp("voices"), "voice", task=TaskType.VERIFICATION, **SPEECH)
    return live


@pytest.fixture
def desk(service: Live) -> Desk:
    return Desk(service.http)
