"""Bit rot: whatever happens to a stored file is found, never read as data, and repaired."""

from __future__ import annotations

import errno
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import StoreError
from featurestore.extraction import Repair, extract, repair
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.store import Damage, FeatureKey, FeatureStore, Item, blocks
from tests.reliability.faults import failing
from tests.toys import build_network, featurestore, take_photos

OTHERS = {"dark": (40, 40, 40), "light": (200, 200, 200)}
FLIPS = 100
SOAK_FLIPS = 2500
# What `repair` restores; for the rest it says what to run.
REPAIRED = ("block", "row ids", "metadata", "root", "manifest")
NEEDING = ("current.json", "former manifest", "head")


class Kept:
    """A store of all that can be kept, with everything needed to tell what it must give."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FeatureStore(folder / "store", create=True)
        take_photos(folder / "photos")
        take_photos(folder / "others", 8, OTHERS)
        self.network = build_network(folder / "net.keras")
        self.backbones = {
            "net": Backbone.open(self.network),
            "pixels": Backbone.open("pixels", input_size=16),
        }
        unused, former, current = (Dataset.open(folder / "photos", seed=seed) for seed in range(3))
        others = Dataset.open(folder / "others")
        for dataset in (unused, former, current, others):
            self.store.datasets.add(dataset)
        self.photos = current.digest
        # Of each name the current state first; no head is fitted on the last of the photos.
        self.states = {"photos": [current, former, unused], "others": [others]}
        found = {
            (dataset.name, layer): extract(
                dataset, self.backbones[model], [layer], self.store, dtype=dtype, batch_size=8
            )[layer]
            for dataset, model, layer, dtype in (
                (current, "net", "pool_a", "float16"),
                (current, "net", "conv_b:avg", "float32"),
                (current, "pixels", "pixels", "float32"),
                (current, "pixels", "pixels:max", "float16"),
                (others, "net", "pool_a", "float16"),
                (others, "pixels", "pixels", "float32"),
            )
        }
        pooled, whole = found["photos", "conv_b:avg"], found["photos", "pool_a"]
        on_former = Features(pooled.group, former, self.store)
        fits: list[Callable[[], Head]] = [
            lambda: fit_head(pooled, "logistic", {"C": 0.1}),
            lambda: fit_head(whole, "gap-dense128", {"epochs": 1}),
            lambda: fit_head(on_former, "ridge"),
        ]
        self.fits = {fit().id: fit for fit in fits}
        self.keys = {f"features/{key.path}": key for key in self.store.features.keys()}
        self.values = {key: self.store.features.get(key).read() for key in self.keys.values()}
        assert all(self.store.features.get(key).blocks > 1 for key in self.values)
        self.scores = {head_id: self._scores(head_id) for head_id in self.fits}
        self.places = self.store.items()
        self.files = self._files()

    def _scores(self, head_id: str) -> np.ndarray:
        head = Head.load(head_id, self.store)
        return head.decision_function(self.values[head.key][:5])

    def _files(self) -> dict[str, bytes]:
        paths = (each for each in sorted(self.path("").rglob("*")) if each.is_file())
        found = {each.relative_to(self.path("")).as_posix(): each.read_bytes() for each in paths}
        assert found.pop("lock") == b""
        return found

    def path(self, name: str) -> Path:
        return Path(self.store.location, name)

    def put(self, name: str, data: bytes | None) -> None:
        if data is None:
            self.path(name).unlink()
        else:
            self.path(name).write_bytes(data)

    def now(self, name: str) -> bytes | None:
        return self.path(name).read_bytes() if self.path(name).exists() else None

    def restore(self) -> None:
        """Put back what a test has left otherwise.

        There may be no other files than before, but those of a head that was fitted again.
        """
        for name in self._files().keys() - self.files.keys():
            assert name.startswith("heads/")
            self.path(name).unlink()
        for name, data in self.files.items():
            if self.now(name) != data:
                self.put(name, data)

    def written(self) -> dict[str, tuple[int, int]]:
        """What tells of each file whether it was written again."""
        found = {name: self.path(name) for name in self.files}
        status = {name: path.stat() for name, path in found.items() if path.exists()}
        return {name: (each.st_ino, each.st_mtime_ns) for name, each in status.items()}

    # What a file is.

    def place(self, name: str) -> Item:
        inside = [each for each in self.places if name.startswith(f"{each.path}/")]
        return max(inside, key=lambda each: len(each.path))

    def key(self, name: str) -> FeatureKey:
        return self.keys[self.place(name).path]

    def block(self, name: str) -> int | None:
        chunk = re.search(r"/features/(?:c\.)?(\d+)(?:\.\d+)*$", name)
        return int(chunk[1]) if chunk else None

    def kind(self, name: str) -> str:
        place, file = self.place(name), name.rpartition("/")[2]
        if place.kind == "features" and file != "zarr.json":
            return "row ids" if self.block(name) is None else "block"
        if place.kind == "dataset" and file != "current.json":
            return "manifest" if self.state(name) is self.state_now(name) else "former manifest"
        kinds = {"store": "root", "features": "metadata", "dataset": "current.json"}
        return kinds.get(place.kind, "head")

    def state_now(self, name: str) -> Dataset:
        return self.states[name.split("/")[1]][0]

    def state(self, name: str) -> Dataset:
        """The state of a data set that a manifest holds."""
        digits = name.rpartition("/")[2].partition(".")[0]
        states = self.states[name.split("/")[1]]
        return next(each for each in states if f":{digits}" in each.manifest_digest)

    # Reading, as users do.

    def ways(self, name: str) -> list[Callable[[], object]]:
        """The ways to read what a file is for; none for what only plain Zarr reads."""
        kind, place, store = self.kind(name), self.place(name), self.store
        if kind == "block":
            block, group = self.block(name), store.features.get(self.key(name))
            assert block is not None
            span = np.asarray(group.features.span(block))
            return [
                lambda: group.read_block(block),
                lambda: group.read(span),
            ]
        if name in (f"{place.path}/zarr.json", f"{place.path}/sample/zarr.json"):
            return []
        if place.kind == "features":
            key = self.key(name)
            states = [state for states in self.states.values() for state in states]
            dataset = next(each for each in states if each.digest == key.dataset_digest)
            return [lambda: Features(store.features.get(key), dataset, store).rows()]
        if kind == "former manifest":
            state = self.state(name)
            return [lambda: store.datasets.load(state.name, state.manifest_digest)]
        if place.kind == "dataset":
            return [lambda: store.datasets.load(self.state_now(name).name).paths]
        return [lambda: self._scores(self.head_id(name))] if place.kind == "head" else []

    def head_id(self, name: str) -> str:
        return self.place(name).name.partition("/")[2]

    def read_others(self, names: Iterable[str], heads: bool) -> None:
        """Read all that needs none of these files."""
        untouched = {each.path for each in self.places} - {self.place(name).path for name in names}
        listed = self.store.features.keys()
        for key in (key for path, key in self.keys.items() if path in untouched):
            assert key in listed
            assert np.array_equal(self.store.features.get(key).read(), self.values[key])
        for name in (each for each in self.states if f"datasets/{each}" in untouched):
            assert name in [each.name for each in self.store.datasets.values()]
            found = self.store.datasets.load(name)
            assert found.manifest_digest == self.states[name][0].manifest_digest
            assert found.paths == self.states[name][0].paths
        for head_id in (each for each in self.fits if f"heads/{each}" in untouched):
            assert head_id in [each["id"] for each in self.store.heads.values()]
            if heads:
                assert np.array_equal(self._scores(head_id), self.scores[head_id])

    def damages(self) -> list[Damage]:
        return [damage for place in self.store.items() for damage in self.store.check(place)]

    # Repairing.

    def repair(self, names: Iterable[str], publicly: bool) -> list[Repair]:
        """Repair as `featurestore repair` does, or with the backbones that are loaded already."""
        if publicly:
            return repair(self.store)
        places = {self.place(name).path: self.place(name).kind for name in names}
        keys = [self.keys[path] for path, kind in places.items() if kind == "features"]
        done = [repair(self.store, str(key), backbone=self.backbones[key.model]) for key in keys]
        rest = repair(self.store) if set(places.values()) - {"features"} else []
        return [each for found in (*done, rest) for each in found]

    def do_what_is_needed(self, name: str) -> None:
        """Do what the repair of a head, or of a data set, says."""
        if self.kind(name) == "head":
            self.fits[self.head_id(name)]()
            return
        is_pointer = self.kind(name) == "current.json"
        for each in (*(() if is_pointer else (self.state(name),)), self.state_now(name)):
            assert each.source is not None
            self.store.datasets.add(Dataset.open(each.source, **each.options))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that a few photos make several.
        patch.setattr(blocks, "BLOCK_BYTES", 2**14)
        patch.setattr(blocks, "MOST_ROWS", 8)
        yield Kept(tmp_path_factory.mktemp("flips"))


@pytest.fixture
def kept(built: Kept) -> Iterator[Kept]:
    yield built
    built.restore()
    assert built.damages() == []


def flipped(data: bytes, byte: int, bit: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def flip(kept: Kept, chance: random.Random) -> tuple[str, bytes]:
    """Flip one bit: of any file, as often as of any byte."""
    names = list(kept.files)
    sizes = [len(kept.files[name]) for name in names]
    name = chance.choices(names, sizes if chance.random() < 0.5 else None)[0]
    data = kept.files[name]
    return name, flipped(data, chance.randrange(len(data)), chance.randrange(8))


def examine(
    kept: Kept, changed: dict[str, bytes | None], *, publicly: bool = False, fit: bool = False
) -> Counter[str]:
    """Damage files, at most one in a place, and see that everything is as it must be.

    Parameters
    ----------
    changed : dict of str to bytes or None
        What becomes of the files.
    publicly : bool
        Whether to repair with backbones that are built from what the store tells, and to let
        sound heads predict.
    fit : bool
        Whether to do what repair says of heads and of former manifests.
    """
    for name, data in changed.items():
        kept.put(name, data)
    found = {damage.path: damage for damage in kept.damages()}
    assert found.keys() == changed.keys()
    for name, damage in found.items():
        block = kept.block(name)
        assert (damage.key, damage.block) == (kept.place(name).name, block)
        if block is not None:
            span = kept.store.features.get(kept.key(name)).features.span(block)
            assert damage.rows == (span[0], span[-1])
        for read in kept.ways(name):
            with pytest.raises(StoreError):
                read()
    assert len(FeatureStore(kept.store.location).features.keys()) == len(kept.store.features.keys())
    kept.read_others(changed, heads=publicly)
    before = kept.written()
    done = {each.damage.path: each.needs for each in kept.repair(changed, publicly)}
    after = kept.written()
    assert done.keys() == changed.keys()
    assert {name for name in after if after[name] != before.get(name)} <= changed.keys()
    left = {damage.path for damage in kept.damages()}
    assert left == {name for name in changed if kept.kind(name) not in REPAIRED}
    same = 0
    for name, needs in done.items():
        assert (needs is not None) == (name in left)
        if name in left:
            assert kept.now(name) == changed[name]
        else:
            assert kept.now(name) == kept.files[name]
            same += 1
    done_too = 0
    if fit:
        for name in left:
            kept.do_what_is_needed(name)
        done_too = len(left)
        assert kept.damages() == []
        kept.read_others([], heads=True)
    kept.restore()
    kinds = Counter(kept.kind(name) for name in changed)
    return kinds + Counter(found=len(found), same=same, left=len(left), done=done_too)


def shaken(kept: Kept, chance: random.Random, flips: int, every: int) -> Counter[str]:
    """Flip so many bits, one at a time or several, no two in one place; return what was seen."""
    figures: Counter[str] = Counter()
    while figures["flips"] < flips:
        changed: dict[str, tuple[str, bytes]] = {}
        for _ in range(chance.choice((1, 1, 2, 6))):
            name, data = flip(kept, chance)
            changed.setdefault(kept.place(name).path, (name, data))
        figures += Counter(flips=len(changed), rounds=1)
        figures += examine(
            kept,
            dict(changed.values()),
            publicly=figures["rounds"] % every == 0,
            fit=figures["rounds"] % (every // 4) == 0,
        )
    return figures


def test_flipped_bits_are_found_raise_and_are_repaired(kept: Kept) -> None:
    figures = shaken(kept, random.Random(1), FLIPS, every=12)
    assert figures["found"] == figures["flips"] >= FLIPS


@pytest.mark.soak
def test_thousands_of_flipped_bits(kept: Kept) -> None:
    started = time.perf_counter()
    figures = shaken(kept, random.Random(2), SOAK_FLIPS, every=16)
    kinds = ", ".join(f"{kind} {figures[kind]}" for kind in (*REPAIRED, *NEEDING))
    print(
        f"\nbit flips: {figures['flips']} in {figures['rounds']} rounds and "
        f"{time.perf_counter() - started:.0f} s ({kinds}); found and raised {figures['found']}, "
        f"repaired to the very bytes {figures['same']}, named what is needed {figures['left']} "
        f"(did it {figures['done']} times: clean)"
    )
    assert figures["found"] == figures["flips"] == figures["same"] + figures["left"]


# What a power cut, a failing disk or a stray hand makes of files.

WRECKS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "empty": lambda data, chance: b"",
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "one byte less": lambda data, chance: data[:-1],
    "longer": lambda data, chance: data + chance.choice((b"\0", b" ", b"\n", data)),
    "zeros": lambda data, chance: bytes(len(data)),
    "noise": lambda data, chance: chance.randbytes(len(data)),
    "deleted": lambda data, chance: None,
}


def commits(kept: Kept, name: str) -> bool:
    """Whether a file is what says that something is there."""
    return name.endswith(("/features/zarr.json", "/current.json", "/head.json")) or (
        kept.kind(name) in ("block", "former manifest")
    )


@pytest.mark.parametrize("wreck", WRECKS)
def test_wrecked_files_are_found_raise_and_are_repaired(kept: Kept, wreck: str) -> None:
    chance = random.Random(wreck)
    for _ in range(3):
        changed = {}
        for name in chance.sample(list(kept.files), len(kept.files)):
            if wreck != "deleted" or not commits(kept, name):
                data = WRECKS[wreck](kept.files[name], chance)
                changed.setdefault(kept.place(name).path, (name, data))
        examine(kept, dict(changed.values()))


@pytest.mark.parametrize("kind", [*REPAIRED, *NEEDING])
def test_a_sector_that_cannot_be_read_takes_nothing_else_away(kept: Kept, kind: str) -> None:
    name = next(each for each in kept.files if kept.kind(each) == kind)
    with failing(errno.EIO, calls=["read"], match=str(kept.path(name))):
        (found,) = kept.damages()
        assert found.path == name
        assert "Input/output error; check the disk" in found.reason
        for read in kept.ways(name):
            with pytest.raises(StoreError):
                read()
        FeatureStore(kept.store.location)
        kept.read_others([name], heads=False)
        repair(kept.store)
    assert kept.damages() == []
    kept.read_others([], heads=True)


@pytest.mark.parametrize("other", ["block", "features", "data set"])
def test_a_sound_chunk_in_the_place_of_another_is_found(kept: Kept, other: str) -> None:
    names = [name for name in kept.files if kept.kind(name) == "block" and "@pool_a-" in name]
    first, *rest = (name for name in names if kept.key(name).dataset_digest == kept.photos)
    if other == "block":
        stray = rest[0]
    elif other == "data set":
        stray = next(name for name in names if kept.key(name).dataset_digest != kept.photos)
    else:
        first = next(
            name for name in kept.files if "@pixels%3Amax-" in name and kept.block(name) == 0
        )
        stray = next(
            name for name in kept.files if "@conv_b%3Aavg-" in name and kept.block(name) == 0
        )
    examine(kept, {first: kept.files[stray]})


def test_sound_files_in_the_place_of_others_are_found(kept: Kept) -> None:
    """Whole documents, manifests and files of heads, each from another place of its kind."""
    for kind in ("metadata", "row ids", "current.json", "manifest", "head"):
        names = [name for name in kept.files if kept.kind(name) == kind]
        places = {kept.place(name).path: name for name in names}
        for name, data in zip(names, ([*names[1:], names[0]]), strict=True):
            if kept.files[name] != kept.files[data] and kept.place(name) != kept.place(data):
                examine(kept, {name: kept.files[data]})
        assert places


# Several at once, and sources that are gone.


def test_all_of_a_group_but_what_tells_of_the_rest(kept: Kept) -> None:
    place = next(each for each in kept.places if each.kind == "features")
    inside = [name for name in kept.files if kept.place(name) == place]
    group = [name for name in inside if name != f"{place.path}/zarr.json"]
    for name in group:
        kept.put(name, kept.files[name][:-7])
    done = repair(kept.store)
    assert sorted(each.damage.path for each in done) == sorted(group)
    assert not any(each.needs for each in done)
    assert all(kept.now(name) == kept.files[name] for name in group)
    for name in (f"{place.path}/zarr.json", f"{place.path}/features/zarr.json"):
        kept.put(name, b"{}")
    needs = [each.needs for each in repair(kept.store)]
    assert len(needs) == 2
    assert all("both damaged; move the folder away" in str(each) for each in needs)


@contextmanager
def away(path: Path) -> Iterator[None]:
    path.rename(path.with_name("away"))
    yield
    path.with_name("away").rename(path)


def wrecked(kept: Kept, *parts: str) -> list[str]:
    """Empty the first file whose name has each of these parts."""
    names = [next(name for name in kept.files if re.search(part, name)) for part in parts]
    for name in names:
        kept.put(name, b"")
    return names


def needs_after_repair(kept: Kept) -> dict[str, str | None]:
    return {each.damage.path: each.needs for each in repair(kept.store)}


def test_without_the_images_all_else_is_repaired(kept: Kept) -> None:
    photos, others = (kept.states[name][0].digest[8:20] for name in ("photos", "others"))
    block, ids, metadata, elsewhere, current, pointer = names = wrecked(
        kept,
        rf"pool_a-.*@{photos}/features/c\.2",
        rf"pool_a-.*@{photos}/sample/c",
        rf"conv_b.*@{photos}/zarr\.json",
        rf"pool_a-.*@{others}/features/c\.1",
        rf"datasets/photos/{kept.states['photos'][0].manifest_digest[8:20]}",
        r"datasets/others/current\.json",
    )
    with away(kept.folder / "photos"):
        needs = needs_after_repair(kept)
    assert needs.keys() == set(names)
    assert [name for name in names if needs[name]] == [block, current, pointer]
    assert str(kept.folder / "photos") in str(needs[block])
    assert str(kept.folder / "photos") in str(needs[current])
    assert "`featurestore scan DATA --name others`" in str(needs[pointer])
    assert kept.now(block) == kept.now(current) == kept.now(pointer) == b""
    for name in (ids, metadata, elsewhere):
        assert kept.now(name) == kept.files[name]
    needs = needs_after_repair(kept)
    assert [name for name in needs if needs[name]] == [pointer]
    kept.do_what_is_needed(pointer)
    assert kept.damages() == []
    same = [name for name in names if name != pointer]
    assert all(kept.now(name) == kept.files[name] for name in same)


def test_one_image_that_is_gone_leaves_its_block_alone(kept: Kept) -> None:
    photos = kept.states["photos"][0]
    gone = photos.paths[9]
    assert gone is not None
    lost, found = wrecked(
        kept,
        rf"pool_a-.*@{photos.digest[8:20]}/features/c\.1",
        r"pool_a-.*@{}/features/c\.3".replace("{}", photos.digest[8:20]),
    )
    with away(Path(gone)):
        needs = needs_after_repair(kept)
    assert gone in str(needs[lost])
    assert needs[found] is None
    assert kept.now(found) == kept.files[found]
    assert kept.now(lost) == b""
    assert needs_after_repair(kept) == {lost: None}
    assert kept.now(lost) == kept.files[lost]


@pytest.mark.parametrize("what", ["gone", "another"])
def test_without_the_model_all_else_is_repaired(kept: Kept, what: str) -> None:
    block, ids, elsewhere = wrecked(
        kept, r"pool_a-.*/features/c\.0", r"pool_a-.*/sample/c", r"pixels-.*/features/0"
    )
    with away(kept.network):
        if what == "another":
            build_network(kept.network, seed=4)
        needs = needs_after_repair(kept)
        kept.network.unlink(missing_ok=True)
    assert [name for name in needs if needs[name]] == [block]
    told = str(kept.network) if what == "gone" else "no longer the model"
    assert told in str(needs[block])
    assert kept.now(block) == b""
    assert kept.now(ids) == kept.files[ids]
    assert kept.now(elsewhere) == kept.files[elsewhere]
    assert needs_after_repair(kept) == {block: None}
    assert kept.now(block) == kept.files[block]


@pytest.mark.parametrize("part", ["zarr", "features/zarr", "sample/zarr", "sample/c", "features/c"])
def test_damage_is_no_hindrance_to_a_model_that_would_share(kept: Kept, part: str) -> None:
    """Features of a model with the same layers would be copied; what is damaged is computed."""
    wrecked(kept, rf"pool_a-.*@{kept.photos[8:20]}/{part}")
    twin = Backbone.open(kept.network, name="twin")
    photos = kept.states["photos"][0]
    features = extract(photos, twin, ["pool_a"], kept.store, batch_size=8)["pool_a"]
    key = replace(features.key, model="net")
    assert np.array_equal(features.group.read(), kept.values[key])
    kept.store.features.remove(features.key)


# What is needed, done.


@pytest.mark.parametrize("number", range(3))
def test_a_damaged_head_is_fitted_again(kept: Kept, number: int) -> None:
    head_id = list(kept.fits)[number]
    for name in [name for name in kept.files if kept.kind(name) == "head"]:
        if kept.head_id(name) == head_id:
            figures = examine(kept, {name: kept.files[name][:-1]}, fit=True)
            assert figures["left"] == 1


def test_a_former_state_is_scanned_again_or_goes(kept: Kept) -> None:
    used, unused = (
        next(name for name in kept.files if state.manifest_digest[8:20] in name)
        for state in kept.states["photos"][1:]
    )
    examine(kept, {used: b""}, fit=True)
    examine(kept, {unused: b""}, fit=True)
    wrecked(kept, used, unused)
    needs = needs_after_repair(kept)
    assert "scan this former state" in str(needs[used])
    assert "`featurestore gc` removes it" in str(needs[unused])
    assert featurestore("gc", "--yes", "--store", kept.store.location).status == 0
    assert [damage.path for damage in kept.damages()] == [used]


def test_which_state_was_current_is_never_guessed(kept: Kept) -> None:
    current = kept.states["photos"][0].manifest_digest[8:20]
    pointer, manifest = wrecked(kept, r"photos/current\.json", current)
    needs = needs_after_repair(kept)
    assert "`featurestore scan DATA --name photos`" in str(needs[manifest])
    assert kept.now(pointer) == kept.now(manifest) == b""


def test_commands_tell_and_repair_what_is_damaged(kept: Kept) -> None:
    store = ("--store", kept.store.location)
    photos = kept.states["photos"][0].digest[8:20]
    block, head = wrecked(kept, rf"pool_a-.*@{photos}/features/c\.3", r"heads/.*/head\.json")
    found = featurestore("verify", "--json", *store)
    assert found.status == 1
    rows = {row["path"]: row for row in found.json["damaged"]}
    assert rows.keys() == {block, head}
    assert (rows[block]["block"], rows[block]["rows"]) == (3, [24, 31])
    assert rows[block]["key"] == str(kept.key(block))
    done = featurestore("repair", "--json", *store)
    assert done.status == 1
    assert {row["path"]: bool(row["needs"]) for row in done.json} == {block: False, head: True}
    (left,) = featurestore("verify", "--json", *store).json["damaged"]
    assert left["path"] == head
