"""Clients of object stores side by side, on a server of S3's protocol here: `python -m tests.benchmarks.objects`.

Prints what each takes to import, to put and get bundles of a paper-size adapter, and the processor time of its own
process meanwhile; a client that is not installed is left out. The server, moto's, runs in a process of its own.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SIZE = 2_400_000  # bytes: prompt of 4, bottleneck of 32, 12 layers of 768
COUNT, THREADS = 32, 4
CLIENTS = ("obstore", "s3fs")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}

Put = Callable[[str, bytes], object]
Get = Callable[[str], bytes]


def obstore(endpoint: str) -> tuple[Put, Get]:
    from obstore.store import from_url

    store = from_url("s3://bench", endpoint=endpoint, client_options={"allow_http": True})
    return lambda key, content: store.put(key, content), lambda key: bytes(store.get(key).bytes())


def s3fs(endpoint: str) -> tuple[Put, Get]:
    from s3fs import S3FileSystem

    files = S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)
    return lambda key, content: files.pipe_file(f"bench/{key}", content), lambda key: files.cat_file(f"bench/{key}")


def measure(client: str, endpoint: str) -> dict[str, float]:
    """Milliseconds, of one bundle where there are several."""
    started, used = time.perf_counter(), time.process_time()
    put, get = {"obstore": obstore, "s3fs": s3fs}[client](endpoint)
    put("first", b"")
    figures = {"import and first call": 1000 * (time.perf_counter() - started)}
    figures["of processor time"] = 1000 * (time.process_time() - used)
    content = os.urandom(SIZE)
    keys = [f"{client}/{number}" for number in range(COUNT)]
    figures |= _timed("put", lambda: [put(key, content) for key in keys])
    figures |= _timed("get", lambda: [get(key) for key in keys])
    with ThreadPoolExecutor(THREADS) as pool:
        figures |= _timed(f"get, {THREADS} at once", lambda: list(pool.map(get, keys)))
    assert get(keys[0]) == content
    return figures


def _timed(what: str, work: Callable[[], object]) -> dict[str, float]:
    started, used = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {what: 1000 * seconds / COUNT, f"{what}, processor": 1000 * processor / COUNT}


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bucket = urllib.request.Request(f"{endpoint}/bench", method="PUT")
        for _ in range(100):
            try:
                urllib.request.urlopen(bucket)
                break
            except OSError:
                time.sleep(0.1)
        figures = {}
        for client in CLIENTS:  # each in a process of its own
            asked = [sys.executable, "-m", "tests.benchmarks.objects", client, endpoint]
            told = subprocess.run(asked, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
            if told.returncode:
                print(f"{client} is left out: {told.stderr.strip().splitlines()[-1]}")
            else:
                figures[client] = json.loads(told.stdout)
    finally:
        server.terminate()
        server.wait(10)
    print(f"{'ms':28}" + "".join(f"{client:>12}" for client in figures))
    for what in next(iter(figures.values()), {}):
        print(f"{what:28}" + "".join(f"{figure[what]:12.2f}" for figure in figures.values()))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
    else:
        main()
