"""The options that pick one of several variants of a layer; tables that set them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InputError, NotFoundError
from featurestore.features import Features, stored
from featurestore.heads import rank
from featurestore.store import FeatureStore
from tests.toys import build_network, featurestore, take_photos

LAYER = "conv_b:avg"
TRAIN = ["train", "photos", "--model", "tiny", "--layer", LAYER, "--head", "ridge"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer at two input sizes, in two ways of resizing, with two files of weights."""
    folder = tmp_path_factory.mktemp("variants")
    take_photos(folder / "photos", 8)
    build_network(folder / "first" / "tiny.keras", size=None)
    build_network(folder / "again" / "tiny.keras", size=None, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model, *options in (
            ("first/tiny.keras", "--input-size", "12"),
            ("first/tiny.keras", "--input-size", "16"),
            ("first/tiny.keras", "--input-size", "16", "--resize", "crop"),
            ("again/tiny.keras", "--input-size", "16"),
        ):
            extract = ["extract", "photos", "--model", model, "--layer", LAYER, "--val", "0.3"]
            assert featurestore(*extract, *options).status == 0
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def variants(rows: list[dict[str, Any]]) -> set[tuple[int, str, str]]:
    return {(row["input_size"], row["resize"], Path(row["weights"]).parent.name) for row in rows}


def test_each_option_picks_and_all_together_leave_one(place: Path) -> None:
    store = FeatureStore("store", create=True)

    assert len(stored(store, "photos")) == 4
    assert len(stored(store, "photos", input_size=16)) == 3
    assert len(stored(store, "photos", input_size=[12, 16], resize="stretch")) == 3
    assert len(stored(store, "photos", weights="tiny.keras")) == 4
    assert len(stored(store, "photos", weights="again/tiny.keras")) == 1
    assert len(stored(store, "photos", weights=place / "first" / "tiny.keras")) == 3
    assert len(stored(store, "photos", precision="float32")) == 4
    cropped = Features.open("photos", LAYER, store, model="tiny", resize="crop")
    assert cropped.group.provenance["prefix"]["preprocessing"]["resize"] == "crop"
    with pytest.raises(InputError, match="inputsize"):
        stored(store, "photos", inputsize=16)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            ["--weights", "first/tiny.keras", "--resize", "stretch"],
            f"2 variants of {LAYER} by tiny are stored for 'photos', which differ in input size: "
            "--input-size 1",
        ),
        (
            ["--resize", "stretch", "--input-size", "16"],
            "which differ in weights: --weights ",
        ),
        (
            ["--input-size", "16"],
            "which differ in resize and weights: --resize ",
        ),
        (
            ["--input-size", "224"],
            f"no features of 'photos' at layer '{LAYER}' with --input-size 224; stored: "
            "--input-size 12, --input-size 16, or run `featurestore extract photos --model /",
        ),
        (
            ["--input-size", "224"],
            f"tiny.keras --layer {LAYER} --input-size 224`",
        ),
        (
            ["--input-size", "12", "--resize", "crop"],
            "with --resize crop; stored: --resize stretch, or run ",
        ),
    ],
)
def test_an_error_names_what_differs_and_the_option_that_decides(
    asked: list[str], expected: str
) -> None:
    assert expected in featurestore(*TRAIN, *asked).error


def test_the_options_that_the_error_offers_work(place: Path) -> None:
    error = featurestore(*TRAIN, "--input-size", "16", "--resize", "stretch").error
    offered = error.rpartition(": ")[2].split(" or ")

    heads = {featurestore(*TRAIN, "--input-size", 16, "--resize", "stretch", *each.split(),
                          "--json").json["head"] for each in offered}  # fmt: skip

    assert len(heads) == len(offered) == 2


def test_a_layer_of_several_variants_is_picked_by_its_key() -> None:
    rows = featurestore("ls", "--resize", "crop", "--json").json
    shown = featurestore("show", rows[0]["key"], "--json").json

    assert shown["provenance"]["prefix"]["preprocessing"]["resize"] == "crop"
    error = featurestore("show", LAYER).error
    assert rows[0]["key"] in error
    assert "give one of these; `featurestore ls` shows how they differ" in error


def test_tables_have_a_column_for_what_differs(place: Path) -> None:
    heading = featurestore("ls").out.splitlines()[0]
    assert all(each in heading for each in ("input size", "resize", "weights"))
    assert not any(each in heading for each in ("interpolation", "scaling", "precision"))
    assert "first/tiny.keras " in featurestore("ls").out
    assert variants(featurestore("ls", "--json").json) == {
        (12, "stretch", "first"),
        (16, "stretch", "first"),
        (16, "crop", "first"),
        (16, "stretch", "again"),
    }

    ranked = featurestore("rank", "photos", "--weights", "first/tiny.keras").out
    assert ranked.splitlines()[0].split()[:5] == ["model", "input", "size", "resize", "layer"]
    one = featurestore("rank", "photos", "--input-size", "12").out
    assert one.splitlines()[0].split()[:2] == ["model", "layer"]
    assert len(rank("photos", FeatureStore("store", create=True), resize="crop")) == 1


def test_heads_show_the_variant_they_were_fitted_on(place: Path) -> None:
    for size in (12, 16):
        options = ["--input-size", size, "--weights", "first/tiny.keras", "--resize", "stretch"]
        assert featurestore(*TRAIN, *options, "--seed", "7").status == 0

    rows = [row for row in featurestore("heads", "--json").json if row["resize"] == "stretch"]

    assert {row["input_size"] for row in rows} == {12, 16}
    assert "input size" in featurestore("heads").out.splitlines()[0]


def test_lists_are_narrowed_by_the_same_options(place: Path) -> None:
    assert featurestore(*TRAIN, "--resize", "crop", "--seed", "8").status == 0

    assert len(featurestore("ls", "--resize", "crop", "--json").json) == 1
    assert featurestore("ls", "--input-size", "99").out == "no features with --input-size 99\n"
    (row,) = featurestore("heads", "photos", "--resize", "crop", "--json").json
    assert (row["resize"], row["input_size"]) == ("crop", 16)
    assert featurestore("heads", "--precision", "float16").out == (
        "no heads with --precision float16; `featurestore train` adds one\n"
    )


def test_the_file_that_was_extracted_from_picks_its_own_features(place: Path) -> None:
    store = FeatureStore("store", create=True)

    own = stored(store, "photos", model="again/tiny.keras")
    assert [each.group.provenance["backbone"]["path"] for each in own] == [
        str(place / "again" / "tiny.keras")
    ]
    assert len(stored(store, "photos", model=["first/tiny.keras", "again/tiny.keras"])) == 4
    # A file that was moved since is still known by its name.
    assert len(stored(store, "photos", model="elsewhere/tiny.keras")) == 4


def test_a_model_file_that_changed_is_shown_by_its_prefix(tmp_path: Path) -> None:
    for seed in (3, 4):
        build_network(tmp_path / "net.keras", size=12, seed=seed)
        extract = ["extract", "photos", "--model", tmp_path / "net.keras", "--layer", LAYER]
        assert featurestore(*extract, "--store", tmp_path / "store").status == 0

    train = ["train", "photos", "--model", "net", "--layer", LAYER, "--head", "ridge", "--store"]
    error = featurestore(*train, tmp_path / "store").error
    ranked = featurestore("rank", "photos", "--store", tmp_path / "store").out.splitlines()

    assert "which differ in weights or graph: --layer conv_b:avg-" in error
    assert ranked[0].split()[:3] == ["model", "prefix", "layer"]
    assert {line.split()[1] for line in ranked[1:]} == {
        each.rpartition("-")[2] for each in error.rpartition(": ")[2].split(" or ")
    }


def test_features_without_provenance_are_listed() -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "store-v1"
    rows = featurestore("ls", "--store", fixture, "--json").json

    assert {row["input_size"] for row in rows} == {None}
    name = rows[0]["datasets"][0]
    with pytest.raises(NotFoundError, match="with --input-size 16; stored: none that record it"):
        stored(FeatureStore(fixture, create=True), name, input_size=16)
