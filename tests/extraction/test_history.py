"""Whatever became of a data set, its features are those of a fresh extraction, and cost no more."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from featurestore.dataset import Dataset
from featurestore.extraction import RowsComputed, extract, repair
from featurestore.features import Features
from featurestore.store import FeatureStore, blocks
from tests.extraction.test_growing import exact_backbone

BACKBONE = exact_backbone()
POOL, CLASSES = 30, "ab"
REFS = ["pool_a", "conv_b:max"]
BATCH = 4
PIXELS = np.random.default_rng(5).integers(0, 256, (POOL, 16, 16, 3), dtype=np.uint8)
ACTIVATIONS = [each.astype("float16") for each in BACKBONE.forward(REFS)(PIXELS)]


class History(RuleBasedStateMachine):
    """A folder of images that changes, and a store that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.photos = Path(self._folder.name, "photos")
        self.store = FeatureStore(Path(self._folder.name, "store"), create=True)
        self.seed = 0
        self.sent: list[int] = []
        self.extracted = False
        # Many small blocks.
        self._usual, blocks.BLOCK_BYTES = blocks.BLOCK_BYTES, 4096

    def teardown(self) -> None:
        blocks.BLOCK_BYTES = self._usual
        self._folder.cleanup()

    @initialize(images=st.sets(st.integers(0, POOL - 1), min_size=2, max_size=POOL - 5))
    def begin(self, images: set[int]) -> None:
        for name in CLASSES:
            (self.photos / name).mkdir(parents=True)
        for number in images:
            self._save(number)

    def _save(self, number: int) -> None:
        name = CLASSES[number % len(CLASSES)]
        Image.fromarray(PIXELS[number]).save(self.photos / name / f"{number:02}.png")

    def _images(self) -> dict[int, Path]:
        return {int(path.stem): path for path in self.photos.rglob("*.png")}

    def _dataset(self) -> Dataset:
        return Dataset.open(self.photos, seed=self.seed, val=0.3)

    def _numbers(self, dataset: Dataset) -> list[int]:
        return [int(Path(str(path)).stem) for path in dataset.paths]

    def _stored(self) -> set[bytes]:
        """Samples in some block of the first layer, from which the other follows."""
        stored = set()
        for key in self.store.features.keys():
            group = self.store.features.get(key)
            for block in group.features.existing() if key.ref == REFS[0] else ():
                span = group.features.span(block)
                stored |= {sample.tobytes() for sample in group.samples[span.start : span.stop]}
        return stored

    @rule(images=st.sets(st.integers(0, POOL - 1), min_size=1, max_size=6))
    def add(self, images: set[int]) -> None:
        for number in images - self._images().keys():
            self._save(number)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        images = self._images()
        for number in data.draw(st.sets(st.sampled_from(sorted(images)), max_size=5)):
            if len(self._images()) > 2:
                images[number].unlink()

    @rule(data=st.data())
    def relabel(self, data: st.DataObject) -> None:
        images = self._images()
        path = images[data.draw(st.sampled_from(sorted(images)))]
        other = CLASSES[1 - CLASSES.index(path.parent.name)]
        path.rename(self.photos / other / path.name)

    @rule(seed=st.integers(0, 3))
    def split(self, seed: int) -> None:
        self.seed = seed

    @rule(batches=st.integers(1, 3))
    def interrupted(self, batches: int) -> None:
        left = batches

        def stop(event: Any) -> None:
            nonlocal left
            if isinstance(event, RowsComputed):
                left -= 1
                if not left:
                    raise KeyboardInterrupt

        self._extract(stop)

    @rule()
    def whole(self) -> None:
        self._extract(lambda event: None)

    def _extract(self, listen: Any) -> None:
        dataset, stored = self._dataset(), self._stored()
        new = sum(each.tobytes() not in stored for each in dataset.sample_ids)
        done = 0

        def count(event: Any) -> None:
            nonlocal done
            if isinstance(event, RowsComputed):
                done = event.done
            listen(event)

        try:
            found = extract(dataset, BACKBONE, REFS, self.store, batch_size=BATCH, on_event=count)
        except KeyboardInterrupt:
            assert done <= new
            return
        assert done == new
        for ref, report in found.reports.items():
            assert report.rows_computed + report.rows_copied + report.rows_reused == len(dataset)
            assert report.rows_computed <= new, ref
        self.extracted = True

    @precondition(lambda self: self.extracted)
    @rule(data=st.data())
    def damage_and_repair(self, data: st.DataObject) -> None:
        groups = [self.store.features.get(key) for key in self.store.features.keys()]
        groups = [group for group in groups if group.features.existing()]
        if not groups:  # All were damaged while nothing had their images.
            return
        group = data.draw(st.sampled_from(groups))
        block = data.draw(st.sampled_from(sorted(group.features.existing())))
        path = Path(self.store.location, group.features.file(block))
        path.write_bytes(path.read_bytes()[:-3])
        dataset = self.store.datasets.load_samples(group.key.dataset_digest)
        images = self._images()
        if dataset is None or not set(self._numbers(dataset)) <= images.keys():
            path.unlink()  # Nothing has its images: the block was never extracted.
            return
        for number, place in zip(self._numbers(dataset), map(str, dataset.paths), strict=True):
            if str(images[number]) != place:
                path.unlink()
                return
        (done,) = repair(self.store, group.key, backbone=BACKBONE)
        assert done.needs is None

    @rule()
    def collect(self) -> None:
        self.store.gc(self.store.garbage())

    @invariant()
    def every_block_is_that_of_a_fresh_extraction(self) -> None:
        numbers = {}
        for number, path in (self._images() if self.photos.exists() else {}).items():
            numbers[path] = number
        for key in self.store.features.keys():
            group = self.store.features.get(key)
            dataset = self.store.datasets.load_samples(key.dataset_digest)
            if dataset is None:
                continue
            whole = Features(group, dataset, self.store)
            there = whole.completed().rows(labelled=False)
            expected = ACTIVATIONS[REFS.index(key.ref)][np.array(self._numbers(dataset))[there]]
            np.testing.assert_array_equal(group.read(there), expected)


TestHistory = pytest.mark.reliability(History.TestCase)
TestHistory.settings = settings(max_examples=8, stateful_step_count=16, deadline=None)
