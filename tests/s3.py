"""A real server of S3's protocol on loopback, moto's: a new bucket for each test, stopped and started at will."""

import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.ports import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}


class S3:
    """One server; what it holds outlives a stop."""

    def __init__(self) -> None:
        self._buckets = 0
        self._port = free_port()  # it has to be there again after a stop
        self._server: Any = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        if self._server is None:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
            self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def new_bucket(self) -> str:
        """The URL of a place in an empty bucket."""
        self._buckets += 1
        self._ask(f"test{self._buckets}", b"", "PUT")
        return f"s3://test{self._buckets}/adapters"

    def keys(self, url: str) -> dict[str, int]:
        """Keys of all that lies under a URL and their sizes, but for those that begin with a dot."""
        found = _opened(url).list().collect()
        return {one["path"]: one["size"] for one in found if not one["path"].startswith(".")}

    def put(self, url: str, content: bytes) -> None:
        place, _, name = url.rpartition("/")
        _opened(place).put(name, content)

    def delete(self, url: str) -> None:
        place, _, name = url.rpartition("/")
        _opened(place).delete(name)

    @contextmanager
    def allowing(self, *actions: str) -> Iterator[dict[str, str]]:
        """The keys of somebody who may do no more than these, while everybody's rights are looked at."""
        import boto3

        who = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
        iam = boto3.session.Session().client("iam", endpoint_url=self.endpoint, **who)
        iam.create_user(UserName="somebody")
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="somebody", PolicyName="some", PolicyDocument=policy)
        key = iam.create_access_key(UserName="somebody")["AccessKey"]
        self._look_at_rights_after(b"0")
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._look_at_rights_after(b"inf")
            iam.delete_access_key(UserName="somebody", AccessKeyId=key["AccessKeyId"])
            iam.delete_user_policy(UserName="somebody", PolicyName="some")
            iam.delete_user(UserName="somebody")

    def _look_at_rights_after(self, requests: bytes) -> None:
        self._ask("moto-api/reset-auth", requests, "POST")

    def _ask(self, path: str, content: bytes, method: str) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(f"{self.endpoint}/{path}", content, headers, method=method)
        urllib.request.urlopen(asked).close()


def _opened(url: str) -> Any:
    from obstore.store import from_url

    return from_url(url, client_options={"allow_http": True})


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    for package in ("moto", "flask", "flask_cors", "obstore"):
        pytest.importorskip(package, reason="no server of S3's protocol: pip install 'ipet-serve[dev]'")
    server = S3()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": server.endpoint}).items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    """The server, running; started again if a test has stopped it."""
    yield s3_server
    s3_server.start()


@pytest.fixture
def bucket(s3: S3) -> str:
    return s3.new_bucket()
