"""Feature groups below ``features/`` and their documents: create, open and repair them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.digests import ROW_BYTES
from featurestore.errors import (
    DamagedError,
    InputError,
    NotFoundError,
    StoreError,
    StoreFormatError,
    nearest,
)
from featurestore.store.blocks import (
    MEND,
    METADATA,
    BlockArray,
    block_rows,
    check_sizes,
    open_array,
    read_json,
    write_array,
    write_json,
)
from featurestore.store.files import Files
from featurestore.store.group import FEATURES, SAMPLE, SAMPLE_ROWS, FeatureGroup
from featurestore.store.key import FeatureKey, KeyPath

FOLDER = "features"
FORMAT = 1
FORMAT_ATTRIBUTE = "featurestore_format"

_DIMENSIONS = {
    2: ("row", "channel"),
    3: ("row", "token", "channel"),
    4: ("row", "height", "width", "channel"),
}


@dataclass(frozen=True)
class Damaged:
    """Something in the store that cannot be read and that listings therefore leave out.

    Parameters
    ----------
    path : str
        Path in the store.
    reason : str
    """

    path: str
    reason: str


def dimension_names(dimensions: int) -> tuple[str, ...]:
    """Names of a feature array's dimensions, the rows first."""
    generic = ("row", *(f"axis_{axis}" for axis in range(1, dimensions)))
    return _DIMENSIONS.get(dimensions, generic)


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def check_format(attributes: Mapping[str, Any], where: str) -> None:
    """Raise StoreFormatError unless this version of featurestore can read the format."""
    found = attributes.get(FORMAT_ATTRIBUTE)
    if not isinstance(found, int):
        raise StoreFormatError(
            f"{where} is a Zarr group but no feature store: it has no attribute "
            f"`{FORMAT_ATTRIBUTE}`; give another folder"
        )
    if found > FORMAT:
        raise StoreFormatError(
            f"{where} has format {found}, this featurestore reads format {FORMAT}; "
            "run `pip install --upgrade featurestore`"
        )


def create(
    files: Files,
    key: FeatureKey,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sample_ids: np.ndarray,
    provenance: Mapping[str, Any],
) -> FeatureGroup:
    """Create a group, or open the one that is there.

    The metadata of `features` is written last: a group that has it is completely created.
    """
    path = f"{FOLDER}/{key.path}"
    if sample_ids.shape != (shape[0], ROW_BYTES) or sample_ids.dtype != np.uint8:
        raise ValueError(
            f"sample_ids: expected uint8 {(shape[0], ROW_BYTES)}, "
            f"found {sample_ids.dtype} {sample_ids.shape}"
        )
    commit = f"{path}/{FEATURES}/{METADATA}"
    with files.hold([path], shared=True), files.hold([commit]):
        if created(files, key.path):
            return _reopen(open_group(files, key), shape, dtype, sample_ids)
        rows = block_rows(int(np.prod(shape[1:])) * dtype.itemsize)
        features = BlockArray(
            files, f"{path}/{FEATURES}", shape, dtype, rows, dimension_names(len(shape))
        )
        attributes = {
            FORMAT_ATTRIBUTE: FORMAT,
            "model": key.model,
            "layer": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "features": _layout(features),
            "provenance": dict(provenance),
        }
        group = FeatureGroup(key, attributes, features, _sample_array(files, path, shape[0]))
        # Blocks that an interrupted removal left would count as done, and may be of another type.
        for each in files.sizes(features.path):
            files.remove(each)
        if FEATURES in files.names(path):
            # So that a power cut does not bring them and their metadata back.
            files.settle(features.path)
        _write_groups(files, key, attributes)
        write_array(group.sample, {})
        group.write_samples(sample_ids)
        write_array(features, attributes)
    return group


def _layout(features: BlockArray) -> dict[str, Any]:
    """Return the layout of an array for its group: each can be restored from the other."""
    return {
        "shape": list(features.shape),
        "dtype": str(features.dtype),
        "block_rows": features.block_rows,
    }


def _sample_array(files: Files, path: str, rows: int) -> BlockArray:
    ids = (rows, ROW_BYTES)
    return BlockArray(
        files, f"{path}/{SAMPLE}", ids, np.dtype(np.uint8), SAMPLE_ROWS, ("row", "byte")
    )


def _write_groups(files: Files, key: FeatureKey, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of a group and of those above it: Zarr v3 has no implicit groups."""
    model, layer, _ = key.path.split("/")
    with files.hold([FOLDER]):
        files.make_folder(f"{FOLDER}/{key.path}")
        for parent in (f"{FOLDER}/{model}", f"{FOLDER}/{model}/{layer}"):
            if not files.is_file(f"{parent}/{METADATA}"):
                write_json(files, f"{parent}/{METADATA}", group_document({}))
    write_json(files, f"{FOLDER}/{key.path}/{METADATA}", group_document(attributes))


def _reopen(
    group: FeatureGroup, shape: tuple[int, ...], dtype: np.dtype, sample_ids: np.ndarray
) -> FeatureGroup:
    if group.dtype != dtype:
        raise StoreError(
            f"{group.key} is stored as {group.dtype}, {dtype} was asked for; pass "
            f"`--dtype {group.dtype}`, or remove {group.features.files.location}/{FOLDER}/"
            f"{group.key.path} and extract again"
        )
    if group.shape != shape or not np.array_equal(group.samples, sample_ids):
        raise DamagedError(
            f"{group.key} holds {group.shape} over other row ids, expected {shape}; remove "
            f"{group.features.files.location}/{FOLDER}/{group.key.path} and extract again"
        )
    return group


def open_group(files: Files, key: FeatureKey) -> FeatureGroup:
    """Open a group and compare the whole digests: NotFoundError, StoreError, DamagedError."""
    group = open_path(files, key.path)
    if group is None:
        known = [str(KeyPath.parse(each)) for each in paths(files)]
        raise NotFoundError(
            f"no features {str(key)!r} in {files.location}, {nearest(str(key), known)}; "
            "list them with `featurestore ls`"
        )
    if group.key != key:
        raise StoreError(
            f"{files.location}/{FOLDER}/{key.path} belongs to {group.key.prefix_digest} over "
            f"{group.key.dataset_digest}, expected {key.prefix_digest} over {key.dataset_digest}: "
            "the short digests are the same and the whole ones are not; use another store"
        )
    return group


def open_path(files: Files, path: str) -> FeatureGroup | None:
    """Open what lies at a path below ``features/``; None where no group was created."""
    if not created(files, path):
        return None
    group, wrong = documents(files, path)
    for error in wrong.values():
        if not created(files, path):
            return None  # Removed in the meantime.
        raise error
    return group


def documents(files: Files, path: str) -> tuple[FeatureGroup | None, dict[str, StoreError]]:
    """Read the three documents of a group, each of which the others can give again.

    Returns
    -------
    group : FeatureGroup or None
        As its sound documents tell of it; None where they do not.
    wrong : dict of str to StoreError
        What is wrong with a document, by its path.
    """
    told: list[FeatureGroup] = []
    wrong: dict[str, StoreError] = {}

    def attempt(document: str, read: Callable[[], FeatureGroup]) -> None:
        try:
            told.append(read())
        except FileNotFoundError:
            wrong[document] = DamagedError(f"{files.location}/{document} does not exist; {MEND}")
        except StoreError as error:
            wrong[document] = error

    def of_array() -> FeatureGroup:
        array, attributes = open_array(files, f"{where}/{FEATURES}")
        return _agreeing(_described(files, path, attributes), array)

    def of_sample() -> FeatureGroup:
        return _agreeing(told[0], open_array(files, f"{where}/{SAMPLE}")[0])

    def of_group() -> FeatureGroup:
        group = _described(files, path, _read(files, path))
        return _agreeing(group, told[0].features) if told else group

    where = f"{FOLDER}/{path}"
    attempt(f"{where}/{FEATURES}/{METADATA}", of_array)
    attempt(f"{where}/{METADATA}", of_group)
    if told:
        attempt(f"{where}/{SAMPLE}/{METADATA}", of_sample)
    return told[0] if told else None, wrong


def _described(files: Files, path: str, attributes: dict[str, Any]) -> FeatureGroup:
    """Return the group that attributes tell of: StoreFormatError, DamagedError."""
    where = f"{FOLDER}/{path}"
    key = _key(attributes, path, f"{files.location}/{where}")
    try:
        layout = attributes["features"]
        shape, dtype = tuple(layout["shape"]), np.dtype(layout["dtype"])
        rows, names = layout["block_rows"], dimension_names(len(shape))
        features = BlockArray(files, f"{where}/{FEATURES}", shape, dtype, rows, names)
        check_sizes(features)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{files.location}/{where}/{METADATA} tells of no array ({error!r}); {MEND}"
        ) from error
    return FeatureGroup(key, attributes, features, _sample_array(files, where, shape[0]))


def _agreeing(group: FeatureGroup, array: BlockArray) -> FeatureGroup:
    """Return a group that has this array; DamagedError where it has another."""
    expected = group.features if array.path == group.features.path else group.sample
    if array != expected:
        raise DamagedError(
            f"{array.files.location}/{array.path} has the layout {_layout(array)}, its group tells "
            f"of {_layout(expected)}; {MEND}"
        )
    return group


def read_key(files: Files, path: str) -> FeatureKey:
    """Read the key of the group at a path below ``features/``."""
    return _key(_read(files, path), path, f"{files.location}/{FOLDER}/{path}")


def _read(files: Files, path: str) -> dict[str, Any]:
    """Read the attributes of a group: FileNotFoundError, DamagedError."""
    return dict(read_json(files, f"{FOLDER}/{path}/{METADATA}").get("attributes") or {})


def _key(attributes: Mapping[str, Any], path: str, where: str) -> FeatureKey:
    check_format(attributes, where)
    try:
        key = FeatureKey(
            attributes["model"],
            attributes["layer"],
            attributes["prefix_digest"],
            attributes["dataset_digest"],
        )
        agrees = key.path == path
        if not isinstance(attributes.get("provenance", {}), dict):
            raise TypeError("a provenance that is an object")
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise DamagedError(
            f"{where}/{METADATA} lacks {error}; move the folder away and extract again"
        ) from error
    if not agrees:
        raise DamagedError(
            f"{where}/{METADATA} names {key.path}: the folder was moved; move it back"
        )
    return key


def paths(files: Files) -> Iterator[str]:
    """Paths below ``features/`` that have the form of a feature group's, sorted."""
    for model in files.names(FOLDER):
        for layer in files.names(f"{FOLDER}/{model}"):
            if KeyPath.parse(f"{model}/{layer}/{'0' * 12}") is None:
                continue
            for dataset in files.names(f"{FOLDER}/{model}/{layer}"):
                path = f"{model}/{layer}/{dataset}"
                if KeyPath.parse(path) is not None:
                    yield path


def created(files: Files, path: str) -> bool:
    """Whether the creation of a group came to its end."""
    return files.is_file(f"{FOLDER}/{path}/{FEATURES}/{METADATA}")


def mend(files: Files, path: str) -> None:
    """Rewrite the damaged metadata of a group, each document from the others.

    Raises
    ------
    DamagedError
        If too much of it is damaged.
    """
    where = f"{FOLDER}/{path}"
    with files.hold([where], shared=True), files.hold([f"{where}/{FEATURES}/{METADATA}"]):
        group, wrong = documents(files, path)
        if group is None:
            raise DamagedError(
                f"{files.location}/{where}: the metadata of the group and of its features are both "
                "damaged; move the folder away and run `featurestore extract`"
            )
        if f"{where}/{METADATA}" in wrong:
            write_json(files, f"{where}/{METADATA}", group_document(group.attrs))
        if f"{group.sample.path}/{METADATA}" in wrong:
            write_array(group.sample, {})
        if f"{group.features.path}/{METADATA}" in wrong:
            write_array(group.features, group.attrs)


def documents_above(files: Files) -> dict[str, dict[str, Any]]:
    """Return the metadata of the groups above the feature groups, as they must be, by path."""
    found = {f"{FOLDER}/{METADATA}": group_document({FORMAT_ATTRIBUTE: FORMAT})}
    for path in paths(files):
        if not created(files, path):
            continue  # A creation that was interrupted may lack them.
        model, layer, _ = path.split("/")
        for parent in (f"{FOLDER}/{model}", f"{FOLDER}/{model}/{layer}"):
            found[f"{parent}/{METADATA}"] = group_document({})
    return found
