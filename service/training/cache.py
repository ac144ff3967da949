"""Arrays on disk, by what they were made from: decoded recordings and features that would come out the same again.

Knows neither what the arrays mean nor how they are made. A cache may be deleted at any time, and shared by runs.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class ArrayCache:
    """A folder of `.npz` files, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a key, made and kept where they are not there yet. Raises what `make` raises, and OSError."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        path = self._folder / digest[:2] / f"{digest}.npz"
        try:
            with np.load(path) as kept:  # plain arrays only: numpy's default refuses objects
                return {name: kept[name] for name in kept.files}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, BadZipFile, EOFError):  # damaged: made again
            path.unlink(missing_ok=True)
        made = make()
        _write(path, made)
        return made


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
