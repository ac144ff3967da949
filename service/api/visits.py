"""A request about speakers: whose they are, its place among the others, what is heard in its clips."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from service.access.keys import Scope, require_domain
from service.api import speakers as shown
from service.api.answers import finite
from service.api.auth import caller_of
from service.api.lifetime import Admission, admitted
from service.api.outputs import infer, resolve
from service.deadline import Deadline
from service.engine.engine import Outputs, Place
from service.engine.prepare import Clip
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.score import voiceprint
from service.speakers.journal import By
from service.speakers.speaker import Speaker, Spoken, require_speaker
from service.speakers.store import SpeakerStore


@dataclass(frozen=True, slots=True)
class Visit:
    """A request about speakers.

    Args:
        by: whose speakers, and who asks.
    """

    admission: Admission
    by: By

    @property
    def store(self) -> SpeakerStore:
        return self.admission.runtime.speakers

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await self.admission.context.speaking.run(work, *args)

    async def change(self, work: Callable[[Deadline], Any]) -> Any:
        return await self.admission.context.speaking.change(self.admission.deadline, work)

    def info(self, speaker: Speaker, version: AdapterVersion | None = None) -> shown.SpeakerInfo:
        grant = caller_of(self.admission.request).grant
        voice = None if version is None else shown.voice_of(version)
        return shown.info(self.admission.runtime, grant, speaker, self.store.now(), voice)

    def tell(self, speaker: Speaker) -> str:
        return self.info(speaker).model_dump_json()

    def resolve(self, reference: str) -> AdapterVersion:
        """The version of a speaker adapter. Raises UnknownAdapter, UnknownVersion, WrongTask."""
        return resolve(self.admission, [reference], TaskType.VERIFICATION)[0]

    async def listen(self, place: Place, encoded: Sequence[bytes]) -> list[Spoken]:
        """What the adapter that the request was let in with makes of clips, as /v1/embed has it."""
        clips, outputs = await infer(self.admission, place, encoded)
        return await asyncio.to_thread(
            lambda: [_spoken(clip, of_clip[0]) for clip, of_clip in zip(clips, outputs, strict=True)]
        )


@asynccontextmanager
async def visiting(request: Request, domain: str | None, speaker: str | None = None) -> AsyncIterator[Visit]:
    """A request about the speakers of a domain.

    Raises:
        Forbidden: another domain than the key's own, without `admin`.
        InvalidRequest: what is no domain, or no speaker's id.
        Overloaded: too many are under way.
    """
    caller = caller_of(request)
    if domain is not None and domain != caller.grant.domain:
        caller.require_scope(Scope.ADMIN)
        require_domain(domain)
    if speaker is not None:
        require_speaker(speaker)
    async with admitted(request) as admission:
        with admission.context.speaking.place():
            yield Visit(admission, By(domain or caller.grant.domain, caller.actor))


def _spoken(clip: Clip, output: Outputs) -> Spoken:
    windows = finite(output)
    seconds = clip.speech_seconds or 0.0
    return Spoken(voiceprint(windows), seconds, clip.warnings if seconds else ("no_speech",))
