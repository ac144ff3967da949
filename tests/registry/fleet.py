"""Figures of a registry of thousands: `python -m tests.registry.fleet [adapters]`. Prints a table."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from service.registry.catalogue import catalogue_of
from service.registry.store import Registry
from tests.registry.bundles import AST, bundle
from tests.registry.publishing import publish
from tests.registry.test_follower import fill

REPEATS = 20


def best_ms(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """The quickest of a few runs, milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def measure(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory)
        fill(data_dir, count)
        started = time.perf_counter()
        registry = Registry(data_dir, AST)
        opened = time.perf_counter() - started
        catalogue = catalogue_of(data_dir)
        versions = iter(range(10_000))

        def change() -> None:
            with catalogue.write() as transaction:
                transaction.set_alias("fleet-00000", f"a{next(versions)}", 1)
            registry._catch_up()

        def upload() -> None:
            publish(registry, bundle("new", seed=next(versions)), "new")

        return {
            "open": 1000 * opened,
            "look, nothing changed": best_ms(registry._catch_up),
            "one change elsewhere, seen": best_ms(change),
            "upload": best_ms(upload, 5),
            "all records": best_ms(lambda: list(registry.walk())),
            "resolve": best_ms(lambda: registry.resolve("fleet-00005")),
        }


if __name__ == "__main__":
    counts = (10, int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
    figures = [measure(count) for count in counts]
    print(f"{'ms':28}" + "".join(f"{count:>12,}" for count in counts))
    for what in figures[0]:
        print(f"{what:28}" + "".join(f"{figure[what]:12.3f}" for figure in figures))
