"""Every Prometheus metric of the service, and its logs. Knows no HTTP.

The one module that knows prometheus_client. Logs are single JSON lines that carry the request's id; audio,
embeddings and keys never reach them.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, TextIO

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

MAX_ADAPTER_LABELS: Final = 1000  # adapters with a series of their own; the rest count as OTHERS
MAX_KEY_LABELS: Final = 200  # keys likewise
OTHERS: Final = "other"
TENANTS_LABELS: Final = ("adapter", "key")  # whose values not everybody may see

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class _Labels:
    """The first values of a label; later ones count as OTHERS, so that the number of series is bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def bounded(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._most:
                return OTHERS
            self._known.add(value)
        return value


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
    (`.observe(value)`, `with metric.time():`); all are safe to call from any thread.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        self._requests = counter(
            "ipet_requests_total", "Requests answered, by route template and status.", "route", "code"
        )
        self.request_seconds = histogram("ipet_request_seconds", "From the request's head to the last byte answered.")
        self.requests_in_flight = gauge("ipet_requests_in_flight", "Requests being answered.")
        self.decode_seconds = histogram("ipet_decode_seconds", "Decoding one clip.")
        self.audio_seconds_total = counter("ipet_audio_seconds_total", "Audio decoded, seconds.")

        self.queue_seconds = histogram("ipet_queue_seconds", "From a job's admission to the start of its batch.")
        self.inference_seconds = histogram("ipet_inference_seconds", "One batch on the device.")
        self.batch_rows = histogram("ipet_batch_rows", "Rows (window x adapter) in a batch.", _COUNTS)
        self.batch_adapters = histogram("ipet_batch_adapters", "Different adapters in a batch.", _COUNTS)

        self._device_faults = counter("ipet_device_faults_total", "What went wrong on the device.", "kind")
        self.device_broken = gauge("ipet_device_broken", "1 while the device hangs or fails on everything.")

        self.adapter_loads_total = counter("ipet_adapter_loads_total", "Adapters loaded into a slot.")
        self.adapter_load_failures_total = counter("ipet_adapter_load_failures_total", "Adapters that did not load.")
        self.adapter_loads_hung = gauge(
            "ipet_adapter_loads_hung", "Loads that were given up after --load-timeout and have not ended yet."
        )
        self.adapter_load_seconds = histogram("ipet_adapter_load_seconds", "Loading one adapter into a slot.")
        self.registry_up = gauge("ipet_registry_up", "Whether the registry's database answers: 1, or 0.")
        self.adapters_resident = gauge("ipet_adapters_resident", "Adapters resident on the device.")
        self._adapter_requests = counter(
            "ipet_adapter_requests_total",
            "Clips answered by an adapter, the first thousand by name.",
            "adapter",
        )
        self._adapter_labels = _Labels(MAX_ADAPTER_LABELS)

        self._key_requests = counter(
            "ipet_key_requests_total", "Requests of a key, the first two hundred by their ids.", "key"
        )
        self._key_refusals = counter(
            "ipet_key_refusals_total", "Requests refused by a key's rate or concurrency.", "key", "limit"
        )
        self._key_labels = _Labels(MAX_KEY_LABELS)

    def count_request(self, route: str, code: int) -> None:
        """Counts one answered request. `route` is the template (`/v1/adapters/{name}`), never the path."""
        self._requests.labels(route, str(code)).inc()

    def count_device_fault(self, kind: str) -> None:
        """Counts a fault of the device: `error`, `memory`, `cuda`, `hang`, `device`, `dead` or `worker`."""
        self._device_faults.labels(kind).inc()

    def count_adapter(self, name: str, clips: int = 1) -> None:
        """Counts `clips` asked of the adapter `name` (no version); the label's cardinality is bounded."""
        self._adapter_requests.labels(self._adapter_labels.bounded(name)).inc(clips)

    def count_key(self, actor: str) -> None:
        """Counts one request of a key, by its id, never by the key itself."""
        self._key_requests.labels(self._key_labels.bounded(actor)).inc()

    def count_key_refusal(self, actor: str, limit: str) -> None:
        """Counts one request that a key's `limit`, rate or concurrency, refused."""
        self._key_refusals.labels(self._key_labels.bounded(actor), limit).inc()

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


def _log_death(end: threading.ExceptHookArgs) -> None:
    """As Python's own hook, which would print a trace of many lines; a thread that ends by SystemExit says nothing."""
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        name = end.thread.name if end.thread else "?"
        logging.getLogger(__name__).error("the thread %s died", name, exc_info=end.exc_value)


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends every log of the process to `stream` (standard error) as JSON lines; called once."""
    target = logging.StreamHandler(stream or sys.stderr)
    target.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[target], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_death
    logging.getLogger("httpx").setLevel(logging.WARNING)
