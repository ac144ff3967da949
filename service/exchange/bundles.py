"""What others saved -> a bundle of this service."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from service.errors import InvalidBundle
from service.exchange.authors import find_state, read_authors
from service.exchange.base import Base
from service.exchange.peft import is_peft, read_peft
from service.registry.bundle import read_weights, write_bundle
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
    if out.resolve() == source.resolve():
        raise InvalidBundle(f"{out.name}: the bundle would replace what it is made of; give another --out")
    state = None if (source / CONFIG_FILE).exists() else find_state(source)
    if state is None and not is_peft(source):
        raise InvalidBundle(
            f"{source.name}: expected a directory that PEFT saved, or one file with a state dict of IPET's authors"
        )
    base = Base.load(base_name)
    if base.around.assumed:
        _log.warning("%s has no preprocessor_config.json: its architecture's defaults are taken", base_name)
    fields, tensors = read_peft(source, base, labels) if state is None else read_authors(state, base, labels)
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
        "base_model_name_or_path": base_name,
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
    write_bundle(out, manifest, tensors)
    return manifest
