"""The Parquet form of a data set: a table that any Parquet reader opens.

One row per sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split``
and ``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter

from featurestore.dataset.labels import Label
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Samples
from featurestore.dataset.source import native, portable
from featurestore.dataset.splits import SPLITS
from featurestore.digests import (
    EMPTY_CHECKSUM,
    Digest,
    checksum_matches,
    insert_checksum,
    is_digest,
)
from featurestore.errors import DamagedError, one_line, refuse_newer

FORMAT = 1
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
    manifest_digest: Digest
    added: str
    options: dict[str, bool | str | int | float]


def write(samples: Samples, entry: DatasetEntry) -> bytes:
    """Write the rows of a data set, and what is known beside them, as a manifest."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "digest": samples.digests,
        "path": [portable(each) for each in samples.paths],
        "label": samples.labels,
        "split": samples.splits,
        "group": samples.groups,
    }
    fields = {
        "format": FORMAT,
        **entry.model_dump(exclude={"rows"}),
        "problems": [asdict(each) for each in samples.problems],
        "check": EMPTY_CHECKSUM,
    }
    types = {name: pa.string() for name in _COLUMNS} | {"label": _type(samples.labels)}
    schema = pa.schema(types, {_KEY: json.dumps(fields).encode()})
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return insert_checksum(buffer.getvalue().to_pybytes())


def read(data: bytes) -> tuple[Samples, DatasetEntry]:
    """Read what :func:`write` wrote.

    Raises
    ------
    DamagedError
        If the bytes fail their checksum or are not a manifest.
    StoreFormatError
        If they are of a newer format.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not checksum_matches(data):
        raise _damaged("its bytes do not have the digest written in them")
    try:
        table = parquet.read_table(pa.BufferReader(data))
        table.validate(full=True)
        fields = json.loads((table.schema.metadata or {})[_KEY])
        refuse_newer(fields.pop("format"), FORMAT, "a data set manifest")
        problems = _PROBLEMS.validate_python(fields.pop("problems"))
        del fields["check"]
        entry = DatasetEntry.model_validate({**fields, "rows": len(table)})
        types = {str(table[name].type) for name in _COLUMNS if name != "label"}
        digests, paths, labels, splits, groups = (table[name].to_pylist() for name in _COLUMNS)
        sound = (
            types == {"string"}
            and str(table["label"].type) in ("string", "int64", "double")
            and all(map(is_digest, digests))
            and digests == sorted(set(digests))
            and set(splits) <= set(SPLITS)
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(one_line(error)) from error
    if not sound:
        raise _damaged("its rows are not those of a data set in content order")
    paths = [path and native(path) for path in paths]
    return Samples(digests, paths, labels, splits, groups, problems), entry


def _damaged(reason: str) -> DamagedError:
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
