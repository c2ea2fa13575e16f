"""Object stores and web servers behind URLs: opened with obstore, and what their errors mean."""

from __future__ import annotations

import netrc
import os
import re
from base64 import b64encode
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from featurestore.errors import one_line

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "memory")
EXPECTED = "s3://BUCKET/…, gs://BUCKET/… or az://CONTAINER/…"

# A busy server is asked again; one that cannot be reached fails within seconds. One request may
# carry a large block over a slow line.
_RETRIES = {
    "max_retries": 7,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=3),
        "base": 2,
    },
}
_CLIENT = {"connect_timeout": "5s", "timeout": "2m", "allow_http": True}

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `pip install boto3` to use those of "
    "`aws configure`; or, for a public bucket, set AWS_SKIP_SIGNATURE=true",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or run `az login` and set "
    "AZURE_USE_AZURE_CLI=true",
    "http": "put them into ~/.netrc, as `machine HOST login USER password PASSWORD`",
}
_USER = re.compile(r"(https?|s3a?|gs|az)://[^/?#]*@|[a-z0-9+.-]+://[^/?#]*:[^/?#]*@", re.IGNORECASE)

# obstore raises FileNotFoundError for any 404, PermissionDeniedError for some requests that are
# refused, and GenericError for all else: what is known beyond that is in the text.
_STATUS = re.compile(r"status code: ([0-9]{3})([ A-Za-z]*)")
# A URL path that obstore sends as it is, so that all images of a host share its connections.
_PLAIN = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
# Where virtual machines of all three clouds get them is asked last; and what Azure needs first.
_NO_CREDENTIALS = re.compile(r"//169\.254\.|//metadata\.google|Account must be specified")


def is_url(location: str) -> bool:
    """Whether a URL is of an object store; ``memory://`` is one that ends with the process."""
    return location.partition("://")[0].lower() in SCHEMES and "://" in location


def is_web(url: str) -> bool:
    """Whether a URL is of a web server."""
    return url.partition("://")[0].lower() in ("http", "https")


def has_password(url: str) -> bool:
    """Whether a URL contains a user or password.

    Examples
    --------
    >>> has_password("https://me:secret@host/a.png"), has_password("abfss://box@account/a.png")
    (True, False)
    """
    return _USER.match(url) is not None


def locate(url: str) -> tuple[Any, str]:
    """Return the bucket or web server of a URL, opened, and the path of the URL in it.

    Whatever obstore raises, `explain` explains.
    """
    check_process()
    if is_web(url):
        parts = urlsplit(url)
        if _PLAIN.fullmatch(parts.path) and not parts.query and not parts.fragment:
            return _bucket(f"{parts.scheme}://{parts.netloc}"), parts.path[1:]
        return _bucket.__wrapped__(url), ""
    scheme, _, rest = url.partition("://")
    if scheme.lower() == "memory":
        return _bucket("memory://"), rest.strip("/")
    name, _, path = rest.partition("/")
    return _bucket(f"{scheme.lower()}://{name}"), path.strip("/")


# The process in which obstore is used.
_process: set[int] = set()


class ForkedError(Exception):
    """Requests would hang: this process was forked after obstore had started its threads."""


class NoCredentialsError(Exception):
    """No credentials of AWS were found."""


def check_process() -> None:
    """Raise ForkedError in a process in which obstore does not work."""
    if _process and _process != {os.getpid()}:
        raise ForkedError


@cache
def _bucket(url: str) -> Any:
    from obstore.store import HTTPStore, MemoryStore, from_url

    _process.add(os.getpid())

    if url == "memory://":
        return MemoryStore()
    if is_web(url):
        client = {**_CLIENT, "default_headers": {"user-agent": "featurestore", **_login(url)}}
        again = {**_RETRIES, "max_retries": 3}
        return HTTPStore.from_url(url, client_options=client, retry_config=again)
    provider = {}
    if url.startswith("s3") and "AWS_ACCESS_KEY_ID" not in os.environ:
        provider = _aws_provider()
    return from_url(url, client_options=_CLIENT, retry_config=_RETRIES, **provider)


def _login(url: str) -> dict[str, str]:
    """Return the header with the user's login at a web server, from ~/.netrc."""
    try:
        login = netrc.netrc().authenticators(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return {}
    if login is None:
        return {}
    return {"authorization": "Basic " + b64encode(f"{login[0]}:{login[2]}".encode()).decode()}


def _aws_provider() -> dict[str, Any]:
    """Return what makes obstore use profiles and single sign-on: it reads no file of AWS itself."""
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1"):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except ValueError as error:
        raise NoCredentialsError from error


def is_cut(error: Exception) -> bool:
    """Whether the connection was lost in the middle of an answer."""
    return "response body error" in str(error)


def is_unreachable(error: Exception) -> bool:
    """Whether the server does not answer, or is too busy to."""
    status = _STATUS.search(str(error))
    if status is None:
        return "HTTP error" in str(error) or is_cut(error)
    return status[1] in ("408", "425", "429") or status[1].startswith("5")


def refusal(error: Exception) -> str | None:
    """Return why a web server refuses one file; None for an error that other files would have."""
    text = str(error).partition("Debug source:")[0]
    if "following redirect" in text:
        return "its redirections do not end"
    if "Content-Length" in text:
        return "the server does not state its length (Content-Length)"
    if "invalid utf-8" in text:  # obstore reads the text of an error, here a picture, for its own.
        return "the server answers with an HTTP error"
    status = _STATUS.search(text)
    if status is None or is_unreachable(error) or status[1] in ("401", "407"):
        return one_line(error) if isinstance(error, ValueError) else None
    return f"HTTP {status[1]}{status[2]}"


def is_no_bucket(error: Exception) -> bool:
    """Whether a request failed because the bucket itself does not exist."""
    return _NO_BUCKET.search(str(error)) is not None


def no_bucket(url: str) -> tuple[str, str]:
    """Return the reason and the remedy of a bucket that does not exist."""
    name = url.partition("://")[2].partition("/")[0]
    return f"there is no bucket {name!r}", "create it, or correct the URL"


def explain(error: Exception, url: str) -> tuple[str, str]:
    """Return why a request failed, and the remedy."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    # obstore appends its own debugging output.
    text, scheme = str(error).partition("Debug source:")[0], url.partition("://")[0].lower()
    service = next((name for name in ("s3", "gs", "http") if scheme.startswith(name)), "az")
    said, status = _said(text), _STATUS.search(text)
    if isinstance(error, ForkedError):
        return (
            "this process was forked after its parent had used the object store",
            "start processes by 'spawn', as in DataLoader(…, multiprocessing_context='spawn')",
        )
    if is_no_bucket(error):
        return no_bucket(url)
    if isinstance(error, NoCredentialsError) or _NO_CREDENTIALS.search(text):
        return "no credentials were found", _CREDENTIALS[service]
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or (status and status[1] in ("401", "403")):  # Listings raise GenericError.
        return (
            f"access was denied{f' ({said})' if said else ''}",
            f"check the credentials and what they may do there: {_CREDENTIALS[service]}",
        )
    if status is None and is_unreachable(error):
        endpoint = " and AWS_ENDPOINT_URL" if service == "s3" else ""
        reason = f"the server cannot be reached ({_cause(str(error))})"
        return reason, f"check the network{endpoint}"
    if status and is_unreachable(error):
        return said or f"HTTP {status[1]}{status[2]}", "wait until the server is less busy"
    if "redirect" in text:
        return "the bucket is in another region", "set AWS_REGION"
    return said or one_line(Exception(text)), "check the URL and the settings of the bucket"


def _said(text: str) -> str:
    """Return the code and message that a server gave, in XML; empty if there are none."""
    parts = [re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    return ": ".join(part[1].rstrip(". ") for part in parts if part)


def _cause(text: str) -> str:
    """Return the innermost cause in an error of the HTTP client."""
    if "response body error" in text:
        return "the connection was lost"
    for reason in ("Connection refused", "dns error", "timed out", "Network is unreachable"):
        if reason.lower() in text.lower():
            return reason
    return "no connection"
