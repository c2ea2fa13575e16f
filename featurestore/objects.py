"""Object stores behind URLs: opening them with obstore, and what their errors mean."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from functools import cache
from typing import Any

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
}
_USER = re.compile(r"(https?|s3a?|gs|az)://[^/?#]*@|[a-z0-9+.-]+://[^/?#]*:[^/?#]*@", re.IGNORECASE)

# obstore raises FileNotFoundError for any 404, PermissionDeniedError for some requests that are
# refused, and GenericError for all else: what is known beyond that is in the text.
_STATUS = re.compile(r"status code: ([0-9]{3})")
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
# Where virtual machines of all three clouds get them is asked last; and what Azure needs first.
_NO_CREDENTIALS = re.compile(r"//169\.254\.|//metadata\.google|Account must be specified")


def is_url(location: str) -> bool:
    """Whether a URL is of an object store; ``memory://`` is one that ends with the process."""
    return location.partition("://")[0].lower() in SCHEMES and "://" in location


def has_password(url: str) -> bool:
    """Whether a URL contains a user or password.

    Examples
    --------
    >>> has_password("https://me:secret@host/a.png"), has_password("abfss://box@account/a.png")
    (True, False)
    """
    return _USER.match(url) is not None


def locate(url: str) -> tuple[Any, str]:
    """Return the bucket of a URL, opened, and the path of the URL in it.

    Whatever obstore raises, `explain` explains.
    """
    check_process()
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
        raise ForkedError(
            "this process was forked after its parent had used the object store; start processes "
            "by 'spawn', as in DataLoader(…, multiprocessing_context='spawn')"
        )


@cache
def _bucket(url: str) -> Any:
    from obstore.store import MemoryStore, from_url

    _process.add(os.getpid())

    if url == "memory://":
        return MemoryStore()
    provider = {}
    if url.startswith("s3") and "AWS_ACCESS_KEY_ID" not in os.environ:
        provider = _aws_provider()
    return from_url(url, client_options=_CLIENT, retry_config=_RETRIES, **provider)


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
    return status[1] == "429" or status[1].startswith("5")


def is_no_bucket(error: Exception) -> bool:
    """Whether a request failed because the bucket itself does not exist."""
    return _NO_BUCKET.search(str(error)) is not None


def no_bucket(url: str) -> str:
    """Return what to do about a bucket that does not exist, in one line."""
    name = url.partition("://")[2].partition("/")[0]
    return f"there is no bucket {name!r}; create it, or correct the URL"


def explain(error: Exception, url: str) -> str:
    """Return what went wrong with a request and what to do about it, in one line."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    # obstore appends its own debugging output.
    text, scheme = str(error).partition("Debug source:")[0], url.partition("://")[0].lower()
    service = "s3" if scheme.startswith("s3") else "gs" if scheme == "gs" else "az"
    said, status = _said(text), _STATUS.search(text)
    if isinstance(error, ForkedError):
        return text
    if is_no_bucket(error):
        return no_bucket(url)
    if isinstance(error, NoCredentialsError) or _NO_CREDENTIALS.search(text):
        return f"no credentials were found; {_CREDENTIALS[service]}"
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or (status and status[1] in ("401", "403")):  # Listings raise GenericError.
        return (
            f"access was denied{f' ({said})' if said else ''}; check the credentials and what they "
            f"may do there: {_CREDENTIALS[service]}"
        )
    if status is None and is_unreachable(error):
        endpoint = " and AWS_ENDPOINT_URL" if service == "s3" else ""
        return f"the server cannot be reached ({_cause(str(error))}); check the network{endpoint}"
    if "redirect" in text:
        return "the bucket is in another region; set AWS_REGION"
    return f"{said or one_line(Exception(text))}; check the URL and the settings of the bucket"


def _said(text: str) -> str:
    """Return the code and message that a server gave, in XML; empty if there are none."""
    found = [re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    return ": ".join(each[1].rstrip(". ") for each in found if each)


def _cause(text: str) -> str:
    """Return the innermost cause in an error of the HTTP client."""
    if "response body error" in text:
        return "the connection was lost"
    for reason in ("Connection refused", "dns error", "timed out", "Network is unreachable"):
        if reason.lower() in text.lower():
            return reason
    return "no connection"
