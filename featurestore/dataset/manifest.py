"""The Parquet form of a data set: a table that any Parquet reader opens.

One row for each listed image, in the order of the list, with the columns ``digest``, ``path``,
``label``, ``split`` and ``group`` and the list's other columns. Identical images have the same
digest, label, split and group; an image that could not be read has none of these. The rest is JSON
in the file's metadata, under the key ``featurestore``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter

from featurestore.dataset.labels import Labels
from featurestore.dataset.naming import checked_name
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Listing, Samples
from featurestore.dataset.source import native
from featurestore.dataset.splits import SPLITS
from featurestore.digests import (
    EMPTY_CHECKSUM,
    Digest,
    checksum_matches,
    digest_columns,
    distinct,
    insert_checksum,
    unpacked,
)
from featurestore.errors import DamagedError, StoreFormatError, one_line, refuse_newer

FORMAT = 3
_KEY = b"featurestore"
_COLUMNS = ("digest", "path", "label", "split", "group")
_PROBLEMS = TypeAdapter(list[Problem])
_PART = 65536
# The value of each hexadecimal digit; 255 for what is none.
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[list(b"0123456789abcdef")] = np.arange(16)


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


def digest(samples: Samples) -> str:
    """Digest of samples, labels, splits and groups; paths do not matter."""
    names, groups = np.array(SPLITS, object), samples.groups
    if groups is None:
        groups = np.broadcast_to(np.array(None), len(samples.digests))
    columns: dict[str, Callable[[slice], list[Any]]] = {
        "samples": lambda rows: list(unpacked(samples.digests[rows])),
        "labels": lambda rows: samples.labels.values(rows).tolist(),
        "splits": lambda rows: names[samples.splits[rows]].tolist(),
        "groups": lambda rows: groups[rows].tolist(),
    }
    return digest_columns(columns, len(samples.digests))


def write(samples: Samples, entry: DatasetEntry) -> bytes:
    """Write what was listed, and what is known beside it, as a manifest."""
    import pyarrow as pa
    from pyarrow import parquet

    listing = samples.listing
    rows = np.where(listing.rows < 0, len(samples.digests), listing.rows)  # the last is null
    groups = pa.nulls(len(rows), pa.string())
    if samples.groups is not None:
        groups = pa.array(np.array([*samples.groups, None], object)[rows], pa.string())
    columns = {
        "digest": pa.chunked_array(list(_texts(samples.digests, listing.rows)), pa.string()),
        "path": pa.nulls(len(rows), pa.string()) if listing.paths is None else listing.paths,
        "label": _label_column(samples.labels, rows),
        "split": _decoded(np.append(samples.splits, -1)[rows], pa.array(SPLITS)),
        "group": groups,
    }
    fields = {
        "format": FORMAT,
        **entry.model_dump(),
        "problems": [asdict(each) for each in samples.problems],
        "check": EMPTY_CHECKSUM,
    }
    table = pa.table(columns | listing.columns)
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
        file = parquet.ParquetFile(pa.BufferReader(data))
        fields = json.loads((file.schema_arrow.metadata or {})[_KEY])
        _check_format(fields.pop("format"))
        problems = _PROBLEMS.validate_python(fields.pop("problems"))
        del fields["check"]
        entry = DatasetEntry.model_validate(fields)
        types = {str(file.schema_arrow.field(name).type) for name in _COLUMNS if name != "label"}
        label = str(file.schema_arrow.field("label").type)
        if types != {"string"} or label not in ("string", "int64", "double"):
            raise _damaged("its columns are of other types")
        samples = _samples(file, problems)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(one_line(error)) from error
    if len(samples.digests) != entry.rows:
        raise _damaged(f"it has {len(samples.digests)} samples, expected {entry.rows}")
    return samples, entry


def _samples(file: Any, problems: list[Problem]) -> Samples:
    """Return the samples that the rows of a manifest list."""
    # A part at a time: the text of a digest takes more than twice the memory of its bytes.
    texts = [_packed(batch.column(0)) for batch in file.iter_batches(columns=["digest"])]
    digests, null = map(np.concatenate, zip(*texts, strict=True))
    places = np.flatnonzero(~null)
    digests, first, row_of = distinct(digests[places])
    rows, first = np.full(len(null), -1), places[first]
    rows[places] = row_of
    table = file.read([each for each in file.schema_arrow.names if each != "digest"])
    table.validate(full=True)
    for at in places[first[row_of] != places].tolist():  # seldom
        one = first[rows[at]]
        if any(table[name][at] != table[name][int(one)] for name in ("label", "split", "group")):
            raise _damaged("its rows contradict each other")
        path, other = (table["path"][int(each)].as_py() for each in (at, one))
        if path is not None and native(path) < native(other):
            first[rows[at]] = at
    codes, names = _encoded(table["split"])
    known = [SPLITS.index(each) for each in names]
    if (codes[first] < 0).any():
        raise _damaged("its rows are not those of a data set")
    groups = None
    if not table["group"].take(first).null_count:
        of_group, texts = _encoded(table["group"])
        groups = np.array(texts, object)[of_group[first]]
    paths = None if table["path"].null_count == len(rows) else table["path"]
    others = {name: table[name] for name in table.column_names if name not in _COLUMNS}
    return Samples(
        digests,
        first,
        _read_labels(table["label"]).of_rows(first),
        np.array(known, np.int8)[codes[first]],
        groups,
        Listing(rows, paths, others),
        problems,
    )


def _packed(texts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of digests, uint8 (digest, byte), and which are null, bool (digest,)."""
    import pyarrow as pa

    texts.validate(full=True)
    filled = texts.fill_null(EMPTY_CHECKSUM)
    width = len(EMPTY_CHECKSUM)
    written = filled.cast(pa.binary()).cast(pa.binary(width))  # of this length, or an error
    chars = np.frombuffer(written.buffers()[1], np.uint8)[width * written.offset :]
    chars = chars[: width * len(written)].reshape(-1, width)
    start = EMPTY_CHECKSUM.index(":") + 1
    digits = _DIGITS[chars[:, start:]]
    if (chars[:, :start] != list(EMPTY_CHECKSUM[:start].encode())).any() or (digits > 15).any():
        raise _damaged("its rows are not those of a data set")
    return digits[:, ::2] << 4 | digits[:, 1::2], texts.is_null().to_numpy(zero_copy_only=False)


def _encoded(column: Any) -> tuple[np.ndarray, list[Any]]:
    """Return which of its distinct values each value of a column is, -1 for null, and these."""
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


def _label_column(labels: Labels, rows: np.ndarray) -> Any:
    import pyarrow as pa

    if labels.task == "regression":
        return pa.array(np.append(labels.targets, np.nan)[rows], from_pandas=True)
    kind = pa.int64() if any(isinstance(each, int) for each in labels.classes) else pa.string()
    return _decoded(np.append(labels.targets, -1)[rows], pa.array(labels.classes, kind))


def _decoded(codes: np.ndarray, names: Any) -> Any:
    import pyarrow as pa

    return names.take(pa.array(codes, mask=codes < 0))


def _texts(digests: np.ndarray, rows: np.ndarray) -> Iterator[Any]:
    """Yield the digests of listed images as columns, a part at a time."""
    import pyarrow as pa

    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        yield pa.array(list(unpacked(digests[part])), pa.string(), mask=part < 0)


def _check_format(found: int) -> None:
    refuse_newer(found, FORMAT, "a data set manifest")
    if found < FORMAT:
        raise StoreFormatError(
            f"a data set manifest has format {found}, expected {FORMAT}, which names its "
            "training samples; scan the data set again"
        )


def _damaged(reason: str) -> DamagedError:
    return DamagedError(f"the data set manifest is damaged: {reason}; scan the data set again")
