"""Bad input: one line that says the way out, exit 1, no traceback, and nothing is harmed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from featurestore.store.documents import write_json
from featurestore.store.files import open_files
from tests.cli.conftest import Place
from tests.toys import build_network, featurestore, tree

MODEL = ["--model", "tiny.keras"]
EXTRACT = ["extract", "photos", *MODEL, "--layer"]
TRAIN = ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head"]
PROMOTE = ["promote", "logistic", "-o"]

# What is asked, and what the one line must say: what was found, and the way out.
CASES: list[tuple[str, list[str], list[str]]] = [
    ("a path that is not there", ["scan", "foto"], ["does not exist", "did you mean 'photos'"]),
    ("no image at all", ["scan", "junk"], ["no listed file is an image", "not an image"]),
    ("a file that is no table", ["scan", "tiny.keras"], ["neither a folder nor a table"]),
    ("nothing to train on", ["scan", "photos", "--val", "0.9", "--test", "0.9"], ["below 1"]),
    ("a name of two lines", ["scan", "photos", "--name", "a\nb"], ["printable text", "--name"]),
    ("an unknown model", ["layers", "vgg61"], ["'vgg61'", "did you mean", "VGG16"]),
    ("a model file that is none", ["layers", "junk.keras"], ["does not load"]),
    ("an unknown layer", [*EXTRACT, "conv_c"], ["'conv_c'", "did you mean 'conv_b'"]),
    (
        "weights of another shape",
        [*EXTRACT, "gap", "--weights", "other.weights.h5"],
        ["does not fit 'tiny'", "saved from this network"],
    ),
    ("an unknown data set", ["train", "foto", *TRAIN[2:], "knn"], ["did you mean 'photos'"]),
    ("a layer without features", [*TRAIN[:4], "--layer", "conv_b", "--head", "knn"],
     ["did you mean", "'conv_b:avg'", "--layer conv_b"]),
    ("an unknown head", [*TRAIN, "logistc"], ["did you mean 'logistic'"]),
    ("an unknown parameter", [*TRAIN, "knn", "--param", "neighbors=3"], ["n_neighbors"]),
    ("an unknown key", ["show", "conv_z"], ["features 'conv_z'", "tiny/conv_a-"]),
    ("a key that means two", ["show", "conv"], ["matches 2 keys", "give one of these"]),
    ("verify of an unknown key", ["verify", "nothing"], ["featurestore ls"]),
    ("repair of an unknown key", ["repair", "nothing"], ["featurestore ls"]),
    ("an unknown metric", ["heads", "--sort", "acuracy"], ["did you mean 'accuracy'"]),
    ("rank of an unknown model", ["rank", "photos", "--model", "tony"], ["did you mean 'tiny'"]),
    ("promoting an unknown head", ["promote", "logisitc", "-o", "m.keras"], ["logistic-"]),
    ("promoting a head without Keras form", ["promote", "knn", "-o", "m.keras"],
     ["KNeighbors", "logistic"]),
    ("another file type", [*PROMOTE, "m.h5"], [".keras"]),
    ("unfreezing an unknown layer", [*PROMOTE, "m.keras", "--unfreeze", "block5"], ["'block5'"]),
    ("no promoted model", ["evaluate", "flower.keras", "photos"], ["did you mean 'flowers.keras'"]),
    ("a model that was not promoted", ["predict", "tiny.keras", "photos/red/00.png"],
     ["featurestore promote HEAD -o"]),
    ("measuring without labels", ["evaluate", "flowers.keras", "photos/red"], ["no labels"]),
    ("an image that is none", ["predict", "flowers.keras", "tiny.keras"], ["cannot decode"]),
    ("no store", ["ls", "--store", "none"], ["no store at", "featurestore extract"]),
    ("a folder that is no store", ["ls", "--store", "photos"], ["not a store", "--store"]),
    ("extracting into such a folder", [*EXTRACT, "gap", "--store", "junk"], ["not a store"]),
    ("a store of a newer format", ["ls", "--store", "newer"], ["format 99", "pip install"]),
    ("one that cannot be parsed", ["ls", "--store", "torn"], ["cannot be parsed"]),
    ("a file without backbone", ["run", "many.yaml"], ["many.yaml:3: models: unknown field"]),
    ("no pipeline file", ["run", "nothing.yaml"], ["no file 'nothing.yaml'"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(made: Path, promoted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was made, and beside it all that is wrong."""
    folder = tmp_path_factory.mktemp("bad") / "place"
    shutil.copytree(made, folder)
    shutil.copy(promoted, folder)
    (folder / "junk" / "a").mkdir(parents=True)
    (folder / "junk" / "a" / "note.png").write_text("no image")
    (folder / "junk.keras").write_bytes(b"nothing of the kind")
    build_network(folder / "other.keras", channels=4)
    import keras

    other = keras.models.load_model(folder / "other.keras")
    other.save_weights(folder / "other.weights.h5")
    shutil.copytree(folder / "store", folder / "newer")
    newer = {"zarr_format": 3, "node_type": "group", "attributes": {"featurestore_format": 99}}
    write_json(open_files(str(folder / "newer")), "features/zarr.json", newer)
    (folder / "torn" / "features").mkdir(parents=True)
    (folder / "torn" / "features" / "zarr.json").write_text("{")
    (folder / "many.yaml").write_text("name: x\ndata: photos\nmodels: tiny\nheads: [knn]\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_mistake_gives_one_line_that_says_what_to_do(
    bad: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(bad)
    before = tree(bad)

    result = featurestore(*arguments)

    assert all(part in result.error for part in expected), result.error
    assert result.out == ""
    assert tree(bad) == before


def test_unusual_names_work_everywhere(place: Place, promoted: Path) -> None:
    odd = Path("odd")
    for number, name in enumerate(("new\nline\x1b[31m", "-dash", "größe 日本")):
        (odd / name).mkdir(parents=True)
        for image in range(4):
            source = place.photos / "red" / f"{4 * number + image:02}.png"
            shutil.copy(source, odd / name / f"{name}{image}.png")
    Path(os.fsdecode(b"odd/-dash/caf\xe9.png")).write_bytes(Path("photos/blue/00.png").read_bytes())
    layer = ["--model", "tiny.keras", "--layer", "conv_b:avg"]

    results = [
        featurestore("scan", "odd", "--name", "-odd"),
        featurestore("extract", "odd", *layer, "--name", "-odd"),
        featurestore("train", *layer, "--head", "logistic", "--", "-odd"),
        featurestore("predict", promoted, *sorted(map(str, odd.rglob("*.png")))),
    ]

    assert [result.status for result in results] == [0] * 4
    for result in results:
        assert all(line.isprintable() for line in (result.out + result.err).splitlines())
    report = featurestore("scan", "odd", "--json").json
    assert set(report["classes"]) == {"new\nline\x1b[31m", "-dash", "größe 日本"}


def test_a_home_that_cannot_be_written_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "FEATURESTORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/nowhere")

    assert featurestore("scan", "photos").status == 0
