"""Publishes versions until it is killed; prints each change once it is acknowledged. Run by test_crash.py."""

import itertools
import sys
import threading
from pathlib import Path

from service.registry.store import Registry
from tests.registry.bundles import AST, bundle


def main(data_dir: Path, seed: int) -> None:
    registry = Registry(data_dir, AST)
    print("started", flush=True)

    def publish(name: str, first: int) -> None:
        for number in itertools.count(first):
            files = bundle(name, seed=number)
            published = registry.publish(name, files.config, files.weights, files.card)
            line = f"published {name} {published.version.version} {number}\n"
            if number % 3 == 2 and published.version.version > 1:
                registry.set_alias(name, "canary", published.version.version)
                line += f"alias {name} {published.version.version}\n"
            if number % 5 == 4:
                registry.delete_version(name, published.version.version - 1)
                line += f"deleted {name} {published.version.version - 1}\n"
            sys.stdout.write(line)
            sys.stdout.flush()

    for name in ("events", "sounds"):
        threading.Thread(target=publish, args=(name, seed * 1_000), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
