"""Processes that begin together: none does work twice, or harms what another does."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from featurestore.dataset import Dataset
from featurestore.errors import NotFoundError, StoreError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.store import FeatureGroup, FeatureStore
from featurestore.store.key import encode_segment
from tests.reliability.acts import blocks, damages, temporary
from tests.reliability.processes import HANGS_AFTER, Commands, Running, Strike
from tests.reliability.promises import few
from tests.toys import Result, build_network, drop_block, featurestore, take_photos, tree

ROWS = 60
# Rows of a block: 4 at conv_a, so 15 blocks, 16 at pool_a, and all at the pooled layer.
LAYERS = WHOLE, HALVED, POOLED = ["conv_a", "pool_a", "conv_b:avg"]
MANY = {
    "name": "many",
    "data": "photos",
    "features": {"model": "tiny"},
    "layers": [POOLED],
    "heads": ["knn", "ridge", {"head": "logistic", "grid": {"C": [0.01, 0.1, 1]}}],
}
HEADS = 5


class Arena:
    """Photographs and a network, where commands run side by side on one store."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self._commands = commands
        self.folder = folder
        take_photos(folder / "photos", ROWS // 3)
        # Half of the samples of `photos`, and some of its own.
        shutil.copytree(folder / "photos" / "red", folder / "others" / "red")
        take_photos(folder / "others", 8, {"grey": (120, 120, 120)})
        build_network(folder / "tiny.keras", size=64, channels=128)
        (folder / "many.yaml").write_text(yaml.safe_dump(MANY))
        # Starts lie apart by up to so many seconds, at random.
        self.apart, self.chance = 0.0, random.Random(0)
        self.started = self._count = 0

    def new_store(self, like: Path | None = None) -> Path:
        self._count += 1
        store = self.folder / f"store-{self._count}"
        if like is not None:
            shutil.copytree(like, store, copy_function=os.link)
        return store

    def start(self, store: Path, *command: Any, **options: Any) -> Running:
        time.sleep(self.chance.uniform(0, self.apart))
        self.started += 1
        return self._commands.start(
            self.folder,
            *command,
            *("--store", store),
            FEATURESTORE_CACHE=self.folder / "cache",
            **options,
        )

    def run(self, store: Path, *command: Any) -> Result:
        return self.start(store, *command).wait()

    def alone(self, data: str = "photos") -> Path:
        """A store as one process makes it, undisturbed: the features of all layers."""
        store = self.folder / f"alone-{data}"
        if not store.is_dir():
            result = self.run(store, *extraction(*LAYERS, data=data, val=0.3))
            assert result.status == 0, result.err
        return store

    def blocks(self, *layers: str, data: str = "photos") -> dict[str, str]:
        """The blocks of some layers in that store."""
        folders = [f"@{encode_segment(layer)}-" for layer in layers]
        return {
            path: digest
            for path, digest in blocks(self.alone(data)).items()
            if any(folder in path for folder in folders)
        }


def extraction(*layers: str, data: str = "photos", **options: Any) -> tuple[str, ...]:
    words = ["extract", data, "--model", "tiny.keras", "--json"]
    words += [word for layer in layers or (WHOLE,) for word in ("--layer", layer)]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return tuple(words)


def written(results: list[Result], layer: str = WHOLE) -> int:
    """Rows that processes computed, all together."""
    return sum(result.json["features"][layer]["rows_computed"] for result in results)


def all_well(running: list[Running]) -> list[Result]:
    results = [each.wait() for each in running]
    for result in results:
        assert result.status == 0, result.err
        assert "Traceback" not in result.err
    return results


def assert_whole(store: Path, expected: dict[str, str]) -> None:
    """All blocks are there, byte for byte, and nothing is left behind."""
    assert blocks(store) == expected
    assert not temporary(store)
    assert not damages(store)
    assert not FeatureStore(store, create=True).garbage()


@pytest.fixture(scope="module")
def arena(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(commands, tmp_path_factory.mktemp("arena"))


@pytest.fixture(scope="module")
def extracted(arena: Arena) -> Path:
    """A store with the features of all layers, a data set, and no head."""
    return arena.alone()


# ---------------------------------------------------------------- one extraction, many processes


def share(arena: Arena, count: int) -> int:
    """Start the same extraction several times; return the rows that were computed twice."""
    store = arena.new_store()
    results = all_well([arena.start(store, *extraction()) for _ in range(count)])
    assert_whole(store, arena.blocks(WHOLE))
    for result in results:
        report = result.json["features"][WHOLE]
        assert report["rows_computed"] + report["rows_reused"] == ROWS
    shutil.rmtree(store)
    return written(results) - ROWS


@pytest.mark.parametrize("count", few([2, 4], 2))
def test_processes_that_begin_together_compute_each_block_once(arena: Arena, count: int) -> None:
    assert share(arena, count) == 0


def kill_one(arena: Arena, count: int, at: int) -> None:
    store = arena.new_store()
    doomed = arena.start(store, *extraction(), strike=Strike(signal.SIGKILL, at=at))
    others = [arena.start(store, *extraction()) for _ in range(count - 1)]
    assert doomed.wait().status in (-signal.SIGKILL, 0)  # 0 where the others left it nothing.
    results = all_well(others)
    leftovers = FeatureStore(store, create=True)
    leftovers.gc(leftovers.garbage())
    assert_whole(store, arena.blocks(WHOLE))
    assert written(results) <= ROWS
    shutil.rmtree(store)


def test_what_a_killed_process_had_taken_the_others_do(arena: Arena) -> None:
    kill_one(arena, 3, at=80)


def mix(arena: Arena, *asked: list[str]) -> None:
    """Extractions of different layers into one store, together, and one of other samples."""
    store = arena.new_store()
    running = [arena.start(store, *extraction(*layers)) for layers in asked]
    running.append(arena.start(store, *extraction(HALVED, data="others")))
    all_well(running)
    expected = arena.blocks(*[layer for layers in asked for layer in layers])
    assert_whole(store, expected | arena.blocks(HALVED, data="others"))
    shutil.rmtree(store)


def test_layers_of_one_backbone_and_data_sets_that_share_samples(arena: Arena) -> None:
    mix(arena, [WHOLE], [HALVED, POOLED])


def test_a_store_that_several_processes_begin(arena: Arena) -> None:
    store = arena.new_store()
    names = [f"name-{number}" for number in range(6)]
    all_well([arena.start(store, "scan", "photos", "--name", name) for name in names])
    assert [entry.name for entry in FeatureStore(store, create=True).datasets.values()] == names
    assert_whole(store, {})


# ---------------------------------------------------------------- one data set, many scans


def scans(arena: Arena, store: Path, options: list[list[str]]) -> None:
    """One of the states wins whole; the others are kept until gc."""
    running = [arena.start(store, "scan", "photos", "--name", "x", *each) for each in options]
    all_well(running)
    opened = FeatureStore(store, create=True)
    (entry,) = (entry for entry in opened.datasets.values() if entry.name == "x")
    expected = {
        Dataset.open(
            arena.folder / "photos", name="x", **{"val": 0.0, "test": 0.0, **_numbers(each)}
        ).manifest_digest
        for each in options
    }
    assert entry.manifest_digest in expected
    for digest in expected:
        assert opened.datasets.load("x", digest).manifest_digest == digest
    assert not damages(store)
    assert not temporary(store)


def _numbers(options: list[str]) -> dict[str, float]:
    values = {options[at].lstrip("-"): float(options[at + 1]) for at in range(0, len(options), 2)}
    return {name: int(value) if name == "seed" else value for name, value in values.items()}


SCANS = [["--val", f"0.{number}", "--test", "0.1"] for number in range(1, 6)]


def test_one_of_several_scans_of_a_name_wins_whole(arena: Arena) -> None:
    scans(arena, arena.new_store(), SCANS[:4])


# ---------------------------------------------------------------- gc beside all others


def abandon(store: Path) -> None:
    """Make garbage of the features of `photos`, in part, as if its folder held others now."""
    opened = FeatureStore(store, create=True)
    for key in opened.features.keys():
        group = opened.features.get(key)
        for block in range(0, group.blocks, 3):
            drop_block(group, block)
    images = np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4)
    opened.datasets.add(Dataset.from_arrays(images, list("abababab"), name="photos"))
    assert {item.kind for item in opened.garbage()} >= {"features", "manifest"}


def beside_gc(arena: Arena, store: Path, *commands: tuple[str, ...], gcs: int) -> list[Result]:
    """Run commands while gc is run again and again."""
    running = [arena.start(store, *command) for command in commands]
    collecting = []
    for _ in range(gcs):
        collecting.append(arena.start(store, "gc", "--yes"))
        time.sleep(0.1)
    results = all_well(running)
    all_well(collecting)
    assert not damages(store)
    return results


def revive(arena: Arena, extracted: Path, gcs: int) -> None:
    """Extract a data set whose features were garbage a moment before."""
    store = arena.new_store(like=extracted)
    abandon(store)
    asked = extraction(*LAYERS, val=0.3)
    beside_gc(arena, store, asked, ("verify",), ("ls",), asked, ("verify",), gcs=gcs)
    assert blocks(store) == blocks(extracted)
    opened = FeatureStore(store, create=True)
    opened.gc(opened.garbage())
    assert_whole(store, blocks(extracted))
    shutil.rmtree(store)


def test_gc_leaves_what_is_extracted(arena: Arena, extracted: Path) -> None:
    revive(arena, extracted, gcs=4)


TRAIN = ("train", "photos", "--model", "tiny", "--layer", POOLED, "--head")


def replace_and_train(arena: Arena, extracted: Path, gcs: int) -> None:
    """Heads are fitted, on one state of the labels or another, while scans replace it."""
    store = arena.new_store(like=extracted)
    results = beside_gc(
        arena,
        store,
        ("scan", "photos", "--val", "0.2"),
        (*TRAIN, "logistic", "--json"),
        ("run", "many.yaml", "--json"),
        ("scan", "photos", "--val", "0.5"),
        gcs=gcs,
    )
    assert results[1].json["head"].startswith("logistic-")
    assert len(results[2].json["heads"]) == HEADS
    opened = FeatureStore(store, create=True)
    for head in opened.heads.values():
        # Each head's own state of the data set is kept for it.
        origin = head["provenance"]["dataset"]
        opened.datasets.load(origin["name"], origin["manifest_digest"])
    assert blocks(store) == blocks(extracted)
    shutil.rmtree(store)


def test_gc_leaves_what_heads_are_fitted_on(arena: Arena, extracted: Path) -> None:
    replace_and_train(arena, extracted, gcs=4)


def spoil(store: Path, chance: random.Random, count: int) -> None:
    """Change a byte in several blocks, and in one of the documents, whose twin tells the rest."""
    chunks = blocks(store)
    documents = [name for name in tree(store) if name != "lock" and name not in chunks]
    for name in [*chance.sample(sorted(chunks), count), chance.choice(documents)]:
        data = bytearray((store / name).read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (store / name).unlink()
        (store / name).write_bytes(data)


def repairs(arena: Arena, extracted: Path, chance: random.Random, count: int, gcs: int) -> None:
    store = arena.new_store(like=extracted)
    spoil(store, chance, 6)
    command = ("repair", "--json")
    results = beside_gc(arena, store, *[command] * count, gcs=gcs)
    assert not any(row["needs"] for result in results for row in result.json)
    assert blocks(store) == blocks(extracted)
    assert not temporary(store)
    shutil.rmtree(store)


def test_two_repairs_at_once(arena: Arena, extracted: Path) -> None:
    repairs(arena, extracted, random.Random(0), count=2, gcs=0)


# ---------------------------------------------------------------- heads and models


def runs_of_many_heads(arena: Arena, extracted: Path, count: int) -> None:
    store = arena.new_store(like=extracted)
    results = all_well([arena.start(store, "run", "many.yaml") for _ in range(count)])
    taken = [re.search(r"fit: (\d+) heads? taken", result.err) for result in results]
    assert sum(int(each.group(1)) for each in taken if each) == (count - 1) * HEADS
    assert len(FeatureStore(store, create=True).heads.values()) == HEADS
    assert not temporary(store)
    assert not damages(store)
    shutil.rmtree(store)


def test_a_file_that_several_run_fits_each_head_once(arena: Arena, extracted: Path) -> None:
    runs_of_many_heads(arena, extracted, 3)


def promotions(arena: Arena, extracted: Path, count: int) -> None:
    store = arena.new_store(like=extracted)
    all_well([arena.start(store, *TRAIN, "logistic")])
    model = arena.folder / "model.keras"
    all_well([arena.start(store, "promote", "logistic", "-o", model) for _ in range(count)])
    beside = {each.name for each in arena.folder.iterdir() if "partial" in each.name}
    assert beside == set()
    images = sorted((arena.folder / "photos" / "red").iterdir())[:3]
    assert featurestore("predict", model, *images, "--json").status == 0
    model.unlink()
    shutil.rmtree(store)


def test_two_promotions_to_one_file(arena: Arena, extracted: Path) -> None:
    promotions(arena, extracted, 2)


# ---------------------------------------------------------------- float32 in the place of float16


def replace_type(arena: Arena, extracted: Path, others: list[tuple[str, ...]]) -> set[str]:
    """Replace features while they are read and extracted; return what reading gave."""
    store = arena.new_store(like=extracted)
    former = Features.open("photos", WHOLE, store, model="tiny").group
    expected = former.read()
    running = [arena.start(store, *extraction(WHOLE, dtype="float32"))]
    running += [arena.start(store, *command) for command in others]
    outcomes = set()
    ended = threading.Event()

    def wait() -> None:
        all_well(running)
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not ended.is_set() and waiting.is_alive():
        outcomes |= {_read(former, block, expected) for block in range(former.blocks)}
        time.sleep(0.05)  # The processes need the cores.
    waiting.join()
    assert ended.is_set()
    outcomes |= {_read(former, block, expected) for block in range(former.blocks)}
    after = Features.open("photos", WHOLE, store, model="tiny")
    assert after.dtype == np.float32
    np.testing.assert_allclose(after.group.read(), expected, rtol=1e-3, atol=1e-4)
    assert not damages(store)
    assert not temporary(store)
    shutil.rmtree(store)
    return outcomes


def _read(group: FeatureGroup, block: int, expected: np.ndarray) -> str:
    span = group.features.span(block)
    try:
        found = group.read_block(block)
    except StoreError as error:
        return type(error).__name__
    np.testing.assert_array_equal(found, expected[span.start : span.stop])
    return "right"


def test_a_reader_of_features_that_are_replaced_gets_them_or_an_error(
    arena: Arena, extracted: Path
) -> None:
    outcomes = replace_type(arena, extracted, [extraction(WHOLE)])
    # In the end only the blocks of the other type are left, under other names.
    assert outcomes == {"right", "IncompleteFeaturesError"}


# ---------------------------------------------------------------- one process


def test_who_scans_waits_for_nobody_who_fits(arena: Arena, extracted: Path) -> None:
    store = FeatureStore(arena.new_store(like=extracted), create=True)
    dataset = store.datasets.load("photos")
    (key,) = (key for key in store.features.keys() if key.ref == POOLED)
    with store.features.lock([key], shared=True), store.datasets.keep(dataset):
        moved = Dataset.open(arena.folder / "photos", name="photos", val=0.3)
        for each in (moved, Dataset.open(arena.folder / "photos", val=0.6), moved):
            adding = threading.Thread(target=store.datasets.add, args=[each], daemon=True)
            adding.start()
            adding.join(HANGS_AFTER)
            assert not adding.is_alive()


def test_the_state_that_a_head_was_fitted_on_is_kept_whoever_removes_it(
    arena: Arena, extracted: Path
) -> None:
    """gc may come between reading a data set and beginning to fit on it."""
    store = FeatureStore(arena.new_store(like=extracted), create=True)
    features = Features.open("photos", POOLED, store, model="tiny")
    assert len(features.rows())
    store.datasets.add(Dataset.open(arena.folder / "photos", val=0.6))
    store.gc(store.garbage())
    with pytest.raises(NotFoundError):
        store.datasets.load("photos", features.dataset.manifest_digest)

    head = fit_head(features, "knn")

    kept = store.datasets.load("photos", head.provenance["dataset"]["manifest_digest"])
    assert kept.splits.tolist() == features.dataset.splits.tolist()
    assert store.garbage() == []


# ---------------------------------------------------------------- many


@pytest.mark.soak
def test_many_races(arena: Arena, extracted: Path) -> None:
    chance = arena.chance = random.Random(1)
    twice, shared, killed = 0, 0, 0
    before = arena.started
    races = 0
    for number in range(15):
        arena.apart = chance.choice([0.0, 0.05, 0.4])
        count = chance.randrange(2, 9)
        twice += share(arena, count)
        shared += ROWS
        kill_one(arena, chance.randrange(2, 5), at=chance.randrange(1, 160))
        killed += 1
        mix(arena, *chance.sample([[WHOLE], [HALVED], [POOLED], [HALVED, POOLED], LAYERS], 4))
        scans(arena, arena.new_store(), chance.sample(SCANS, 4))
        revive(arena, extracted, gcs=chance.randrange(3, 9))
        replace_and_train(arena, extracted, gcs=chance.randrange(3, 9))
        repairs(arena, extracted, chance, count=chance.randrange(1, 4), gcs=chance.randrange(6))
        runs_of_many_heads(arena, extracted, chance.randrange(2, 5))
        replace_type(
            arena, extracted, chance.sample([extraction(WHOLE), (*TRAIN, "knn"), ("verify",)], 2)
        )
        races += 9
        if number % 5 == 0:
            promotions(arena, extracted, 3)
            test_a_store_that_several_processes_begin(arena)
            races += 2
        print(f"{races} races", flush=True)
    print(
        f"races: {races} of {arena.started - before} processes, {killed} killed on the way; blocks "
        f"torn 0, lost 0; work done twice {twice / shared:.2%} ({twice} of {shared} rows)"
    )
