"""The Parquet form of a data set: a table that any Parquet reader opens.

One row per sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split``
and ``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel

from featurestore.dataset.labels import Label
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.rows import Rows
from featurestore.dataset.source import native, portable
from featurestore.dataset.splits import SPLITS
from featurestore.digests import EMPTY_CHECKSUM, checksum_matches, insert_checksum, is_digest
from featurestore.errors import DamagedError, StoreFormatError, one_line

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset

FORMAT = 1
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")


class Header(BaseModel):
    """What a manifest holds beside its rows."""

    name: Annotated[str, AfterValidator(checked_name)]
    source: str | None
    options: dict[str, str | int | float]
    problems: list[Problem]
    added: str | None = None


def write(dataset: Dataset, added: str | None = None) -> bytes:
    """Write a data set as a manifest; ``added`` is the time when it became current."""
    import pyarrow as pa
    from pyarrow import parquet

    labels = dataset.plain_labels()
    columns = {
        "digest": dataset.sample_digests,
        "path": [portable(each) for each in dataset.paths],
        "label": labels,
        "split": dataset.splits.tolist(),
        "group": dataset.plain_groups(),
    }
    header = {
        "format": FORMAT,
        "name": dataset.name,
        "source": dataset.source,
        "options": dataset.options,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "problems": [asdict(each) for each in dataset.problems],
        "added": added,
        "check": EMPTY_CHECKSUM,
    }
    types = {name: pa.string() for name in _COLUMNS} | {"label": _type(labels)}
    schema = pa.schema(types, {_KEY: json.dumps(header).encode()})
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return insert_checksum(buffer.getvalue().to_pybytes())


def read(data: bytes) -> tuple[Rows, Header]:
    """Read the rows and the header that :func:`write` wrote.

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
        header = json.loads((table.schema.metadata or {})[_KEY])
        if header["format"] > FORMAT:
            raise StoreFormatError(
                f"a data set manifest of format {header['format']}, this featurestore reads up to "
                f"{FORMAT}: install a newer featurestore"
            )
        checked = Header.model_validate(header)
        types = {str(table[name].type) for name in _COLUMNS if name != "label"}
        digests, paths, labels, splits, groups = (table[name].to_pylist() for name in _COLUMNS)
        sound = (
            types == {"string"}
            and str(table["label"].type) in ("string", "int64", "double")
            and all(map(is_digest, digests))
            and digests == sorted(set(digests))
            and set(splits) <= set(SPLITS)
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(one_line(error)) from error
    if not sound:
        raise _damaged("its rows are not those of a data set in content order")
    sources = [path and native(path) for path in paths]
    return Rows(digests, sources, labels, splits, groups, checked.problems), checked


def _damaged(reason: str) -> DamagedError:
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
