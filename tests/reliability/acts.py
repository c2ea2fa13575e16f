"""What is done to stores while disks fail and power is lost, and what an undisturbed run gives."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import StoreError
from featurestore.extraction import extract, repair
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.store import FeatureStore
from tests.toys import build_network, drop_block, featurestore, take_photos, tree

# Blocks of 4 rows and of 1024, so 4 blocks and 1.
LAYERS = ["conv_a", "gap"]


@dataclass(frozen=True)
class Made:
    """Photographs, a network, and the store that an undisturbed extraction of them gives."""

    folder: Path
    backbone: Backbone
    dataset: Dataset

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def model(self) -> Path:
        return self.folder / "tiny.keras"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @cached_property
    def promoted(self) -> Path:
        path = self.folder / "flowers.keras"
        result = featurestore("promote", "logistic", "-o", path, "--store", self.store)
        assert result.status == 0, result.err
        return path

    def command(self, *layers: str) -> list[str]:
        words = ["extract", str(self.photos), "--model", str(self.model)]
        return words + [word for layer in layers or LAYERS for word in ("--layer", layer)]


def make(folder: Path) -> Made:
    take_photos(folder / "photos", 5)
    build_network(folder / "tiny.keras", size=64, channels=128)
    backbone = Backbone.open(str(folder / "tiny.keras"))
    dataset = Dataset.open(folder / "photos", val=0.3)
    store = FeatureStore(folder / "store", create=True)
    extract(dataset, backbone, LAYERS, store)
    fit_head(Features.open("photos", "gap", store, model="tiny"), "logistic")
    return Made(folder, backbone, dataset)


# ---------------------------------------------------------------- what is done to a store


@dataclass(frozen=True)
class Act:
    """Something that writes, and the store that it finds."""

    do: Callable[[Made, FeatureStore], object]
    prepare: Callable[[Made, FeatureStore], object]
    starts_empty: bool = False
    # Whether what goes wrong stops it, rather than being told of each file.
    stops: bool = True


def extraction(made: Made, store: FeatureStore) -> None:
    extract(made.dataset, made.backbone, LAYERS, store)


def replacement(made: Made, store: FeatureStore) -> None:
    """Replace float16 features by float32 ones."""
    extract(made.dataset, made.backbone, LAYERS, store, dtype="float32")


def nothing(made: Made, store: FeatureStore) -> None:
    pass


def slow_extraction(made: Made, store: FeatureStore) -> None:
    extract(made.dataset, made.backbone, LAYERS, store, batch_size=3)


def half_of_the_blocks(made: Made, store: FeatureStore) -> None:
    for key in store.features.keys():
        group = store.features.get(key)
        for block in range(0, group.blocks, 2):
            drop_block(group, block)


def copies(made: Made, store: FeatureStore) -> None:
    """The same network under another name finds the features of the first."""
    shutil.copy(made.model, made.folder / "twin.keras")
    extract(made.dataset, Backbone.open(str(made.folder / "twin.keras")), LAYERS, store)


def fewer_samples(made: Made, store: FeatureStore) -> None:
    """A third of the samples have features; the rest is computed beside them."""
    for key in store.features.keys():
        store.features.remove(key)
    extract(Dataset.open(made.photos / "red"), made.backbone, LAYERS, store)


def head(made: Made, store: FeatureStore) -> None:
    fit_head(Features.open("photos", "gap", store, model="tiny"), "knn", {"n_neighbors": 2})


def another_scan(made: Made, store: FeatureStore) -> None:
    store.datasets.add(Dataset.open(made.photos, test=0.4, seed=1))


def collection(made: Made, store: FeatureStore) -> None:
    store.gc(store.garbage())


def removal(made: Made, store: FeatureStore) -> None:
    if store.datasets.has("photos"):
        store.remove(store.removal("photos"))
    collection(made, store)


def litter(made: Made, store: FeatureStore) -> None:
    """Features and a manifest that nothing refers to, a head half saved, a temporary file."""
    extract(Dataset.open(made.photos / "red", name="of late"), made.backbone, LAYERS, store)
    store.datasets.add(Dataset.open(made.photos / "blue", name="of late"))
    head_folder = Path(store.location, "heads", "knn-000000000000")
    head_folder.mkdir(parents=True)
    (head_folder / "model.0123456789ab.skops").write_bytes(b"half")
    Path(store.location, f"features/zarr.json.{'0' * 32}.partial").write_bytes(b"half")


def repairing(made: Made, store: FeatureStore) -> None:
    left = [each.needs for each in repair(store, backbone=made.backbone) if each.needs]
    if left:
        # Each file that cannot be repaired is named; the rest is repaired.
        raise StoreError(left[0])


def damage(made: Made, store: FeatureStore) -> None:
    """A block, the row ids, two documents and the manifest, a bit of each."""
    root = Path(store.location)
    for pattern in (
        "features/*@conv_a-*/features/c.2.*",
        "features/*@gap-*/sample/c.0.0",
        "features/*@conv_a-*/zarr.json",
        "features/zarr.json",
        "datasets/photos/*.parquet",
    ):
        (path,) = root.glob(pattern)
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 4
        path.unlink()  # It may be a link to the one that was made.
        path.write_bytes(whole)


ACTS = {
    "extraction": Act(extraction, nothing, starts_empty=True),
    "slow extraction": Act(slow_extraction, nothing, starts_empty=True),
    "resumed extraction": Act(extraction, half_of_the_blocks),
    "replacement": Act(replacement, nothing),
    "copying": Act(copies, nothing),
    "growth": Act(extraction, fewer_samples),
    "head": Act(head, nothing),
    "scan": Act(another_scan, nothing),
    "removal": Act(removal, nothing),
    "gc": Act(collection, litter),
    "repair": Act(repairing, damage, stops=False),
}


# ---------------------------------------------------------------- what is there afterwards


def temporary(store: Path) -> set[str]:
    return {path for path in tree(store) if path.endswith(".partial")}


def link(source: Path, target: Path) -> None:
    """Copy a store by hard links: nothing in it is ever written in place."""
    shutil.copytree(source, target, copy_function=os.link)


def blocks(store: Path) -> dict[str, str]:
    chunk = re.compile(r".+/(c\.)?\d+(\.\d+)+")
    return {path: digest for path, digest in tree(store).items() if chunk.fullmatch(path)}


def content(store: Path) -> dict[str, str]:
    """What an undisturbed run and a resumed one must have alike: all files but for their times."""
    timed = re.compile(r"datasets/|heads/|^lock$")
    # The names of a head's files have digests, which differ from fit to fit.
    files = {re.sub(r"^(heads/.+)\.[0-9a-f]{12}\.", r"\1.", p): d for p, d in tree(store).items()}
    return {path: "" if timed.match(path) else digest for path, digest in files.items()}


def damages(store: Path) -> list[object]:
    opened = FeatureStore(store, create=True)
    return [damage for place in opened.items() for damage in opened.check(place)]
