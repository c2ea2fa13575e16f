"""One feature group: the rows of one layer over one data set, block by block."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import ROW_BYTES
from featurestore.errors import DamagedError, IncompleteFeaturesError
from featurestore.store.blocks import BlockArray, convert
from featurestore.store.key import FeatureKey

if TYPE_CHECKING:
    import zarr

FEATURES = "features"
SAMPLE = "sample"
SAMPLE_ROWS = 65536


@dataclass(frozen=True)
class FeatureGroup:
    """The features of one layer over one data set, opened.

    Row i is the row i of the data set in content order. Blocks are the unit of work: one that
    exists is done.

    Parameters
    ----------
    key : FeatureKey
    attrs : dict
        Attributes of the Zarr group: whole digests, provenance, format version.
    features : BlockArray of shape (row, …)
    sample : BlockArray of shape (row, 16)
    """

    key: FeatureKey
    attrs: dict[str, Any]
    features: BlockArray
    sample: BlockArray

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
        """What was recorded when the group was created; no part of its identity."""
        return dict(self.attrs.get("provenance", {}))

    @property
    def samples(self) -> np.ndarray:
        """Row ids: uint8 (row, 16), the first bytes of each row's digest, ascending."""
        found = np.empty((self.shape[0], ROW_BYTES), dtype=np.uint8)
        for block in range(self.sample.count):
            span = self.sample.span(block)
            try:
                found[span.start : span.stop] = self.sample.read(block)
            except (FileNotFoundError, ValueError) as error:
                raise DamagedError(
                    f"{self.key}: the row ids {span.start}–{span.stop - 1} (block {block} of "
                    f"`sample`) cannot be read: {error}; run `{self.repair_command}`"
                ) from error
        return found

    def write_samples(self, sample_ids: np.ndarray) -> None:
        """Write the row ids: at creation, and again where they are damaged.

        Parameters
        ----------
        sample_ids : numpy.ndarray of uint8, shape (row, 16)
            Of a data set with the key's dataset digest.
        """
        for block in range(self.sample.count):
            span = self.sample.span(block)
            self.sample.write(block, sample_ids[span.start : span.stop])

    def missing(self) -> list[int]:
        """Numbers of the blocks that do not exist, ascending, by one listing."""
        existing = self.features.existing()
        return [block for block in range(self.blocks) if block not in existing]

    def lacks(self, block: int) -> bool:
        """Whether a block does not exist."""
        return not self.features.exists(block)

    def write_block(self, block: int, rows: np.ndarray) -> None:
        """Write one block whole, atomically.

        Parameters
        ----------
        block : int
        rows : numpy.ndarray of shape (row of the block, …)
            Of the stored type.
        """
        self.features.write(block, rows)

    def read_block(self, block: int) -> np.ndarray:
        """Read one block.

        Returns
        -------
        numpy.ndarray of shape (row of the block, …)
            Of the stored type; not writeable.

        Raises
        ------
        IncompleteFeaturesError
            The block was never extracted.
        DamagedError
            Its bytes fail their checksum.
        """
        try:
            return self.features.read(block)
        except FileNotFoundError as error:
            raise self.incomplete([block]) from error
        except ValueError as error:
            raise self.damaged(block, str(error)) from error

    def drop_block(self, block: int) -> None:
        """Remove a block, so that the next extraction computes it again."""
        self.features.drop(block)

    def read(self, rows: np.ndarray | None = None, dtype: Any = None) -> np.ndarray:
        """Read rows, whole blocks at a time in a pool of threads.

        Parameters
        ----------
        rows : numpy.ndarray of shape (row,), optional
            Row numbers in any order; all rows by default.
        dtype : numpy.dtype, optional
            Type of the result; the stored one by default.

        Returns
        -------
        numpy.ndarray of shape (row, …)
            In the order asked. Memory peaks at the result and a block for each thread.

        Raises
        ------
        IncompleteFeaturesError, DamagedError
        """
        wanted = np.arange(self.shape[0]) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.shape[0]:
            raise IndexError(f"{self.key}: rows {wanted.min()} to {wanted.max()}")
        order = np.argsort(wanted, kind="stable")
        ascending = bool((np.diff(order) == 1).all())
        blocks, first = np.unique(wanted[order] // self.block_rows, return_index=True)
        bounds = np.append(first, len(wanted))
        result = np.empty((len(wanted), *self.shape[1:]), dtype=dtype or self.dtype)

        def fill(index: int) -> None:
            here = slice(int(bounds[index]), int(bounds[index + 1]))
            block = int(blocks[index])
            values = self.read_block(block)
            chosen = wanted[order[here]] - block * self.block_rows
            if ascending:
                whole = np.array_equal(chosen, np.arange(len(values)))
                convert(values if whole else values[chosen], out=result[here])
            else:
                result[order[here]] = values[chosen]

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(blocks))):
                pass
        return result

    def require(self, rows: np.ndarray | None = None) -> None:
        """Raise IncompleteFeaturesError unless the blocks of these rows, or all, exist."""
        absent = self.missing()
        if rows is not None:
            wanted = set((rows // self.block_rows).tolist())
            absent = [block for block in absent if block in wanted]
        if absent:
            raise self.incomplete(absent)

    @property
    def array(self) -> zarr.Array:
        """The feature array for zarr's own indexing; absent and damaged blocks raise here too."""
        import zarr

        from featurestore.store.strict import StrictStore

        return zarr.open_array(StrictStore(self), path=self.features.path, mode="r", zarr_format=3)

    @property
    def extract_command(self) -> str:
        """The command that computes what is missing."""
        recorded = self.provenance.get("command")
        if recorded:
            return str(recorded)
        data = str(self.provenance.get("dataset", "DATA"))
        words = ["featurestore", "extract", data, "--model", self.key.model]
        return shlex.join([*words, "--layer", self.key.ref])

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
            f"{blocks[0]}, rows {span.start}–{span.stop - 1}); run `{self.extract_command}`"
        )

    def damaged(self, block: int, reason: str) -> DamagedError:
        """Return the error for a block that fails its checksum."""
        span = self.features.span(block)
        return DamagedError(
            f"{self.key}: block {block} (rows {span.start}–{span.stop - 1}) is damaged: {reason}; "
            f"run `{self.repair_command}`"
        )


def is_ascending(ids: np.ndarray) -> bool:
    """Whether row ids (row, 16) ascend, as the content order has them."""
    # Big-endian words compare like the bytes; ids of one data set are never equal.
    words = np.ascontiguousarray(ids).view(">u8")
    high, low = words[:, 0], words[:, 1]
    later = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(later.all())
