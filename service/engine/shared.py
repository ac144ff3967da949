"""What the threads of one device share: its queue and its slots, under one lock."""

import threading
from dataclasses import dataclass, field

from service.engine.precedence import Precedence
from service.engine.slots import Slots
from service.telemetry import Telemetry


@dataclass(slots=True)
class Shared:
    """The state of one device.

    Args:
        scheduler, slots: every call of them is made with `changed` held, and nothing below is set without it.
        changed: notified when there may be something to run, or to examine.
        stopping: nothing more is queued; the worker ends when nothing can run any more.
        suspected: the device may have failed altogether; the worker looks before it goes on.
    """

    scheduler: Precedence
    slots: Slots
    telemetry: Telemetry
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopping: bool = False
    suspected: bool = False

    def suspect(self) -> None:
        """Has the worker see whether the device can still be used."""
        with self.changed:
            self.suspected = True
            self.changed.notify_all()
