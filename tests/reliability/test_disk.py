"""A disk that is full, failing, read-only, forbidden or gone: a clear line, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from featurestore.errors import FeatureStoreError, StoreError
from featurestore.extraction import RowsComputed, extract
from featurestore.store import FeatureStore
from tests.reliability.acts import (
    ACTS,
    LAYERS,
    Act,
    Made,
    blocks,
    content,
    damages,
    link,
    temporary,
)
from tests.reliability.faults import STEPS, failing
from tests.reliability.processes import Commands
from tests.reliability.promises import few
from tests.toys import Result, featurestore, tree

FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT]
# What cannot be read: a bad sector, a lost right, a server that is gone.
UNREADABLE = [errno.EIO, errno.EACCES, errno.ESTALE]
READS = ("look", "read", "list")


class Trial:
    """One act on stores that begin alike, with and without faults."""

    def __init__(self, made: Made, act: Act, folder: Path) -> None:
        self._made, self._act, self._folder = made, act, folder
        self._numbers = itertools.count()
        start = folder / "start"
        if act.starts_empty:
            start.mkdir()
        else:
            link(made.store, start)
            act.prepare(made, FeatureStore(start, create=True))
        self._start = start
        store = self._begin()
        with failing() as disk:
            act.do(made, FeatureStore(store, create=True))
        self.steps = list(disk.steps)
        with failing(calls=READS) as disk:
            act.do(made, FeatureStore(self._begin(), create=True))
        self.reads = list(disk.steps)
        self._end = content(store)
        assert not damages(store)

    def _begin(self) -> Path:
        store = self._folder / f"store-{next(self._numbers)}"
        link(self._start, store)
        return store

    def go_wrong(
        self, fault: int, steps: range, calls: Sequence[str] = STEPS, *, half: bool = False
    ) -> str:
        """Let these steps fail, then do it all again without; return what was said."""
        store = self._begin()
        before = content(store)
        said = ""
        with failing(fault, at=steps, calls=calls, half=half) as disk:
            try:
                self._act.do(self._made, FeatureStore(store, create=True))
            except FeatureStoreError as error:
                said = str(error)
        failed = disk.steps[steps.start : steps.stop]
        if said and self._act.stops:
            assert_clear(said, store, fault)
        if "unlink" not in [step.call for step in failed]:
            assert temporary(store) <= temporary(self._start)
        for path, digest in blocks(store).items():
            assert digest in (before.get(path), self._end.get(path)), (fault, failed)
        lasting = before.items() & self._end.items()
        assert {path for path, _ in lasting} <= content(store).keys(), (fault, failed)
        again = FeatureStore(store, create=True)
        self._act.do(self._made, again)
        # What the disk did not let it remove, gc finds.
        again.gc([item for item in again.garbage() if item.kind == "leftover"])
        assert content(store) == self._end, (fault, failed, said)
        assert not damages(store)
        shutil.rmtree(store)
        return said


def assert_clear(said: str, store: Path, *faults: int) -> None:
    """One line: what could not be done, to which file, why, and the way out."""
    assert "\n" not in said
    assert str(store) in said, said
    assert "is gone" in said or any(os.strerror(fault) in said for fault in faults), said
    assert "then run the command again" in said, said


@pytest.fixture(scope="module", params=few(ACTS, "resumed extraction"))
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
    assert not temporary(store)
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
        assert not temporary(store)
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
    for place in (
        FeatureStore(store, create=True).items() if (store / "features/zarr.json").exists() else []
    ):
        for damage in FeatureStore(store, create=True).check(place):
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
            made.dataset,
            made.backbone,
            LAYERS,
            FeatureStore(store, create=True),
            batch_size=4,
            on_event=then,
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

    with pytest.raises(StoreError, match=r"gone.*reconnect the disk.*run the command again"):
        extract(
            made.dataset,
            made.backbone,
            LAYERS,
            FeatureStore(store, create=True),
            batch_size=4,
            on_event=then,
        )
    # No new store was begun in the empty folder.
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


# ---------------------------------------------------------------- a store that one may only read


def test_what_needs_no_write_works_on_a_read_only_disk(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    disk = new_disk().tmpfs("size=64m")
    store = disk.path / "store"
    shutil.copytree(made.store, store)
    disk.again("ro")
    before = tree(store)

    for command in reading(made):
        result = featurestore(*command, "--store", store)
        assert result.status == 0, (command, result.err)
    again = featurestore(*made.command(), "--store", store, "--json").json["features"]
    assert [each["rows_computed"] for each in again.values()] == [0, 0]
    for command in writing(made):
        result = featurestore(*command, "--store", store)
        assert_clear(result.error, store, errno.EROFS)
        assert "make it writable" in result.error
        assert "fitted" not in result.err
    assert tree(store) == before


def reading(made: Made) -> list[list[str]]:
    """What writes nothing into the store."""
    return [
        ["ls"],
        ["show", "conv_a"],
        ["verify"],
        ["gc"],
        ["heads"],
        ["rank", "photos"],
        [*made.command(), "--dry-run"],
        ["scan", "photos"],
        made.command(),
        ["train", "photos", "--model", "tiny", "--layer", "gap", "--head", "logistic"],
        ["promote", "logistic", "-o", str(made.folder / "again.keras")],
    ]


def writing(made: Made) -> list[list[str]]:
    return [
        ["scan", "photos", "--test", "0.3"],
        made.command("conv_b:avg"),
        ["train", "photos", "--model", "tiny", "--layer", "gap", "--head", "forest"],
    ]


def test_a_store_of_another_user(made: Made, commands: Commands) -> None:
    """Modes do not stop root, so that the commands are those of nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        store = folder / "store"
        shutil.copytree(made.store, store)
        shutil.copy(made.model, folder)
        shutil.copytree(made.photos, folder / "photos")
        # The data set is where it was scanned; nobody may go there.
        places = ["--model", folder / "tiny.keras", "--store", store, "--json"]
        (folder / "lock").unlink(missing_ok=True)
        assert featurestore("scan", folder / "photos", "--val", "0.3", "--store", store).status == 0
        for each in [folder, *folder.rglob("*")]:
            each.chmod(each.stat().st_mode & ~0o222)
        before = tree(store)
        options = {
            "user": 65534 if os.getuid() == 0 else None,
            "FEATURESTORE_CACHE": "/proc/nowhere",
            "HOME": "/proc/nowhere",
        }
        asked = [
            ["verify", "--store", store, "--json"],
            ["extract", folder / "photos", "--layer", "conv_a", *places],
            ["extract", folder / "photos", "--layer", "conv_b:avg", *places],
            ["train", "photos", "--model", "tiny", "--layer", "gap", "--head", "knn", *places[2:]],
            ["scan", folder / "photos", "--store", folder / "new"],
        ]
        running = [commands.start(folder, *each, **options) for each in asked]
        verify, complete, missing, train, scan = [each.wait() for each in running]

        assert verify.status == 0, verify.err
        assert complete.status == 0, complete.err
        assert complete.json["features"]["conv_a"]["rows_computed"] == 0
        for result, place in ((missing, store), (train, store), (scan, folder / "new")):
            assert_clear(result.error, place, errno.EACCES)
            assert "give access" in result.error
        assert "fitted" not in train.err
        assert tree(store) == before
        for each in [folder, *folder.rglob("*")]:
            each.chmod(each.stat().st_mode | 0o700)


# ---------------------------------------------------------------- other places than the store


@contextmanager
def no_room(most: int = 0) -> Iterator[None]:
    """Let no file grow beyond so many bytes, wherever it is, as on a machine of one full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_only_reads_needs_no_room_anywhere(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = str(next(made.photos.glob("red/*")))
    promoted = str(made.promoted)
    store = ["--store", str(made.store)]
    monkeypatch.setattr(tempfile, "tempdir", None)  # found once, and remembered
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    before = tree(made.store)

    with no_room():
        for command in reading(made)[:-1]:
            result = featurestore(*command, *store)
            assert result.status == 0, (command, result.err)
        # Keras unpacks a model to load it.
        error = featurestore("predict", promoted, image).error

    assert "No usable temporary directory" in error
    assert tree(made.store) == before


def test_a_model_for_which_there_is_no_room(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    disk = new_disk().tmpfs("size=8k")
    (disk.path / "here.keras").write_bytes(b"what was there")
    before = tree(disk.path)

    for name in ("here.keras", "new.keras"):
        error = featurestore(
            "promote", "logistic", "-o", disk.path / name, "--store", made.store
        ).error
        assert "No space left on device" in error
        assert name in error
        assert "make room" in error
    assert tree(disk.path) == before
    disk.again("size=8m")
    assert (
        featurestore(
            "promote", "logistic", "-o", disk.path / "here.keras", "--store", made.store
        ).status
        == 0
    )
    assert featurestore("predict", disk.path / "here.keras", *made.photos.glob("red/*")).status == 0


def test_a_run_whose_folder_is_full(
    made: Made, new_disk: Callable[[], RealDisk], tmp_path: Path
) -> None:
    disk = new_disk().tmpfs("size=8k")
    spec = {
        "name": "flowers",
        "data": {"path": str(made.photos), "val": 0.3},
        "backbone": {"model": str(made.model)},
        "layers": ["gap"],
        "heads": ["logistic"],
        "promote": {"epochs": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spec))
    run = ["run", tmp_path / "run.yaml", "--store", tmp_path / "store", "--runs", disk.path]

    error = featurestore(*run).error

    assert "No space left on device" in error
    assert str(disk.path) in error
    assert not list(disk.path.rglob("*.partial"))
    disk.again("size=8m")
    assert featurestore(*run).status == 0
