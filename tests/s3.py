"""A real S3 server in a process of its own: moto's.

It answers one request at a time, so that a condition holds until the object is written. The access
key ``reader`` may not write, ``lister`` may only list, and ``stranger`` is unknown; any other may
do all. Of the requests of ``unlucky``, every fifth fails, each time in another way.
"""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_REFUSED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>"
)


class S3Server:
    """The server; to be entered. Buckets are new for each test.

    Attributes
    ----------
    environment : dict of str to str
        What a client of it needs.
    """

    def __enter__(self) -> S3Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
        )
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "writer",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.terminate()
        self._process.communicate()

    def client(self) -> Any:
        """A client that is none of ours."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="writer",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def bucket(self, versions: bool = False) -> str:
        """Make a bucket, which may keep all versions of its objects, and return its name."""
        name = f"bucket-{uuid.uuid4().hex}"
        client = self.client()
        client.create_bucket(Bucket=name)
        if versions:
            kept = {"Status": "Enabled"}
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration=kept)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """The bytes of every object below a prefix, by key."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def versions(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """How often each object was written."""
        client = self.client()
        found: dict[str, int] = {}
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for each in page.get("Versions", []):
                found[each["Key"]] = found.get(each["Key"], 0) + 1
        return found


def _lose(environ: dict[str, Any]) -> list[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


def _half(environ: dict[str, Any], data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    _lose(environ)


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()
    kinds = ("busy", "lost before", "lost after", "cut")
    faults = itertools.cycle([each for kind in kinds for each in (None, None, None, None, kind)])

    def one_at_a_time(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        found = re.search("Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        key, method = found[1] if found else "", environ["REQUEST_METHOD"]
        refused = {
            "reader": method in ("PUT", "POST", "DELETE"),
            "lister": "list-type" not in environ.get("QUERY_STRING", ""),
        }
        code = b"AccessDenied" if refused.get(key) else b""
        if key == "stranger":
            code = b"InvalidAccessKeyId"
        fault = next(faults) if key == "unlucky" else None
        if code or fault == "busy":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = "403 Forbidden" if code else "503 Slow Down"
            start(status, [("Content-Type", "application/xml")])
            return [_REFUSED % (code or b"SlowDown", b"Refused.")]
        if fault == "lost before":
            return _lose(environ)
        with lock:
            data = b"".join(application(environ, start))
        if fault == "lost after":
            return _lose(environ)
        return _half(environ, data) if fault == "cut" else [data]

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
