"""The Parquet form of a data set: a table that any Parquet reader opens.

One row a sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split`` and
``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featurestore.dataset.labels import Label
from featurestore.dataset.options import is_name
from featurestore.dataset.parquet import ParquetColumns, ParquetError
from featurestore.dataset.source import native, portable
from featurestore.dataset.split import SPLITS
from featurestore.digests import (
    EMPTY_CHECKSUM,
    checksum_matches,
    digest_fields,
    insert_checksum,
    is_digest,
)
from featurestore.errors import DamagedError, StoreFormatError

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset

FORMAT = 1
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")
_LABELS = ("string", "int64", "double")
# A digest cannot be compressed below its 32 bytes: more rows are not in a file, whatever it claims.
_LEAST_ROW_BYTES = 32
_MOST_TEXT = 2**28


def write(dataset: Dataset, added: str | None = None) -> bytes:
    """Write a data set as a manifest; ``added`` tells when it became current."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = dataset.plain_labels()
    columns = {
        "digest": dataset.sample_digests,
        "path": [portable(each) for each in dataset.paths],
        "label": labels,
        "split": dataset.splits.tolist(),
        "group": dataset.plain_groups(),
    }
    types = {name: pa.string() for name in _COLUMNS} | {"label": _type(labels)}
    kept = {
        "format": FORMAT,
        "name": dataset.name,
        "source": dataset.source,
        "options": dataset.options,
        **_digests(dataset),
        "problems": [asdict(each) for each in dataset.problems],
        "added": added,
    }
    text = json.dumps({**kept, "check": EMPTY_CHECKSUM})
    schema = pa.schema([pa.field(name, types[name]) for name in _COLUMNS], {_KEY: text.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return insert_checksum(buffer.getvalue().to_pybytes())


def read(data: bytes) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises
    ------
    DamagedError
        Where the bytes are no Parquet file or fail a checksum.
    StoreFormatError
        Where they are another table, or a manifest of a newer format.
    """
    if not checksum_matches(data):
        raise damaged("its bytes do not have the digest written in them")
    try:
        file = ParquetColumns(data, most_rows=len(data) // _LEAST_ROW_BYTES)
        fields = _fields((file.schema.metadata or {}).get(_KEY))
        kinds = {each.name: str(each.type) for each in file.schema}
        text = all(kinds.get(name) == "string" for name in _COLUMNS if name != "label")
        if list(kinds) != list(_COLUMNS) or not text or kinds["label"] not in _LABELS:
            raise damaged(f"its columns are {', '.join(map(str, kinds.items()))[:200]}")
        columns = {name: file.read(at) for at, name in enumerate(file.names)}
    except ParquetError as error:
        raise damaged(str(error)) from error
    fault = _fault(columns, fields)
    if fault:
        raise damaged(fault)
    columns["path"] = [each and native(each) for each in columns["path"]]
    return columns, {key: value for key, value in fields.items() if key != "check"}


def _fields(text: bytes | None) -> dict[str, Any]:
    """Read what stands beside the rows, of this format or an older one."""
    if text is None:
        raise StoreFormatError("a Parquet file that is no data set manifest of featurestore")
    if len(text) > _MOST_TEXT:
        raise damaged(f"{len(text):,} bytes beside its rows, more than {_MOST_TEXT:,}")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(f"what stands beside its rows is no JSON: {error}") from error
    found = fields.get("format") if isinstance(fields, dict) else None
    if not isinstance(found, int):
        raise damaged("what stands beside its rows names no format")
    if found > FORMAT:
        raise StoreFormatError(
            f"a data set manifest of format {found}, this featurestore reads up to {FORMAT}: "
            "install a newer featurestore"
        )
    return fields


def _fault(columns: dict[str, list[Any]], fields: dict[str, Any]) -> str | None:
    """Find what is not of its kind: whoever wrote a seal may have written anything beneath it."""
    digests = columns["digest"]
    if not all(is_digest(each) for each in digests):
        return "a row has no digest"
    if any(later <= sooner for sooner, later in pairwise(digests)):
        return "its rows are not in content order"
    if not set(columns["split"]) <= set(SPLITS):
        return "a row is in no split"
    options, problems = fields.get("options"), fields.get("problems")
    sound = (
        is_name(fields.get("name"))
        and isinstance(fields.get("source"), str | None)
        and isinstance(fields.get("added"), str | None)
        and isinstance(options, dict)
        and all(isinstance(each, str | int | float) for each in options.values())
        and isinstance(problems, list)
        and all(_is_problem(each) for each in problems)
    )
    return None if sound else "what stands beside its rows is not of its kind"


def _is_problem(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {"kind", "path", "reason"}
        and all(isinstance(each, str) for each in found.values())
    )


def compare(dataset: Dataset, fields: dict[str, Any]) -> None:
    """Raise where a data set that was read does not have the digests that were written."""
    if any(fields[name] != digest for name, digest in _digests(dataset).items()):
        raise damaged("its rows do not have the digests written beside them")


def damaged(reason: str) -> DamagedError:
    """Return the error for a manifest that cannot be trusted."""
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")


def _digests(dataset: Dataset) -> dict[str, str]:
    return {
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "paths_digest": digest_fields({"paths": dataset.paths}),
    }


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
