"""The only place where bytes become identities.

A digest is written with its algorithm, ``blake2b:`` and 64 hex digits (256 bits). Paths carry the
first 12 hex digits, attributes the whole. Nothing that depends on the machine, the process or
the clock may enter one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import StringConstraints

ALGORITHM = "blake2b"
DIGEST_BYTES = 32
ROW_BYTES = 16
SHORT = 12

EMPTY_CHECKSUM = f"{ALGORITHM}:{'0' * 2 * DIGEST_BYTES}"
#: Finds the digests in a text.
DIGEST = re.compile(rf"{ALGORITHM}:[0-9a-f]{{{2 * DIGEST_BYTES}}}")
#: A digest in a pydantic model.
Digest = Annotated[str, StringConstraints(pattern=rf"^{DIGEST.pattern}$")]
_CHECKSUM = re.compile(rb'"check": ?"(blake2b:[0-9a-f]{64})"')


def _text(state: hashlib.blake2b) -> str:
    return f"{ALGORITHM}:{state.hexdigest()}"


def digest_bytes(data: bytes | memoryview) -> str:
    """Digest of raw bytes.

    Examples
    --------
    >>> digest_bytes(b"")[:20]
    'blake2b:0e5751c026e5'
    """
    return _text(hashlib.blake2b(data, digest_size=DIGEST_BYTES))


def digest_fields(fields: Mapping[str, Any]) -> str:
    """Digest of named values in canonical JSON: keys sorted, no white space, finite numbers only.

    TypeError or ValueError if a value has no canonical form (an object, NaN): hashing its ``repr``
    would give an identity that differs between processes.
    """
    canonical = json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return digest_bytes(canonical.encode("ascii"))


def finite_json(value: Any) -> Any:
    """Return JSON values with None for NaN and infinity, which JSON does not have.

    Examples
    --------
    >>> finite_json({"loss": [0.5, float("nan")]})
    {'loss': [0.5, None]}
    """
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def json_text(value: Any) -> str:
    """Return indented JSON with null for NaN and infinity.

    Examples
    --------
    >>> json_text(float("nan")), json_text("é")
    ('null', '"é"')
    """
    return json.dumps(finite_json(value), indent=2, ensure_ascii=False)


def canonical_number(value: float) -> float | dict[str, str]:
    """Return a number as JSON has it, with a form for infinity and NaN, which JSON does not have.

    Examples
    --------
    >>> canonical_number(2.5), canonical_number(float("-inf"))
    (2.5, {'float': '-inf'})
    """
    return value if math.isfinite(value) else {"float": str(float(value))}


def digest_array(array: np.ndarray) -> str:
    """Digest of an array of numbers: its type, shape and values, whatever its memory layout."""
    if array.dtype.hasobject:
        raise TypeError(f"cannot digest an array of objects (shape {array.shape})")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    state.update(f"{little.dtype.str}{array.shape}".encode("ascii"))
    state.update(little.reshape(-1).view(np.uint8).data)
    return _text(state)


def insert_checksum(data: bytes) -> bytes:
    """Write the digest of a file into the file itself, so that any changed bit can be found.

    It takes the place of the zeros of `EMPTY_CHECKSUM`, in ``"check": "blake2b:000…"``.

    Examples
    --------
    >>> document = json.dumps({"rows": 3, "check": EMPTY_CHECKSUM}).encode()
    >>> checksum_matches(insert_checksum(document))
    True
    >>> checksum_matches(insert_checksum(document).replace(b"3", b"2", 1))
    False
    """
    start, stop = _checksum_span(data)
    return data[:start] + digest_bytes(data).encode("ascii") + data[stop:]


def checksum_matches(data: bytes) -> bool:
    """Whether a file holds its own digest, as `insert_checksum` writes it."""
    try:
        start, stop = _checksum_span(data)
    except ValueError:
        return False
    return insert_checksum(data[:start] + EMPTY_CHECKSUM.encode("ascii") + data[stop:]) == data


def _checksum_span(data: bytes) -> tuple[int, int]:
    """Return where the last checksum in a file starts and stops."""
    found = list(_CHECKSUM.finditer(data))
    if not found:
        raise ValueError("no checksum")
    return found[-1].span(1)


def digest_set(digests: Iterable[str]) -> str:
    """Digest of a *set* of digests: neither order nor repetition matters."""
    ordered = list(digests)
    if any(first >= second for first, second in pairwise(ordered)):  # Seldom: it takes long.
        ordered = sorted(set(ordered))
    return digest_bytes("".join(f"{each}\n" for each in ordered).encode("ascii"))


def is_digest(text: Any) -> bool:
    """Whether a value that was read has the form of a digest, so that a path may carry it."""
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None


def short(digest: str) -> str:
    """Return the first 12 hex digits of a digest, as paths carry them."""
    return digest.partition(":")[2][:SHORT]


def row_id(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, as ``sample`` arrays hold them."""
    return bytes.fromhex(digest.partition(":")[2][: 2 * ROW_BYTES])


def row_ids(digests: Iterable[str]) -> np.ndarray:
    """Return the row ids of many digests, uint8 (digest, byte=16)."""
    start = len(ALGORITHM) + 1
    joined = bytes.fromhex("".join(each[start : start + 2 * ROW_BYTES] for each in digests))
    return np.frombuffer(joined, np.uint8).reshape(-1, ROW_BYTES)


def unit_interval(digest: str, seed: int) -> float:
    """Map a digest and a seed to a number in [0, 1), uniform over digests.

    Splits are drawn from it, so that a sample keeps its split whatever else is added.
    """
    state = hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8)
    return int.from_bytes(state.digest(), "big") / 2.0**64
