"""What the registry lets in, and what the live backbone can run. Knows no SQL, and where nothing lies."""

import logging
from dataclasses import dataclass, field

from service.errors import AdapterFailed, BackboneMismatch, InvalidBundle
from service.model.spec import BackboneSpec
from service.registry.adapters import AdapterRecord, AdapterVersion, VersionRow
from service.registry.bundle import check_backbone
from service.registry.catalogue import LIVE, AdapterRows
from service.registry.manifest import CONFIG_FILE, Manifest, ManifestLimits, check_limits, parse_manifest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fit:
    """The checks of one server: its backbone and the largest adapter that its bank holds."""

    backbone: BackboneSpec
    limits: ManifestLimits
    fitting: set[str] = field(default_factory=set)  # digests of versions that were found to run here

    def check_config(self, name: str, config: bytes) -> Manifest:
        """The manifest of an upload, its weights not looked at yet.

        Raises:
            InvalidBundle, BackboneMismatch: refused.
        """
        manifest = parse_manifest(config, self.limits)
        if manifest.name != name:
            raise InvalidBundle(f"{CONFIG_FILE}: name: expected {name}, as in the URL, got {manifest.name}")
        check_backbone(manifest, self.backbone)
        return manifest

    def check_fit(self, version: AdapterVersion) -> None:
        """Whether a version that was let in once, perhaps by another server, runs on this one.

        Raises:
            BackboneMismatch: another backbone. AdapterFailed: larger than the bank's slots.
        """
        if version.digest in self.fitting:
            return
        try:
            check_backbone(version.manifest, self.backbone)
            check_limits(version.manifest, self.limits)
            self.fitting.add(version.digest)
        except BackboneMismatch as error:
            raise BackboneMismatch(error.detail, adapter=version.reference) from None
        except InvalidBundle as error:
            raise AdapterFailed(f"{version.reference}: {error.detail}", adapter=version.reference) from None

    def build_record(self, rows: AdapterRows, known: AdapterRecord | None) -> AdapterRecord | None:
        """The record of a catalogue's rows; None without versions. Versions are immutable: `known` ones are kept."""
        if not rows.versions:
            return None
        ready = {version.version: version for version in known.versions} if known else {}
        versions: list[AdapterVersion] = []
        unreadable: dict[int, str] = {}
        for row in rows.versions:
            try:
                kept = ready.get(row.version)
                versions.append(kept if kept and kept.digest == row.digest else self.build_version(row))
            except InvalidBundle as error:
                _logger.error("%s@%d cannot be read: %s", row.name, row.version, error.detail)
                unreadable[row.version] = error.detail
        live = rows.aliases.get(LIVE)
        spoken_for = next((version for version in versions if version.version == live), None)
        task = spoken_for or (versions[-1] if versions else None)
        task_type = task.manifest.task_type if task else None
        return AdapterRecord(rows.name, task_type, live, rows.aliases, tuple(versions), unreadable)

    def build_version(self, row: VersionRow) -> AdapterVersion:
        """Raises InvalidBundle for a manifest that this release cannot read."""
        manifest = parse_manifest(row.config)
        is_verified = manifest.backbone.fingerprint == self.backbone.fingerprint
        own = row.name, row.version, row.digest, row.config, row.weights_bytes, row.created, row.domain
        return AdapterVersion(*own, manifest, is_verified)
