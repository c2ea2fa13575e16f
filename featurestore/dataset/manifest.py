"""The Parquet form of a data set: a table that any Parquet reader opens.

One row per sample, in content order, with the columns ``digest``, ``path``, ``label``, ``split``
and ``group``; the rest is JSON in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from featurestore.dataset.labels import Label
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Samples
from featurestore.dataset.source import native, portable
from featurestore.dataset.splits import SPLITS
from featurestore.digests import EMPTY_CHECKSUM, checksum_matches, insert_checksum, is_digest
from featurestore.errors import DamagedError, one_line, refuse_newer

FORMAT = 1
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")


class Header(BaseModel):
    """What a manifest holds beside its rows.

    Attributes
    ----------
    name, source, options, digest, manifest_digest
        See :class:`Dataset`.
    problems : list of Problem
    added : str, optional
        When it became the current state in a store, ISO 8601.
    """

    name: Annotated[str, AfterValidator(checked_name)]
    source: str | None
    options: dict[str, str | int | float]
    digest: str
    manifest_digest: str
    problems: list[Problem]
    added: str | None = None


def write(samples: Samples, header: Header) -> bytes:
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
    fields = {"format": FORMAT, **header.model_dump(), "check": EMPTY_CHECKSUM}
    types = {name: pa.string() for name in _COLUMNS} | {"label": _type(samples.labels)}
    schema = pa.schema(types, {_KEY: json.dumps(fields).encode()})
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return insert_checksum(buffer.getvalue().to_pybytes())


def read(data: bytes) -> tuple[Samples, Header]:
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
        fields = json.loads((table.schema.metadata or {})[_KEY])
        refuse_newer(fields["format"], FORMAT, "a data set manifest")
        header = Header.model_validate(fields)
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
    return Samples(digests, paths, labels, splits, groups, header.problems), header


def _damaged(reason: str) -> DamagedError:
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")


def _type(labels: list[Label]) -> Any:
    import pyarrow as pa

    if any(isinstance(each, float) for each in labels):
        return pa.float64()
    return pa.int64() if any(isinstance(each, int) for each in labels) else pa.string()
