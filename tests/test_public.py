"""The names of `featurestore`: loaded on use, quick to import, and forgiving or clear."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore as fs
from featurestore.errors import InputError, NotFoundError
from tests.toys import build_network, take_photos

LAYER = "conv_b:avg"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    take_photos(folder / "photos", 6)
    build_network(folder / "net.keras")
    return folder


@pytest.fixture(scope="module")
def features(place: Path) -> fs.Features:
    return fs.extract(place / "photos", place / "net.keras", LAYER, place / "store")[LAYER]


@pytest.fixture
def store(place: Path, features: fs.Features, monkeypatch: pytest.MonkeyPatch) -> fs.FeatureStore:
    """The store, which is also the one by default."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("FEATURESTORE_STORE", raising=False)
    return features.store


def test_every_name_is_there_and_nothing_heavy_is_loaded_for_their_list() -> None:
    script = (
        "import sys, featurestore as fs\n"
        "assert set(fs.__all__) <= set(dir(fs)) and fs.__all__ == sorted(fs.__all__)\n"
        "heavy = {'numpy', 'tensorflow', 'keras', 'pydantic', 'pandas', 'rich', 'zarr'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import importlib, pkgutil\n"
        "modules = {each.name for each in pkgutil.iter_modules(fs.__path__)}\n"
        "assert not modules & set(fs.__all__), modules & set(fs.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    for name in fs.__all__:
        found = getattr(fs, name)
        assert found.__doc__
        assert found.__name__ == name


# What stands for what


def test_names_files_and_paths_stand_for_data_backbones_layers_and_stores(
    place: Path, store: fs.FeatureStore
) -> None:
    import keras

    network = keras.models.load_model(place / "net.keras")
    photos = fs.Dataset.open("photos")
    ref = fs.LayerRef.parse(LAYER)
    for data in ("photos", Path("photos"), photos):
        for backbone in ("net.keras", fs.Backbone.open("net.keras")):
            extraction = fs.extract(data, backbone, [ref], store)
            assert extraction.reports[LAYER].rows_computed == 0
            assert extraction[ref] is extraction[LAYER]
    copied = fs.extract("photos", network, LAYER)  # another name, the same prefix
    assert copied.reports[LAYER].rows_computed == 0
    assert fs.plan("photos", "net.keras", LAYER).rows_to_compute == 0
    assert fs.plan("photos", "net.keras", LAYER, "not-there").rows_to_compute == len(photos)
    assert not Path("not-there").exists()


def test_stored_things_are_found_by_name(store: fs.FeatureStore) -> None:
    for data in ("photos", Path("photos"), fs.Dataset.open("photos")):
        features = fs.Features.open(data, LAYER, model="net")
        assert features.shape == (18, 12)
        head = fs.fit_head(features, "ridge")
        assert fs.rank(data, model="net")[0]["layer"] == LAYER
        assert head.id in {row["head"] for row in fs.leaderboard(data, "store")}
    assert fs.Head.load(head.id[:8]).id == head.id


@pytest.mark.reliability
def test_a_head_is_promoted_by_its_id_and_by_itself(store: fs.FeatureStore) -> None:
    head = fs.fit_head(fs.extract("photos", "net.keras", LAYER, store), "logistic")
    promoted = fs.promote(head.id[:10], store="store")
    promoted.save("photos.keras")
    again = fs.promote(head, "net.keras", data="photos")
    assert again.before == promoted.before
    measured = fs.evaluate("photos.keras", "photos")
    assert measured["val"]["accuracy"] == promoted.before["val"]["accuracy"]


@pytest.mark.parametrize("word", ["val", "valid", "Validation", "dev"])
def test_a_split_is_understood_by_any_usual_word(features: fs.Features, word: str) -> None:
    expected = features.rows("val").tolist()
    assert features.rows(word).tolist() == features.dataset.rows(word).tolist() == expected
    assert len(features.arrays(word)[0]) == len(expected)


# What cannot stand for anything


def first(features: fs.Features) -> fs.Head:
    return fs.fit_head(features, "ridge")


class Column:
    """What a column of a DataFrame looks like."""

    def __arrow_c_stream__(self) -> None:
        raise AssertionError("a column is no table")


WRONG: dict[str, tuple[Callable[[fs.Features], Any], str]] = {
    "extract data": (lambda f: fs.extract(3, "net.keras", LAYER), "data set is 3 (int)"),
    "extract arrays": (lambda f: fs.extract(np.zeros(3), "net.keras", LAYER), "numpy.ndarray"),
    "extract nothing": (lambda f: fs.extract("photoz", "net.keras", LAYER), "photoz"),
    "extract backbone": (lambda f: fs.extract("photos", 3, LAYER), "the backbone is 3 (int)"),
    "extract layers": (lambda f: fs.extract("photos", "net.keras", 3), "the layers are 3 (int)"),
    "extract a layer": (lambda f: fs.extract("photos", "net.keras", [3]), "layer ref is 3 (int)"),
    "extract no layer": (lambda f: fs.extract("photos", "net.keras", []), "no layers given"),
    "extract store": (lambda f: fs.extract("photos", "net.keras", LAYER, 3), "store is 3 (int)"),
    "extract dtype": (lambda f: fs.extract("photos", "net.keras", LAYER, dtype="f2"), "'f2'"),
    "extract batch": (lambda f: fs.extract("photos", "net.keras", LAYER, batch_size="8"), "'8'"),
    "plan data": (lambda f: fs.plan(None, "net.keras", LAYER), "the data set is None"),
    "rank data": (lambda f: fs.rank(f), "the data set is of type featurestore.features"),
    "rank order": (
        lambda f: fs.rank(f.store, "photos"),
        "the data set is of type featurestore.store",
    ),
    "rank store": (lambda f: fs.rank("photos", ["store"]), "the store is ['store'] (list)"),
    "rank variant": (lambda f: fs.rank("photos", inputsize=3), "did you mean 'input_size'"),
    "leaderboard data": (lambda f: fs.leaderboard(3), "the data set is 3 (int)"),
    "leaderboard sort": (lambda f: fs.leaderboard(sort="valid.acc"), "did you mean 'accuracy'"),
    "features layer": (lambda f: fs.Features.open("photos", 3), "layer ref is 3 (int)"),
    "features model": (lambda f: fs.Features.open("photos", LAYER, model="nett"), "'net'?"),
    "split": (lambda f: f.rows("vall"), "no split 'vall'; did you mean 'val'?"),
    "split type": (lambda f: f.arrays(0), "no split 0 (int)"),
    "head features": (lambda f: fs.fit_head(f.arrays()[0], "ridge"), "expected those of one layer"),
    "head estimator": (lambda f: fs.fit_head(f, 3), "3"),
    "head class": (lambda f: fs.fit_head(f, dict), "dict is a class; pass an estimator: dict(…)"),
    "heads name": (lambda f: fs.fit_heads(f, "ridge"), "expected a list such as ['knn'"),
    "heads mapping": (lambda f: fs.fit_heads(f, {"ridge": {"alpha": 3}}), "expected a list"),
    "best": (lambda f: fs.best("photos"), "expected what fit_head or Head.load returns"),
    "best of rows": (lambda f: fs.best([{"head": "ridge"}]), "for a row of the leaderboard"),
    "dataset column": (lambda f: fs.Dataset.open(Column(), name="x"), "the data set is of type"),
    "head params": (lambda f: fs.fit_head(f, "ridge", 3), "the parameters are 3 (int)"),
    "head seed": (lambda f: fs.fit_head(f, "ridge", seed="one"), "seed is 'one': input should be"),
    "head load": (lambda f: fs.Head.load(3), "the head is 3 (int)"),
    "head order": (lambda f: fs.Head.load(f.store, "ridge"), "the head is of type"),
    "promote head": (lambda f: fs.promote(f), "the head is of type"),
    "promote backbone": (lambda f: fs.promote(first(f), 3), "the backbone is 3 (int)"),
    "promote data": (lambda f: fs.promote(first(f), data=3), "the data set is 3 (int)"),
    "promote option": (lambda f: fs.promote(first(f), unfreez=3), "did you mean 'unfreeze'?"),
    "promote split": (lambda f: fs.promote(first(f), selected_on="x"), "no split 'x'"),
    "evaluate model": (lambda f: fs.evaluate(3, "photos"), "3 (int)"),
    "evaluate nothing": (lambda f: fs.evaluate("none.keras", "photos"), "none.keras"),
    "predict model": (lambda f: fs.predict(3, "photos"), "3 (int)"),
    "predict images": (lambda f: fs.predict("net.keras", 3), "the images are 3 (int)"),
    "predict image": (lambda f: fs.predict("net.keras", [3]), "one of the images is 3 (int)"),
    "predict nothing": (lambda f: fs.predict("net.keras", "none.png"), "none.png"),
    "predict file": (lambda f: fs.predict("net.keras", "photos"), "expected a promoted model"),
    "run": (lambda f: fs.run(3), "3 (int)"),
    "run file": (lambda f: fs.run("none.yaml"), "none.yaml"),
    "repair key": (lambda f: fs.repair(key="nothing"), "no features 'nothing'"),
    "repair type": (lambda f: fs.repair(key=3), "3 (int)"),
    "dataset": (lambda f: fs.Dataset.open(3), "3 (int)"),
    "dataset option": (lambda f: fs.Dataset.open("photos", valid=0.2), "'valid'"),
    "backbone": (lambda f: fs.Backbone.open(3), "3 (int)"),
    "backbone model": (lambda f: fs.Backbone.open(3, name="x"), "3 (int)"),
    "backbone option": (lambda f: fs.Backbone.open("net.keras", inputsize=3), "'inputsize'"),
    "backbone size": (lambda f: fs.Backbone.open("pixels", input_size="x"), "'x'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_answered_in_one_line(
    what: str, store: fs.FeatureStore, features: fs.Features
) -> None:
    call, expected = WRONG[what]
    with pytest.raises((InputError, NotFoundError)) as caught:
        call(features)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# How things show themselves


def shown(thing: Any, *words: str) -> None:
    """Check that a thing has one informative line, and the same and more in a notebook."""
    line = repr(thing)
    assert "\n" not in line
    assert len(line) < 250
    for word in words:
        assert word in line
    html = thing._repr_html_()
    assert "<table" in html
    assert "<script" not in html


def test_each_thing_shows_itself_in_one_line_and_as_html(
    store: fs.FeatureStore, features: fs.Features
) -> None:
    photos = fs.Dataset.open("photos")
    shown(photos, "photos", "rows=18", "classes=3")
    shown(fs.Backbone.open("net.keras"), "'net'", "16×16")
    shown(fs.plan("photos", "net.keras", LAYER), LAYER, "0 images through the backbone")
    shown(fs.extract("photos", "net.keras", LAYER), LAYER, "18 reused")
    shown(features, LAYER, "photos")
    head = fs.fit_head(features, "logistic")
    shown(head, head.id, LAYER, "photos", "val accuracy")
    promotion = fs.promote(head)
    shown(promotion, head.id, "compared with the head on", "val accuracy")
    assert "block" in repr(fs.FeatureKey("a", "block:avg", "blake2b:" + "3" * 64, "x:" + "9" * 64))


def test_names_in_html_are_escaped(tmp_path: Path) -> None:
    take_photos(tmp_path / "photos", 2, {"<script>": (9, 9, 9), "b": (200, 9, 9)})
    html = fs.Dataset.open(tmp_path / "photos", name="<b>")._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "<b>" not in html


def test_tables_and_features_become_data_frames(
    store: fs.FeatureStore, features: fs.Features
) -> None:
    head = fs.fit_head(features, "logistic")
    board = fs.leaderboard("photos")
    assert board.to_frame()["head"].tolist() == [row["head"] for row in board]
    assert head.id in {row["head"] for row in board}
    assert set(fs.ls().to_frame()["layer"]) == {LAYER}
    assert LAYER in repr(fs.ls())
    frame = features.to_frame("train")
    X, y = features.arrays("train")
    assert frame["label"].tolist() == y.tolist()
    np.testing.assert_array_equal(frame.filter(like="feature_").to_numpy(), X)
    assert set(frame["split"]) == {"train"}
    assert frame["path"].iloc[0].endswith(".png")
    whole = fs.extract("photos", "net.keras", "pool_a")["pool_a"]
    with pytest.raises(InputError, match="extract pool_a:avg, or use xarray"):
        whole.to_frame()
    store.features.remove(whole.key)


def test_metrics_show_themselves_as_a_table(store: fs.FeatureStore, features: fs.Features) -> None:
    fs.promote(fs.fit_head(features, "logistic")).save("measured.keras")
    measured = fs.evaluate("measured.keras", "photos")
    assert repr(measured).split()[:4] == ["split", "images", "were", "rows"]
    assert measured.to_frame()["split"].tolist() == list(measured)
    predictions = fs.predict("measured.keras", "photos")
    assert predictions.to_frame()["label"].tolist() == [each.label for each in predictions]
    assert "<table" in predictions._repr_html_()
