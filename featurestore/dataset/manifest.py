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

from featurestore.dataset.labels import Label
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Listing, Samples
from featurestore.dataset.source import native, portable
from featurestore.dataset.splits import SPLITS
from featurestore.digests import (
    EMPTY_CHECKSUM,
    Digest,
    checksum_matches,
    insert_checksum,
    is_digest,
)
from featurestore.errors import DamagedError, StoreFormatError, one_line, refuse_newer

FORMAT = 3
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")
_PROBLEMS = TypeAdapter(list[Problem])


class DatasetEntry(BaseModel):
    """One state of a data set, known without its rows.

    Parameters
    ----------
    name : str
    source : str or None
        Folder, table or URI that was scanned; None for arrays.
    rows : int
        Samples.
    digest : str
        Digest of the set of samples.
    train_digest : str
        Digest of the set of training samples, which augmented views are stored over.
    manifest_digest : str
        Digest of samples, labels, splits and groups.
    added : str
        When it became the current state in a store, ISO 8601 in UTC; empty if it never did.
    options : dict
        How it was scanned: `Dataset.options`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(checked_name)]
    source: str | None
    rows: int
    digest: Digest
    train_digest: Digest
    manifest_digest: Digest
    added: str
    options: dict[str, bool | str | int | float]


def write(samples: Samples, entry: DatasetEntry) -> bytes:
    """Write what was listed, and what is known beside it, as a manifest."""
    import pyarrow as pa
    from pyarrow import parquet

    listing = samples.listing
    rows = pa.array([None if row < 0 else row for row in listing.rows], pa.int64())
    values = {
        "digest": samples.digests,
        "label": samples.labels,
        "split": samples.splits,
        "group": samples.groups,
    }
    types = {name: pa.string() for name in _COLUMNS} | {"label": _type(samples.labels)}
    columns = {name: pa.array(each, types[name]).take(rows) for name, each in values.items()}
    columns["path"] = pa.array([portable(each) for each in listing.paths], pa.string())
    fields = {
        "format": FORMAT,
        **entry.model_dump(),
        "problems": [asdict(each) for each in samples.problems],
        "check": EMPTY_CHECKSUM,
    }
    table = pa.table({name: columns[name] for name in _COLUMNS} | listing.columns)
    table = table.replace_schema_metadata({_KEY: json.dumps(fields).encode()})
    buffer = pa.BufferOutputStream()
    parquet.write_table(table.combine_chunks(), buffer, compression="zstd")
    return insert_checksum(buffer.getvalue().to_pybytes())


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
        table.validate(full=True)
        fields = json.loads((table.schema.metadata or {})[_KEY])
        _check_format(fields.pop("format"))
        problems = _PROBLEMS.validate_python(fields.pop("problems"))
        del fields["check"]
        entry = DatasetEntry.model_validate(fields)
        types = {str(table[name].type) for name in _COLUMNS if name != "label"}
        if types != {"string"} or str(table["label"].type) not in ("string", "int64", "double"):
            raise _damaged("its columns are of other types")
        samples = _samples(table, problems)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(one_line(error)) from error
    if len(samples.digests) != entry.rows:
        raise _damaged(f"it has {len(samples.digests)} samples, expected {entry.rows}")
    return samples, entry


def _samples(table: Any, problems: list[Problem]) -> Samples:
    """Return the samples that the rows of a manifest list."""
    import pyarrow.compute as pc

    encoded = table["digest"].combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    digests = encoded.dictionary.take(order).to_pylist()
    rows = np.append(np.argsort(order), -1)[codes]  # the -1 at the end is for null
    paths = [each and native(each) for each in table["path"].to_pylist()]
    read = np.flatnonzero(rows >= 0)
    first = _first(rows, read, paths, len(digests))
    same = [table[name].take(first[rows[read]]) for name in _COLUMNS[2:]]
    if [table[name].take(read) for name in _COLUMNS[2:]] != same:
        raise _damaged("its rows contradict each other")
    labels, splits, groups = (table[name].take(first).to_pylist() for name in _COLUMNS[2:])
    if not (all(map(is_digest, digests)) and set(splits) <= set(SPLITS)):
        raise _damaged("its rows are not those of a data set")
    others = {name: table[name] for name in table.column_names if name not in _COLUMNS}
    listing = Listing(rows.tolist(), paths, others)
    return Samples(digests, [paths[at] for at in first], labels, splits, groups, listing, problems)


def _first(rows: np.ndarray, read: np.ndarray, paths: list[Any], count: int) -> np.ndarray:
    """Return which listed image stands for each row, (row,): of several, that of the first path."""
    first = np.zeros(count, np.int64)
    first[rows[read][::-1]] = read[::-1]
    for at in read[first[rows[read]] != read].tolist():
        row = rows[at]
        if paths[at] is not None and paths[at] < paths[first[row]]:
            first[row] = at
    return first


def _check_format(found: int) -> None:
    refuse_newer(found, FORMAT, "a data set manifest")
    if found < FORMAT:
        raise StoreFormatError(
            f"a data set manifest has format {found}, expected {FORMAT}, which names its "
            "training samples; scan the data set again"
        )


def _damaged(reason: str) -> DamagedError:
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
