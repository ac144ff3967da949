"""A model card with the pictures that lie beside it in itself: one file is kept of it, and shown without any other."""

import base64
import re
from functools import cache
from pathlib import Path

MAX_CARD_BYTES = 2**20
_PICTURE = re.compile(rb"(!\[[^\]]{0,300}\])\((\w[\w.-]*\.(png|jpe?g|webp))\)")


def read_card(path: Path) -> bytes:
    """The card's bytes, without the pictures where they would make it larger than is accepted. Raises OSError."""

    def start(found: re.Match[bytes]) -> bytes:
        return b"data:image/%b;base64," % found[3].replace(b"jpg", b"jpeg") if lengths[found[2].decode()] else found[2]

    def length(name: str) -> int:
        """Of a picture's file; 0 of one that is left as it is."""
        size = (path.parent / name).stat().st_size if (path.parent / name).is_file() else 0
        return size if size <= MAX_CARD_BYTES else 0

    def held(found: re.Match[bytes]) -> bytes:
        name = found[2].decode()
        return b"%b(%b%b)" % (found[1], start(found), encoded(name)) if lengths[name] else found[0]

    @cache
    def encoded(name: str) -> bytes:
        return base64.b64encode((path.parent / name).read_bytes())

    card = path.read_bytes()
    pictures = list(_PICTURE.finditer(card))
    lengths = {name: length(name) for name in {one[2].decode() for one in pictures}}
    added = (len(start(one)) + (lengths[one[2].decode()] + 2) // 3 * 4 - len(one[2]) for one in pictures)
    if len(card) + sum(added) > MAX_CARD_BYTES:  # told before any is read
        return card
    return _PICTURE.sub(held, card)
