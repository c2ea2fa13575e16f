"""The Parquet form of a data set: a table that any Parquet reader opens.

One row a sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split`` and
``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featurestore.dataset.labels import Label
from featurestore.dataset.source import absolute, portable
from featurestore.digests import digest_fields
from featurestore.errors import DamagedError, StoreFormatError

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset

FORMAT = 1
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")


def write(dataset: Dataset) -> bytes:
    """Write a data set as a manifest."""
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
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "problems": [asdict(each) for each in dataset.problems],
    }
    # the footer has no checksum of its own, as the pages do
    text = json.dumps({**kept, "check": digest_fields(kept)})
    schema = pa.schema([pa.field(name, types[name]) for name in _COLUMNS], {_KEY: text.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=schema), buffer, compression="zstd", write_page_checksum=True
    )
    return buffer.getvalue().to_pybytes()


def read(data: bytes) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises
    ------
    DamagedError
        Where the bytes are no Parquet file or fail a checksum.
    StoreFormatError
        Where they are another table, or a manifest of a newer format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = 2**31 - 1
    try:
        table = pq.read_table(
            pa.BufferReader(data),
            page_checksum_verification=True,
            thrift_string_size_limit=limit,
            thrift_container_size_limit=limit,
        )
        metadata = table.schema.metadata or {}
        text = metadata.get(_KEY)
        fields = None if text is None else json.loads(text)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"the data set manifest is damaged: {reason}; scan again") from error
    if fields is None:
        raise StoreFormatError("a Parquet file that is no data set manifest of featurestore")
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise DamagedError("the data set manifest is damaged: no format version; scan again")
    if fields["format"] > FORMAT:
        raise StoreFormatError(
            f"a data set manifest of format {fields['format']}, this featurestore reads up to "
            f"{FORMAT}: install a newer featurestore"
        )
    kept = {key: value for key, value in fields.items() if key != "check"}
    if fields.get("check") != digest_fields(kept) or tuple(table.column_names) != _COLUMNS:
        raise DamagedError("the data set manifest is damaged: its metadata fail their checksum")
    try:
        columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
    except (pa.ArrowException, ValueError) as error:
        raise DamagedError(f"the data set manifest is damaged: {error}; scan again") from error
    columns["path"] = [each and absolute(each) for each in columns["path"]]
    return columns, kept


def compare(dataset: Dataset, fields: dict[str, Any]) -> None:
    """Raise where a data set that was read does not have the digests that were written."""
    whole = (dataset.digest, dataset.manifest_digest)
    if whole != (fields["digest"], fields["manifest_digest"]):
        raise DamagedError("the data set manifest is damaged: its digests differ; scan again")


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
