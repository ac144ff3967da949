"""What a cluster is made of, from TOML or from the arguments of an application; refused where it could not hold."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.settings import Settings


class Config(BaseModel):
    """Fronts, devices, and in `serve` the settings of `ipet serve`, which all of them share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fronts: int = Field(1, ge=1, description="Processes that read requests and answer them; each decodes on a core.")
    devices: tuple[Literal["cpu", "cuda"], ...] = Field(
        ("cpu",), min_length=1, description="One process each, all of one kind."
    )
    threads: int = Field(1, ge=1, description="Cores that a device of kind cpu computes on.")
    max_devices: int = Field(0, ge=0, description="So many at most as work comes; 0 keeps the number of `devices`.")
    queued_seconds: float = Field(60.0, gt=0, description="Window-seconds in a device's queue that ask for another.")
    object_store_mb: int = Field(200, ge=80, description="Memory by which windows cross to devices; one machine only.")
    serve: dict[str, Any] = Field(default_factory=dict, description="Settings, as in IPET_* without the prefix.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Raises InvalidRequest, with the key at fault."""
        try:
            config = cls.model_validate(given)
            settings = config.settings
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"{at}: {first['msg']}, got {first['input']!r}") from error
        if unknown := sorted(config.serve.keys() - Settings.model_fields.keys()):
            raise InvalidRequest(f"serve.{unknown[0]}: no setting of `ipet serve`, whose --help lists them")
        if len(set(config.devices)) > 1:
            raise InvalidRequest(f"devices: all of one kind, as any of them may be asked; got {list(config.devices)}")
        if 0 < config.max_devices < len(config.devices):
            raise InvalidRequest(f"max_devices: at least the {len(config.devices)} of `devices`")
        if config.fronts > 1 and not settings.database_url:
            raise InvalidRequest(
                f"fronts: {config.fronts} of them share adapters, keys and jobs by PostgreSQL: give "
                "serve.database_url, as in postgresql://user:password@host/name, or have one front"
            )
        return config

    @property
    def settings(self) -> Settings:
        """Of every process; the environment's `IPET_*` hold for what is not given here."""
        found = Settings(**{**self.serve, "device": self.devices[0]})
        return found.model_copy(update={"data_dir": found.data_dir.resolve()})

    @property
    def most_devices(self) -> int:
        return self.max_devices or len(self.devices)


def read_config(path: Path) -> Config:
    """Raises InvalidRequest."""
    try:
        return Config.of(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
