"""A store, a model of it in plain dictionaries, and steps in any order that may be killed.

What features must hold is computed from the pixels by numpy. After a step that was killed it is
seen what it did, within what it may have done. What was *durable* was reported done, and survives
even a power cut; what was only seen may be lost with one.
"""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import DamagedError, HeadError, IncompleteFeaturesError, StoreError
from featurestore.extraction import extract, repair
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.store import Damage, DatasetEntry, FeatureKey, FeatureStore
from tests.reliability.faults import Disk, Killed

# Images of the very size that the backbones take: resizing leaves them as they are.
SIDE, IMAGES = 4, 14
# Of a block, so that a few images make several.
ROWS = 4
REFS = ("pixels", "pixels:avg", "pixels:max")
NAMES = ("flowers", "birds")
# Chooses among what there is, which may differ between two runs of the same steps: a thread may
# have been quicker.
PICKS = st.integers(0, 2**16)
GROUP = re.compile(r"(features/[^/]+)/features/zarr\.json")


@dataclass
class Sources:
    """Images by digest, and backbones: what nothing in these tests ever changes."""

    folder: Path
    pixels: dict[str, np.ndarray]
    paths: dict[str, Path]
    backbones: dict[str, Backbone]
    kernel: np.ndarray

    @classmethod
    def make(cls, folder: Path) -> Sources:
        import keras

        generator = np.random.default_rng(0)
        pixels, paths = {}, {}
        for number in range(IMAGES):
            values = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(values).save(buffer, "PNG")
            digest, path = digest_bytes(buffer.getvalue()), folder / f"{number:02}.png"
            path.write_bytes(buffer.getvalue())
            pixels[digest], paths[digest] = values, path
        kernel = generator.normal(size=(3, 5)).astype(np.float32)
        image = keras.Input((SIDE, SIDE, 3))
        x = keras.layers.Rescaling(1 / 255, name="scale")(image)
        mixing = keras.layers.Conv2D(5, 1, activation="relu", use_bias=False, name="mix")
        model = keras.Model(image, mixing(x), name="mixer")
        mixing.set_weights([kernel[None, None]])
        model.save(folder / "mixer.keras")
        backbones = {
            "stretch": Backbone.open("pixels", input_size=SIDE),
            "crop": Backbone.open("pixels", input_size=SIDE, resize="crop"),
            "mixer": Backbone.open(folder / "mixer.keras"),
        }
        return cls(folder, pixels, paths, backbones, kernel)

    def key(self, backbone: str, ref: str, dataset: Dataset) -> FeatureKey:
        network = self.backbones[backbone]
        prefix = network.prefix_digest(ref.partition(":")[0])
        return FeatureKey(network.name, ref, prefix, dataset.digest)

    def expected(self, backbone: str, ref: str, digest: str) -> np.ndarray:
        """One row of features, by another way than the one under test."""
        values = self.pixels[digest].astype(np.float32) / 255
        if backbone == "mixer":
            values = np.maximum(values @ self.kernel, 0)
        reduce = {"": lambda x: x, "avg": lambda x: x.mean((0, 1)), "max": lambda x: x.max((0, 1))}
        return reduce[ref.partition(":")[2]](values)


@dataclass
class Group:
    """What is stored under a key: the blocks that were seen, and those that are durable.

    ``durable`` is None where not even the group was reported done.
    """

    backbone: str
    dataset: Dataset
    dtype: str
    blocks: set[int] = field(default_factory=set)
    durable: set[int] | None = None

    @property
    def all_blocks(self) -> set[int]:
        return set(range(-(-len(self.dataset) // ROWS)))

    @property
    def is_complete(self) -> bool:
        return self.blocks == self.all_blocks


@dataclass
class Fitted:
    """What is known of a head, and how it is fitted again."""

    dataset: Dataset
    key: FeatureKey
    scores: np.ndarray
    again: Callable[[], Head]
    durable: bool


@dataclass
class Flip:
    """A file before and after one bit of it was flipped."""

    sound: bytes
    damaged: bytes


class StoreMachine(RuleBasedStateMachine):
    """The steps, and what holds after each."""

    sources: Sources
    ran: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.sources.folder))
        self.disk = Disk()
        self.open()
        # States of data sets, by their manifests, because two names may have the same state: those
        # that ever were, those that are kept; by their names: which is current, what a
        # scan of the table gives now, and whose adding was killed since the current one came.
        self.ever: dict[str, Dataset] = {}
        self.states: dict[str, Dataset] = {}
        self.current: dict[str, Dataset] = {}
        self.tables: dict[str, Dataset] = {}
        self.begun: dict[str, list[Dataset]] = {name: [] for name in NAMES}
        self.pointers: dict[str, bytes] = {}
        self.settled_states: set[str] = set()
        self.settled_current: dict[str, Dataset] = {}
        # Features; and those whose removal was killed, so that a power cut may undo it.
        self.groups: dict[FeatureKey, Group] = {}
        self.going: dict[FeatureKey, Group] = {}
        self.heads: dict[str, Fitted] = {}
        # Every file that was flipped, and those that still are and that something needs.
        self.flipped: dict[str, Flip] = {}
        self.flips: dict[str, Flip] = {}

    def open(self) -> None:
        with self.disk.use():
            self.store = FeatureStore(self.folder / "store", create=True)

    def path(self, name: str) -> Path:
        return Path(self.store.location, name)

    def attempt(self, what: str, death: int | None, action: Callable[[], Any]) -> bool:
        """Do something that may be killed before its step ``death``; tell whether it ended well."""
        self.ran[what] += 1
        try:
            with self.disk.use(None if death is None else Killed, at=death, half=True):
                action()
        except Killed:
            self.ran[f"{what}, killed"] += 1
            return False
        finally:
            self.open()  # another process goes on
            self.look_for_flips()
        return True

    # What is on the disk.

    def names(self) -> list[str]:
        root = Path(self.store.location)
        return sorted(each.relative_to(root).as_posix() for each in root.rglob("*"))

    def committed(self) -> list[str]:
        """Every file of something that was committed; the root, a store cannot do without."""
        files = [name for name in self.names() if self.path(name).is_file()]
        # Kept rows are committed to nobody: damaged ones are computed again.
        names = [name for name in files if self.is_current(name)]
        groups = [found[1] for name in names if (found := GROUP.fullmatch(name))]
        ends = ("/current.json", "/head.json")
        folders = [*groups, *(each.rpartition("/")[0] for each in names if each.endswith(ends))]
        inside = tuple(f"{each}/" for each in folders)
        return [name for name in names if name.startswith(inside) and not name.endswith(".partial")]

    def is_current(self, name: str) -> bool:
        """Whether a file is not of float32 features that have not taken over from float16 ones."""
        folder, _, file = name.rpartition("/")
        if file == "replacement.json":
            return False
        for key, group in self.groups.items():
            if folder == f"features/{key.path}/features" and is_block(file):
                return file.startswith("c.") == (group.dtype == "float16")
        return True

    def look_for_flips(self) -> None:
        """A flipped file that was written again, or removed, or is of nothing, is none any more."""
        kept = self.committed()
        self.flips = {
            name: flip
            for name, flip in self.flipped.items()
            if name in kept and self.path(name).read_bytes() == flip.damaged
        }

    def manifest(self, state: Dataset | DatasetEntry) -> str:
        return f"datasets/{state.name}/{state.manifest_digest.partition(':')[2][:12]}.parquet"

    def has_manifest(self, state: Dataset) -> bool:
        return self.path(self.manifest(state)).exists()

    def current_on_disk(self, name: str) -> Dataset | None:
        """The current state as it can be read; as it was where its pointer is damaged."""
        if f"datasets/{name}/current.json" in self.flips:
            return self.current[name]
        found = [each for each in self.store.datasets.values() if each.name == name]
        return self.ever[self.manifest(found[0])] if found else None

    def blocks_on_disk(self, key: FeatureKey, dtype: str) -> set[int]:
        begins = "c." if dtype == "float16" else ""
        files = self.path(f"features/{key.path}/features").glob(f"{begins}[0-9]*")
        # Rows that are kept of a block do not make it one.
        whole = [each for each in files if each.suffix != ".partial"]
        return {int(each.name.removeprefix(begins).split(".")[0]) for each in whole}

    def is_blind(self, key: FeatureKey) -> bool:
        """Whether the metadata or row ids that readers of a group need are damaged."""
        ids = f"features/{key.path}/sample/c"
        return not self.is_listed(key) or any(name.startswith(ids) for name in self.flips)

    def is_listed(self, key: FeatureKey) -> bool:
        """Whether the metadata that readers of a group need are sound."""
        return f"features/{key.path}/features/zarr.json" not in self.flips

    # Data sets.

    def change(self, name: str, rows: list[tuple[str, str, str]], death: int | None) -> None:
        """Write a table of (digest, label, split), and make it the current state of a name."""
        table = self.folder / f"{name}.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "split"))
            writer.writerows((self.sources.paths[each], *rest) for each, *rest in rows)
        state = self.tables[name] = Dataset.open(table, name=name)
        self.ever[self.manifest(state)] = state
        if self.attempt("add a state", death, lambda: self.store.datasets.add(state)):
            self.settle_state(state)
            return
        self.begun[name].append(state)
        if self.has_manifest(state):
            self.states[self.manifest(state)] = state
        found = self.current_on_disk(name)
        assert found in (self.current.get(name), state)
        if found is not None:
            self.current[name] = found

    def settle_state(self, state: Dataset) -> None:
        self.states[self.manifest(state)] = state
        self.settled_states.add(self.manifest(state))
        self.current[state.name] = self.settled_current[state.name] = state
        pointer = self.path(f"datasets/{state.name}/current.json").read_bytes()
        if pointer != self.pointers.get(state.name):
            # It was added now, after all that were begun; else it was as it is.
            self.begun[state.name].clear()
            self.pointers[state.name] = pointer

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        """A data set with some of its features, so that there is something to harm."""
        self.change(NAMES[0], labelled(sorted(self.sources.pixels)[:9], seed), None)
        self.extract_layers(self.current[NAMES[0]], "stretch", list(REFS[:2]), "float16", 8, None)

    @rule(
        name=st.sampled_from(NAMES),
        images=st.lists(st.integers(0, IMAGES - 1), min_size=5, unique=True),
        seed=st.integers(0, 3),
        death=st.none() | st.integers(0, 20),
    )
    def insert(self, name: str, images: list[int], seed: int, death: int | None) -> None:
        digests = sorted(self.sources.pixels)
        self.change(name, labelled([digests[each] for each in images], seed), death)

    @rule(
        pick=PICKS,
        extend=st.booleans(),
        seed=st.integers(0, 3),
        death=st.none() | st.integers(0, 20),
    )
    def extend_or_relabel(self, pick: int, extend: bool, seed: int, death: int | None) -> None:
        name = chosen(sorted(self.tables), pick)
        digests = list(self.tables[name].sample_digests)
        if extend:
            others = sorted(self.sources.pixels.keys() - set(digests))
            digests += others[: 1 + pick % 5]
        self.change(name, labelled(digests, seed), death)

    # Features.

    @rule(
        pick=PICKS,
        backbone=st.sampled_from(["stretch", "stretch", "crop", "mixer"]),
        refs=st.sets(st.sampled_from(REFS), min_size=1),
        dtype=st.sampled_from(["float16", "float16", "float32"]),
        batch_size=st.sampled_from([3, 8]),
        replace=st.booleans(),
        death=st.none() | st.integers(0, 60),
    )
    def extract(
        self,
        pick: int,
        backbone: str,
        refs: set[str],
        dtype: str,
        batch_size: int,
        replace: bool,
        death: int | None,
    ) -> None:
        dataset = self.current[chosen(sorted(self.current), pick)]
        own = "mix" if backbone == "mixer" else "pixels"
        layers = sorted(each.replace("pixels", own) for each in refs)
        self.extract_layers(dataset, backbone, layers, dtype, batch_size, death, replace)

    @rule(pick=PICKS, death=st.none() | st.integers(0, 30))
    def resume(self, pick: int, death: int | None) -> None:
        lacking = [
            key
            for key, group in sorted(self.groups.items(), key=str)
            if not group.is_complete and group.dataset in self.current.values()
        ]
        if lacking:
            key = chosen(lacking, pick)
            group = self.groups[key]
            self.ran["resume"] += 1
            self.extract_layers(group.dataset, group.backbone, [key.ref], group.dtype, 8, death)

    @rule(pick=PICKS, seed=st.integers(0, 3), death=st.none() | st.integers(0, 60))
    def grow(self, pick: int, seed: int, death: int | None) -> None:
        """Add images to a data set, and replace features that it has."""
        held = [
            (key, group)
            for key, group in sorted(self.groups.items(), key=str)
            if group.dataset in self.current.values()
        ]
        if held:
            key, group = chosen(held, pick)
            self.ran["grow"] += 1
            digests = list(group.dataset.sample_digests)
            others = sorted(self.sources.pixels.keys() - set(digests))
            name = group.dataset.name
            self.change(name, labelled(digests + others[: 1 + pick % 3], seed), None)
            dataset = self.current[name]
            self.extract_layers(dataset, group.backbone, [key.ref], group.dtype, 8, death, True)

    def extract_layers(
        self,
        dataset: Dataset,
        backbone: str,
        layers: list[str],
        dtype: str,
        batch_size: int,
        death: int | None,
        replace: bool = False,
    ) -> None:
        network = self.sources.backbones[backbone]
        keys = [self.sources.key(backbone, ref, dataset) for ref in layers]
        blind = any(self.is_blind(key) for key in keys)
        ends = ("/current.json", "/head.json")
        blind |= replace and any(name.endswith(ends) for name in self.flips)
        options = {"dtype": dtype, "batch_size": batch_size, "replace": replace}

        def action() -> None:
            extract(dataset, network, layers, self.store, **options)

        try:
            done = self.attempt("extract", death, action)
        except DamagedError:
            assert blind
            done = False
        for key in keys:
            former = self.groups.get(key)
            replaced = former is not None and former.dtype == "float16" and dtype == "float32"
            if replaced and done:
                assert not list(self.path(f"features/{key.path}/features").glob("c.*"))
            if former is None or (replaced and done):
                group = Group(backbone, dataset, dtype)
            else:
                group = former
            if done:
                assert not self.is_blind(key)
                self.groups[key] = group
                group.blocks = group.durable = group.all_blocks
                self.going.pop(key, None)
            else:
                self.see(key, group, replaced)
        if done:
            self.settle_state(dataset)
        if replace:
            self.see_replaced(keys, done)

    def see_replaced(self, keys: list[FeatureKey], done: bool) -> None:
        """See which former arrays went: all that are superseded, unless it was killed."""
        former = {key for key in self.groups if any(alike(key, new) for new in keys)}
        went = {key for key in self.groups if not self.store.features.has(key)}
        self.ran["replace a former array"] += len(went)
        assert went <= {key for key in former if self.is_superseded(key, surely=False)}
        if done:
            read = self.read_by_begun({dataset.digest for dataset in self.used()})
            superseded = {key for key in former if self.is_superseded(key)} - read
            assert {key for key in superseded if not self.kept_by_damage(key)} <= went
        for key in went:
            self.gone(key, done)

    def used(self) -> list[Dataset]:
        """The states that are current, or that a head was fitted on."""
        return [*self.current.values(), *(head.dataset for head in self.heads.values())]

    def is_superseded(self, key: FeatureKey, surely: bool = True) -> bool:
        """Whether no data set has the samples of an array now, and one has features of its rows.

        Damaged row ids may be those of another array that has the same: then it is not sure.
        """
        current = {dataset.digest for dataset in self.current.values()}
        group = self.groups[key]
        blind = self.is_blind if surely else lambda key: not self.is_listed(key)
        return (
            key.dataset_digest not in current
            and not blind(key)
            and any(
                alike(key, newer)
                and newer.dataset_digest in current
                and not blind(newer)
                and (group.dtype == "float16" or self.groups[newer].dtype == "float32")
                and set(group.dataset.sample_digests) <= self.stored_samples(newer)
                for newer in self.groups
            )
        )

    def kept_by_damage(self, key: FeatureKey) -> bool:
        """Whether a head has the samples of an array, and blocks may be damaged."""
        of_head = any(head.dataset.digest == key.dataset_digest for head in self.heads.values())
        return of_head and any(name.startswith("features/") for name in self.flips)

    def see(self, key: FeatureKey, group: Group, replaced: bool) -> None:
        """See what a killed extraction has left of a group; nothing that was committed may lack."""
        if not self.store.features.has(key):
            assert key not in self.groups or not self.groups[key].blocks
            self.gone(key, done=False)
            return
        self.going.pop(key, None)
        if replaced and not self.is_blind(key) and self.store.features.get(key).dtype == "float32":
            group = Group(group.backbone, group.dataset, "float32")
            group.blocks = group.all_blocks  # It took over, being whole.
        there = self.blocks_on_disk(key, group.dtype)
        assert there >= group.blocks
        group.blocks = there
        self.groups[key] = group

    def gone(self, key: FeatureKey, done: bool) -> None:
        group = self.groups.pop(key, None)
        if group is not None and not done:
            self.going[key] = group

    @rule(pick=PICKS, death=st.none() | st.integers(0, 20))
    def remove(self, pick: int, death: int | None) -> None:
        if not self.groups:
            return
        key = chosen(sorted(self.groups, key=str), pick)
        done = self.attempt("remove features", death, lambda: self.store.features.remove(key))
        assert not (done and self.store.features.has(key))
        if self.store.features.has(key):
            assert self.blocks_on_disk(key, self.groups[key].dtype) == self.groups[key].blocks
        else:
            self.gone(key, done)

    def values(self, key: FeatureKey, rows: Iterable[int]) -> np.ndarray:
        """What rows must hold, float32."""
        group = self.groups.get(key) or self.going[key]
        digests = [group.dataset.sample_digests[row] for row in rows]
        return np.stack([self.sources.expected(group.backbone, key.ref, each) for each in digests])

    # Heads.

    @rule(
        pick=PICKS,
        head=st.sampled_from(["ridge", "logistic"]),
        death=st.none() | st.integers(0, 20),
    )
    def fit(self, pick: int, head: str, death: int | None) -> None:
        """Fit a head, or the same again; whatever is missing or damaged must stop it."""
        if not self.groups:
            return
        key = chosen(sorted(self.groups, key=str), pick)
        group = self.groups[key]
        same = [each for each in self.states.values() if each.digest == key.dataset_digest]
        dataset = chosen([group.dataset, *same], pick // 16)
        fitted: list[Head] = []

        def again() -> Head:
            return fit_head(Features(self.store.features.get(key), dataset, self.store), head)

        if any(name.startswith("heads/") for name in self.flips):
            death = None  # a damaged head that is fitted again may be damaged in another way then
        sound = not any(name.startswith(f"features/{key.path}/") for name in self.flips)
        try:
            done = self.attempt("fit a head", death, lambda: fitted.append(again()))
        except HeadError:
            return
        except StoreError:
            assert not (group.is_complete and sound)
            return
        finally:
            if self.has_manifest(dataset):  # It is written again, if gc removed it.
                self.states[self.manifest(dataset)] = dataset
        if done:
            self.settled_states.add(self.manifest(dataset))
            scores = fitted[0].decision_function(self.values(key, range(3)))
            known = self.heads.setdefault(
                fitted[0].id, Fitted(dataset, key, scores, again, durable=True)
            )
            assert np.array_equal(known.scores, scores)
            known.durable = True
            return
        for head_id in {each["id"] for each in self.store.heads.values()} - self.heads.keys():
            scores = Head.load(head_id, self.store).decision_function(self.values(key, range(3)))
            self.heads[head_id] = Fitted(dataset, key, scores, again, durable=False)

    # Rot, repair, removal.

    @rule(pick=PICKS, byte=PICKS, bit=st.integers(0, 7))
    def flip(self, pick: int, byte: int, bit: int) -> None:
        """Flip a bit of any file, of places that have no damage yet."""
        places = sorted((each.path for each in self.store.items()), key=len)
        inside = {
            name: [each for each in places if name.startswith(f"{each}/")][-1]
            for name in self.committed()
        }
        damaged = {inside[name] for name in self.flips}
        names = [name for name, place in inside.items() if place not in damaged]
        if not names:
            return
        name = chosen(names, pick)
        sound = self.path(name).read_bytes()
        at = byte % len(sound)
        flipped = sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :]
        self.path(name).write_bytes(flipped)
        self.flipped[name] = Flip(sound, flipped)
        self.look_for_flips()
        self.ran["flip a bit"] += 1

    @rule(death=st.none() | st.integers(0, 20))
    def repair(self, death: int | None) -> None:
        before = dict(self.flips)
        needs: dict[str, str | None] = {}

        def action() -> None:
            needs.update((each.damage.path, each.needs) for each in repair(self.store))

        done = self.attempt("repair", death, action)
        for name in before.keys() - self.flips.keys():
            assert self.path(name).read_bytes() == before[name].sound or self.is_derived(name)
        if done:
            assert needs.keys() == before.keys()
            assert {name for name, each in needs.items() if each} == self.flips.keys()
            assert not any(self.can_repair(name) for name in self.flips)

    def is_derived(self, name: str) -> bool:
        """Whether a file is a block of features with derived rows, whose sources may be gone."""
        block = re.match(r"features/([^/]+)/features/c\.", name)
        group = next((key for key in self.groups if block and key.path == block[1]), None)
        return bool(group and self.store.features.get(group).keys_read("derived_from"))

    def can_repair(self, name: str) -> bool:
        top, middle, *_ = name.split("/")
        if top == "heads":
            return False
        if top == "datasets":
            current, pointer = self.current[middle], f"datasets/{middle}/current.json"
            same = self.tables[middle].manifest_digest == current.manifest_digest
            return pointer not in self.flips and name == self.manifest(current) and same
        key = next((key for key in self.groups if name.startswith(f"features/{key.path}/")), None)
        if key is None or name.endswith("zarr.json"):
            return True
        states = (each for each in self.states.values() if each.digest == key.dataset_digest)
        return any(self.manifest(each) not in self.flips for each in states)

    @rule(death=st.none() | st.integers(0, 40))
    def gc(self, death: int | None) -> None:
        if any(name.endswith(("/current.json", "/head.json")) for name in self.flips):
            with pytest.raises(DamagedError, match="unknown what is in use"):
                self.store.garbage()
            return
        digests = {dataset.manifest_digest for dataset in self.used()}
        samples = {dataset.digest for dataset in self.used()}
        states = [state for state in self.states.values() if state.manifest_digest not in digests]
        items = self.store.garbage()
        listed = {item.path for item in items}
        keys = [
            key
            for key in self.groups
            if key.dataset_digest not in samples
            or self.is_superseded(key)
            or (path_of(key) in listed and self.is_superseded(key, surely=False))
        ]
        spared = {key for key in keys if self.is_listed(key) and path_of(key) not in listed}
        going = {key for key in keys if path_of(key) in listed}
        read = self.read_by_begun(samples)
        assert not read & going
        self.check_spared(spared - read, going)
        keys = [key for key in keys if key not in spared]
        sound = {path_of(key) for key in keys if self.is_listed(key)}
        whole = {
            each.path
            for each in items
            if each.kind != "leftover" and "interrupted" not in each.reason
        }
        assert whole == sound | {self.manifest(each) for each in states}
        done = self.attempt("collect garbage", death, lambda: self.store.gc(items))
        for key in keys:
            if self.store.features.has(key):
                assert not done or not self.is_listed(key) or self.kept_by_damage(key)
            else:
                self.gone(key, done)
        for state in states:
            if self.has_manifest(state):
                assert not done
            else:
                del self.states[self.manifest(state)]
                self.settled_states.discard(self.manifest(state))
        if done:
            assert not [name for name in self.names() if name.endswith(".partial")]

    def read_by_begun(self, in_use: set[str]) -> set[FeatureKey]:
        """What features that are not complete, of data sets in use, are copied or derived from."""
        named = {
            name
            for key, group in self.groups.items()
            if key.dataset_digest in in_use and not group.is_complete and self.is_listed(key)
            for name in self.store.features.get(key).keys_read("copied_from", "derived_from")
        }
        return {key for key in self.groups if str(key) in named}

    def check_spared(self, spared: set[FeatureKey], going: set[FeatureKey]) -> None:
        """See that heads without features keep the rows for their proof, and nothing else stays."""
        needed = set()
        for head in self.heads.values():
            stays = self.store.features.has(head.key) and head.key not in going
            if stays or self.manifest(head.dataset) in self.flips:
                continue
            wanted = set(head.dataset.sample_digests)
            serving = {
                key
                for key in self.groups
                if alike(key, head.key)
                and not self.is_blind(key)
                and len(wanted & self.stored_samples(key)) >= min(16, len(wanted))
            }
            assert not serving or serving - going
            if not serving - going - spared:
                needed |= serving
        assert spared <= needed

    def stored_samples(self, key: FeatureKey) -> set[str]:
        group = self.groups[key]
        digests = group.dataset.sample_digests
        return {each for row, each in enumerate(digests) if row // ROWS in group.blocks}

    @rule(seed=st.integers(0, 99))
    def lose_power(self, seed: int) -> None:
        """What was reported done stays; what was removed or killed may be there or not."""
        self.ran["lose power"] += 1
        self.disk.crash(self.store.location, random.Random(seed))
        self.open()
        self.look_for_flips()
        for name in NAMES:
            found = self.current_on_disk(name)
            known = (self.current.get(name), self.settled_current.get(name))
            assert found in known
            if found is None:
                self.current.pop(name, None)
            elif found != known[0]:
                self.begun[name].append(self.current[name])
                self.current[name] = found
        self.states = {path: each for path, each in self.ever.items() if self.has_manifest(each)}
        assert self.states.keys() >= self.settled_states
        for key, group in [*self.going.items(), *self.groups.items()]:
            if not self.store.features.has(key):
                assert group.durable is None or key in self.going
                self.groups.pop(key, None)
                continue
            self.groups[key] = group
            if not self.is_blind(key):  # A type that took over may not be durable.
                group.dtype = str(self.store.features.get(key).dtype)
            group.blocks = self.blocks_on_disk(key, group.dtype)
            assert group.blocks >= (group.durable or set())
        self.going.clear()
        there = {name.split("/")[1] for name in self.names() if name.endswith("/head.json")}
        for head_id in self.heads.keys() - there:
            assert not self.heads.pop(head_id).durable
        self.look_for_flips()

    # What holds after each step.

    def damages(self) -> list[Damage]:
        return [damage for place in self.store.items() for damage in self.store.check(place)]

    @invariant()
    def check_finds_what_was_flipped(self) -> None:
        assert sorted(each.path for each in self.damages()) == sorted(self.flips)

    @invariant()
    def all_is_listed(self) -> None:
        assert set(self.store.features.keys()) == {
            key for key in self.groups if self.is_listed(key)
        }
        assert {each.name for each in self.store.datasets.values()} == {
            name for name in self.current if f"datasets/{name}/current.json" not in self.flips
        }
        assert {each["id"] for each in self.store.heads.values()} == {
            head_id for head_id in self.heads if f"heads/{head_id}/head.json" not in self.flips
        }

    @invariant()
    def features_are_right_or_raise(self) -> None:
        for key, group in self.groups.items():
            if self.is_blind(key):
                with pytest.raises(StoreError):
                    Features(self.store.features.get(key), group.dataset, self.store).rows()
                continue
            features = Features(self.store.features.get(key), group.dataset, self.store)
            assert len(features.rows(labelled=False)) == len(features)
            found = features.group
            assert (str(found.dtype), found.block_rows) == (group.dtype, ROWS)
            for block in range(found.blocks):
                if block not in group.blocks:
                    with pytest.raises(IncompleteFeaturesError):
                        found.read_block(block)
                elif found.features.file(block) in self.flips:
                    with pytest.raises(DamagedError):
                        found.read_block(block)
                else:
                    expected = self.values(key, found.features.span(block))
                    # Rows may be derived from a stored layer: numerics.DERIVED.
                    near = 1.5 * 2.0**-11 * float(np.abs(expected).max())
                    np.testing.assert_allclose(found.read_block(block), expected, 1e-3, near)

    @invariant()
    def states_are_right_or_raise(self) -> None:
        for name, current in self.current.items():
            pointer = f"datasets/{name}/current.json"
            self.is_right_or_raises({pointer, self.manifest(current)}, name, None, current)
        for path, state in self.states.items():
            self.is_right_or_raises({path}, state.name, state.manifest_digest, state)

    def is_right_or_raises(
        self, files: set[str], name: str, digest: str | None, expected: Dataset
    ) -> None:
        if files & self.flips.keys():
            with pytest.raises(DamagedError):
                _ = self.store.datasets.load(name, digest).paths
            return
        found = self.store.datasets.load(name, digest)
        assert found.manifest_digest == expected.manifest_digest
        assert found.paths == expected.paths
        assert found.labels.tolist() == expected.labels.tolist()

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """Heads predict as they did; and all can be made good and tidy."""
        for head_id, head in self.heads.items():
            if any(name.startswith(f"heads/{head_id}/") for name in self.flips):
                with pytest.raises(DamagedError):
                    _ = Head.load(head_id, self.store).fitted
            elif head.key in self.groups:
                loaded = Head.load(head_id, self.store)
                assert np.array_equal(
                    loaded.decision_function(self.values(head.key, range(3))), head.scores
                )
        for name in [name for name in self.flips if not self.can_repair(name)]:
            # By hand, as from a copy.
            self.path(name).write_bytes(self.flips[name].sound)
        assert not any(each.needs for each in repair(self.store))
        assert self.damages() == []
        self.store.gc(self.store.garbage())
        assert self.store.garbage() == []
        assert not [name for name in self.names() if name.endswith(".partial")]
        assert self.damages() == []


def alike(one: FeatureKey, other: FeatureKey) -> bool:
    """Whether arrays have the same rows for the same samples."""
    return (one.prefix_digest, one.ref.partition(":")[2]) == (
        other.prefix_digest,
        other.ref.partition(":")[2],
    )


def path_of(key: FeatureKey) -> str:
    return f"features/{key.path}"


def chosen(items: list[Any], pick: int) -> Any:
    return items[pick % len(items)]


def labelled(digests: list[str], seed: int) -> list[tuple[str, str, str]]:
    chance = random.Random(seed)
    splits = ("train", "train", "train", "val")
    return [(each, chance.choice("ab"), chance.choice(splits)) for each in digests]


def is_block(name: str) -> bool:
    """Whether a file in the folder of an array is a block."""
    return re.fullmatch(r"(c\.)?\d+(\.\d+)*", name) is not None
