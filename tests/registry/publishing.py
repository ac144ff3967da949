"""Publishing a test's bundles."""

from service.registry.bundle import BundleFiles
from service.registry.store import Published, Registry


def publish(
    registry: Registry, files: BundleFiles, name: str = "events", activate: bool = True, actor: str = "anonymous"
) -> Published:
    return registry.publish(name, files.config, files.weights, files.card, activate=activate, actor=actor)
