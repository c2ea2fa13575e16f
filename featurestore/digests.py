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
from collections.abc import Iterable, Iterator, Mapping
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


def digest_text(raw: bytes) -> str:
    """Return the text of the 32 bytes of a digest."""
    return f"{ALGORITHM}:{raw.hex()}"


def digest_bytes(data: bytes | memoryview) -> str:
    """Digest of raw bytes.

    Examples
    --------
    >>> digest_bytes(b"")[:20]
    'blake2b:0e5751c026e5'
    """
    return digest_text(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest())


def digest_fields(fields: Mapping[str, Any]) -> str:
    """Digest of named values in canonical JSON: keys sorted, no white space, finite numbers only.

    TypeError or ValueError if a value has no canonical form (an object, NaN): hashing its ``repr``
    would give an identity that differs between processes.
    """
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest_bytes(text.encode("ascii"))


def finite_json(value: Any) -> Any:
    """Return JSON values with None in place of NaN and infinity, which JSON cannot represent.

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
    """Return a finite number as it is, infinity and NaN as text in a dict.

    Examples
    --------
    >>> canonical_number(2.5), canonical_number(float("-inf"))
    (2.5, {'float': '-inf'})
    """
    return value if math.isfinite(value) else {"float": str(float(value))}


def digest_array(array: np.ndarray) -> str:
    """Digest of an array of numbers: its type, shape and values, not its memory layout."""
    if array.dtype.hasobject:
        raise TypeError(f"cannot digest an array of objects (shape {array.shape})")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    state.update(f"{little.dtype.str}{array.shape}".encode("ascii"))
    state.update(little.reshape(-1).view(np.uint8).data)
    return digest_text(state.digest())


def insert_checksum(data: bytes) -> bytes:
    """Write the digest of a file into the file itself, to detect any changed bit.

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
    return b"".join((data[:start], _checksum(data, start, stop), data[stop:]))


def checksum_matches(data: bytes) -> bool:
    """Return True if a file contains its own digest, as `insert_checksum` writes it."""
    try:
        start, stop = _checksum_span(data)
    except ValueError:
        return False
    return data[start:stop] == _checksum(data, start, stop)


def _checksum(data: bytes, start: int, stop: int) -> bytes:
    """Return the digest of a file, with zeros in the span of its checksum."""
    view, state = memoryview(data), hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in (view[:start], EMPTY_CHECKSUM.encode("ascii"), view[stop:]):
        state.update(part)
    return digest_text(state.digest()).encode("ascii")


def _checksum_span(data: bytes) -> tuple[int, int]:
    """Return where the last checksum in a file starts and stops."""
    start = len(data)
    while (start := data.rfind(b'"check":', 0, start)) >= 0:
        if checksum := _CHECKSUM.match(data, start):
            return checksum.span(1)
    raise ValueError("no checksum")


def packed(digests: Iterable[str]) -> np.ndarray:
    """Return the bytes of digests, uint8 (digest, byte=32)."""
    digits = "".join(digest[len(ALGORITHM) + 1 :] for digest in digests)
    return np.frombuffer(bytearray.fromhex(digits), np.uint8).reshape(-1, DIGEST_BYTES)


def unpacked(digests: np.ndarray) -> Iterator[str]:
    """Yield packed digests as text."""
    digits = digests.tobytes().hex()
    for start in range(0, len(digits), 2 * DIGEST_BYTES):
        yield f"{ALGORITHM}:{digits[start : start + 2 * DIGEST_BYTES]}"


def distinct(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return packed digests in ascending order without repetition.

    Returns
    -------
    digests : numpy.ndarray of uint8, (distinct, byte)
    first : numpy.ndarray of int64, (distinct,)
        The position at which each first occurs.
    rows : numpy.ndarray of int64, (digest,)
        The position among the distinct ones of each digest.
    """
    values, first, rows = np.unique(sortable(digests), return_index=True, return_inverse=True)
    return values.view(np.uint8).reshape(-1, digests.shape[1]), first, rows


def sortable(digests: np.ndarray) -> np.ndarray:
    """View the bytes of digests, (digest, byte), as values that compare as they do: (digest,)."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").reshape(-1)


def digest_set(digests: np.ndarray) -> str:
    """Digest of a set of packed digests, which must be ascending and distinct.

    It is the digest of their texts, one a line.
    """
    return digest_bytes("".join(f"{digest}\n" for digest in unpacked(digests)).encode("ascii"))


def is_digest(text: Any) -> bool:
    """Return True if a value that was read has the form of a digest."""
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None


def short(digest: str) -> str:
    """Return the first 12 hex digits of a digest, as paths carry them."""
    return digest.partition(":")[2][:SHORT]


def row_id(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, as ``sample`` arrays hold them."""
    return bytes.fromhex(digest.partition(":")[2][: 2 * ROW_BYTES])


def unit_interval(digest: str, seed: int) -> float:
    """Map a digest and a seed to a number in [0, 1), uniform over digests.

    It decides the split of a sample, which stays when other samples are added.
    """
    state = hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8)
    return int.from_bytes(state.digest(), "big") / 2.0**64
