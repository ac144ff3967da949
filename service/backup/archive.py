"""A registry written to a directory, as `ipet adapters backup` leaves it: its catalogue as one document. Knows no SQL.

catalogue.json                      adapters, versions (deleted ones too), aliases, history
objects/<sha256>/                   the files of every version that is there, as in a data directory
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.registry.audit import MAX_ACTOR, Action
from service.registry.manifest import is_alias, is_name

ARCHIVE_FILE = "catalogue.json"
_MAX_FAULTS = 3  # named in one message


def _checked(is_right: Callable[[str], bool], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not is_right(text):
            raise ValueError(f"{text[:80]!a} cannot {what}")
        return text

    return AfterValidator(check)


Name = Annotated[str, _checked(is_name, "name an adapter")]
Alias = Annotated[str, _checked(is_alias, "be an alias")]
Number = Annotated[int, Field(ge=1, lt=2**31)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchivedVersion(_Section):
    """One version; `damaged` says why its files are not part of the archive."""

    version: Number
    digest: Digest
    config: Base64Bytes
    weights_bytes: int = Field(ge=0, lt=2**63)
    created: AwareDatetime
    deleted: AwareDatetime | None = None
    bytes: int | None = Field(None, ge=0, lt=2**63)
    domain: str | None = Field(None, max_length=64)
    damaged: str | None = None


class ArchivedEvent(_Section):
    at: AwareDatetime
    actor: str = Field(max_length=MAX_ACTOR)
    action: Action
    version: Number | None = None
    alias: Alias | None = None
    previous: Number | None = None
    digest: Digest | None = None


class ArchivedAdapter(_Section):
    """One adapter, also a deleted one; versions ascending, history oldest first."""

    name: Name
    last_version: Number
    aliases: dict[Alias, Number]
    versions: tuple[ArchivedVersion, ...]
    history: tuple[ArchivedEvent, ...]


class Archive(_Section):
    format_version: Literal[1] = 1
    adapters: tuple[ArchivedAdapter, ...]


def read_archive(directory: Path) -> Archive:
    """The catalogue of a backup. Raises InvalidRequest: there is none, or it is not one."""
    path = directory / ARCHIVE_FILE
    try:
        return Archive.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}; is {directory} a backup?") from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)[:_MAX_FAULTS]
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise InvalidRequest(f"{path} is no backup of this release: {told}") from None
