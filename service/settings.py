"""Every setting of the service, read once at start. Each `ipet serve` flag has the `IPET_*` variable of its name."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?|https?://\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?")
EMBEDDED = "embedded"  # name of the backbone that ships with the package


class Settings(BaseSettings):
    """Settings of one service process; the field `adapter_slots` is `--adapter-slots` and `IPET_ADAPTER_SLOTS`."""

    model_config = SettingsConfigDict(env_prefix="IPET_", env_ignore_empty=True, frozen=True, extra="ignore")

    backbone: str = Field(EMBEDDED, description="Hugging Face directory or Hub id; 'embedded' is the one shipped.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the backbone runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the backbone; auto is bfloat16 where the hardware has it, else float32."
    )
    weights: Literal["auto", "int8"] = Field(
        "auto", description="The backbone's linear layers: auto keeps them in dtype; int8 is for CPUs, less exact."
    )
    adapters: Path | None = Field(None, description="Directory of bundles that are registered at start.")
    data_dir: Path = Field(Path("ipet-data"), description="Registry of uploaded adapters.")
    database_url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="PostgreSQL of the registry's catalogue, as in postgresql://user:password@host/name; "
        "SQLite in the data directory without it.",
    )
    objects: str = Field(
        "",
        repr=False,  # a URL that is refused may hold a key
        description="Where the files of uploaded adapters lie: s3://bucket/prefix, gs://bucket/prefix, "
        "az://container/prefix or a directory that servers share; the data directory without it.",
    )
    objects_cache_mb: int = Field(
        4096, ge=1, description="Disk of the data directory for adapters of such an object store, MiB."
    )
    verify_registry: bool = Field(False, description="Read every file of the registry at start, not only its size.")
    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged; requests are at info."
    )

    adapter_slots: int = Field(64, ge=1, le=65536, description="Adapters resident on the device at once.")
    max_prompt_length: int = Field(128, ge=0, le=4096, description="Longest prompt that a bundle may have.")
    max_bottleneck_dim: int = Field(128, ge=0, le=4096, description="Largest bottleneck that a bundle may have.")
    host_cache_mb: int = Field(512, ge=0, description="Host memory for adapters evicted from the device, MiB.")

    load_timeout: float = Field(
        30.0, gt=0, description="Seconds after which an adapter that is still being loaded has failed."
    )

    max_audio_seconds: float = Field(300.0, gt=0, description="Longest clip, seconds.")
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="Largest request body, bytes.")
    inflight_mb: int = Field(
        1024, ge=1, description="Memory for bodies and decoded audio of requests in flight before 429, MiB."
    )
    max_long_seconds: float = Field(21600.0, gt=0, description="Longest recording that events are found in, seconds.")
    max_long_bytes: int = Field(2 * 2**30, gt=0, description="Largest body of a recording or a job, bytes.")
    max_clips: int = Field(64, ge=1, description="Clips in one request.")
    max_adapters: int = Field(32, ge=1, description="Adapters in one request.")
    batch_seconds: float = Field(
        80.0,
        gt=0,
        description="Window-seconds (windows x adapters) in one batch; an adapter of which one row is more is refused.",
    )
    batch_ms: float = Field(
        200.0,
        gt=0,
        description="Milliseconds that one batch should take at most beyond its fixed cost; others wait for so long.",
    )
    batch_mb: int = Field(
        2048,
        ge=1,
        description="Memory that the rows of a batch may take in one layer, MiB; an adapter of which one row takes "
        "more is refused.",
    )
    queue_seconds: float = Field(
        2400.0,
        gt=0,
        description="Window-seconds queued before requests get 429; one adapter may hold as much as is free.",
    )
    max_request_seconds: float = Field(1200.0, gt=0, description="Audio in one request, all clips together, seconds.")
    max_connections: int = Field(768, ge=1, description="Connections open at once; more are closed as they come.")
    head_timeout: float = Field(10.0, gt=0, description="Seconds for a request's head to arrive.")
    request_timeout: float = Field(60.0, gt=0, description="Seconds after which a request is answered with 504.")
    device_timeout: float = Field(
        120.0, gt=0, description="Seconds after which a batch that has not returned makes the service not ready."
    )
    shutdown_timeout: float = Field(20.0, ge=0, description="Seconds to finish admitted requests at shutdown.")
    shutdown_delay: float = Field(
        0.0, ge=0, description="Seconds that /readyz says 503 before the port closes, for load balancers to notice."
    )
    decode_threads: int = Field(2, ge=1, description="Threads that decode audio and compute features.")

    inference_keys: Annotated[tuple[str, ...], NoDecode] = Field((), description="Comma-separated keys that may infer.")
    admin_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated keys that may also write."
    )
    metrics_key: str | None = Field(None, description="Key that /metrics shows every series for.")
    allow_anonymous: bool = Field(False, description="Listen on any address without keys.")
    max_domain_mb: int = Field(
        10240, ge=0, description="Most that the versions of one domain may take up, MiB; admin keys know no quota."
    )
    max_domain_versions: int = Field(1000, ge=0, description="Most versions of one domain; admin keys know no quota.")
    max_domain_jobs: int = Field(
        100, ge=0, description="Most jobs of one domain that have not ended; admin keys know no quota."
    )
    max_domain_job_mb: int = Field(
        10240, ge=0, description="Most that the files of one domain's jobs may take up, MiB; admin keys know no quota."
    )
    job_retention: str = Field("7d", description="How long a job and its result are kept once it has ended: 12h, 30d.")
    max_streams: int = Field(256, ge=0, description="Streams of live audio open at once; more are refused.")
    require_consent: bool = Field(False, description="Enrol only speakers whose consent is recorded.")
    voiceprint_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Comma-separated keys, 32 bytes in base64, under which voiceprints are stored: the first encrypts, "
        "all of them decrypt.",
    )
    voiceprint_key_file: Path | None = Field(
        None,
        description="File of such keys, one on each line; without either, the data directory gets one.",
    )
    speaker_audit_days: float = Field(
        365.0, ge=1, description="Days that it is kept who used whose voiceprints, and how."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated origins whose pages may call the API, as in https://app.example."
    )

    @field_validator("inference_keys", "admin_keys", "cors_origins", "voiceprint_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _require_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("an origin is a scheme, a host and maybe a port, without a path, and never '*'")
        return origins
