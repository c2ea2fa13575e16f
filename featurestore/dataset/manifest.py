"""The Parquet form of a data set: a table that any Parquet reader opens.

One row for each listed image, in the order of the list, with the columns ``digest``, ``path``,
``label``, ``split`` and ``group`` and the list's other columns. Identical images have the same
digest, label, split and group; an image that could not be read has none of these. The rest is JSON
in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter

from featurestore.dataset.labels import Labels
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Listing, Samples
from featurestore.dataset.splits import SPLITS
from featurestore.digests import (
    EMPTY_CHECKSUM,
    Digest,
    checksum_matches,
    digest_fields,
    digest_set,
    distinct,
    insert_checksum,
    packed,
    unpacked,
)
from featurestore.errors import DamagedError, StoreFormatError, one_line, refuse_newer

FORMAT = 4
# Rows of a row group, which bounds the memory that writing takes.
PART = 65536
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")
_PROBLEMS = TypeAdapter(list[Problem])


class DatasetEntry(BaseModel):
    """One state of a data set, without its rows.

    Parameters
    ----------
    name : str
    source : str or None
        Folder, table or URI that was scanned; None for arrays.
    rows : int
        Samples.
    digest : str
        Digest of the set of samples.
    manifest_digest : str
        Digest of samples, labels, splits and groups.
    added : str
        When it became the current state in a store, ISO 8601 in UTC; empty if it never did.
    options : dict
        How it was scanned or augmented: `Dataset.options`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(checked_name)]
    source: str | None
    rows: int
    digest: Digest
    manifest_digest: Digest
    added: str
    options: dict[str, str | int | float]


def digest(samples: Samples) -> str:
    """Digest of samples, labels, splits and groups; paths do not matter."""
    groups = samples.groups
    return digest_fields(
        {
            "samples": list(unpacked(samples.digests)),
            "labels": samples.labels.values().tolist(),
            "splits": np.array(SPLITS, object)[samples.splits].tolist(),
            "groups": [None] * len(samples.digests) if groups is None else list(groups),
        }
    )


def write(samples: Samples, entry: DatasetEntry) -> bytes:
    """Write the listed images, and the entry, as a manifest."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = {
        "format": FORMAT,
        **entry.model_dump(),
        "problems": [asdict(problem) for problem in samples.problems],
        "check": EMPTY_CHECKSUM,
    }
    schema = _table(samples, slice(0, 1)).schema.with_metadata({_KEY: json.dumps(fields).encode()})
    buffer = pa.BufferOutputStream()
    with parquet.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for start in range(0, len(samples.listing.rows), PART):
            part = _table(samples, slice(start, start + PART))
            writer.write_table(part.cast(schema).combine_chunks())
    return insert_checksum(buffer.getvalue().to_pybytes())


def _table(samples: Samples, part: slice) -> Any:
    """Return some of the listed images as a table."""
    import pyarrow as pa

    listing, rows = samples.listing, samples.listing.rows[part]
    null = rows < 0
    groups = None if samples.groups is None else samples.groups[rows]
    labels = Labels(samples.labels.classes, samples.labels.targets[rows]).values()
    columns = {
        "digest": pa.array(list(unpacked(samples.digests[rows])), pa.string(), mask=null),
        "path": pa.nulls(len(rows), pa.string()) if listing.paths is None else listing.paths[part],
        "label": pa.array(labels, _type(samples.labels), mask=null),
        "split": pa.array(np.array(SPLITS, object)[samples.splits[rows]], pa.string(), mask=null),
        "group": pa.nulls(len(rows), pa.string())
        if groups is None
        else pa.array(groups, pa.string(), mask=null),
    }
    return pa.table(columns | {name: column[part] for name, column in listing.columns.items()})


def _type(labels: Labels) -> Any:
    import pyarrow as pa

    if labels.task == "regression":
        return pa.float64()
    return pa.int64() if any(isinstance(name, int) for name in labels.classes) else pa.string()


def read(data: bytes) -> tuple[Samples, DatasetEntry]:
    """Read what :func:`write` wrote.

    Raises
    ------
    DamagedError
        If the bytes fail their checksum or are not a manifest.
    StoreFormatError
        If they are of another format.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not checksum_matches(data):
        raise _damaged("its bytes do not have the digest written in them")
    try:
        table = parquet.read_table(pa.BufferReader(data))
        fields = json.loads((table.schema.metadata or {})[_KEY])
        _check_format(fields.pop("format"))
        problems = _PROBLEMS.validate_python(fields.pop("problems"))
        del fields["check"]
        entry = DatasetEntry.model_validate(fields)
        table.validate(full=True)
        samples = _samples(table, problems)
        actual = len(samples.digests), digest_set(samples.digests), digest(samples)
    except (pa.ArrowException, LookupError, OSError, TypeError, ValueError) as error:
        raise _damaged(one_line(error)) from error
    if actual != (entry.rows, entry.digest, entry.manifest_digest):
        raise _damaged("its rows are not those that it was written with")
    return samples, entry


def _samples(table: Any, problems: list[Problem]) -> Samples:
    """Return the samples that the rows of a manifest list."""
    listed = table["digest"]
    # Chunk by chunk: the text of a digest takes several times the memory of its bytes.
    digests = [packed(chunk.drop_null().to_pylist()) for chunk in listed.chunks]
    places = np.flatnonzero(listed.is_valid())
    ordered, first, row_of = distinct(np.concatenate(digests))
    rows, first = np.full(len(table), -1), places[first]
    rows[places] = row_of
    paths, labels = table["path"], _read_labels(table["label"])
    if str(paths.type) != "string" or paths.take(places).null_count not in (0, len(places)):
        raise ValueError("its paths are not those of a data set")
    splits, split_names = _encoded(table["split"])
    groups, group_names = _encoded(table["group"])
    others = {name: table[name] for name in table.column_names if name not in _COLUMNS}
    return Samples(
        ordered,
        first,
        labels.of_rows(first),
        np.array([SPLITS.index(name) for name in split_names], np.int8)[splits[first]],
        np.array(group_names, object)[groups[first]] if group_names else None,
        Listing(rows, None if paths.null_count == len(rows) else paths, others),
        problems,
    )


def _encoded(column: Any) -> tuple[np.ndarray, list[Any]]:
    """Return the codes of the values of a column, -1 for null, and the values that they number."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.to_pylist()


def _read_labels(column: Any) -> Labels:
    if str(column.type) == "double":
        return Labels((), column.to_numpy())
    codes, names = _encoded(column)
    classes = tuple(sorted(names))
    place = {name: code for code, name in enumerate(classes)}
    return Labels(classes, np.array([*map(place.get, names), -1], np.int32)[codes])


def _check_format(version: int) -> None:
    refuse_newer(version, FORMAT, "a data set manifest")
    if version < FORMAT:
        raise StoreFormatError(
            f"a data set manifest has format {version}", str(FORMAT), "scan the data set again"
        )


def _damaged(reason: str) -> DamagedError:
    return DamagedError(
        f"the data set manifest is damaged: {reason}", remedy="scan the data set again"
    )
