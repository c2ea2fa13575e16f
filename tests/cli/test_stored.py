from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos, tree


def damage(place: Place) -> None:
    chunk = next(place.store.glob("features/tiny@conv_a-*/features/c.0*"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 255
    chunk.write_bytes(data)


def test_ls_lists_features(place: Place) -> None:
    rows = featurestore("ls", "--json").json
    shown = featurestore("ls").out

    assert [(row["model"], row["layer"], row["state"]) for row in rows] == [
        ("tiny", "conv_a", "complete"),
        ("tiny", "conv_b:avg", "complete"),
    ]
    assert rows[0]["datasets"] == ["photos"]
    assert rows[0]["shape"] == [36, 16, 16, 8]
    assert rows[0]["key"] in shown


def test_ls_names_data_sets_without_features(place: Place) -> None:
    featurestore("scan", "photos/red", "--store", "new")

    assert featurestore("ls", "--store", "new").out == (
        "no features yet; `featurestore extract` adds some (this store: --store new)\n"
        "data set red: 12 samples, no features yet\n"
    )
    assert featurestore("ls", "--store", "new", "--json").json == []


def test_ls_names_what_cannot_be_read(place: Place) -> None:
    Path(next(place.store.glob("features/*conv_a*/features/zarr.json"))).write_text("{")
    Path(next(place.store.glob("datasets/*/current.json"))).write_text("{")

    result = featurestore("ls", "--json")

    assert len(result.json) == 1
    features, dataset = result.err.splitlines()
    assert features.startswith("damaged: features/tiny@conv_a")
    assert dataset.startswith("damaged: datasets/")


def test_heads_names_what_cannot_be_read(place: Place) -> None:
    before = len(featurestore("heads", "--json").json)
    Path(next(place.store.glob("heads/knn-*/head.json"))).write_text("{")
    Path(next(place.store.glob("datasets/*/current.json"))).write_text("{")

    result = featurestore("heads", "--json")

    assert len(result.json) == before - 1
    assert "/head.json cannot be parsed" in result.err
    assert "/current.json cannot be parsed" in result.err


def test_show_says_where_features_come_from(place: Place) -> None:
    shown = yaml.safe_load(featurestore("show", "conv_a").out)
    described = featurestore("show", "tiny/conv_a", "--json").json

    assert shown == described
    assert described["layer"] == "conv_a"
    assert described["prefix_digest"].startswith("blake2b:")
    assert described["provenance"]["backbone"]["path"].endswith("tiny.keras")


def test_verify_finds_damage_and_repair_undoes_it(place: Place) -> None:
    sound = tree(place.store)
    everything = featurestore("verify", "--json").json
    assert everything["damaged"] == []
    assert everything["checked"] > 3
    damage(place)

    shown = featurestore("verify")
    report = featurestore("verify", "conv_a", "--json")
    assert "1 file damaged; `featurestore repair`" in shown.error
    assert report.status == 1
    assert report.json["checked"] == 1
    (damaged,) = report.json["damaged"]
    assert damaged["key"].startswith("tiny/conv_a-")
    assert damaged["block"] == 0
    assert "checksum" in damaged["reason"]

    assert damaged["rows"] == [0, 35]
    assert damaged["path"].endswith("/features/c.0.0.0.0")

    assert featurestore("repair", "conv_b", "--json").json == []
    (repaired,) = featurestore("repair", "--json").json
    assert repaired == {**damaged, "needs": None}
    assert featurestore("verify").out.startswith("2 feature arrays, 1 data set, ")
    features = {path: digest for path, digest in sound.items() if path.startswith("features/")}
    assert features.items() <= tree(place.store).items()
    assert featurestore("repair").out == "0 files repaired, 0 left\n"


def test_a_table_of_repairs_has_no_advice_and_fits_a_terminal(place: Place) -> None:
    damage(place)
    next(place.store.glob("datasets/*/*.parquet")).write_bytes(b"")
    next(place.store.glob("heads/knn-*/head.json")).write_text("{")

    repaired = featurestore("repair")

    assert repaired.status == 1
    table = repaired.out.splitlines()[:4]
    assert table[0].split() == ["key", "block", "rows", "now"]
    assert sorted(line.split()[-1] for line in table[1:]) == ["damaged", "repaired", "repaired"]
    assert max(map(len, table)) <= 100
    (advice,) = [line for line in repaired.out.splitlines() if "fit it again" in line]
    assert advice.startswith("heads/knn-")
    assert repaired.out.endswith("2 files repaired, 1 left\n")


def test_missing_blocks_are_named_with_their_command(place: Place) -> None:
    next(place.store.glob("features/tiny@conv_b*/features/c.0*")).unlink()

    verified = featurestore("verify")
    report = featurestore("verify", "--json").json
    repaired = featurestore("repair")

    assert (verified.status, repaired.status) == (0, 0)
    (row,) = report["incomplete"]
    assert (row["blocks_missing"], row["blocks"]) == (1, 1)
    line = f"{row['key']}: 1 of 1 block missing; `{row['command']}` computes what is missing"
    assert row["command"].startswith("featurestore extract photos --model ")
    assert verified.out.splitlines() == [line, "2 feature arrays, 1 data set, 2 heads checked"]
    assert repaired.out.splitlines() == [line, "0 files repaired, 0 left"]
    assert featurestore("verify", "conv_a", "--json").json["incomplete"] == []


@pytest.fixture
def littered(place: Place) -> Place:
    """A store with a manifest that was replaced and that no head was fitted on."""
    for seed in ("5", "6"):
        assert featurestore("scan", "photos", "--name", "spare", "--seed", seed).status == 0
    return place


def test_gc_only_lists_without_consent(littered: Place) -> None:
    before = tree(littered.store)

    listed = featurestore("gc", "--json")
    refused = featurestore("gc")

    assert (listed.status, listed.err) == (0, "nothing removed; --yes removes 1 item\n")
    report = listed.json
    assert (report["removed"], report["bytes_freed"]) == (False, 0)
    assert [item["kind"] for item in report["items"]] == ["manifest"]
    assert "pass --yes" in refused.error
    assert "spare/" in refused.out
    assert tree(littered.store) == before


def test_gc_removes_with_consent(littered: Place) -> None:
    report = featurestore("gc", "--yes", "--json").json

    assert report["removed"]
    assert report["bytes_freed"] == report["items"][0]["bytes"] > 0
    assert featurestore("gc").out == "nothing removed\n"
    assert featurestore("verify").status == 0


def test_gc_asks_on_a_terminal(littered: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(leader, b"n\n")
        refused = featurestore("gc")
        os.write(leader, b"y\n")
        agreed = featurestore("gc")
    os.close(leader)

    assert refused.out.endswith("nothing removed\n")
    assert agreed.out.endswith(" freed\n")
    assert "remove 1 item" in agreed.err


def test_rm_lists_what_goes_and_removes_with_consent(place: Place) -> None:
    before = tree(place.store)

    refused = featurestore("rm", "photos")
    report = featurestore("rm", "photos", "--json").json
    assert "pass --yes" in refused.error
    kinds = [item["kind"] for item in report["items"]]
    assert kinds == ["head", "head", "dataset", "features", "features"]
    assert (report["removed"], report["bytes_freed"]) == (False, 0)
    for item in report["items"]:
        assert item["name"] in refused.out
    assert "fitted on data set photos" in refused.out
    assert tree(place.store) == before

    done = featurestore("rm", "photos", "--yes", "--json").json
    assert done["bytes_freed"] == sum(item["bytes"] for item in report["items"])
    assert featurestore("heads").out == "no heads yet; `featurestore train` adds one\n"
    assert featurestore("gc").out == "nothing removed\n"
    assert place.photos.is_dir()
    assert featurestore("extract", "photos", "--model", "tiny.keras", "--layer", "gap").status == 0


@pytest.mark.reliability
def test_rm_of_features_keeps_heads_if_asked(place: Place) -> None:
    words = ["rm", "tiny/conv_b:avg", "--json"]
    with_heads, alone = (featurestore(*words, *more).json for more in ([], ["--keep-heads"]))
    assert [item["kind"] for item in with_heads["items"]] == ["head", "head", "features"]
    assert [item["kind"] for item in alone["items"]] == ["features"]

    featurestore("rm", "tiny/conv_b:avg", "--keep-heads", "--yes")
    assert "logistic" in featurestore("heads", "photos").out
    refused = featurestore("promote", "logistic", "-o", "model.keras")
    assert "extract them again with `featurestore extract photos" in refused.error
    again = refused.error.partition("`featurestore ")[2].rstrip("`").split()
    assert featurestore(*again).status == 0
    assert featurestore("promote", "logistic", "-o", "model.keras").status == 0
    assert "cannot be kept" in featurestore("rm", "photos", "--keep-heads").error


@pytest.mark.reliability
def test_a_head_without_features_is_promoted_on_the_rows_of_a_grown_data_set(place: Place) -> None:
    (former,) = [
        row["key"] for row in featurestore("ls", "--json").json if row["layer"] != "conv_a"
    ]
    metrics = {row["head"]: row["metrics"] for row in featurestore("heads", "--json").json}
    take_photos(place.photos, each=2, colours={"violet": (120, 0, 200)})
    words = ["extract", "photos", "--model", "tiny.keras", "--layer", "conv_b:avg"]
    assert featurestore(*words).status == 0
    assert featurestore("rm", former, "--keep-heads", "--yes").status == 0

    rows = featurestore("heads", "--json").json
    assert {row["head"]: row["metrics"] for row in rows} == metrics
    assert all("samples (2 added)" in row["stale"] for row in rows)
    assert "accuracy" in featurestore("show", "logistic").out
    done = featurestore("promote", "logistic", "-o", "model.keras", "--json")
    assert done.json["parity"]["rows"] == 36
    assert "is stale" in done.err
    assert featurestore("gc", "--yes").out == "nothing removed\n"


@pytest.mark.reliability
def test_what_fine_tuning_stored_for_itself_is_marked_and_removed(place: Place) -> None:
    options = ["--unfreeze", "conv_b", "--epochs", "1"]
    assert featurestore("promote", "logistic", "-o", "model.keras", *options).status == 0

    rows = featurestore("ls", "--json").json
    assert [row["layer"] for row in rows if row["boundary"]] == ["pool_a"]
    assert "complete, boundary" in featurestore("ls").out
    assert "pool_a" not in featurestore("rank", "photos").out
    assert featurestore("gc").out == "nothing removed\n"
    (item,) = featurestore("gc", "--boundaries", "--yes", "--json").json["items"]
    assert item["reason"] == "a boundary array of fine-tuning"
    (item,) = featurestore("gc", "--unused", "--yes", "--json").json["items"]
    assert item["name"].startswith("tiny/conv_a-")
    assert [row["layer"] for row in featurestore("ls", "--json").json] == ["conv_b:avg"]


def test_rm_takes_the_name_of_a_head(place: Place) -> None:
    (item,) = featurestore("rm", "knn", "--json").json["items"]
    assert item["kind"] == "head"
    words = ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head", "ridge"]
    assert featurestore(*words, "--label", "the good one").status == 0
    (item,) = featurestore("rm", "the good one", "--json", "--yes").json["items"]
    assert item["name"].startswith("heads/ridge-")
    assert (
        "no data set, head or features 'the good one'" in featurestore("rm", "the good one").error
    )
