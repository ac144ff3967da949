"""What others saved -> a bundle of this service."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.authors import find_state, read_authors
from service.exchange.base import Base
from service.exchange.peft import check_room, read_config, read_peft
from service.registry.bundle import CARD_FILE, read_weights, write_bundle
from service.registry.manifest import CONFIG_FILE, Manifest, ManifestLimits, build_manifest, check_limits, is_name

_log = logging.getLogger(__name__)


def import_bundle(
    source: Path,
    out: Path,
    base_name: str,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    window_frames: int | None = None,
) -> Manifest:
    """Make a bundle of a directory: of PEFT, or with one file of IPET's authors.

    Args:
        base_name: directory or Hub id of the model that the adapter was trained on.
        labels: of the classes, unless the base's config has them.
        window_frames: length of windows; without it the whole clip is one, or an AST's own length.

    Raises:
        InvalidBundle: what cannot be served exactly, by name; nothing is written then.
        OSError, ValueError: the base cannot be read.
    """
    check_room(out, "IPET")
    manifest, tensors = read_foreign(source, Base.load(base_name), name, labels, window_frames)
    write_bundle(out, manifest, tensors)
    return manifest


def convert_bundle(directory: Path, name: str, base_name: str) -> None:
    """Put the bundle of an adapter in the place of what PEFT saved; a card stays. Raises as `import_bundle`.

    What PEFT's config cannot say may be added to it: `labels` of the classes, `window_frames`.
    """
    card = directory / CARD_FILE
    kept = card.read_bytes() if card.exists() else None
    write_bundle(directory, *read_foreign(directory, Base.load(base_name), name))
    if kept is not None:
        card.write_bytes(kept)


def read_foreign(
    source: Path, base: Base, name: str | None, labels: Sequence[str] | None = None, window_frames: int | None = None
) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest and tensors of the bundle that a directory makes; as `import_bundle`, which writes them."""
    config = read_config(source) if (source / CONFIG_FILE).is_file() else {}
    state = None if config else find_state(source)
    if state is None and config.get("peft_type") in (None, "IPET"):
        raise InvalidBundle(
            f"{source.name}: expected a directory that PEFT saved, or one file with a state dict of IPET's authors"
        )
    labels, window_frames = _told(config, labels, window_frames)
    base = base.trained_as(source)
    if base.assumed:
        _log.warning("%s has no preprocessor_config.json: its architecture's defaults are taken", base.name)
    fields, tensors = read_peft(source, config, base, labels) if state is None else read_authors(state, base, labels)
    window = base.input_fields(window_frames)
    if state is not None and base.model_type.reads_samples:
        window["normalize"] = False  # the authors read samples as they are
    called = name or source.resolve().name.lower()
    if not is_name(called):
        raise InvalidBundle(f"{called!r} is no name for an adapter; give one by --name")
    spec = base.spec
    common: dict[str, Any] = {
        "format_version": 3,
        "peft_type": "IPET",
        "name": called,
        "base_model_name_or_path": base.name,
        "backbone": {
            "model_type": spec.model_type.value,
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.num_hidden_layers,
            "fingerprint": spec.fingerprint,
        },
        "input": window,
    }
    manifest = build_manifest(common | fields)
    check_limits(manifest, ManifestLimits(min_window_frames=spec.min_window_frames))
    tensors = {tensor: value.contiguous() for tensor, value in tensors.items()}
    read_weights(safetensors.torch.save(tensors), manifest, spec)
    return manifest, tensors


def _told(
    config: Mapping[str, Any], labels: Sequence[str] | None, window_frames: int | None
) -> tuple[Sequence[str] | None, int | None]:
    """Labels and length of windows: those given, else what was added to the config. Raises InvalidBundle."""
    told, frames = config.get("labels"), config.get("window_frames")
    if told is not None and not (isinstance(told, list) and all(isinstance(one, str) for one in told)):
        raise InvalidBundle(f"labels: expected a list of strings, got {str(told)[:40]}")
    if frames is not None and type(frames) is not int:
        raise InvalidBundle(f"window_frames: expected a whole number, 10 ms each, got {str(frames)[:40]}")
    return told if labels is None else labels, window_frames or frames
