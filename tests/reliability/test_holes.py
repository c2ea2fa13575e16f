"""Holes: what was never extracted is never read as zeros; and what is zero is no hole."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import featurestore as fs
from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import (
    FeatureStoreWarning,
    HeadError,
    IncompleteFeaturesError,
    NotFoundError,
)
from featurestore.extraction import extract, plan
from featurestore.features import Features
from featurestore.heads import Head, fit_head, fit_heads, rank, rows
from featurestore.promotion import promote
from featurestore.store import FeatureStore, blocks
from tests.reliability.faults import Killed, failing
from tests.reliability.promises import few, promise
from tests.toys import build_network, drop_block, featurestore, take_photos

LAYER = "conv_b:avg"
HOLE = r"1 block was never extracted, of 5 \(the first is block 2, rows 16–23\); run `featurestore"


class Torn:
    """A data set and a network, and a store in which block 2 of one layer does not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = Dataset.open(take_photos(folder / "photos"), name="photos")
        self.network = build_network(folder / "net.keras")
        self.backbone = Backbone.open(self.network)
        self.store = FeatureStore(folder / "store", create=True)
        self.features = extract(self.photos, self.backbone, [LAYER], self.store)[LAYER]
        self.whole = self.features.group.read()

    def tear(self, *absent: int) -> None:
        for block in absent:
            drop_block(self.features.group, block)

    def complete_again(self) -> None:
        extract(self.photos, self.backbone, [LAYER], self.store)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torn]:
    folder = tmp_path_factory.mktemp("holes")
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that a few photos make several; the store as a user chooses it.
        patch.setattr(blocks, "MOST_ROWS", 8)
        patch.setenv("FEATURESTORE_STORE", str(folder / "store"))
        yield Torn(folder)


@pytest.fixture
def torn(made: Torn) -> Iterator[Torn]:
    made.tear(2)
    yield made
    made.complete_again()
    shutil.rmtree(made.folder / "store/heads", ignore_errors=True)


def whole_epoch(features: Features) -> None:
    batches = features.py_dataset(None)
    for index in range(len(batches)):
        batches[index]


def fit_streamed(torn: Torn) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "IN_MEMORY", 0)
        fit_head(torn.features, "dense", {"epochs": 1})


def run_file(torn: Torn) -> None:
    file = torn.folder / "many.yaml"
    file.write_text(
        f"name: many\ndata: photos\nfeatures: {{model: net}}\nlayers: ['{LAYER}']\n"
        "heads: [ridge, knn]\n"
    )
    fs.run(file, torn.store, runs=torn.folder / "runs")


READERS: dict[str, Callable[[Torn], object]] = {
    "arrays": lambda torn: torn.features.arrays(),
    "arrays of a split": lambda torn: torn.features.arrays("train"),
    "group.read": lambda torn: torn.features.group.read(),
    "dask": lambda torn: torn.features.dask().compute(),
    "dask of a split": lambda torn: torn.features.dask("train").mean().compute(),
    "xarray": lambda torn: torn.features.xarray()["features"].values,
    "py_dataset": lambda torn: whole_epoch(torn.features),
    "fit_head": lambda torn: fit_head(torn.features, "ridge"),
    "fit_head, Keras": lambda torn: fit_head(torn.features, "dense", {"epochs": 1}),
    "fit_head, streamed": fit_streamed,
    "fit_heads": lambda torn: fit_heads(torn.features, [("ridge", {}), ("logistic", {})]),
    "rank": lambda torn: rank("photos", torn.store),
    "run": run_file,
}


@pytest.mark.parametrize("reader", few(READERS, "fit_head"))
def test_a_block_that_does_not_exist_is_never_read(torn: Torn, reader: str) -> None:
    with pytest.raises(IncompleteFeaturesError, match=HOLE) as caught:
        READERS[reader](torn)
    assert not torn.store.heads.values()
    command = str(caught.value).partition("run `")[2].rstrip("`")
    assert featurestore(*shlex.split(command)[1:]).status == 0
    assert torn.features.complete
    assert np.array_equal(torn.features.group.read(), torn.whole)


@pytest.mark.parametrize("command", few(["train", "run", "rank"], "train"))
def test_commands_tell_how_to_complete(torn: Torn, command: str) -> None:
    file = torn.folder / "many.yaml"
    file.write_text("name: many\ndata: photos\nheads: [ridge]\n")
    words = {
        "train": ["photos", "--model", "net", "--layer", LAYER, "--head", "ridge"],
        "run": [str(file), "--runs", str(torn.folder / "runs")],
        "rank": ["photos"],
    }
    told = featurestore(command, *words[command]).error
    assert "never extracted" in told
    completing = shlex.split(told.partition("run `")[2].rstrip("`"))
    assert featurestore(*completing[1:]).status == 0
    assert featurestore(command, *words[command]).status == 0


def test_a_promotion_is_not_proven_on_rows_that_do_not_exist(torn: Torn) -> None:
    torn.complete_again()
    head = fit_head(torn.features, "ridge")
    torn.tear(2)
    rows = promote(head, torn.backbone, data=torn.photos).parity.rows
    assert rows == 36 - torn.features.group.block_rows
    torn.tear(0, 1, 3, 4)
    with pytest.raises(NotFoundError, match=r"0 of its 36 samples are stored, .* needs 16"):
        promote(head, torn.backbone, data=torn.photos)
    told = featurestore("promote", head.id, "-o", str(torn.folder / "model.keras")).error
    assert "are incomplete" in told
    assert not (torn.folder / "model.keras").exists()


def test_a_pipeline_completes_what_is_missing(torn: Torn) -> None:
    spec = torn.folder / "pipeline.yaml"
    spec.write_text(
        f"name: holes\ndata: {{path: photos}}\nbackbone: {{model: net.keras}}\n"
        f"layers: ['{LAYER}']\nheads: [ridge]\n"
    )
    done = featurestore("run", str(spec), "--runs", str(torn.folder / "runs"))
    assert done.status == 0, done.err
    assert np.array_equal(torn.features.group.read(), torn.whole)


def test_a_layer_that_is_complete_is_ranked_without_the_others(torn: Torn) -> None:
    extract(torn.photos, torn.backbone, ["gap"], torn.store)
    with pytest.warns(FeatureStoreWarning, match="not ranked"):
        assert [row["layer"] for row in rank("photos", torn.store)] == ["gap"]
    torn.store.features.remove(Features.open("photos", "gap", torn.store, model="net").key)


def test_a_block_that_goes_during_an_epoch_stops_it(made: Torn) -> None:
    batches = made.features.py_dataset("train", batch_size=4)
    made.tear(2)
    with pytest.raises(IncompleteFeaturesError, match=HOLE):
        [batches[index] for index in range(len(batches))]
    made.complete_again()
    assert len([batches[index] for index in range(len(batches))]) == len(batches)


@promise
def test_a_killed_extraction_leaves_holes_and_no_zeros(made: Torn, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    with (
        failing(Killed, at=1, match="*/features/c.*", calls=["replace"]),
        pytest.raises(Killed),
    ):
        extract(made.photos, made.backbone, [LAYER], store, batch_size=8)
    features = Features.open("photos", LAYER, store, model="net")
    assert 0 < len(features.group.missing()) < 5
    with pytest.raises(IncompleteFeaturesError):
        features.arrays()
    X, _ = features.completed().arrays()
    assert np.array_equal(X, made.whole[features.completed().rows()])


def test_arrays_are_completed_in_python(torn: Torn, tmp_path: Path) -> None:
    """No command line has the arrays of a data set that was made from some."""
    import featurestore as fs

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    dataset = Dataset.from_arrays(pixels, ["a", "b"] * 10, name="arrays")
    store, backbone = (
        FeatureStore(tmp_path / "store", create=True),
        Backbone.open("pixels", input_size=8),
    )
    features = extract(dataset, backbone, ["pixels"], store)["pixels"]
    drop_block(features.group, 1)
    with pytest.raises(IncompleteFeaturesError) as caught:
        features.arrays()
    line = str(caught.value).partition("run `")[2].rstrip("`")
    assert line == "featurestore.extract(dataset, backbone, ['pixels'], store)"
    eval(line, {"featurestore": fs, "dataset": dataset, "backbone": backbone, "store": store})
    assert features.complete


# Zeros that are data.


@promise
def test_blocks_of_zeros_are_data(tmp_path: Path) -> None:
    import keras

    image = keras.Input((16, 16, 3))
    dead = keras.layers.Conv2D(
        4, 3, activation="relu", bias_initializer=keras.initializers.Constant(-1e6), name="dead"
    )
    backbone = Backbone.open(keras.Model(image, dead(image)), name="dead", scaling="none")
    photos = Dataset.open(take_photos(tmp_path / "photos", 4))
    store = FeatureStore(tmp_path / "store", create=True)
    features = extract(photos, backbone, ["dead", "dead:max"], store)
    for each in features.values():
        assert each.complete
        X, _ = each.arrays()
        assert X.shape == (12, *each.shape[1:])
        assert not X.any()
        assert not each.dask().compute().any()
        assert plan(photos, backbone, [each.ref], store).rows_to_compute == 0
        assert each.completed() is each
        assert each.group.missing() == []
    assert fit_head(features["dead:max"], "ridge").metrics


# What there is, taken explicitly.


def test_a_head_on_what_there_is_is_another_head(torn: Torn) -> None:
    part = torn.features.completed()
    assert len(part) == 28
    on_part = fit_head(part, "ridge")
    assert on_part.provenance["features"]["rows"] == 28
    assert on_part.problems == ("fitted and measured on the 28 of 36 rows that existed",)
    assert sum(metrics["rows"] for metrics in on_part.metrics.values()) == 28
    assert fit_head(part, "ridge").id == on_part.id
    torn.tear(4)
    smaller = fit_head(torn.features.completed(), "ridge")
    torn.complete_again()
    whole = fit_head(torn.features, "ridge")
    assert len({whole.id, on_part.id, smaller.id}) == 3
    assert "rows" not in whole.provenance["features"]
    assert not whole.problems
    # The view is of what existed then, and its head is still found.
    assert fit_head(part, "ridge").id == on_part.id
    assert Head.load(on_part.id, torn.store).problems == on_part.problems
    with pytest.warns(FeatureStoreWarning, match=r"stale: .*rows \(28 of 36\)"):
        promotion = promote(on_part, torn.backbone, data=torn.photos)
    assert promotion.model.output_shape == (None, 3)
    for each in (on_part, smaller, whole):
        torn.store.heads.get(each.id)


def test_too_little_to_learn_from(torn: Torn) -> None:
    torn.tear(0, 1, 3, 4)
    nothing = torn.features.completed()
    assert len(nothing) == 0
    X, _ = nothing.arrays("train")
    assert X.shape == (0, 12)
    with pytest.raises(HeadError, match=r"of 36 rows 0 exist.*run `featurestore extract photos"):
        fit_head(nothing, "ridge")
    with pytest.raises(NotFoundError, match="no features"):
        Features.open("photos", "conv_a", torn.store, model="net")
