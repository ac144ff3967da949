"""Every Prometheus metric of the service, and its logs. Knows no HTTP.

The one module that knows prometheus_client. Logs are single JSON lines that carry the request's id; audio,
embeddings and keys never reach them.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Final, Generic, TextIO, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

MAX_ADAPTER_LABELS: Final = 1000  # adapters with a series of their own; the rest count as OTHERS
MAX_TIMED_LABELS: Final = 200  # adapters whose times have series of their own
MAX_KEY_LABELS: Final = 200  # keys likewise
SMALL: Final = 500  # series
OTHERS: Final = "other"
MAX_LINES_WAITING: Final = 4096  # of the log, while whoever reads it stalls
FLUSH_SECONDS: Final = 1.0
TENANTS_LABELS: Final = ("adapter", "key")  # whose values not everybody may see

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ADAPTER_SECONDS: Final = (0.025, 0.1, 0.5, 2.5, 10.0)  # few: there are as many series for each adapter
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


M = TypeVar("M", Counter, Histogram)


class _Bounded(dict[str, M], Generic[M]):
    """A metric by the first values of a label; later ones count as OTHERS, so that the number of series is bounded."""

    def __init__(self, metric: M, most: int) -> None:
        super().__init__()
        self._metric: M = metric
        self._most = most

    def __missing__(self, value: str) -> M:
        is_one_of_them = len(self) < self._most
        series: M = self._metric.labels(value if is_one_of_them else OTHERS)
        return self.setdefault(value, series) if is_one_of_them else series


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What the device and the queue before it hold at a moment.

    Args:
        slots, used: adapters that fit, and that are loaded or being loaded.
        evictions: adapters that others took the slots of, since the start.
        resident: name, version and whether it is pinned, of each adapter that is loaded.
        queue_seconds: windows of requests from their admission to their answers, seconds of audio.
    """

    slots: int
    used: int
    evictions: int
    resident: Sequence[tuple[str, int, bool]]
    queue_seconds: float = 0.0


class _Occupied(Collector):
    """Metrics of what is there when they are read."""

    def __init__(self, look: Callable[[], Occupancy]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        now = self._look()
        yield GaugeMetricFamily("ipet_slots", "Adapters that fit on the device at once.", now.slots)
        yield GaugeMetricFamily("ipet_slots_used", "Slots with an adapter that is loaded, or being loaded.", now.used)
        yield GaugeMetricFamily("ipet_adapters_resident", "Adapters resident on the device.", len(now.resident))
        evictions = "Adapters that others took the slots of."
        yield CounterMetricFamily("ipet_adapter_evictions_total", evictions, now.evictions)
        queued = "Windows of requests that were let in and are not answered yet, seconds of audio."
        yield GaugeMetricFamily("ipet_queue_audio_seconds", queued, now.queue_seconds)
        resident = GaugeMetricFamily(
            "ipet_adapter_resident",
            "1 for each adapter that is loaded.",
            labels=("adapter", "version", "tier", "pinned"),
        )
        for name, version, is_pinned in now.resident:
            resident.add_metric((name, str(version), "device", str(is_pinned).lower()), 1)
        yield resident


class _Shown:
    """What one reader sees of a registry: no series that names an adapter or a key of others."""

    def __init__(self, registry: CollectorRegistry, sees: Callable[[str, str], bool]) -> None:
        self._registry = registry
        self._sees = sees

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if self._is_shown(sample.labels)]
            yield family

    def _is_shown(self, labels: Mapping[str, str]) -> bool:
        return all(self._sees(label, labels[label]) for label in TENANTS_LABELS if label in labels)


class Telemetry:
    """The metrics of one service; with a registry of its own, so that several apps can live in one process.

    Attributes are Prometheus counters (`.inc(n)`), gauges (`.set(n)`, `.inc(n)`, `.dec(n)`) and histograms
    (`.observe(value)`, `with metric.time():`), or these by the name of an adapter (without its version); all are safe
    to call from any thread.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._requests = counter(
            "ipet_requests_total", "Requests answered, by route template and status.", "route", "code"
        )
        self._answered: dict[tuple[str, int], Counter] = {}
        self._request_seconds = histogram(
            "ipet_request_seconds", "From the request's head to the last byte answered.", "route"
        )
        self._took: dict[str, Histogram] = {}
        self.requests_in_flight = gauge("ipet_requests_in_flight", "Requests being answered.")
        self.streams = gauge("ipet_streams", "Streams of live audio that are open.")
        self.jobs = counter("ipet_jobs_total", "Jobs that ended here, by what they were and how.", "kind", "status")
        self.decode_seconds = histogram("ipet_decode_seconds", "Decoding one clip.")
        self.recordings_in_progress = gauge(
            "ipet_recordings_in_progress", "Long recordings being decoded as they come."
        )
        self.audio_seconds_total = counter("ipet_audio_seconds_total", "Audio decoded, seconds.")

        self.queue_seconds = histogram("ipet_queue_seconds", "From a job's admission to the start of its batch.")
        self.inference_seconds = histogram("ipet_inference_seconds", "One batch on the device.")
        self.batch_rows = histogram("ipet_batch_rows", "Rows (window x adapter) in a batch.", buckets=_COUNTS)
        self.batch_adapters = histogram("ipet_batch_adapters", "Different adapters in a batch.", buckets=_COUNTS)

        self.device_faults = counter("ipet_device_faults_total", "What went wrong on the device.", "kind")
        self.device_broken = gauge("ipet_device_broken", "1 while the device hangs or fails on everything.")

        self.adapter_loads_total = counter("ipet_adapter_loads_total", "Adapters loaded into a slot.")
        self.adapter_load_failures_total = counter("ipet_adapter_load_failures_total", "Adapters that did not load.")
        self.adapter_loads_hung = gauge(
            "ipet_adapter_loads_hung", "Loads that were given up after --load-timeout and have not ended yet."
        )
        self.adapter_load_seconds = histogram("ipet_adapter_load_seconds", "Loading one adapter into a slot.")
        self.registry_up = gauge("ipet_registry_up", "Whether the registry's database answers: 1, or 0.")
        clips = counter(
            "ipet_adapter_requests_total", "Clips answered by an adapter, the first thousand by name.", "adapter"
        )
        self.adapters = _Bounded(clips, MAX_ADAPTER_LABELS)
        seconds = histogram(
            "ipet_adapter_seconds",
            "From windows to an adapter's outputs, its queue and load included; the first two hundred by name.",
            "adapter",
            buckets=_ADAPTER_SECONDS,
        )
        self.adapter_seconds = _Bounded(seconds, MAX_TIMED_LABELS)
        requests = counter("ipet_key_requests_total", "Requests of a key, the first two hundred by their ids.", "key")
        self._keys = _Bounded(requests, MAX_KEY_LABELS)
        self._key_refusals = counter(
            "ipet_key_refusals_total", "Requests refused by a key's rate or concurrency.", "key", "limit"
        )
        self._build = gauge("ipet_build_info", "What runs here.", "version", "backbone", "device", "dtype")

    @property
    def is_small(self) -> bool:
        """Whether writing all series out takes a few milliseconds at most."""
        timed = len(self.adapter_seconds) * len(_ADAPTER_SECONDS) + len(self._took) * len(_SECONDS)
        return len(self.adapters) + len(self._keys) + len(self._answered) + timed <= SMALL

    def show_build(self, version: str, backbone: str, device: str, dtype: str) -> None:
        """Tells what runs here."""
        self._build.labels(version, backbone, device, dtype).set(1)

    def show_occupancy(self, look: Callable[[], Occupancy]) -> None:
        """Tells what `look` finds whenever somebody reads the metrics."""
        self.registry.register(_Occupied(look))

    def count_request(self, route: str, code: int, seconds: float | None = None) -> None:
        """Counts one answered request, and how long it took where that is to be known.

        Args:
            route: the template (`/v1/adapters/{name}`), never the path.
        """
        answered = self._answered.get((route, code))
        if answered is None:
            answered = self._answered[route, code] = self._requests.labels(route, str(code))
        answered.inc()
        if seconds is not None:
            took = self._took.get(route)
            if took is None:
                took = self._took[route] = self._request_seconds.labels(route)
            took.observe(seconds)

    def count_key(self, actor: str, refused_by: str | None = None) -> None:
        """Counts one request of a key, by its id, never by the key itself.

        Args:
            refused_by: the limit, rate or concurrency, that refused it.
        """
        self._keys[actor].inc()
        if refused_by is not None:
            self._key_refusals.labels(actor if actor in self._keys else OTHERS, refused_by).inc()

    def exposition(self, sees: Callable[[str, str], bool]) -> tuple[bytes, str]:
        """The metrics in Prometheus's text format, and its content type.

        Args:
            sees: whether a series with this label, `adapter` or `key`, and this value of it is shown.
        """
        return generate_latest(_Shown(self.registry, sees)), CONTENT_TYPE_LATEST


REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TOKEN: Final = re.compile(r"(ipet_[0-9a-f]{12}_)[\w-]+")  # a stored key, wherever it came from
_NOT_LOGGED: Final = frozenset({"color_message"})  # uvicorn's second copy of its messages


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record: time, level, logger, message, request_id and the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS and k not in _NOT_LOGGED}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _TOKEN.sub(r"\1...", json.dumps(line, default=str, ensure_ascii=False))


class LogWriter(logging.Handler):
    """Writes lines to `stream` from a thread of its own: who logs never waits for whoever reads the log.

    What does not fit while the reader stalls is dropped; the first line that fits again says how many were.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._stream = stream
        self._lines: Queue[str] = Queue(MAX_LINES_WAITING)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record) + "\n"
        if self._dropped:
            text = f"{self._dropped} lines were dropped here, as nobody read the log"
            lost = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)
            lines = f"{self.format(lost)}\n{lines}"
        try:
            self._lines.put_nowait(lines)
            self._dropped = 0
        except Full:
            self._dropped += 1

    def flush(self) -> None:
        """Waits for what was logged so far to be written, as long as somebody at the end of a process may."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.001)

    def _write(self) -> None:
        while True:
            lines = self._lines.get()
            with suppress(OSError, ValueError):  # nobody is there to read it any more
                self._stream.write(lines)
                self._stream.flush()
            self._lines.task_done()


def _log_death(end: threading.ExceptHookArgs) -> None:
    """As Python's own hook, which would print a trace of many lines; a thread that ends by SystemExit says nothing."""
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        name = end.thread.name if end.thread else "?"
        logging.getLogger(__name__).error("the thread %s died", name, exc_info=end.exc_value)


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends every log of the process to `stream` (standard error) as JSON lines; called once."""
    logging.basicConfig(level=level, handlers=[LogWriter(stream or sys.stderr)], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_death
    logging.getLogger("httpx").setLevel(logging.WARNING)
