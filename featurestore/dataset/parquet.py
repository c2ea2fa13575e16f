"""Columns of a Parquet file from elsewhere, which can claim far more than it holds."""

from __future__ import annotations

from typing import Any

import numpy as np

# Runs and dictionaries make a billion equal rows of a few bytes.
MOST_ROWS = 2**24
MOST_BYTES = 2**31
MOST_ROW_BYTES = 256


class ParquetError(Exception):
    """A file whose columns cannot be had; the message is the reason, in one line."""


class ParquetColumns:
    """The columns of a Parquet file, read one by one.

    Parameters
    ----------
    data : bytes
        The whole file.
    most_rows : int
        Where it has more, it is not read.

    Raises
    ------
    ParquetError
        Where it is no Parquet file, or has too many rows.
    """

    def __init__(self, data: bytes, most_rows: int = MOST_ROWS) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        limit = 2**31 - 1
        sizes = {"thrift_string_size_limit": limit, "thrift_container_size_limit": limit}
        try:
            self.schema = pq.ParquetFile(pa.BufferReader(data), **sizes).schema_arrow
            # As a dictionary, a text that a million rows share is held once.
            texts = [each.name for each in self.schema if pa.types.is_string(each.type)]
            self._file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts, **sizes)
            self.rows = int(self._file.metadata.num_rows)
        except Exception as error:  # a damaged file makes pyarrow raise about anything
            raise ParquetError(_line(error)) from error
        if self.rows > most_rows:
            raise ParquetError(f"{self.rows:,} rows, more than {most_rows:,}")

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def read(self, at: int) -> list[Any]:
        """Return the values of a column, given its place.

        Raises
        ------
        ParquetError
            Where it is damaged, of lists or the like, or larger than :data:`MOST_BYTES` and
            :data:`MOST_ROW_BYTES` a row.
        """
        field = self.schema.field(at)
        if not _is_plain(field.type):
            raise ParquetError(f"column {field.name!r} is of type {field.type}, no text or numbers")
        found: list[Any] = []
        size, most = 0, max(MOST_BYTES, MOST_ROW_BYTES * self.rows)
        try:
            for group in range(self._file.num_row_groups):
                table = self._file.read_row_group(group, columns=[field.name])
                for chunk in table[field.name].chunks:
                    size += _size(chunk)
                    if size > most:
                        raise ParquetError(f"column {field.name!r} holds over {most:,} bytes")
                    found += _values(chunk)
        except ParquetError:
            raise
        except Exception as error:  # a damaged file makes pyarrow raise about anything
            raise ParquetError(_line(error)) from error
        if len(found) != self.rows:
            raise ParquetError(f"column {field.name!r} has {len(found)} of {self.rows} values")
        return found


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return _is_text(kind) or any(test(kind) for test in numbers)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _size(chunk: Any) -> int:
    """Bytes of a chunk's values, a shared text counted as often as it is shared."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(chunk, pa.DictionaryArray) or not _is_text(chunk.type.value_type):
        return int(chunk.nbytes)
    lengths = pc.binary_length(chunk.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    places = chunk.indices.drop_null().to_numpy(zero_copy_only=False)
    return int(chunk.nbytes) + int(lengths[places].sum(dtype=np.int64))


def _values(chunk: Any) -> list[Any]:
    import pyarrow as pa

    if not isinstance(chunk, pa.DictionaryArray):
        values: list[Any] = chunk.to_pylist()
        return values
    words = chunk.dictionary.to_pylist()
    return [None if place is None else words[place] for place in chunk.indices.to_pylist()]


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
