"""The Parquet form of a data set: a table that any Parquet reader opens.

One row a sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split`` and
``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featurestore.dataset.labels import Label
from featurestore.dataset.source import native, portable
from featurestore.digests import UNSEALED, digest_fields, is_sealed, seal
from featurestore.errors import DamagedError, StoreFormatError

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset

FORMAT = 1
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")


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
    text = json.dumps({**kept, "check": UNSEALED})
    schema = pa.schema([pa.field(name, types[name]) for name in _COLUMNS], {_KEY: text.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return seal(buffer.getvalue().to_pybytes())


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

    if not is_sealed(data):
        raise damaged("its bytes do not have the digest written in them")
    limit = 2**31 - 1
    try:
        table = pq.read_table(
            pa.BufferReader(data),
            thrift_string_size_limit=limit,
            thrift_container_size_limit=limit,
        )
        text = (table.schema.metadata or {}).get(_KEY)
        if text is None:
            raise StoreFormatError("a Parquet file that is no data set manifest of featurestore")
        fields = json.loads(text)
        if int(fields["format"]) > FORMAT:
            raise StoreFormatError(
                f"a data set manifest of format {fields['format']}, this featurestore reads up to "
                f"{FORMAT}: install a newer featurestore"
            )
        columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
        columns["path"] = [each and native(each) for each in columns["path"]]
    # a damaged file makes pyarrow raise about anything
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise damaged(" ".join(str(error).split())[:200]) from error
    return columns, {key: value for key, value in fields.items() if key != "check"}


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
