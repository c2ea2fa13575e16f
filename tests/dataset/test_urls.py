"""Images behind URLs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, UnreachableError
from tests.dataset.conftest import png, wrong
from tests.s3 import S3Server

MOST = 2**22


class _Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        status, data = 200, b"junk"
        sent = {}
        if len(name) == 3 and name.isdigit():
            status = int(name)
        elif name.isdigit():
            data = png(int(name))
        elif name == "loop":
            status, data, sent = 302, b"", {"Location": "/loop"}
        elif name.startswith("to-"):
            status, data = 302, b""
            sent = {"Location": name[3:] if ":" in name else f"/{name[3:]}"}
        elif name == "lists/names.csv":
            data = b"path\nnamed #1.png\nnamed ?2.png\nnamed %203.png\n"
        elif name.startswith("lists/named"):
            data = png(int(unquote(name)[-5]))
        elif name == "huge":
            self.send_response(200)
            self.send_header("Content-Length", str(2**40))
            self.end_headers()
            return
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until the client hangs up
                while True:
                    self.wfile.write(bytes(2**20))
            return
        elif name == "locked":
            allowed = self.headers.get("authorization") == "Basic bWU6c2VjcmV0"
            status, data = (200, png(7)) if allowed else (401, b"no")
        elif name == "placeholder":
            status, data = 404, b"\x89PNG"
        self.send_response(status)
        for header, value in sent.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data) + 5 * (name == "cut")))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def listed(*paths: str) -> Dataset:
    return Dataset.open(pd.DataFrame({"path": paths}), name="shop")


def test_images_of_a_web_server(shop: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    here = Dataset.open(pd.DataFrame({"path": [str(tmp_path / "0.png")]}), name="here")
    found = listed(f"{shop}/0?token=a%2Fb", f"{shop}/to-1")
    assert here.digest == listed(f"{shop}/0").digest
    assert (
        wrong(listed(f"{shop}/lists/named é 3.png", f"{shop}//lists/named%20%C3%A9%204.png")) == ()
    )
    assert (len(found), wrong(found)) == (2, ())
    assert found.image(0).shape == (3, 4, 3)


def test_broken_images_of_a_web_server_are_quarantined(shop: str) -> None:
    names = ("0", "404", "404#1.png", "403", "junk", "placeholder", "to-to-to-404")
    found = listed(*(f"{shop}/{name}" for name in names))
    reasons = {each.path.rpartition("/")[2]: each.reason for each in wrong(found)}
    assert reasons["404"] == reasons["to-to-to-404"] == "no such file"
    assert reasons["404#1.png"] == "no such file"
    assert reasons["403"] == "HTTP 403 Forbidden"
    assert reasons["placeholder"] == "the server answers with an HTTP error"
    assert "image" in reasons["junk"]
    assert len(found) == 1


def test_a_url_that_leads_nowhere_is_quarantined_alone(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirection to a local file, one without an end, and what is announced and not so."""
    monkeypatch.setattr("featurestore.dataset.source.MAX_REMOTE_BYTES", MOST)
    names = ("0", "to-file:///etc/passwd", "loop", "huge", "endless", "451")
    found = listed(*(f"{shop}/{name}" for name in names))
    reasons = {each.path.rpartition("/")[2]: each.reason for each in wrong(found)}
    assert len(found) == 1
    assert reasons["passwd"] == "HTTP 302 Found"
    assert reasons["loop"] == "its redirections do not end"
    assert reasons["huge"] == f"larger than {MOST:,} bytes"
    assert reasons["endless"] == "the server does not state its length (Content-Length)"
    assert reasons["451"] == "HTTP 451 Unavailable For Legal Reasons"


def test_a_login_comes_from_netrc(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreachableError, match=r"into ~/\.netrc, as `machine HOST login"):
        listed(f"{shop}/locked?first")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    (tmp_path / ".netrc").chmod(0o600)
    assert len(listed(f"{shop}/locked?second")) == 1


@pytest.mark.parametrize("url", ["https://me:secret@host/0.png", "s3://key:secret@bucket/0.png"])
def test_a_password_in_a_url_is_neither_kept_nor_shown(url: str) -> None:
    host = url.rpartition("@")[2].partition("/")[0]
    for read in (lambda: listed("0.png", url), lambda: Dataset.open(url.replace("png", "csv"))):
        with pytest.raises(DatasetError, match=rf"into ~/\.netrc: machine {host} login") as caught:
            read()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "503",
            "HTTP 503 Service Unavailable; wait until the server is less busy",
            marks=pytest.mark.reliability,  # It is asked again, for seconds.
        ),
        ("cut", "the server cannot be reached"),
        ("401", r"access was denied; .* put them into ~/\.netrc"),
    ],
)
def test_a_web_server_in_trouble_stops_the_scan(shop: str, name: str, message: str) -> None:
    with pytest.raises(UnreachableError, match=message):
        listed(f"{shop}/0", f"{shop}/{name}")


def test_relative_paths_of_a_table_on_a_web_server_are_file_names(shop: str) -> None:
    """`#` and `?` end neither of them, and `%` begins no code."""
    found = Dataset.open(f"{shop}/lists/names.csv?key=a/b")
    assert (len(found), wrong(found)) == (3, ())
    assert found.paths[found.input_order[0]] == f"{shop}/lists/named %231.png"


def test_a_web_server_that_cannot_be_reached_stops_the_scan() -> None:
    with pytest.raises(UnreachableError, match=r"reached \(.*efused\); check the network"):
        listed("http://127.0.0.1:9/0.png")


@pytest.mark.reliability
def test_images_in_a_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    bucket = s3.bucket()
    for number in range(3):
        s3.client().put_object(Bucket=bucket, Key=f"my photos/{number}.png", Body=png(number))
    s3.client().put_object(Bucket=bucket, Key="bad.png", Body=b"junk")
    table = "path,label\n" + "".join(
        f"my photos/{number}.png,{number % 2}\n" for number in range(3)
    )
    table += f"s3://{bucket}/bad.png,0\nnone.png,1\n"
    s3.client().put_object(Bucket=bucket, Key="list.csv", Body=table.encode())
    found = Dataset.open(f"s3://{bucket}/list.csv")
    assert (len(found), len(wrong(found))) == (3, 2)
    assert (
        found.digest
        == Dataset.open(
            pd.DataFrame(
                {"path": [f"s3://{bucket}/my photos/{number}.png" for number in range(3)]}
            ),
            name="again",
        ).digest
    )
    with pytest.raises(UnreachableError, match="no bucket 'nowhere'; create it, or correct"):
        listed("s3://nowhere/0.png")
    with pytest.raises(DatasetError, match="no such file"):
        Dataset.open(f"s3://{bucket}/other.csv")
