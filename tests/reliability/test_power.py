"""The power goes: what was reported done is there, what is torn is noticed, the rest resumes."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import durable
from featurestore.errors import DamagedError
from featurestore.heads import Head
from featurestore.store import FeatureStore, Item
from featurestore.store.local import LocalFiles
from tests.reliability.acts import ACTS, Act, Made, blocks, content, damages, link
from tests.reliability.faults import Disk, Killed, Step, failing
from tests.reliability.promises import few, promise

# ---------------------------------------------------------------- what a finished write is


def orders(steps: list[Step]) -> dict[str, list[str]]:
    """For each file that was given a name, the steps that made it, and what was flushed later."""
    found = {}
    for number, step in enumerate(steps):
        if step.call == "replace":
            own = re.compile(re.escape(step.path) + r"\.[0-9a-f]{32}\.partial")
            partial = [each.path for each in steps[:number] if own.fullmatch(each.path)][-1]
            made = [each.call for each in steps[:number] if each.path == partial]
            folder = str(Path(step.path).parent)
            later = [each.call for each in steps[number:] if each.path == folder]
            found[step.path] = [*made, "replace", *later[:1]]
    return found


@pytest.fixture(params=few(ACTS, "resumed extraction"))
def act(request: pytest.FixtureRequest) -> Act:
    return ACTS[request.param]


def start(made: Made, act: Act, folder: Path) -> Path:
    store = folder / "start"
    if act.starts_empty:
        store.mkdir()
    else:
        link(made.store, store)
        act.prepare(made, FeatureStore(store, create=True))
    return store


def test_bytes_are_flushed_before_they_get_a_name_and_the_name_before_it_is_reported(
    made: Made, act: Act, tmp_path: Path
) -> None:
    store = FeatureStore(start(made, act, tmp_path), create=True)
    with failing() as disk:
        act.do(made, store)

    for path, calls in orders(disk.steps).items():
        assert calls == ["open", "write", "fsync", "replace", "fsync"], path
    for number, step in enumerate(disk.steps):
        if step.call == "mkdir":
            later = [each.path for each in disk.steps[number:] if each.call == "fsync"]
            assert str(Path(step.path).parent) in later


@promise
def test_a_write_that_returns_is_on_disk(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path / "store"))
    with failing() as disk:
        files.make_folder("a")
        made = len(disk.steps)
        files.write("a/b", b"bytes")

    folders = [Path(step.path).name for step in disk.steps[:made] if step.call == "fsync"]
    assert {tmp_path.name, "store"} <= set(folders)
    assert [step.call for step in disk.steps[made:]] == [
        "open",
        "write",
        "fsync",
        "replace",
        "fsync",
    ]
    assert disk.steps[-1].path == str(tmp_path / "store" / "a")


@promise
def test_a_file_outside_of_the_store_is_given_its_name_in_the_same_order(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"a model")
    with failing(calls=("look", "open", "fsync", "replace")) as disk:
        durable.commit(tmp_path / "part", tmp_path / "model.keras")

    calls = [(step.call, Path(step.path).name) for step in disk.steps if step.call != "look"]
    assert calls == [
        ("fsync", "part"),
        ("replace", "model.keras"),
        ("fsync", tmp_path.name),
    ]


# ---------------------------------------------------------------- the power goes


class Cuts:
    """One act, and power cuts in it."""

    def __init__(self, made: Made, act: Act, folder: Path) -> None:
        self._made, self._act, self._folder = made, act, folder
        self._numbers = itertools.count()
        self._start = start(made, act, folder)
        whole = self._begin()
        with failing() as disk:
            act.do(made, FeatureStore(whole, create=True))
        self.steps = len(disk.steps)
        named = [number for number, step in enumerate(disk.steps) if step.call == "replace"]
        # Where a kill leaves a file that has its name, and a folder that does not tell it yet.
        self.last_name = named[-1] + 1 if named else self.steps - 1
        self._end = content(whole)

    def _begin(self) -> Path:
        store = self._folder / f"store-{next(self._numbers)}"
        link(self._start, store)
        return store

    def _finish(self, store: Path) -> None:
        """What a power cut left is sound, and the same command completes it."""
        before = blocks(store)
        for path, digest in before.items():
            assert digest in (self._end.get(path), blocks(self._start).get(path)), path
        if self._act.stops:
            assert not damages(store)
        again = FeatureStore(store, create=True)
        self._act.do(self._made, again)
        again.gc([item for item in again.garbage() if item.kind == "leftover"])
        assert content(store) == self._end
        assert not damages(store)
        shutil.rmtree(store)

    def in_the_middle(self, at: int, chance: random.Random) -> None:
        """The power goes just before a step: what was reported earlier is as it was."""
        store, disk = self._begin(), Disk()
        reported = content(store)
        with disk.use(Killed, at=at), pytest.raises(Killed):
            self._act.do(self._made, FeatureStore(store, create=True))
        disk.crash(store, chance)
        kept = reported.items() & self._end.items()
        assert kept <= content(store).items()
        self._finish(store)

    def after_it_was_resumed(self, at: int, chance: random.Random) -> None:
        """A kill, the same command again, and when that has reported the end, the power goes."""
        store, disk = self._begin(), Disk()
        with disk.use(Killed, at=at), pytest.raises(Killed):
            self._act.do(self._made, FeatureStore(store, create=True))
        with disk.use():
            self._act.do(self._made, FeatureStore(store, create=True))
        disk.crash(store, chance)
        found = content(store)
        assert self._end.items() <= found.items()
        # Beside it at most what the kill left, and what gc has removed, unflushed.
        for path in found.keys() - self._end.keys():
            ends = (".partial", "/replacement.json")
            assert path.endswith(ends) or path in content(self._start)
        self._finish(store)


@pytest.fixture
def cuts(made: Made, act: Act, tmp_path: Path) -> Cuts:
    return Cuts(made, act, tmp_path)


def test_a_power_cut(cuts: Cuts) -> None:
    chance = random.Random(0)
    for at in sorted(chance.sample(range(cuts.steps), 2)):
        cuts.in_the_middle(at, chance)
    for _ in range(2):
        cuts.after_it_was_resumed(cuts.last_name, chance)


@pytest.mark.soak
def test_a_power_cut_before_every_step(cuts: Cuts, request: pytest.FixtureRequest) -> None:
    chance = random.Random(1)
    for at in range(cuts.steps):
        cuts.in_the_middle(at, chance)
        cuts.after_it_was_resumed(at, chance)
    print(
        f"{request.node.callspec.id}: power cuts {2 * cuts.steps}, reported and lost 0, "
        "torn and read 0, all resumed"
    )


# ---------------------------------------------------------------- a disk that lost all the same


def torn(data: bytes) -> Iterator[bytes]:
    """What file systems are known to leave of a file: nothing, a part, zeros."""
    yield b""
    yield data[:1]
    yield data[: len(data) // 2]
    yield data[:-1]
    yield bytes(len(data))
    yield data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield data + bytes(4096 - len(data) % 4096)


def read(store: FeatureStore, item: Item) -> None:
    if item.kind == "features":
        group = store.features.open(item)
        group.read()
        assert len(group.samples)
    elif item.kind == "dataset":
        _ = store.datasets.load("photos").paths
    elif item.kind == "head":
        _ = Head.load(item.name.partition("/")[2], store).fitted


def test_a_torn_file_is_never_read_as_data(made: Made, tmp_path: Path) -> None:
    link(made.store, tmp_path / "store")
    store = FeatureStore(tmp_path / "store", create=True)
    places = sorted(store.items(), key=lambda place: -len(place.path))
    tried = 0
    for path in [path for path in sorted(Path(store.location).rglob("*")) if path.is_file()]:
        name, data = path.relative_to(store.location).as_posix(), path.read_bytes()
        if name == "lock":
            continue
        place = next(place for place in places if name.startswith(f"{place.path}/"))
        for broken in torn(data):
            path.unlink()
            path.write_bytes(broken)
            assert name in [damage.path for damage in store.check(place)], (name, len(broken))
            zarrs = (f"{place.path}/zarr.json", f"{place.path}/sample/zarr.json")
            if place.kind != "store" and name not in zarrs:  # Only plain Zarr reads those.
                with pytest.raises(
                    DamagedError, match=re.escape(Path(name).name) + "|damaged|read"
                ):
                    read(store, place)
            tried += 1
        path.unlink()
        path.write_bytes(data)
        read(store, place)
    assert tried == 7 * (len(content(made.store)) - 1)
    assert not damages(Path(store.location))


def test_blocks_that_vanished_are_computed_again(made: Made, tmp_path: Path) -> None:
    store = tmp_path / "store"
    link(made.store, store)
    for name in ("c.1.0.0.0", "c.3.0.0.0"):
        (path,) = store.glob(f"features/*@conv_a-*/features/{name}")
        os.unlink(path)
    ACTS["extraction"].do(made, FeatureStore(store, create=True))
    assert blocks(store) == blocks(made.store)
