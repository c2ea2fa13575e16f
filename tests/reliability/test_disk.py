"""A disk that is full, failing, read-only, forbidden or gone: a clear line, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.extraction import RowsComputed, extract, repair
from featurestore.features import one_stored
from featurestore.heads import fit_head
from featurestore.store import FeatureStore
from tests.reliability.faults import STEPS, Disk, Step, failing
from tests.toys import Result, build_network, featurestore, take_photos, tree

# Blocks of 4 rows and of 1024, so 4 blocks and 1.
LAYERS = ["conv_a", "gap"]
FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT]
# What cannot be read: a bad sector, a lost right, a server that is gone.
UNREADABLE = [errno.EIO, errno.EACCES, errno.ESTALE]
READS = ("look", "read", "list")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FEATURESTORE_STORE", raising=False)
        yield


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

    def command(self, *layers: str) -> list[str]:
        words = ["extract", str(self.photos), "--model", str(self.model)]
        return words + [word for layer in layers or LAYERS for word in ("--layer", layer)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    take_photos(folder / "photos", 5)
    build_network(folder / "tiny.keras", size=64, channels=128)
    backbone = Backbone.open(str(folder / "tiny.keras"))
    dataset = Dataset.from_folder(folder / "photos", val=0.3)
    extract(dataset, backbone, LAYERS, FeatureStore(folder / "store"))
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


def nothing(made: Made, store: FeatureStore) -> None:
    pass


def half_of_the_blocks(made: Made, store: FeatureStore) -> None:
    for key in store.keys():
        group = store.group(key)
        for block in range(0, group.blocks, 2):
            group.drop_block(block)


def copies(made: Made, store: FeatureStore) -> None:
    """The same network under another name finds the features of the first."""
    shutil.copy(made.model, made.folder / "twin.keras")
    extract(made.dataset, Backbone.open(str(made.folder / "twin.keras")), LAYERS, store)


def head(made: Made, store: FeatureStore) -> None:
    fit_head(one_stored(store, "photos", model="tiny", layer="gap"), "knn", {"n_neighbors": 2})


def another_scan(made: Made, store: FeatureStore) -> None:
    store.add_dataset(Dataset.from_folder(made.photos, test=0.4, seed=1))


def collection(made: Made, store: FeatureStore) -> None:
    store.gc(store.garbage())


def litter(made: Made, store: FeatureStore) -> None:
    """Features and a manifest that nothing refers to, a head half saved, a temporary file."""
    fewer = Dataset.from_folder(made.photos / "red", name="photos")
    extract(fewer, made.backbone, LAYERS, store)
    head_folder = Path(store.location, "heads", "knn-000000000000")
    head_folder.mkdir(parents=True)
    (head_folder / "model.skops").write_bytes(b"half")
    Path(store.location, f"features/zarr.json.{'0' * 32}.partial").write_bytes(b"half")


def mending(made: Made, store: FeatureStore) -> None:
    left = [each.needs for each in repair(store, backbone=made.backbone) if each.needs]
    if left:
        # What could not be mended is told, file by file, and the rest is mended all the same.
        raise StoreError(left[0])


def damage(made: Made, store: FeatureStore) -> None:
    """A block, the row ids, two documents and the manifest, a bit of each."""
    root = Path(store.location)
    for pattern in (
        "features/*/conv_a-*/*/features/c.2.*",
        "features/*/gap-*/*/sample/c.0.0",
        "features/*/conv_a-*/*/zarr.json",
        "features/*/gap-*/zarr.json",
        "datasets/photos/*.parquet",
    ):
        (path,) = root.glob(pattern)
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 4
        path.unlink()  # It may be a link to the one that was made.
        path.write_bytes(whole)


ACTS = {
    "extraction": Act(extraction, nothing, starts_empty=True),
    "resumed extraction": Act(extraction, half_of_the_blocks),
    "copying": Act(copies, nothing),
    "head": Act(head, nothing),
    "scan": Act(another_scan, nothing),
    "gc": Act(collection, litter),
    "repair": Act(mending, damage, stops=False),
}


class Trial:
    """One act on stores that begin alike, with and without faults."""

    def __init__(self, made: Made, act: Act, folder: Path) -> None:
        self._made, self._act, self._folder = made, act, folder
        self._numbers = itertools.count()
        start = folder / "start"
        if act.starts_empty:
            start.mkdir()
        else:
            _link(made.store, start)
            act.prepare(made, FeatureStore(start))
        self._start = start
        store = self._begin()
        with failing() as disk:
            act.do(made, FeatureStore(store))
        self.steps = list(disk.steps)
        with failing(calls=READS) as disk:
            act.do(made, FeatureStore(self._begin()))
        self.reads = list(disk.steps)
        self._end = _content(store)
        assert not damages(store)

    def _begin(self) -> Path:
        store = self._folder / f"store-{next(self._numbers)}"
        _link(self._start, store)
        return store

    def go_wrong(
        self, fault: int, steps: range, calls: Sequence[str] = STEPS, *, half: bool = False
    ) -> str:
        """Let these steps fail, then do it all again without; return what was said."""
        store = self._begin()
        before = _content(store)
        said = ""
        with failing(fault, at=steps, calls=calls, half=half) as disk:
            try:
                self._act.do(self._made, FeatureStore(store))
            except FeatureStoreError as error:
                said = str(error)
        failed = disk.steps[steps.start : steps.stop]
        if said and self._act.stops:
            assert_clear(said, store, fault)
        if "unlink" not in [step.call for step in failed]:
            assert _temporary(store) <= _temporary(self._start)
        for path, digest in blocks(store).items():
            assert digest in (before.get(path), self._end.get(path)), (fault, failed)
        lasting = before.items() & self._end.items()
        assert {path for path, _ in lasting} <= tree(store).keys(), (fault, failed)
        self._act.do(self._made, FeatureStore(store))
        assert _content(store) == self._end, (fault, failed, said)
        assert not damages(store)
        shutil.rmtree(store)
        return said


def _temporary(store: Path) -> set[str]:
    return {path for path in tree(store) if path.endswith(".partial")}


def _link(source: Path, target: Path) -> None:
    """Copy a store by hard links: nothing in it is ever written in place."""
    shutil.copytree(source, target, copy_function=os.link)


def blocks(store: Path) -> dict[str, str]:
    chunk = re.compile(r".+/c(\.\d+)+")
    return {path: digest for path, digest in tree(store).items() if chunk.fullmatch(path)}


def _content(store: Path) -> dict[str, str]:
    """What an undisturbed run and a resumed one must have alike: all files but for their times."""
    timed = re.compile(r"datasets/|heads/|^lock$")
    return {path: "" if timed.match(path) else digest for path, digest in tree(store).items()}


def damages(store: Path) -> list[object]:
    opened = FeatureStore(store)
    return [damage for place in opened.places() for damage in opened.check(place)]


def assert_clear(said: str, store: Path, *faults: int) -> None:
    """One line: what could not be done, to which file, why, and the way out."""
    assert "\n" not in said
    assert str(store) in said, said
    assert "is gone" in said or any(os.strerror(fault) in said for fault in faults), said
    assert "then run the command again" in said, said


@pytest.fixture(scope="module", params=list(ACTS))
def trial(request: pytest.FixtureRequest, made: Made, tmp_path_factory: object) -> Trial:
    folder = tmp_path_factory.mktemp("trial")  # type: ignore[attr-defined]
    return Trial(made, ACTS[request.param], folder)


# ---------------------------------------------------------------- any step fails


def some(count: int, most: int) -> range:
    """A few numbers below a count, spread over it."""
    return range(count // (2 * most), count, max(1, -(-count // most)))


def test_any_step_fails_once(trial: Trial) -> None:
    for number in some(len(trial.steps), 3):
        trial.go_wrong(FAULTS[number % len(FAULTS)], range(number, number + 1))


ROOM = ("open", "write", "mkdir")


def test_the_disk_is_full_in_the_middle_of_a_write_and_then_is_not(trial: Trial) -> None:
    room = [step for step in trial.steps if step.call in ROOM]
    for number in some(len(room), 1):
        assert trial.go_wrong(errno.ENOSPC, range(number, 10**9), ROOM, half=True)


def test_what_cannot_be_read_is_named(trial: Trial) -> None:
    for number in some(len(trial.reads), 2):
        trial.go_wrong(UNREADABLE[number % len(UNREADABLE)], range(number, number + 1), READS)


@pytest.mark.soak
def test_every_step_fails(trial: Trial, request: pytest.FixtureRequest) -> None:
    said = [
        trial.go_wrong(FAULTS[(number + offset) % len(FAULTS)], range(number, stop))
        for number in range(len(trial.steps))
        for offset, stop in ((0, number + 1), (3, 10**9))
    ]
    said += [
        trial.go_wrong(UNREADABLE[number % len(UNREADABLE)], range(number, number + 1), READS)
        for number in range(len(trial.reads))
    ]
    print(
        f"{request.node.callspec.id}: {len(trial.steps)} steps and {len(trial.reads)} reads, "
        f"{len(said)} faults, {len(list(filter(None, said)))} errors, all resumed, blocks lost 0"
    )


# ---------------------------------------------------------------- real disks


# Which of them the kernel tells depends on where it notices first.
DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


class RealDisk:
    """A small file system of its own, or a skipped test where none may be mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def mount(self, *words: str) -> RealDisk:
        done = subprocess.run(["mount", *words, self.path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
        return self

    def tmpfs(self, options: str) -> RealDisk:
        return self.mount("-t", "tmpfs", "-o", options, "tmpfs")

    def ext4(self, megabytes: int, *, below: Path) -> RealDisk:
        """Mount an image; its file has holes, so that it takes room only where it is written."""
        image = below / "image"
        os.truncate(os.open(image, os.O_CREAT | os.O_WRONLY), megabytes * 2**20)
        make = ["mkfs.ext4", "-q", "-b", "1024", "-m", "0", image]
        if shutil.which("mkfs.ext4") is None or subprocess.run(make, check=False).returncode:
            pytest.skip("needs mkfs.ext4")
        return self.mount("-o", "loop", str(image))

    def again(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def pull(self) -> None:
        """Take it away at once, whoever uses it."""
        subprocess.run(["umount", "-l", self.path], check=True)

    def fill(self) -> Path:
        """Leave no room."""
        filler = self.path / "filler"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            for size in (2**16, 2**10, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        return filler


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[], RealDisk]]:
    disks: list[RealDisk] = []

    def new() -> RealDisk:
        disks.append(RealDisk(tmp_path / f"disk-{len(disks)}"))
        return disks[-1]

    yield new
    for disk in reversed(disks):
        while os.path.ismount(disk.path):
            disk.pull()


def resumes(made: Made, store: Path, *before: str) -> Result:
    """Extract, which must end with what an undisturbed extraction gives."""
    result = featurestore(*made.command(), "--store", store, "--json")
    assert result.status == 0, result.err
    assert blocks(store) == blocks(made.store)
    assert not damages(store)
    return result


def test_a_small_disk_is_full_and_then_is_larger(
    made: Made, new_disk: Callable[[], RealDisk]
) -> None:
    disk = new_disk().tmpfs("size=7m")
    store = disk.path / "store"

    error = featurestore(*made.command(), "--store", store).error

    assert_clear(error, store, errno.ENOSPC)
    assert "make room" in error
    kept = blocks(store)
    assert kept.items() < blocks(made.store).items()
    assert not _temporary(store)
    state = featurestore("ls", "--store", store, "--json").json
    assert f"{sum('conv_a' in path and '/features/c.' in path for path in kept)} of 4 blocks" in [
        each["state"] for each in state
    ]
    assert not damages(store)
    disk.again("size=64m")
    done = resumes(made, store).json["features"]["conv_a"]
    assert done["rows_reused"] > 0


def test_a_disk_without_room_for_another_name(made: Made, new_disk: Callable[[], RealDisk]) -> None:
    disk = new_disk().tmpfs("size=64m,nr_inodes=12")

    error = featurestore(*made.command(), "--store", disk.path / "store").error

    assert_clear(error, disk.path / "store", errno.ENOSPC)
    disk.again("nr_inodes=100")
    resumes(made, disk.path / "store")


def test_a_disk_that_others_fill_and_empty(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    disk = new_disk().ext4(24, below=tmp_path)
    store = disk.path / "store"
    assert featurestore("scan", made.photos, "--store", store).status == 0
    before = tree(store)
    filler = disk.fill()

    for command in (
        ["scan", str(made.photos), "--test", "0.2"],
        made.command(),
    ):
        error = featurestore(*command, "--store", store).error
        assert_clear(error, store, errno.ENOSPC)
        assert not _temporary(store)
        assert before.items() <= tree(store).items()
    filler.unlink()
    resumes(made, store)
    filler = disk.fill()
    train = ["train", "photos", "--model", "tiny", "--layer", "gap", "--head", "knn"]
    result = featurestore(*train, "--store", store)
    assert_clear(result.error, store, errno.ENOSPC)
    assert "fit" not in result.err.replace(result.error, "")  # Not before, to lose it afterwards.
    assert featurestore("gc", "--yes", "--store", store).status == 0
    filler.unlink()
    assert featurestore(*train, "--store", store).status == 0


def test_a_disk_that_has_less_than_it_claims(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    """What is written is taken, and only refused when it is flushed."""
    below = new_disk().tmpfs("size=6m")
    disk = new_disk().ext4(32, below=below.path)
    store = disk.path / "store"

    error = featurestore(*made.command(), "--store", store).error

    assert_clear(error, store, *DISK_ERRORS)
    below.again("size=64m")
    disk.pull()
    image = below.path / "image"
    subprocess.run(["fsck.ext4", "-p", image], capture_output=True, check=False)
    disk.mount("-o", "loop", str(image))
    # Whether it is sound is known only by reading it: such a disk lies.
    for place in FeatureStore(store).places() if (store / "features/zarr.json").exists() else []:
        for damage in FeatureStore(store).check(place):
            (store / damage.path).unlink(missing_ok=True)
    resumes(made, store)


def test_a_disk_that_turns_read_only(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    """As ext4 does it when it has met an error."""
    disk = new_disk().ext4(32, below=tmp_path)
    store = disk.path / "store"

    def then(event: object) -> None:
        if isinstance(event, RowsComputed) and event.done == 8:
            disk.again("abort")

    with pytest.raises(StoreError) as caught:
        extract(
            made.dataset, made.backbone, LAYERS, FeatureStore(store), batch_size=4, on_event=then
        )
    assert_clear(str(caught.value), store, *DISK_ERRORS)
    assert blocks(store).items() < blocks(made.store).items()
    disk.pull()
    disk.mount("-o", "loop", str(tmp_path / "image"))
    assert blocks(store).items() < blocks(made.store).items()
    resumes(made, store)


def test_a_disk_that_is_pulled_out(made: Made, new_disk: Callable[[], RealDisk]) -> None:
    disk = new_disk().tmpfs("size=64m")
    twin = new_disk().mount("--bind", str(disk.path))  # Keeps it, to be put in again.
    store = disk.path / "store"

    def then(event: object) -> None:
        if isinstance(event, RowsComputed) and event.done == 4:
            disk.pull()

    with pytest.raises(StoreError, match="gone|no longer.*bring .*disk.*run the command again"):
        extract(
            made.dataset, made.backbone, LAYERS, FeatureStore(store), batch_size=4, on_event=then
        )
    # Nothing was begun anew in the empty folder.
    assert list(disk.path.rglob("*")) == []
    disk.mount("--bind", str(twin.path))
    resumes(made, store)


def test_a_folder_that_may_not_be_changed(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    disk = new_disk().ext4(32, below=tmp_path)
    store = disk.path / "store"
    assert featurestore(*made.command("gap"), "--store", store).status == 0
    fixed = store / "features"
    if subprocess.run(["chattr", "+i", fixed], check=False).returncode:
        pytest.skip("needs chattr")
    try:
        twin = tmp_path / "twin.keras"
        shutil.copy(made.model, twin)
        words = ["extract", made.photos, "--model", twin, "--layer", "conv_b:avg"]
        error = featurestore(*words, "--store", store).error
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert_clear(error, store, errno.EPERM)
    assert "give access" in error
    assert featurestore(*words, "--store", store).status == 0
