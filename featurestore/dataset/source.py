"""Where samples are: local paths, or URLs of web servers and object stores."""

from __future__ import annotations

import os
import re
import stat
from urllib.parse import unquote

from featurestore import objects
from featurestore.errors import DatasetError, UnreachableError, one_line, path_text
from featurestore.images import MAX_PIXELS
from featurestore.threads import processors

# A file is held in memory while it is decoded; anything larger is a video or an archive.
MAX_BYTES = 2**30
# Of an image behind a URL: the largest image without compression, with four bytes a pixel. Several
# are read at a time, and a broken server may send without end.
MAX_REMOTE_BYTES = 4 * MAX_PIXELS
_REMOTE_READERS = 16


class UnreadableError(Exception):
    """A file cannot be read; the message is the reason, in one line."""


def is_uri(source: str) -> bool:
    """Whether this is a URI and not a local path.

    Examples
    --------
    >>> is_uri("s3://bucket/a.png"), is_uri("C:/a.png")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def readers(source: str | None) -> int:
    """Return how many threads read sources like this one well.

    A server answers slowly, but many requests at a time.
    """
    remote = source is not None and is_uri(source)
    return max(processors(), _REMOTE_READERS if remote else 1)


def is_place(data: str) -> bool:
    """Whether this is a folder, file or URI, and so not the name of a data set."""
    return is_uri(data) or os.path.exists(data)


def text_of(data: object) -> str:
    """Return the text of a name or place; DatasetError for what is neither."""
    expected = (
        "a Dataset, the path or URI of a folder or table, the name of a data set, or a DataFrame "
        "as Dataset.open(frame, name=…); for arrays, Dataset.from_arrays(X, y, name=…)"
    )
    return path_text(data, "the data set", expected, DatasetError)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path, or the URI unchanged; ``file://`` URIs become paths.

    Raises
    ------
    DatasetError
        For a path that is not valid UTF-8; and for a URL with a password, which a store would keep
        and every message would show.
    """
    text = os.fsdecode(path)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    if not is_utf8(text):
        raise DatasetError(f"the path {text!r} is not valid UTF-8", remedy="rename it")
    if not is_uri(text):
        return os.path.abspath(text)
    if objects.has_password(text):
        host = text.rpartition("@")[2].partition("/")[0]
        raise DatasetError(
            f"a URL of {host} holds a user or password, which the store would keep",
            remedy=f"put it into ~/.netrc: machine {host} login USER password PASSWORD",
        )
    return text


def below(root: str, path: str) -> str:
    """Resolve a path listed in a table, relative to a folder or URI.

    A relative path is a file name, wherever the table lies; only whole URLs are written as one.

    Examples
    --------
    >>> below("https://host/photos", "cat #1.png"), below("https://host", "https://host/a%231.png")
    ('https://host/photos/cat %231.png', 'https://host/a%231.png')
    """
    if is_uri(path):
        return absolute(path)
    if is_uri(root):
        if path.startswith("/"):
            return path
        if objects.is_web(root):
            path = re.sub("[%?#]", lambda mark: f"%{ord(mark[0]):02X}", path)
        return f"{root.rstrip('/')}/{path}"
    joined = os.path.join(root, path)
    # normpath() would resolve ".." wrongly behind a symbolic link.
    return joined if ".." in path.split("/") else os.path.normpath(joined)


def is_utf8(name: str) -> bool:
    r"""Whether the name of a file can be encoded as UTF-8, as a manifest holds it.

    Examples
    --------
    >>> is_utf8("café.png"), is_utf8("caf\udce9.png")
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(source: str, most: int | None = None) -> bytes:
    """Read a whole file. A path must be a regular file: a named pipe would block for ever.

    Parameters
    ----------
    source : str
    most : int, optional
        Its largest size in bytes; by default `MAX_BYTES`, or `MAX_REMOTE_BYTES` for a URL.

    Raises
    ------
    UnreadableError
        If it cannot be read or is larger.
    UnreachableError
        If the server of a URL cannot be reached: the file may exist.
    """
    most = most or (MAX_REMOTE_BYTES if is_uri(source) else MAX_BYTES)
    try:
        if is_uri(source):
            data = _fetch(source, most)
        else:
            if not stat.S_ISREG(os.stat(source).st_mode):
                raise UnreadableError("not a regular file")
            with open(source, "rb") as file:
                data = file.read(most + 1)
    except FileNotFoundError as error:
        raise UnreadableError("no such file") from error
    except OSError as error:
        raise UnreadableError(error.strerror or one_line(error)) from error
    except ValueError as error:  # a null byte in a path
        raise UnreadableError(one_line(error)) from error
    if data is None or len(data) > most:
        raise UnreadableError(f"larger than {most:,} bytes")
    return data


def _fetch(url: str, most: int) -> bytes | None:
    """Read what is behind a URL; None if it has more than ``most`` bytes."""
    if not objects.is_web(url) and not objects.is_url(url):
        scheme = url.partition("://")[0]
        raise UnreadableError(f"cannot open {scheme}://; expected https://…, {objects.EXPECTED}")
    try:
        bucket, path = objects.locate(url)
        if not path and not objects.is_web(url):
            raise FileNotFoundError(url)
        response = bucket.get(path)
        return bytes(response.bytes()) if response.meta["size"] <= most else None
    except Exception as error:  # obstore and the providers of credentials raise errors of their own
        if isinstance(error, FileNotFoundError) and not objects.is_no_bucket(error):
            raise
        if objects.is_web(url) and (reason := objects.refusal(error)):
            raise UnreadableError(reason) from error
        why, remedy = objects.explain(error, url)
        raise UnreachableError(
            f"cannot read {url}: {why}", remedy=f"{remedy}, then run the command again"
        ) from error
