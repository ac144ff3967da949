"""A bundle: the two files of one adapter and its card. Knows the backbone's geometry, not the backbone."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError

from service.errors import BackboneMismatch, InvalidBundle
from service.model.spec import BackboneSpec, expected_shapes, optional_shapes
from service.registry.manifest import CONFIG_FILE, MAX_CONFIG_BYTES, Manifest
from service.registry.tensor_header import MAX_HEADER_BYTES, WEIGHTS_FILE, Expected, check_header

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2**20
MAX_WEIGHTS_BYTES = 2**30  # of a file whose manifest is not known yet


@dataclass(frozen=True, slots=True)
class BundleFiles:
    """The files of a bundle, as they are."""

    config: bytes
    weights: bytes
    card: bytes | None = None

    @property
    def digest(self) -> str:
        return digest_of_hashes(hashlib.sha256(self.config).digest(), hashlib.sha256(self.weights).digest())


def digest_of_hashes(config: bytes, weights: bytes) -> str:
    """`sha256:...` of a version: SHA-256 of (SHA-256 of the config, SHA-256 of the weights), both raw."""
    return f"sha256:{hashlib.sha256(config + weights).hexdigest()}"


def digest_at(directory: Path) -> str | None:
    """Digest of the bundle in a directory, read piece by piece; None where there is none."""
    try:
        with (directory / CONFIG_FILE).open("rb") as config, (directory / WEIGHTS_FILE).open("rb") as weights:
            return digest_of_hashes(*(hashlib.file_digest(file, "sha256").digest() for file in (config, weights)))
    except OSError:
        return None


class Stored(Protocol):
    """A version whose files lie somewhere."""

    @property
    def digest(self) -> str: ...
    @property
    def config(self) -> bytes: ...
    @property
    def weights_bytes(self) -> int: ...


def verify(directory: Path, version: Stored, *, thorough: bool) -> str | None:
    """What is wrong with a version's weights in a directory; None where nothing is.

    Args:
        thorough: read every byte; else compare sizes.
    """
    path = directory / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        if size != version.weights_bytes:
            return f"{WEIGHTS_FILE} is damaged: it has {size:,} bytes, {version.weights_bytes:,} were uploaded"
        if not thorough:
            return None
        with path.open("rb") as file:
            return _difference(version, hashlib.file_digest(file, "sha256").digest())
    except FileNotFoundError:
        return f"{WEIGHTS_FILE} cannot be read: it is missing in {directory.name}"
    except OSError as error:
        return f"{WEIGHTS_FILE} cannot be read: {error.strerror}"


def read_verified(directory: Path, version: Stored) -> bytes:
    """A version's weights. Raises InvalidBundle unless they are what was uploaded."""
    fault = verify(directory, version, thorough=False)
    if fault is None:
        weights = _read(directory / WEIGHTS_FILE, version.weights_bytes)
        fault = _difference(version, hashlib.sha256(weights).digest())
        if fault is None:
            return weights
    raise InvalidBundle(fault)


def _difference(version: Stored, weights: bytes) -> str | None:
    got = digest_of_hashes(hashlib.sha256(version.config).digest(), weights)
    return None if got == version.digest else f"{WEIGHTS_FILE} is damaged: its digest is {got}, not {version.digest}"


def check_backbone(manifest: Manifest, backbone: BackboneSpec) -> bool:
    """Whether the adapter was trained on exactly this backbone; False when it does not say (no fingerprint).

    Raises:
        BackboneMismatch: another architecture, geometry or fingerprint.
    """
    wanted = manifest.backbone
    for field in ("model_type", "hidden_size", "num_hidden_layers"):
        got, live = getattr(wanted, field), getattr(backbone, field)
        if got != live:
            raise BackboneMismatch(
                f"{CONFIG_FILE}: backbone.{field}: the adapter was trained on {got}, "
                f"the server's backbone {backbone.name} has {live}"
            )
    if wanted.fingerprint is None:
        return False
    if wanted.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"{CONFIG_FILE}: backbone.fingerprint: the adapter was trained on {wanted.fingerprint}, "
            f"the server's backbone {backbone.name} is {backbone.fingerprint}"
        )
    return True


def expected_tensors(manifest: Manifest, backbone: BackboneSpec) -> Expected:
    """The tensors that follow from a manifest."""
    spec = manifest.adapter_spec()
    return Expected(expected_shapes(spec, backbone), optional_shapes(spec, backbone))


def read_weights(
    source: bytes | Path, manifest: Manifest, backbone: BackboneSpec, *, has_checked_header: bool = False
) -> dict[str, torch.Tensor]:
    """Read and check the tensors of a bundle.

    Args:
        source: the bytes of `adapter_model.safetensors`, or its path.
        has_checked_header: whether its header was looked at as it arrived.

    Returns:
        Contract name -> tensor on the CPU, in the file's dtype (float32, float16 or bfloat16).

    Raises:
        InvalidBundle: not a safetensors file, other tensors, shapes or dtypes than the manifest says, or
            values that are not finite.
        BackboneMismatch: as `check_backbone`.
    """
    check_backbone(manifest, backbone)
    tensors = read_tensors(source, None if has_checked_header else expected_tensors(manifest, backbone))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: holds NaN or infinite values; all must be finite")
    return tensors


def read_tensors(source: bytes | Path, expected: Expected | None) -> dict[str, torch.Tensor]:
    """The tensors of a file: the expected ones, where some are. Raises InvalidBundle."""
    if expected is not None:
        start, size = _start_of(source) if isinstance(source, Path) else (source, len(source))
        if size > MAX_WEIGHTS_BYTES:
            raise InvalidBundle(
                f"{WEIGHTS_FILE} has {size:,} bytes, larger than the {MAX_WEIGHTS_BYTES:,} accepted here"
            )
        taken = check_header(start, expected)
        if size != taken:
            raise InvalidBundle(f"{WEIGHTS_FILE} has {size:,} bytes, its header and tensors take {taken:,}")
    try:
        # From a path the file is mapped: its tensors are in memory once, its bytes never.
        return safetensors.torch.load(source) if isinstance(source, bytes) else safetensors.torch.load_file(source)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise InvalidBundle(f"{WEIGHTS_FILE} is not a valid safetensors file: {error}") from None


def write_bundle(
    directory: Path, manifest: Manifest, tensors: Mapping[str, torch.Tensor], card: str | None = None
) -> BundleFiles:
    """Write a bundle into a directory, over the one it holds, if any.

    The old config goes first and the new one comes last, so that a directory with a config always holds a
    whole bundle, whenever this is interrupted.
    """
    weights = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    files = BundleFiles(manifest.to_bytes(), weights, None if card is None else card.encode())
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).unlink(missing_ok=True)
    sync_directory(directory)
    replace_file(directory / WEIGHTS_FILE, files.weights)
    if files.card is None:
        (directory / CARD_FILE).unlink(missing_ok=True)
    else:
        replace_file(directory / CARD_FILE, files.card)
    sync_directory(directory)
    replace_file(directory / CONFIG_FILE, files.config)
    sync_directory(directory)
    return files


def read_bundle(directory: Path) -> BundleFiles:
    """Read a bundle's files without looking into them.

    Raises:
        InvalidBundle: a file is missing, cannot be read, or is too large.
    """
    card = directory / CARD_FILE
    return BundleFiles(
        config=_read(directory / CONFIG_FILE, MAX_CONFIG_BYTES),
        weights=_read(directory / WEIGHTS_FILE, MAX_WEIGHTS_BYTES),
        card=_read(card, MAX_CARD_BYTES) if card.exists() else None,
    )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably and put it in place in one step."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Make renames within a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _start_of(path: Path) -> tuple[bytes, int]:
    """A weights file's first bytes, the largest header among them, and its size."""
    with _opened(path) as file:
        return file.read(8 + MAX_HEADER_BYTES), os.fstat(file.fileno()).st_size


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InvalidBundle(f"{path.name} is missing in {path.parent.name}") from None
    except OSError as error:
        raise InvalidBundle(f"{path.name} cannot be read: {error.strerror}") from None


def _read(path: Path, max_bytes: int) -> bytes:
    with _opened(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InvalidBundle(f"{path.name} is larger than the {max_bytes:,} bytes accepted here")
    return content
