"""Bad input: one line that says the way out, exit 1, no traceback, and nothing is harmed."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featurestore.store.documents import write_json
from featurestore.store.files import open_files
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos, tree

MODEL = ["--model", "tiny.keras"]
EXTRACT = ["extract", "photos", *MODEL, "--layer"]
TRAIN = ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head"]
PROMOTE = ["promote", "logistic", "-o"]

# What is asked, and what the one line must say: what was found, and the way out.
CASES: list[tuple[str, list[str], list[str]]] = [
    ("a path that is not there", ["scan", "foto"], ["does not exist", "did you mean 'photos'"]),
    ("the same, to extract", ["extract", "foto", *MODEL, "--layer", "x"], ["'photos'"]),
    ("the same, to measure", ["evaluate", "flowers.keras", "foto"], ["did you mean 'photos'"]),
    ("an empty folder", ["scan", "empty"], ["no files in", "class sub-folders"]),
    ("no image at all", ["scan", "junk"], ["none of the 1 files listed", "not an image"]),
    ("a file that is no table", ["scan", "tiny.keras"], ["neither a folder nor a table"]),
    ("an image as data", ["scan", "photos/red/00.png"], ["give the folder that holds it"]),
    ("a table without paths", ["scan", "no-paths.csv"], ["no column 'path'", "known: file, label"]),
    ("a table of another encoding", ["scan", "latin.csv"], ["expected UTF-8 text"]),
    ("an empty table", ["scan", "empty.csv"], ["Empty CSV file", "header"]),
    ("a split nobody knows", ["scan", "splits.csv"], ["'trian'", "'train', 'val'"]),
    ("a Parquet file that is none", ["scan", "torn.parquet"], ["not a parquet file"]),
    ("a column that is not there", ["scan", "good.csv", "--group-by", "who"], ["'who'"]),
    ("nothing to train on", ["scan", "photos", "--val", "0.9", "--test", "0.9"], ["below 1"]),
    ("a name of two lines", ["scan", "photos", "--name", "a\nb"], ["printable text", "--name"]),
    ("an unknown model", ["layers", "vgg61"], ["'vgg61'", "did you mean", "VGG16"]),
    ("a model file that is not there", ["layers", "tinny.keras"], ["no model file"]),
    ("a model file that is none", ["layers", "junk.keras"], ["does not load"]),
    ("weights instead of a model", ["layers", "other.h5"], ["does not load"]),
    ("an unknown layer", [*EXTRACT, "conv_c"], ["'conv_c'", "did you mean 'conv_b'"]),
    ("an unknown reduction", [*EXTRACT, "conv_b:mean"], ["LAYER:avg or LAYER:max"]),
    ("reducing a vector", [*EXTRACT, "gap:avg"], ["one vector", "without :avg"]),
    ("no weights file", [*EXTRACT, "gap", "--weights", "w.h5"], ["no weights file 'w.h5'"]),
    (
        "weights of another shape",
        [*EXTRACT, "gap", "--weights", "other.weights.h5"],
        ["does not fit 'tiny'", "saved from the same network"],
    ),
    (
        "weights that are no HDF5",
        [*EXTRACT, "gap", "--weights", "junk.weights.h5"],
        ["does not fit 'tiny'"],
    ),
    ("another input size", [*EXTRACT, "gap", "--input-size", "32"], ["16×16", "32×32"]),
    ("an unknown data set", ["train", "foto", *TRAIN[2:], "knn"], ["did you mean 'photos'"]),
    ("an unknown model's features", ["train", "photos", "--model", "tony", *TRAIN[4:], "knn"],
     ["did you mean 'tiny'", "featurestore extract photos --model tony"]),
    ("a layer without features", [*TRAIN[:4], "--layer", "conv_b", "--head", "knn"],
     ["did you mean", "'conv_b:avg'", "--layer conv_b"]),
    ("an unknown head", [*TRAIN, "logistc"], ["did you mean 'logistic'"]),
    ("an import path that is none", [*TRAIN, "sklearn.nothing.SVC"], ["unknown head"]),
    ("a class that is no estimator", [*TRAIN, "os.path.join"], ["unknown head", "known: logistic"]),
    ("an unknown parameter", [*TRAIN, "knn", "--param", "neighbors=3"], ["n_neighbors"]),
    ("a value that is refused", [*TRAIN, "logistic", "--param", "C=abc"], ["'C'", "'abc'"]),
    ("units that are no number", [*TRAIN, "dense", "--param", "units=many"], ["a valid integer"]),
    ("a head for numbers", [*TRAIN, "Ridge"], ["predicts numbers", "classes"]),
    ("an unknown key", ["show", "conv_z"], ["no features 'conv_z'", "tiny/conv_a-"]),
    ("a key that means two", ["show", "conv"], ["matches 2 keys", "give more of one"]),
    ("verify of an unknown key", ["verify", "nothing"], ["featurestore ls"]),
    ("repair of an unknown key", ["repair", "nothing"], ["featurestore ls"]),
    ("an unknown metric", ["heads", "--sort", "acuracy"], ["did you mean 'accuracy'"]),
    ("an unknown split", ["heads", "--sort", "vall.accuracy"], ["did you mean 'val'"]),
    ("heads of an unknown data set", ["heads", "foto"], ["did you mean 'photos'"]),
    ("rank of an unknown data set", ["rank", "foto"], ["did you mean 'photos'"]),
    ("rank of an unknown model", ["rank", "photos", "--model", "tony"], ["did you mean 'tiny'"]),
    ("promoting an unknown head", ["promote", "logisitc", "-o", "m.keras"], ["logistic-"]),
    ("promoting a head without Keras form", ["promote", "knn", "-o", "m.keras"],
     ["KNeighbors", "logistic"]),
    ("another file type", [*PROMOTE, "m.h5"], [".keras"]),
    ("a folder that is not there", [*PROMOTE, "no/m.keras"], ["no folder 'no'"]),
    ("a folder in the file's place", [*PROMOTE, "folder.keras"], ["folder.keras"]),
    ("unfreezing an unknown layer", [*PROMOTE, "m.keras", "--unfreeze", "block5"], ["'block5'"]),
    ("unfreezing too many layers", [*PROMOTE, "m.keras", "--unfreeze", "99"], ["99"]),
    ("no promoted model", ["evaluate", "flower.keras", "photos"], ["did you mean 'flowers.keras'"]),
    ("a model that was not promoted", ["predict", "tiny.keras", "photos/red/00.png"],
     ["featurestore promote HEAD -o"]),
    ("measuring without labels", ["evaluate", "flowers.keras", "photos/red"], ["no labels"]),
    ("measuring other classes", ["evaluate", "flowers.keras", "others"], ["green, red", "sky"]),
    ("an image that is not there", ["predict", "flowers.keras", "x.png"], ["cannot read 'x.png'"]),
    ("an image that is a folder", ["predict", "flowers.keras", "photos"], ["cannot read 'photos'"]),
    ("an image that is none", ["predict", "flowers.keras", "tiny.keras"], ["cannot decode"]),
    ("no store", ["ls", "--store", "none"], ["no store at", "featurestore extract"]),
    ("a file as store", ["ls", "--store", "tiny.keras"], ["is a file", "--store"]),
    ("a folder that is no store", ["ls", "--store", "photos"], ["not a store", "--store"]),
    ("extracting into such a folder", [*EXTRACT, "gap", "--store", "junk"], ["not a store"]),
    ("a URL of no known kind", ["ls", "--store", "bogus://x"], ["bogus"]),
    ("a store of a newer format", ["ls", "--store", "newer"], ["format 99", "pip install"]),
    ("writing to one", [*EXTRACT, "gap", "--store", "newer"], ["format 99", "pip install"]),
    ("one that cannot be parsed", ["ls", "--store", "torn"], ["cannot be parsed"]),
    ("no sweep file", ["sweep", "sweap.yaml"], ["did you mean 'sweep.yaml'"]),
    ("a sweep with a mistake", ["sweep", "sweep.yaml"], ["sweep.yaml:2: models: unknown field"]),
    ("no pipeline file", ["run", "nothing.yaml"], ["no file 'nothing.yaml'"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was made, and beside it all that is wrong."""
    from tests.toys import build_network

    folder = tmp_path_factory.mktemp("bad") / "place"
    shutil.copytree(made, folder)
    (folder / "empty").mkdir()
    (folder / "folder.keras").mkdir()
    (folder / "junk" / "a").mkdir(parents=True)
    (folder / "junk" / "a" / "note.png").write_text("no image")
    take_photos(folder / "others", 2, {"sky": (90, 90, 250), "sea": (60, 90, 200)})
    (folder / "no-paths.csv").write_text("file,label\na.png,a\n")
    (folder / "latin.csv").write_bytes("path,label\ngr\xfcn.png,a\n".encode("latin-1"))
    (folder / "empty.csv").write_text("")
    (folder / "good.csv").write_text("path,label\nphotos/red/00.png,a\n")
    (folder / "splits.csv").write_text("path,label,split\nphotos/red/00.png,a,trian\n")
    for name in ("torn.parquet", "junk.keras", "junk.weights.h5"):
        (folder / name).write_bytes(b"nothing of the kind")
    build_network(folder / "other.keras", channels=4)
    import keras

    other = keras.models.load_model(folder / "other.keras")
    other.save_weights(folder / "other.weights.h5")
    shutil.copy(folder / "other.weights.h5", folder / "other.h5")
    shutil.copytree(folder / "store", folder / "newer")
    newer = {"zarr_format": 3, "node_type": "group", "attributes": {"featurestore_format": 99}}
    write_json(open_files(str(folder / "newer")), "features/zarr.json", newer)
    (folder / "torn" / "features").mkdir(parents=True)
    (folder / "torn" / "features" / "zarr.json").write_text("{")
    (folder / "sweep.yaml").write_text("dataset: photos\nmodels: tiny\nheads: [knn]\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_line_says_the_way_out(
    bad: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(bad)
    before = tree(bad)

    result = featurestore(*arguments)

    assert all(part in result.error for part in expected), result.error
    assert result.out == ""
    assert tree(bad) == before


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one", "one class, 'red'"),
        ("lone", "a single sample of class red"),
        ("flat", "no labels"),
    ],
)
def test_labels_that_teach_nothing(place: Place, name: str, expected: str) -> None:
    if name == "one":
        take_photos(Path(name), 6, {"red": (180, 60, 60)})
    elif name == "lone":
        take_photos(Path(name), 6)
        for extra in list(Path(name, "red").iterdir())[1:]:
            extra.unlink()
    else:
        shutil.copytree(place.photos / "red", name)
    assert featurestore("extract", name, *MODEL, "--layer", "gap").status == 0
    before = tree(place.store)

    for command in (
        ["train", name, "--model", "tiny", "--layer", "gap", "--head", "knn"],
        ["rank", name],
    ):
        error = featurestore(*command).error
        assert expected in error
        assert "featurestore scan" in error
    assert tree(place.store) == before


def test_files_that_cannot_be_read_are_set_aside(place: Place) -> None:
    red = place.photos / "red"
    (red / "folder.png").mkdir()
    os.mkfifo(red / "pipe.png")
    (red / "broken.png").symlink_to("nowhere")
    (red / "loop").symlink_to(red)
    (red / "torn.png").write_bytes((red / "00.png").read_bytes()[:300])
    (red / "empty.png").write_bytes(b"")

    result = featurestore("scan", "photos", "--json")

    assert result.json["rows"] == 36
    found = [each for each in result.json["problems"] if each["kind"] == "quarantined"]
    assert {Path(each["path"]).name for each in found} == {
        "broken.png",
        "empty.png",
        "pipe.png",
        "torn.png",
    }


def test_names_of_any_kind_go_through(place: Place) -> None:
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
        featurestore("predict", "flowers.keras", *sorted(map(str, odd.rglob("*.png")))),
    ]

    assert [result.status for result in results] == [0] * 4
    for result in results:
        assert all(line.isprintable() for line in (result.out + result.err).splitlines())
    report = featurestore("scan", "odd", "--json").json
    assert set(report["classes"]) == {"new\nline\x1b[31m", "-dash", "größe 日本"}


def test_a_folder_that_moved_is_named(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine")
    place.photos.rename("elsewhere")
    before = tree(place.store / "heads")

    assert featurestore("train", "mine", *TRAIN[2:], "knn").status == 0
    error = featurestore("extract", "mine", *MODEL, "--layer", "gap").error

    assert "no such file" in error
    assert "featurestore scan" in error
    assert before.items() <= tree(place.store / "heads").items()
    assert featurestore("scan", "elsewhere", "--name", "mine").status == 0
    assert featurestore("extract", "mine", *MODEL, "--layer", "gap").status == 0


# ---------------------------------------------------------------------- the disk


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the disk is as good as full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_nothing(place: Place) -> None:
    before = tree(place.folder)
    with small_files(0):
        result = featurestore(*EXTRACT, "gap", "--store", "new")

    assert "File too large; raise the limit on the size of files" in result.error
    assert "then run the command again: it resumes" in result.error
    # Of the store, the file of locks is there, which has no bytes.
    assert tree(place.folder).keys() - before.keys() == {"new/lock"}
    assert featurestore(*EXTRACT, "gap", "--store", "new").status == 0


def test_a_disk_that_is_full_after_a_while_and_then_is_not(place: Place) -> None:
    before = tree(place.store)
    with small_files(20_000):
        # Rows of 16 × 16 × 8 numbers: more than fits. Keras' own files must be smaller.
        result = featurestore(*EXTRACT, "conv_a", "--dtype", "float32", "--store", "new")

    assert "c.0.0.0.0: File too large" in result.error
    assert not list(Path("new").rglob("*.partial"))
    assert featurestore("ls", "--store", "new", "--json").json[0]["state"] == "0 of 1 blocks"
    assert featurestore("verify", "--store", "new").status == 0
    again = featurestore(*EXTRACT, "conv_a", "--dtype", "float32", "--store", "new", "--json")
    assert again.json["features"]["conv_a"]["rows_computed"] == 36
    assert tree(place.store) == before


def test_a_model_that_does_not_fit_on_the_disk(place: Place) -> None:
    before = tree(place.folder)
    with small_files(4_000):
        result = featurestore(*PROMOTE, "new.keras")

    assert "File too large" in result.error
    assert tree(place.folder) == before


@pytest.fixture
def read_only(place: Place) -> Iterator[Path]:
    """A folder with a store that nobody may write to: modes do not stop root, a mount does."""
    folder = place.folder / "read-only"
    shutil.copytree(place.store, folder / "store")
    mount = ["mount", "--bind", "-o", "ro", folder, folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_store_that_is_read_only_can_be_read(read_only: Path) -> None:
    store = ["--store", str(read_only / "store")]

    for command in (["ls"], ["heads"], ["show", "conv_a"], ["verify"], ["rank", "photos"], ["gc"]):
        assert featurestore(*command, *store).status == 0
    assert featurestore(*EXTRACT, "conv_a", "--dry-run", *store).status == 0
    assert featurestore(*TRAIN, "logistic", *store).status == 0
    for command in (["scan", "photos"], [*EXTRACT, "gap"], [*TRAIN, "forest"]):
        assert "Read-only file system" in featurestore(*command, *store).error
    assert "read-only" in featurestore(*PROMOTE, str(read_only / "new.keras")).error


def test_a_home_that_cannot_be_written_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "FEATURESTORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/nowhere")

    assert featurestore("scan", "photos").status == 0
