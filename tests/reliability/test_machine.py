"""Any order of inserting, extracting, dying, rotting, repairing and removing, against a model.

The model is plain dictionaries; what features must hold is computed from the pixels by numpy.
"""

from __future__ import annotations

import csv
import io
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import DamagedError, HeadError, IncompleteFeaturesError, StoreError
from featurestore.extraction import extract, repair
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.store import Damage, FeatureKey, FeatureStore, blocks
from tests.reliability.faults import Disk, Killed

# Images of the very size that the backbones take: resizing leaves them as they are.
SIDE, IMAGES, ROWS = 4, 14, 4
REFS = ("pixels", "pixels:avg", "pixels:max")
NAMES = ("flowers", "birds")


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
            "stretch": Backbone.pixels(SIDE),
            "crop": Backbone.pixels(SIDE, resize="crop"),
            "mixer": Backbone.from_file(folder / "mixer.keras"),
        }
        return cls(folder, pixels, paths, backbones, kernel)

    def expected(self, backbone: str, ref: str, digest: str) -> np.ndarray:
        """One row of features, by another way than the one under test."""
        values = self.pixels[digest].astype(np.float32) / 255
        if backbone == "mixer":
            values = np.maximum(values @ self.kernel, 0)
        reduce = {"": lambda x: x, "avg": lambda x: x.mean((0, 1)), "max": lambda x: x.max((0, 1))}
        return reduce[ref.partition(":")[2]](values)


@dataclass
class Group:
    """What is stored under a key."""

    backbone: str
    dataset: Dataset
    dtype: str
    blocks: set[int] = field(default_factory=set)


@dataclass
class Flip:
    """A file before and after one bit of it was flipped."""

    sound: bytes
    damaged: bytes


class StoreMachine(RuleBasedStateMachine):
    """A store and the model of it. A step may be killed; then it is seen what it did."""

    sources: Sources
    ran: Counter[str] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.sources.folder))
        self.disk = Disk()
        self.open()
        self.current: dict[str, Dataset] = {}
        # What a scan of the table gives now: another state, if its adding was killed.
        self.tables: dict[str, Dataset] = {}
        self.states: dict[str, Dataset] = {}
        self.groups: dict[FeatureKey, Group] = {}
        self.heads: dict[str, tuple[Dataset, FeatureKey, np.ndarray, Callable[[], Head]]] = {}
        self.flips: dict[str, Flip] = {}

    def open(self) -> None:
        with self.disk.use():
            self.store = FeatureStore(self.folder / "store")

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
            # A flipped file that was written again, or removed, is none any more.
            self.flips = {
                name: flip
                for name, flip in self.flips.items()
                if self.path(name).exists() and self.path(name).read_bytes() == flip.damaged
            }
            # Another process goes on.
            self.open()
        return True

    # Data sets.

    def change(self, name: str, rows: list[tuple[str, str, str]], death: int | None) -> None:
        """Write a table of (digest, label, split), and make it the current state of a name."""
        table = self.folder / f"{name}.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "split"))
            writer.writerows((self.sources.paths[each], *rest) for each, *rest in rows)
        state = self.tables[name] = Dataset.from_table(table, name=name)
        if self.attempt("add a state", death, lambda: self.store.add_dataset(state)):
            found = state.manifest_digest
        elif f"datasets/{name}/current.json" in self.flips:
            found = self.current[name].manifest_digest
        else:
            entries = {each.name: each.manifest_digest for each in self.store.datasets()}
            found = entries.get(name, "")
        if name in self.current:
            assert found in (self.current[name].manifest_digest, state.manifest_digest)
        if found == state.manifest_digest:
            self.current[name] = state
        if self.path(self.manifest(state)).exists():
            self.states[state.manifest_digest] = state

    def manifest(self, state: Dataset) -> str:
        digits = state.manifest_digest.partition(":")[2][:12]
        return f"datasets/{state.name}/{digits}.parquet"

    @rule(
        name=st.sampled_from(NAMES),
        chosen=st.lists(st.integers(0, IMAGES - 1), min_size=5, unique=True),
        seed=st.integers(0, 3),
        death=st.none() | st.integers(0, 20),
    )
    def insert(self, name: str, chosen: list[int], seed: int, death: int | None) -> None:
        """A data set of some images, its rows labelled and split anew; of all names the same."""
        digests = sorted(self.sources.pixels)
        self.change(name, labelled([digests[each] for each in chosen], seed), death)

    @precondition(lambda self: self.tables)
    @rule(
        data=st.data(),
        extend=st.booleans(),
        seed=st.integers(0, 3),
        death=st.none() | st.integers(0, 20),
    )
    def extend_or_relabel(
        self, data: st.DataObject, extend: bool, seed: int, death: int | None
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.tables)))
        digests = list(self.tables[name].sample_digests)
        if extend:
            others = sorted(self.sources.pixels.keys() - set(digests))
            digests += others[: data.draw(st.integers(1, 5))]
        self.change(name, labelled(digests, seed), death)

    # Features.

    @precondition(lambda self: self.current)
    @rule(
        data=st.data(),
        backbone=st.sampled_from(["stretch", "stretch", "crop", "mixer"]),
        refs=st.sets(st.sampled_from(REFS), min_size=1),
        dtype=st.sampled_from(["float16", "float16", "float32"]),
        batch_size=st.sampled_from([3, 8]),
        death=st.none() | st.integers(0, 60),
    )
    def extract(
        self,
        data: st.DataObject,
        backbone: str,
        refs: set[str],
        dtype: str,
        batch_size: int,
        death: int | None,
    ) -> None:
        """Extract some layers, or resume; perhaps be killed on the way."""
        dataset = self.current[data.draw(st.sampled_from(sorted(self.current)))]
        network = self.sources.backbones[backbone]
        layers = sorted(each.replace("pixels", "mix") for each in refs)
        if backbone != "mixer":
            layers = sorted(refs)
        keys = {
            FeatureKey(
                network.name, ref, network.prefix_digest(ref.partition(":")[0]), dataset.digest
            ): ref
            for ref in layers
        }

        def action() -> None:
            extract(dataset, network, layers, self.store, dtype=dtype, batch_size=batch_size)

        if any(self.is_blind(key) for key in keys):
            # Of use again after a repair; until then nothing of it is guessed.
            with pytest.raises(DamagedError):
                self.attempt("extract damaged features", None, action)
            done = False
        else:
            done = self.attempt("extract", death, action)
        for key in keys:
            former = self.groups.get(key)
            group = former or Group(backbone, dataset, dtype)
            replaced = former is not None and former.dtype == "float16" and dtype == "float32"
            if done:
                group = Group(backbone, dataset, dtype) if replaced else group
                self.groups[key] = group
                group.blocks = set(range(-(-len(dataset) // ROWS)))
            elif not self.is_blind(key):
                self.see(key, group, replaced, dtype)

    def is_blind(self, key: FeatureKey) -> bool:
        """Whether metadata or row ids of a group are damaged, so that it cannot be used."""
        place = f"features/{key.path}/"
        return any(
            name.startswith(place) and not name.startswith(f"{place}features/c.")
            for name in self.flips
        )

    def see(self, key: FeatureKey, group: Group, replaced: bool, dtype: str) -> None:
        """See what a killed extraction has left of a group; nothing that was committed may lack."""
        if not self.store.has(key):
            assert key not in self.groups or replaced
            self.groups.pop(key, None)
            return
        found = self.store.group(key)
        there = found.features.existing()
        if str(found.dtype) == group.dtype:
            assert there >= group.blocks or replaced
        else:
            assert replaced
            assert str(found.dtype) == dtype
        self.groups[key] = Group(group.backbone, group.dataset, str(found.dtype), there)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), death=st.none() | st.integers(0, 20))
    def remove(self, data: st.DataObject, death: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.groups, key=str)))
        if self.attempt("remove features", death, lambda: self.store.remove(key)):
            assert not self.store.has(key)
        if not self.store.has(key):
            del self.groups[key]
        elif not self.is_blind(key):
            assert self.store.group(key).features.existing() == self.groups[key].blocks

    # Heads.

    @precondition(lambda self: self.groups)
    @rule(
        data=st.data(),
        head=st.sampled_from(["ridge", "logistic"]),
        death=st.none() | st.integers(0, 20),
    )
    def fit(self, data: st.DataObject, head: str, death: int | None) -> None:
        """Fit a head, or the same again; whatever lacks or is damaged must stop it."""
        key = data.draw(st.sampled_from(sorted(self.groups, key=str)))
        group = self.groups[key]
        states = [each for each in self.states.values() if each.digest == key.dataset_digest]
        dataset = data.draw(st.sampled_from([group.dataset, *states]))
        fitted: list[Head] = []

        def again() -> Head:
            return fit_head(Features(self.store.group(key), dataset, self.store), head)

        complete = group.blocks == set(range(-(-len(group.dataset) // ROWS)))
        sound = not any(name.startswith(f"features/{key.path}/") for name in self.flips)
        try:
            done = self.attempt("fit a head", death, lambda: fitted.append(again()))
        except HeadError:
            return
        except StoreError:
            assert not (complete and sound)
            return
        if done:
            scores = fitted[0].scores(self.values(key, range(3)))
            known = self.heads.setdefault(fitted[0].id, (dataset, key, scores, again))
            assert np.array_equal(known[2], scores)
            return
        listed = {each["id"] for each in self.store.heads()} | {
            name.split("/")[1] for name in self.flips if name.startswith("heads/")
        }
        for head_id in self.heads.keys() - listed:
            # Only the one that was damaged, while it is replaced.
            assert head_id.startswith(head)
            del self.heads[head_id]
        for head_id in listed - self.heads.keys():
            scores = Head.load(self.store, head_id).scores(self.values(key, range(3)))
            self.heads[head_id] = dataset, key, scores, again

    def values(self, key: FeatureKey, rows: Any) -> np.ndarray:
        group = self.groups[key]
        digests = [group.dataset.sample_digests[row] for row in rows]
        found = [self.sources.expected(group.backbone, key.ref, each) for each in digests]
        return np.stack(found).astype(group.dtype)

    # Rot, repair, removal.

    def files(self) -> list[str]:
        """What may be damaged: all that is committed, one file of a place at a time."""
        places = [each.path for each in self.store.places()]
        inside = {
            name: max(p for p in places if f"{name}/".startswith(f"{p}/")) for name in self.tree()
        }
        damaged = {inside[name] for name in self.flips}
        return [name for name, place in inside.items() if place not in damaged]

    def tree(self) -> list[str]:
        places = tuple(f"{each.path}/" for each in self.store.places())
        root = Path(self.store.location)
        found = (
            each.relative_to(root).as_posix() for each in sorted(root.rglob("*")) if each.is_file()
        )
        return [
            each
            for each in found
            if each.startswith(places) and not each.endswith(".partial") and self.is_kept(each)
        ]

    def is_kept(self, name: str) -> bool:
        """Whether a file belongs to something that was committed."""
        if not name.startswith("features/") or name.count("/") < 4:
            return True
        return any(name.startswith(f"features/{key.path}/") for key in self.groups)

    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        names = self.files()
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        sound = self.path(name).read_bytes()
        byte, bit = data.draw(st.integers(0, len(sound) - 1)), data.draw(st.integers(0, 7))
        damaged = sound[:byte] + bytes([sound[byte] ^ 1 << bit]) + sound[byte + 1 :]
        self.path(name).write_bytes(damaged)
        self.flips[name] = Flip(sound, damaged)
        self.ran["flip a bit"] += 1

    @precondition(lambda self: self.flips)
    @rule(death=st.none() | st.integers(0, 20))
    def repair(self, death: int | None) -> None:
        before = dict(self.flips)
        needs: dict[str, str | None] = {}

        def action() -> None:
            needs.update((each.damage.path, each.needs) for each in repair(self.store))

        done = self.attempt("repair", death, action)
        for name in before.keys() - self.flips.keys():
            assert self.path(name).read_bytes() == before[name].sound
        if done:
            assert needs.keys() == before.keys()
            assert {name for name, each in needs.items() if each} == self.flips.keys()
            assert not any(self.can_repair(name) for name in self.flips)

    def can_repair(self, name: str) -> bool:
        top, middle, *_ = name.split("/")
        if top == "heads":
            return False
        if top == "datasets":
            current = self.current[middle]
            if name.endswith("current.json"):
                return True
            same = self.tables[middle].manifest_digest == current.manifest_digest
            return name == self.manifest(current) and same
        key = next((key for key in self.groups if name.startswith(f"features/{key.path}/")), None)
        if key is None or name.endswith("zarr.json"):
            return True
        states = (each for each in self.states.values() if each.digest == key.dataset_digest)
        return any(self.manifest(each) not in self.flips for each in states)

    @rule(death=st.none() | st.integers(0, 40))
    def gc(self, death: int | None) -> None:
        blind = [name for name in self.flips if name.endswith(("/current.json", "/head.json"))]
        if blind:
            with pytest.raises(DamagedError, match="gc cannot know what is in use"):
                self.store.garbage()
            return
        used = {state.manifest_digest for state in self.current.values()}
        used |= {state.manifest_digest for state, *_ in self.heads.values()}
        samples = {state.digest for state in self.current.values()}
        samples |= {state.digest for state, *_ in self.heads.values()}
        keys = [key for key in self.groups if key.dataset_digest not in samples]
        states = [state for digest, state in self.states.items() if digest not in used]
        items = self.store.garbage()
        listed = {each.path for each in items if "interrupted" not in each.reason}
        sound = {f"features/{key.path}" for key in keys if not self.is_blind(key)}
        assert listed == sound | {self.manifest(each) for each in states}
        done = self.attempt("collect garbage", death, lambda: self.store.gc(items))
        for key in keys:
            if not self.store.has(key):
                del self.groups[key]
            else:
                assert not done or self.is_blind(key)
        for state in states:
            if not self.path(self.manifest(state)).exists():
                del self.states[state.manifest_digest]
            else:
                assert not done
        if done:
            assert not [each for each in self.tree_of_all() if each.endswith(".partial")]

    def tree_of_all(self) -> list[str]:
        return [each.name for each in Path(self.store.location).rglob("*")]

    @rule(seed=st.integers(0, 99))
    def lose_power(self, seed: int) -> None:
        """All that was reported done is there; what was removed may be back, and is garbage."""
        self.ran["lose power"] += 1
        self.disk.crash(self.store.location, random.Random(seed))
        self.open()
        for state in self.tables.values():
            if self.path(self.manifest(state)).exists():
                self.states[state.manifest_digest] = state

    # What holds after each step.

    def damages(self) -> list[Damage]:
        return [damage for place in self.store.places() for damage in self.store.check(place)]

    @invariant()
    def check_finds_what_was_flipped(self) -> None:
        assert sorted(each.path for each in self.damages()) == sorted(self.flips)

    @invariant()
    def all_is_listed(self) -> None:
        damaged = {name.rpartition("/")[0] for name in self.flips if name.endswith("zarr.json")}
        listed = {
            key
            for key in self.groups
            if not damaged & {f"features/{key.path}{each}" for each in ("", "/features", "/sample")}
        }
        assert set(self.store.keys()) == listed
        assert {each.name for each in self.store.datasets()} == {
            name for name in self.current if f"datasets/{name}/current.json" not in self.flips
        }
        assert {each["id"] for each in self.store.heads()} == {
            head_id for head_id in self.heads if f"heads/{head_id}/head.json" not in self.flips
        }

    @invariant()
    def features_are_right_or_raise(self) -> None:
        for key, group in self.groups.items():
            if self.is_blind(key):
                with pytest.raises(StoreError):
                    Features(self.store.group(key), group.dataset, self.store)
                continue
            found = Features(self.store.group(key), group.dataset, self.store).group
            assert (str(found.dtype), found.block_rows) == (group.dtype, ROWS)
            for block in range(found.blocks):
                if block not in group.blocks:
                    with pytest.raises(IncompleteFeaturesError):
                        found.read_block(block)
                elif found.features.file(block) in self.flips:
                    with pytest.raises(DamagedError):
                        found.read_block(block)
                else:
                    wanted = self.values(key, found.features.span(block))
                    np.testing.assert_allclose(found.read_block(block), wanted, 1e-3, 1e-6)

    @invariant()
    def states_are_right_or_raise(self) -> None:
        for name, current in self.current.items():
            files = {f"datasets/{name}/current.json", self.manifest(current)}
            if files & self.flips.keys():
                with pytest.raises(StoreError):
                    self.store.dataset(name)
            else:
                self.is_same(self.store.dataset(name), current)
        for digest, state in self.states.items():
            if self.manifest(state) in self.flips:
                with pytest.raises(DamagedError):
                    self.store.dataset(state.name, digest)
            else:
                self.is_same(self.store.dataset(state.name, digest), state)

    def is_same(self, found: Dataset, expected: Dataset) -> None:
        assert found.manifest_digest == expected.manifest_digest
        assert found.paths == expected.paths
        assert found.plain_labels() == expected.plain_labels()

    def teardown(self) -> None:
        """Heads predict as they did; and all can be made good and tidy."""
        try:
            self.end()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        for head_id, (_, key, scores, again) in self.heads.items():
            damaged = any(name.startswith(f"heads/{head_id}/") for name in self.flips)
            if damaged:
                with pytest.raises(DamagedError):
                    Head.load(self.store, head_id)
            elif key in self.groups:
                loaded = Head.load(self.store, head_id)
                assert np.array_equal(loaded.scores(self.values(key, range(3))), scores)
        for name in [name for name in self.flips if not self.can_repair(name)]:
            # By hand, as from a copy.
            self.path(name).write_bytes(self.flips.pop(name).sound)
        assert not any(each.needs for each in repair(self.store))
        assert self.damages() == []
        self.store.gc(self.store.garbage())
        assert self.store.garbage() == []
        assert not [each for each in self.tree_of_all() if each.endswith(".partial")]
        assert self.damages() == []


def labelled(digests: list[str], seed: int) -> list[tuple[str, str, str]]:
    chance = random.Random(seed)
    splits = ("train", "train", "train", "val")
    return [(each, chance.choice("ab"), chance.choice(splits)) for each in digests]


@pytest.fixture(scope="module", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_ROWS", ROWS)
        StoreMachine.sources = Sources.make(tmp_path_factory.mktemp("machine"))
        yield


def run(examples: int, steps: int, **options: Any) -> Counter[str]:
    StoreMachine.ran.clear()
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )
    return StoreMachine.ran


def test_any_order_of_steps() -> None:
    run(15, 15, derandomize=True)


@pytest.mark.soak
def test_many_orders_of_steps() -> None:
    started = time.perf_counter()
    ran = run(150, 30)
    told = ", ".join(f"{what} {count}" for what, count in sorted(ran.items()))
    print(f"\nstate machine: 150 runs in {time.perf_counter() - started:.0f} s: {told}")


def test_a_store_that_is_made_and_killed_at_each_step(tmp_path: Path) -> None:
    number, died = 0, True
    while died:
        folder, disk = tmp_path / f"{number}" / "store", Disk()
        died = False
        with disk.use(Killed, at=number), suppress(Killed):
            died = True
            FeatureStore(folder)
            died = False
        disk.crash(tmp_path, random.Random(number))
        store = FeatureStore(folder)
        assert [each for place in store.places() for each in store.check(place)] == []
        number += 1
    assert number > 5
