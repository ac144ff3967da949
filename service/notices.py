"""What servers of one PostgreSQL tell each other at once: NOTIFY with a change, LISTEN on one connection that is kept.

SQLite has nothing of the kind: there, and while that connection is lost, everybody looks as often as without it.
"""

from collections.abc import Callable
from enum import StrEnum
from queue import SimpleQueue
from typing import Any, Final

from sqlalchemy import Connection

from service.database import Database
from service.routine import Routine

RARELY: Final = 5.0  # seconds between looks where one is told: older releases tell nobody
_CHANNEL: Final = "ipet"
_RETRY_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 0.25  # until what is to be told is told


class Topic(StrEnum):
    """What has changed."""

    ADAPTERS = "adapters"
    KEYS = "keys"
    JOBS = "jobs"
    LIMITS = "limits"  # with what was used of them


def announce(connection: Connection, topic: Topic) -> None:
    """Tell whoever listens, once the transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_notify(%s, %s)", (_CHANNEL, topic.value))


class Notices:
    """Listens to the servers of one database, in a thread of its own from `start` to `close`.

    Attributes:
        is_listening: whether everything that is announced is heard.
    """

    def __init__(self, database: Database) -> None:
        self.is_listening = False
        self._database = database
        self._is_closed = False
        self._hears: dict[str, Callable[[str], object]] = {}
        self._to_tell: SimpleQueue[str] = SimpleQueue()
        self._listening = Routine("listening to other servers", self._listen)

    def pace(self, topic: Topic, wake: Callable[[], object], seconds: float) -> Callable[[], float]:
        """How long to wait before looking again; `wake` is called where there is something to see before that.

        Args:
            seconds: between looks where nobody tells.
        """
        self.on(topic, lambda _: wake())
        return lambda: RARELY if self.is_listening else seconds

    def on(self, topic: Topic, hear: Callable[[str], object]) -> None:
        """Call `hear` with what is told of a topic, and with nothing where something may have been missed."""
        self._hears[topic] = hear

    def tell(self, topic: Topic, what: str) -> None:
        """Tell it whoever listens, this server too, in a moment; nobody where there is no connection."""
        if self.is_listening:
            self._to_tell.put(f"{topic} {what}")

    def start(self) -> None:
        if not self._database.is_sqlite:
            self._listening.start(_RETRY_SECONDS)

    def close(self) -> None:
        self._is_closed = True
        self._listening.stop(seconds=0.0)

    def _listen(self) -> None:
        """Until the connection is lost, which raises RegistryUnavailable."""
        with self._database.outside() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(f"LISTEN {_CHANNEL}")
            self._become(True)
            try:
                while not self._is_closed:
                    for notice in driver.notifies(timeout=_TURN_SECONDS):
                        topic, _, what = notice.payload.partition(" ")
                        if (hear := self._hears.get(topic)) and not self._is_closed:
                            hear(what)
                    while not self._to_tell.empty():
                        driver.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, self._to_tell.get()))
            finally:
                self._become(False)

    def _become(self, is_listening: bool) -> None:
        """Everybody looks: for what was announced before, or is not from now on."""
        self.is_listening = is_listening
        for hear in () if self._is_closed else list(self._hears.values()):
            hear("")
