"""One bundle on its way in: its parts in any order, each checked while it arrives. Knows no HTTP and no SQL.

Nothing is read on once it is refused: the config before the weights that follow it, the weights at their header.
"""

from typing import Final

from service.errors import InvalidBundle, InvalidRequest
from service.model.adapter import AdapterWeights
from service.registry.bundle import CARD_FILE, MAX_CARD_BYTES, MAX_WEIGHTS_BYTES, expected_tensors, read_weights
from service.registry.fit import Fit
from service.registry.manifest import CONFIG_FILE, MAX_CONFIG_BYTES, Manifest
from service.registry.quarantine import Staging
from service.registry.tensor_header import WEIGHTS_FILE, HeaderGate

PARTS: Final = {"config": CONFIG_FILE, "weights": WEIGHTS_FILE, "card": CARD_FILE}
_MAX_BYTES: Final = {"config": MAX_CONFIG_BYTES, "card": MAX_CARD_BYTES}


class Upload:
    """The parts `config`, `weights` and maybe `card` of a bundle for the adapter `name`."""

    def __init__(self, name: str, fit: Fit, staging: Staging) -> None:
        self.name = name
        self.staging = staging
        self.config = b""
        self.manifest: Manifest | None = None
        self._fit = fit
        self._begun: list[str] = []
        self._gate = HeaderGate(None, MAX_WEIGHTS_BYTES)

    def read_weights(self, manifest: Manifest) -> AdapterWeights:
        """Its weights. Raises InvalidBundle unless they are what the manifest says."""
        path, has_checked = self.staging.path(WEIGHTS_FILE), self._gate.has_checked
        tensors = read_weights(path, manifest, self._fit.backbone, has_checked_header=has_checked)
        return AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)

    def begin(self, part: str) -> None:
        """A part begins, and the one before it is whole.

        Raises:
            InvalidRequest: it was there already.
            InvalidBundle, BackboneMismatch: the config that was there is refused.
        """
        if part not in PARTS or part in self._begun:
            raise _wrong_parts("repeats a part" if part in PARTS else f"has a part {part[:80]!a}")
        self._begun.append(part)
        if part == "weights" and "config" in self._begun:
            expected = expected_tensors(self._check_config(), self._fit.backbone)
            self._gate = HeaderGate(expected, MAX_WEIGHTS_BYTES)

    def write(self, part: str, content: bytes) -> None:
        """The next bytes of a part that has begun. Raises InvalidBundle, StorageFull."""
        file = PARTS[part]
        if part == "weights":
            self._gate.check(content)
        elif self.staging.sizes.get(file, 0) + len(content) > _MAX_BYTES[part]:
            raise InvalidBundle(f"{file} is larger than the {_MAX_BYTES[part]:,} bytes accepted here")
        if part == "config":
            self.config += content
        self.staging.write(file, content)

    def finish(self) -> Manifest:
        """The manifest of the bundle, whose files are whole and durable now.

        Raises:
            InvalidRequest: parts are missing. InvalidBundle, BackboneMismatch: the config is refused.
            StorageFull: no room.
        """
        missing = [part for part in ("config", "weights") if part not in self._begun]
        if missing:
            raise _wrong_parts(f"lacks {' and '.join(missing)}")
        manifest = self._check_config()
        for part in self._begun:
            if PARTS[part] not in self.staging.sizes:
                self.staging.write(PARTS[part], b"")  # an empty part is an empty file
        self.staging.finish()
        return manifest

    def discard(self) -> None:
        """Forget the bundle; does nothing once it was published."""
        self.staging.discard()

    def _check_config(self) -> Manifest:
        if self.manifest is None:
            self.manifest = self._fit.check_config(self.name, self.config)
        return self.manifest


def _wrong_parts(fault: str) -> InvalidRequest:
    return InvalidRequest(f"a bundle is one part 'config', one 'weights' and maybe one 'card'; this {fault}")
