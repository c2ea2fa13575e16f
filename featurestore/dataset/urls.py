"""Read files behind URLs: of web servers, with requests, and of object stores."""

from __future__ import annotations

import threading
from http import HTTPStatus
from typing import Any

from featurestore import objects
from featurestore.errors import UnreachableError, one_line

SECONDS = (5, 60)  # to connect, and without a byte
# Credentials are missing; and what may be given to a later request.
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED)
_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_local = threading.local()


class RefusedError(Exception):
    """The server refuses this file; the message is the reason."""


def is_web(url: str) -> bool:
    """Whether a URL is of a web server."""
    return url.partition("://")[0].lower() in ("http", "https")


def fetch(url: str, most: int) -> bytes:
    """Read a file of at most ``most`` bytes whole.

    Raises
    ------
    FileNotFoundError
        If there is none.
    RefusedError
        If the server refuses this one file, it is larger, or the URL cannot be used.
    UnreachableError
        If the server cannot be reached, denies access or is overloaded: other files would fail too.
    """
    if is_web(url):
        return _get(url, most)
    if not objects.is_url(url):
        scheme = url.partition("://")[0]
        raise RefusedError(f"no way to open {scheme}://; expected https://…, {objects.EXPECTED}")
    try:
        bucket, path = objects.locate(url)
        if not path:
            raise FileNotFoundError(url)
        found = bucket.get(path)
        data = bytes(found.bytes()) if found.meta["size"] <= most else None
    except Exception as error:  # obstore and the providers of credentials raise errors of their own
        if isinstance(error, FileNotFoundError) and not objects.is_no_bucket(error):
            raise
        raise UnreachableError(
            f"cannot read {url}: {objects.explain(error, url)}, then run the command again"
        ) from error
    if data is None:
        raise _too_large(most)
    return data


def _too_large(most: int) -> RefusedError:
    return RefusedError(f"larger than {most:,} bytes")


def _get(url: str, most: int) -> bytes:
    import requests

    data = bytearray()
    try:
        with _session().get(url, stream=True, timeout=SECONDS) as answer:
            status = answer.status_code
            if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise FileNotFoundError(url)
            said = f"HTTP {status} {answer.reason or ''}".rstrip()
            if status in _DENIED:
                raise UnreachableError(
                    f"cannot read {url}: {said}; put your credentials into ~/.netrc, as `machine "
                    "HOST login USER password PASSWORD`, then run the command again"
                )
            if status in _LATER or status >= 500:
                raise UnreachableError(
                    f"cannot read {url}: {said}; the server is overloaded or down: run the command "
                    "again later"
                )
            if status >= 400:
                raise RefusedError(said)
            stated = answer.headers.get("Content-Length", "")
            if stated.isdecimal() and int(stated) > most:
                raise _too_large(most)
            for part in answer.iter_content(2**20):
                data += part
                if len(data) > most:
                    raise _too_large(most)
    except (  # What is wrong with this one file. InvalidSchema: a redirection to file:// or such.
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.TooManyRedirects,
        requests.exceptions.ContentDecodingError,
    ) as error:
        raise RefusedError(one_line(error)) from error
    except requests.exceptions.RequestException as error:
        raise UnreachableError(
            f"cannot read {url}: the server cannot be reached ({_cause(error)}); check the network "
            "and the URL, then run the command again"
        ) from error
    return bytes(data)


def _session() -> Any:
    """Return this thread's connections, which stay open between files of one server."""
    if not hasattr(_local, "session"):
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        again = Retry(
            3,
            connect=1,
            backoff_factor=0.3,
            status_forcelist=(429, 500, 502, 503, 504),
            respect_retry_after_header=False,  # It may ask for hours.
            raise_on_status=False,
        )
        _local.session = requests.Session()
        _local.session.headers["User-Agent"] = "featurestore"
        for scheme in ("http://", "https://"):
            _local.session.mount(scheme, HTTPAdapter(max_retries=again))
    return _local.session


def _cause(error: BaseException) -> str:
    """Return the innermost error, which names the cause."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return getattr(error, "strerror", None) or one_line(error)
