"""The only place where bytes become identities.

A digest is written with its algorithm, ``blake2b:`` and 64 hex digits (256 bits). Paths carry the
first 12 hex digits, attributes the whole. Nothing that depends on the machine, the process or
the clock may enter one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ALGORITHM = "blake2b"
DIGEST_BYTES = 32
ROW_BYTES = 16
SHORT = 12


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

    Parameters
    ----------
    fields : mapping of str to JSON values
        Strings, integers, finite floats, booleans, None, and lists and mappings of these.

    Raises
    ------
    TypeError, ValueError
        Where a value has no canonical form (an object, NaN): hashing its ``repr`` would give an
        identity that differs between processes.
    """
    canonical = json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return digest_bytes(canonical.encode("ascii"))


def digest_array(array: np.ndarray) -> str:
    """Digest of an array: its type, its shape and its values, whatever its memory layout.

    Parameters
    ----------
    array : numpy.ndarray of any shape
        Of a numeric or boolean type.
    """
    if array.dtype.hasobject:
        raise TypeError(f"cannot digest an array of objects (shape {array.shape})")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    state.update(f"{little.dtype.str}{array.shape}".encode("ascii"))
    state.update(little.reshape(-1).view(np.uint8).data)
    return _text(state)


def digest_set(digests: Iterable[str]) -> str:
    """Digest of a *set* of digests: neither order nor repetition matters."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for each in sorted(set(digests)):
        state.update(each.encode("ascii") + b"\n")
    return _text(state)


def short(digest: str) -> str:
    """Return the first 12 hex digits of a digest, as paths carry them."""
    return digest.partition(":")[2][:SHORT]


def row_id(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, as ``sample`` arrays hold them."""
    return bytes.fromhex(digest.partition(":")[2][: 2 * ROW_BYTES])


def unit_interval(digest: str, seed: int) -> float:
    """Map a digest and a seed to a number in [0, 1), uniform over digests.

    Splits are drawn from it, so that a sample keeps its split whatever else is added.
    """
    state = hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8)
    return int.from_bytes(state.digest(), "big") / 2.0**64
