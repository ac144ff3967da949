"""`python -m tests.music OUT [--seed 1]` makes the set that the recipe `music-style` learns from.

Needs music21 (`pip install 'music21>=10.5,<11'`), fluidsynth and its sound font (`apt install fluidsynth
fluid-soundfont-gm`). Takes some minutes of one core, and 300 MB.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.progress import track

from tests.music.making import PARTS, TUNES, make_set
from tests.music.rendering import SOUND_FONT
from tests.music.scores import LABELS, MusicSetError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.music", description="Makes the set of musical styles.")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sound-font", type=Path, default=SOUND_FONT)
    parser.add_argument("--classes", default=",".join(LABELS), help="some of them (default: %(default)s)")
    parser.add_argument("--clips", default=",".join(map(str, PARTS.values())), help=f"of a class in {', '.join(PARTS)}")
    parser.add_argument("--tunes", type=int, default=TUNES, help="read of a class and a collection, at most")
    asked = parser.parse_args()
    clips = dict(zip(PARTS, map(int, asked.clips.split(",")), strict=True))

    def shown(items: Iterable, what: str) -> Iterable:  # type: ignore[type-arg]
        return track(items, what, disable=not sys.stderr.isatty())

    try:
        made = make_set(asked.out, asked.seed, asked.classes.split(","), clips, asked.tunes, asked.sound_font, shown)
    except MusicSetError as error:
        print(error, file=sys.stderr)
        return 1
    works = len({clip.score.work for clip in made})
    counted = ", ".join(f"{part} {count}" for part, count in Counter(clip.split for clip in made).items())
    print(f"{len(made)} clips of {works} works ({counted}): {asked.out / 'clips.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
