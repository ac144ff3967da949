"""Ports for programs that are told where to listen."""

import secrets
import socket
from contextlib import suppress

LOWEST, HIGHEST = 12_000, 32_000  # below those that systems give to who asks for any


def free_port() -> int:
    """A port of loopback that nobody listens on, and that nobody is given by chance until it is used."""
    while True:
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
