"""Servers that start at once and may be killed: everything is imported once, each server is a fork of that.

Run by test_kill.py. For each line `start` on standard input one server is forked; `ready <url> <pid>` is printed when
it can answer, `dead` when it has been killed.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from service.api.app import create_app
from service.api.jobs import hearing, running
from service.api.opening import open_runtime
from service.cli.server import Server
from service.cli.serving import listen, url_of
from service.jobs import store
from service.model.loading import load_backbone
from tests.api.live import settings_for

running.RENEW_SECONDS = 0.1
store.LEASE = running.LEASE = timedelta(seconds=0.4)  # a server lives for less than that of a real one
hearing.CHUNK_SECONDS = 0.05


def serve(backbone: Path, data_dir: Path) -> None:
    settings = settings_for(backbone, data_dir, max_prompt_length=4, max_bottleneck_dim=8)
    listener = listen(settings.host, settings.port)

    def ready(_: object) -> None:
        print(f"ready {url_of(listener)} {os.getpid()}", flush=True)

    Server(create_app(settings, open_runtime, on_ready=ready), settings).run(sockets=[listener])


def main(backbone: Path, data_dir: Path) -> None:
    torch.set_num_threads(1)  # no pool of threads, which a fork would not have
    load_backbone(str(backbone), "cpu", "float32")  # whatever that imports
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            try:
                serve(backbone, data_dir)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
