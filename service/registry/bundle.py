"""A bundle: the two files of one adapter and its card. Knows the backbone's geometry, not the backbone."""

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from service.cards import MAX_CARD_BYTES
from service.errors import BackboneMismatch, InvalidBundle
from service.model.spec import BackboneSpec, TaskType
from service.private import replace_file, sync_directory
from service.registry.manifest import CONFIG_FILE, MAX_CONFIG_BYTES, Manifest

WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
COHORT = "cohort.embeddings"  # the tensor of a manifest's `normalisation`: [N, embedding_dim], of length 1
MAX_COHORT = 10_000  # rows
COHORT_TOLERANCE = 1e-2  # of a row's length: bfloat16 rounds
MAX_WEIGHTS_BYTES = 2**30  # of a file whose manifest is not known yet
MAX_HEADER_BYTES = 2**20  # some 8,000 tensors; an adapter on 24 layers has 124
LENGTH_BYTES = 8  # at the start of a weights file, little-endian: of the header that follows
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # as the header names them
_NAMED = 5  # tensors named in one message

Shapes = Mapping[str, tuple[int, ...]]
Entries = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape, as a header has them


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


def check_weights(directory: Path, version: Stored, *, thorough: bool = True) -> None:
    """Raise InvalidBundle unless a version's weights in a directory are what was uploaded.

    Args:
        thorough: read every byte; else compare sizes.
    """
    with _opened(directory / WEIGHTS_FILE) as file:
        _check(file, version, thorough)


def open_weights(directory: Path, version: Stored) -> BinaryIO:
    """The file that `check_weights` has read, to be closed by the caller. Raises as that."""
    with _opened(directory / WEIGHTS_FILE) as file:
        _check(file, version, thorough=True)
        file.seek(0)
        return os.fdopen(os.dup(file.fileno()), "rb")


def _check(file: BufferedReader, version: Stored, thorough: bool) -> None:
    fault = wrong_size(version, os.fstat(file.fileno()).st_size)
    if thorough and not fault:
        fault = _difference(version, hashlib.file_digest(file, "sha256").digest())
    if fault:
        raise InvalidBundle(fault)


def wrong_size(version: Stored, size: int | None) -> str | None:
    """What is wrong with weights of so many bytes, None of those that are nowhere, without looking at them."""
    if size is None:
        return f"{WEIGHTS_FILE} is missing in {version.digest.removeprefix('sha256:')}"
    if size != version.weights_bytes:
        return f"{WEIGHTS_FILE} is damaged: it has {size:,} bytes, {version.weights_bytes:,} were uploaded"
    return None


def read_verified(directory: Path, version: Stored) -> bytes:
    """A version's weights. Raises InvalidBundle unless they are what was uploaded."""
    weights = _read(directory / WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    if fault := _difference(version, hashlib.sha256(weights).digest()):
        raise InvalidBundle(fault)
    return weights


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


def expected_tensors(manifest: Manifest, backbone: BackboneSpec, names: Collection[str]) -> Shapes:
    """The tensors that follow from a manifest, for a file that has some of these `names`, a cohort at its largest."""
    shapes = manifest.adapter_spec().shapes(backbone, names)
    if manifest.normalisation is None or manifest.task_type is not TaskType.VERIFICATION:
        return shapes
    return {**shapes, COHORT: (MAX_COHORT, manifest.embedding_dim or 0)}


def most_weights_bytes(manifest: Manifest, backbone: BackboneSpec) -> int:
    """The largest weights file that a manifest allows: every tensor that may be there, in float32."""
    names = [name for table in manifest.adapter_spec().optional_shapes(backbone) for name in table]
    shapes = expected_tensors(manifest, backbone, names).values()
    return LENGTH_BYTES + MAX_HEADER_BYTES + sum(4 * math.prod(shape) for shape in shapes)


def check_header_length(start: bytes) -> None:
    """Raise InvalidBundle for a weights file whose header, by its first eight bytes, would be too long to be read."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidBundle(
            f"{WEIGHTS_FILE} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted "
            "(is it a safetensors file?)"
        )


def read_weights(source: bytes | Path, manifest: Manifest, backbone: BackboneSpec) -> dict[str, torch.Tensor]:
    """Read and check the tensors of a bundle.

    Args:
        source: the bytes of `adapter_model.safetensors`, or its path, which is mapped: its tensors are in memory
            once, its bytes never, and nothing is read before the header is found to tell of the right tensors.

    Returns:
        Contract name -> tensor on the CPU, in the file's dtype (float32, float16 or bfloat16).

    Raises:
        InvalidBundle: not a safetensors file, other tensors, shapes or dtypes than the manifest says, or
            values that are not finite.
        BackboneMismatch: as `check_backbone`.
    """
    check_backbone(manifest, backbone)

    def check(found: Entries) -> None:
        _check_tensors(found, expected_tensors(manifest, backbone, found))

    try:
        if isinstance(source, bytes):
            check_header_length(source)
            tensors = safetensors.torch.load(source)
            check({name: (_DTYPES.get(one.dtype, str(one.dtype)), tuple(one.shape)) for name, one in tensors.items()})
        else:
            with _opened(source) as file:
                check_header_length(file.read(LENGTH_BYTES))
            with safe_open(source, framework="pt") as mapped:
                names = mapped.keys()
                entries = {name: mapped.get_slice(name) for name in names}
                check({name: (one.get_dtype(), tuple(one.get_shape())) for name, one in entries.items()})
                tensors = {name: mapped.get_tensor(name) for name in entries}
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise InvalidBundle(f"{WEIGHTS_FILE} is not a valid safetensors file: {str(error)[:200]}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: holds NaN or infinite values; all must be finite")
    if COHORT in tensors and not ((tensors[COHORT].float().norm(dim=1) - 1).abs() < COHORT_TOLERANCE).all():
        raise InvalidBundle(f"{WEIGHTS_FILE}: {COHORT}: holds rows of another length than 1")
    return tensors


def _check_tensors(found: Entries, expected: Shapes) -> None:
    """Raise InvalidBundle unless a file has the expected tensors and no other, each of the right form."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    named = (("missing tensors:", missing), ("unexpected tensors:", unexpected))
    if problems := [f"{what} {_list(names)}" for what, names in named if names]:
        raise InvalidBundle(
            f"{WEIGHTS_FILE}: {'; '.join(problems)}; {len(expected)} tensors follow from the config's "
            "task, its parts and the backbone's layers"
        )
    for name, shape in expected.items():
        dtype, got = found[name]
        if dtype not in _DTYPES.values():
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: expected dtype {', '.join(_DTYPES.values())}, got {dtype}")
        fits = got[1:] == shape[1:] and 1 <= got[0] <= shape[0] if name == COHORT and got else got == shape
        if not fits:
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: expected shape {list(shape)}, got {str(list(got))[:80]}")


def _list(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:80])[1:-1] for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def write_bundle(
    directory: Path, manifest: Manifest, tensors: Mapping[str, torch.Tensor], card: str | None = None
) -> BundleFiles:
    """Write a bundle into a directory, over the one it holds, if any; a README of no bundle's is left.

    The old config goes first and the new one comes last, so that a directory with a config always holds a
    whole bundle, whenever this is interrupted.
    """
    weights = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    files = BundleFiles(manifest.to_bytes(), weights, None if card is None else card.encode())
    directory.mkdir(parents=True, exist_ok=True)
    holds_bundle = (directory / WEIGHTS_FILE).exists()  # or what an interrupted writing left of one
    (directory / CONFIG_FILE).unlink(missing_ok=True)
    sync_directory(directory)
    replace_file(directory / WEIGHTS_FILE, files.weights)
    if files.card is not None:
        replace_file(directory / CARD_FILE, files.card)
    elif holds_bundle:
        (directory / CARD_FILE).unlink(missing_ok=True)
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


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
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
