"""One feature group: the rows of one layer over one data set, block by block."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from featurestore.digests import ROW_BYTES
from featurestore.errors import (
    DamagedError,
    IncompleteFeaturesError,
    StoreFormatError,
    refuse_newer,
)
from featurestore.settings import first_mistake
from featurestore.store.blocks import METADATA, BlockArray, dimension_names
from featurestore.store.key import FeatureKey
from featurestore.store.reading import read_rows

if TYPE_CHECKING:
    from featurestore.store.files import Files

FORMAT = 1
FORMAT_ATTRIBUTE = "featurestore_format"
FEATURES = "features"
SAMPLE = "sample"
# In the folder of the features: the metadata of float32 features, until they replace float16 ones.
REPLACEMENT = "replacement.json"
SAMPLE_ROWS = 65536
# More than any network and data set has, and few enough to list their blocks.
MOST_BLOCK_BYTES = 2**30
MOST_BYTES = 2**45


class _Layout(BaseModel):
    model_config = ConfigDict(strict=True)

    shape: list[PositiveInt] = Field(min_length=1)
    dtype: Literal["float16", "float32"]
    block_rows: PositiveInt

    @model_validator(mode="after")
    def _has_a_possible_size(self) -> _Layout:
        row_bytes = prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        if self.block_rows.bit_count() != 1:
            raise ValueError("block_rows is not a power of two")
        if self.block_rows * row_bytes > MOST_BLOCK_BYTES or self.shape[0] * row_bytes > MOST_BYTES:
            raise ValueError(f"more than {MOST_BLOCK_BYTES:,} bytes a block, or {MOST_BYTES:,}")
        return self


class _Attributes(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str
    layer: str
    prefix_digest: str
    dataset_digest: str
    features: _Layout
    provenance: dict[str, Any] = {}


def check_format(attributes: Mapping[str, Any], where: str) -> None:
    """Raise StoreFormatError unless this version of featurestore can read the format."""
    version = attributes.get(FORMAT_ATTRIBUTE)
    if not isinstance(version, int):
        raise StoreFormatError(
            f"{where} is a Zarr group but not a feature store: it has no attribute "
            f"`{FORMAT_ATTRIBUTE}`",
            remedy="give another folder",
        )
    refuse_newer(version, FORMAT, where)


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


@dataclass(frozen=True)
class FeatureGroup:
    """The features of one layer over one data set, opened.

    Row i is the row i of the data set in content order. Blocks are the unit of work: a block that
    exists is complete.

    Parameters
    ----------
    key : FeatureKey
    attrs : dict
        Attributes of the Zarr group: whole digests, layout, provenance, format version.
    features : BlockArray of shape (row, …)
    sample : BlockArray of shape (row, 16)
    """

    key: FeatureKey
    attrs: dict[str, Any]
    features: BlockArray
    sample: BlockArray

    @classmethod
    def from_attributes(cls, files: Files, path: str, attributes: dict[str, Any]) -> FeatureGroup:
        """Return the group at a path in the store, given its attributes.

        Raises
        ------
        StoreFormatError
            For a newer format.
        DamagedError
            If the attributes are not those of a group at this path.
        """
        where = f"{files.location}/{path}"
        check_format(attributes, where)
        try:
            valid = _Attributes.model_validate(attributes)
        except ValidationError as error:
            raise DamagedError(
                f"{where}: attribute {first_mistake(error)}",
                remedy="move the folder away and run `featurestore extract`",
            ) from error
        key = FeatureKey(valid.model, valid.layer, valid.prefix_digest, valid.dataset_digest)
        if path.rpartition("/")[2] != key.path:
            raise DamagedError(f"{where} holds {key}: the folder was moved", remedy="move it back")
        layout = valid.features
        shape, dtype = tuple(layout.shape), np.dtype(layout.dtype).newbyteorder("<")
        names = dimension_names(len(shape))
        ids, byte = (shape[0], ROW_BYTES), np.dtype(np.uint8)
        return cls(
            key,
            attributes,
            BlockArray(files, f"{path}/{FEATURES}", shape, dtype, layout.block_rows, names),
            BlockArray(files, f"{path}/{SAMPLE}", ids, byte, SAMPLE_ROWS, ("row", "byte")),
        )

    @property
    def path(self) -> str:
        """Path of the group in the store."""
        return self.features.path.rpartition("/")[0]

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the group's three metadata documents by path, in the order of writing.

        The group and its features have the same attributes, so that each of the documents can be
        restored from the others.
        """
        return {
            f"{self.path}/{METADATA}": group_document(self.attrs),
            f"{self.sample.path}/{METADATA}": self.sample.document({}),
            self.marker: self.features.document(self.attrs),
        }

    @property
    def marker(self) -> str:
        """Path of the document that is written last."""
        return f"{self.features.path}/{METADATA}"

    @property
    def is_boundary(self) -> bool:
        """Whether only fine-tuning asked for this array: a boundary array."""
        return self.provenance.get("boundary") is True

    @property
    def replacement(self) -> str:
        """Path of the file that holds the metadata of float32 features until they take over."""
        return f"{self.features.path}/{REPLACEMENT}"

    @property
    def is_replacement(self) -> bool:
        """Whether these features replace float16 ones, and have not taken over completely."""
        return self.dtype == np.float32 and self.features.files.is_file(self.replacement)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the feature array, (row, …)."""
        return self.features.shape

    @property
    def dtype(self) -> np.dtype:
        """The stored type."""
        return self.features.dtype

    @property
    def block_rows(self) -> int:
        """Rows of a block; the last may have fewer."""
        return self.features.block_rows

    @property
    def blocks(self) -> int:
        """Number of blocks when complete."""
        return self.features.count

    @property
    def provenance(self) -> dict[str, Any]:
        """What was recorded when the group was created; not part of its identity."""
        return dict(self.attrs.get("provenance", {}))

    def keys_read(self, *fields: str) -> list[str]:
        """Return the keys of other features that rows came from.

        ``fields`` are of the provenance: ``copied_from``, ``derived_from``.
        """
        named = [self.provenance.get(field) for field in fields]
        return [str(key) for keys in named if isinstance(keys, list) for key in keys]

    @property
    def nbytes_stored(self) -> int:
        """Bytes on disk, compressed, with row ids and metadata."""
        return sum(self.features.files.sizes(self.path).values())

    @property
    def samples(self) -> np.ndarray:
        """Row ids: uint8 (row, 16), the first bytes of each row's digest, ascending."""
        row_ids = np.empty((self.shape[0], ROW_BYTES), dtype=np.uint8)
        for block in range(self.sample.count):
            span = self.sample.span(block)
            try:
                row_ids[span.start : span.stop] = self.sample.read(block)
            except (FileNotFoundError, ValueError) as error:
                raise DamagedError(
                    f"{self.key}: the row ids {span.start}–{span.stop - 1} (block {block} of "
                    f"`sample`) cannot be read: {error}",
                    remedy=f"run `{self.repair_command}`",
                ) from error
        return row_ids

    def write_samples(self, sample_ids: np.ndarray) -> None:
        """Write the row ids, uint8 (row, 16): at creation, and to repair them."""
        for block in range(self.sample.count):
            span = self.sample.span(block)
            self.sample.write(block, sample_ids[span.start : span.stop])

    def missing(self) -> list[int]:
        """Numbers of the blocks that do not exist, ascending, by one listing."""
        existing = self.features.existing()
        return [block for block in range(self.blocks) if block not in existing]

    def write_block(self, block: int, rows: np.ndarray) -> None:
        """Write one block whole, atomically: (row of the block, …) of the stored type."""
        self.features.write(block, rows)

    def read_block(self, block: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read one block: (row of the block, …) of the stored type.

        It is read into ``out`` if this has ``block_rows`` rows of that type.

        Raises
        ------
        IncompleteFeaturesError
            The block was never extracted.
        DamagedError
            Its bytes fail their checksum.
        """
        try:
            return self.features.read(block, out)
        except FileNotFoundError as error:
            raise self.incomplete([block]) from error
        except ValueError as error:
            span = self.features.span(block)
            rows = f"rows {span.start}–{span.stop - 1}"
            raise DamagedError(
                f"{self.key}: block {block} ({rows}) is damaged: {error}",
                remedy=f"run `{self.repair_command}`",
            ) from error

    def read(self, rows: np.ndarray | None = None, dtype: Any = None) -> np.ndarray:
        """Read rows in any order, (row, …), whole blocks at a time in a pool of threads.

        By default all rows, of the stored type. Memory peaks at the result and a block for each
        thread.

        Raises
        ------
        IncompleteFeaturesError, DamagedError
        """
        wanted = np.arange(self.shape[0]) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.shape[0]:
            raise IndexError(f"{self.key}: rows {wanted.min()} to {wanted.max()}")
        return read_rows(self, wanted, dtype or self.dtype)

    def require(self, rows: np.ndarray | None = None) -> None:
        """Raise IncompleteFeaturesError unless the blocks of these rows, or all, exist."""
        absent = self.missing()
        if rows is not None:
            wanted = set((rows // self.block_rows).tolist())
            absent = [block for block in absent if block in wanted]
        if absent:
            raise self.incomplete(absent)

    @property
    def extract_command(self) -> str:
        """The command that computes the missing blocks, as it was recorded."""
        return str(self.provenance.get("command", "featurestore extract"))

    @property
    def repair_command(self) -> str:
        """The command that replaces damaged blocks."""
        return shlex.join(["featurestore", "repair", str(self.key)])

    def incomplete(self, blocks: list[int]) -> IncompleteFeaturesError:
        """Return the error for blocks that do not exist."""
        span = self.features.span(blocks[0])
        which = "1 block was" if len(blocks) == 1 else f"{len(blocks)} blocks were"
        return IncompleteFeaturesError(
            f"{self.key}: {which} never extracted, of {self.blocks} (the first is block "
            f"{blocks[0]}, rows {span.start}–{span.stop - 1})",
            remedy=f"run `{self.extract_command}`",
        )
