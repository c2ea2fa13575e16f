"""What must change the key of features, and what must not; and files that change under way.

Two tables say it all: `CHANGES` and `SAME`. Each case asks for an extraction that differs from the
usual one in one thing, of a store that holds the usual one's features. Whatever the case, what it
gives must be what the plain layers give for its images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import DatasetError, FeatureStoreError, SourceChangedError
from featurestore.extraction import ExtractionStarted, RowsComputed, extract, plan
from featurestore.store import FeatureKey, FeatureStore
from tests.reliability.promises import few, promise
from tests.toys import in_small_blocks

layers = keras.layers
ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- the usual request


def take_photos(folder: Path) -> Path:
    """Twelve bitmaps in two classes; in a bitmap, any byte behind the header is a pixel's."""
    generator = np.random.default_rng(5)
    for number in range(12):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (9, 13, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.bmp")
    return folder


def network(
    *,
    named: str | None = None,
    first: dict[str, Any] | None = None,
    norm: dict[str, Any] | None = None,
    before: Callable[[Any], Any] = lambda x: x,
    join: Callable[[Any, Any], Any] = lambda x, y: x - y * 0.5,
    tail: Callable[[Any], Any] | None = None,
    dtype: str | None = None,
) -> Any:
    """A network of convolutions, BatchNorm and a branch; all but the layer ``cut`` is unnamed."""

    def own(name: str) -> dict[str, Any]:
        return {"name": f"{named}_{name}" if named else None, "dtype": dtype}

    image = keras.Input((None, None, 3))
    settings = {"padding": "same", "activation": "relu", **(first or {})}
    x = layers.Conv2D(8, 3, **{**own("first"), **settings})(image)
    x = layers.BatchNormalization(**{**own("norm"), **(norm or {})})(x)
    x = before(x)
    y = layers.DepthwiseConv2D(3, padding="same", **own("depthwise"))(x)
    x = layers.ReLU(name="cut", dtype=dtype)(join(x, y))
    model = keras.Model(image, (tail or usual_tail)(x))
    # Not drawn by Keras: a layer more must not give the others other weights.
    for number, weight in enumerate(model.weights):
        generator = np.random.default_rng(number)
        weight.assign(generator.uniform(0.5 if weight.shape[1:] == () else -0.5, 1.0, weight.shape))
    return model


def usual_tail(x: Any) -> Any:
    x = layers.Conv2D(4, 1)(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))


@dataclass(frozen=True)
class Asked:
    """A request for features, and how it is carried out."""

    dataset: Dataset
    backbone: Backbone
    ref: str
    how: dict[str, Any]

    def key_in(self, store: FeatureStore) -> FeatureKey:
        return plan(self.dataset, self.backbone, [self.ref], store, **self.how).layers[0].key

    def features_from(self, store: FeatureStore) -> tuple[np.ndarray, int]:
        """Return the features, (row, …) float32, and how many of their rows were computed."""
        found = extract(self.dataset, self.backbone, [self.ref], store, **self.how)
        return found[self.ref].group.read(dtype="float32"), found.reports[self.ref].rows_computed


@dataclass(frozen=True)
class Case:
    """What is other than usual."""

    model: dict[str, Any] = field(default_factory=dict)  # what `network` is called with
    edit: Callable[[Any], Any] | None = None  # the model, changed or replaced
    pixels: dict[str, Any] = field(default_factory=dict)  # of the backbone
    files: Callable[[Path], Path | None] | None = None  # the images' folder, changed or replaced
    scan: dict[str, Any] = field(default_factory=dict)  # options of the data set
    ref: str = "cut"
    how: dict[str, Any] = field(default_factory=dict)  # options of the extraction
    around: Callable[[pytest.MonkeyPatch], None] | None = None  # what else is other

    def ask(self, photos: Path) -> Asked:
        source = (self.files and self.files(photos)) or photos
        model = network(**self.model)
        model = (self.edit and self.edit(model)) or model
        pixels = {"input_size": 8, "scaling": "tf", **self.pixels}
        return Asked(
            Dataset.open(source, **self.scan),
            Backbone.open(model, name="tiny", **pixels),
            self.ref,
            self.how,
        )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, FeatureKey]:
    """The images, a store with the usual request's features, and their key."""
    folder = tmp_path_factory.mktemp("usual")
    asked = Case().ask(take_photos(folder / "photos"))
    store = FeatureStore(folder / "store", create=True)
    asked.features_from(store)
    return folder / "photos", folder / "store", asked.key_in(store)


@pytest.fixture
def photos(usual: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(usual[0], tmp_path / "photos"))


@pytest.fixture
def store(usual: Any, tmp_path: Path) -> FeatureStore:
    """A store that holds the usual features."""
    return FeatureStore(shutil.copytree(usual[1], tmp_path / "store"), create=True)


Identity = tuple[str, str, str]


def identity(key: FeatureKey) -> Identity:
    return (key.prefix_digest, key.ref, key.dataset_digest)


@pytest.fixture(scope="module")
def keys_seen(usual: Any) -> list[Identity]:
    """The keys of all cases so far: no two changes may share one."""
    return [identity(usual[2])]


def assert_same_rows(found: np.ndarray, asked: Asked) -> None:
    """Compare with what the plain layers give for the images, with no store between.

    They may differ by one step of float16, and by what another order of adding up gives: little in
    float32, some of the last bits of a network that computes with fewer.
    """
    images = [asked.backbone.resize(asked.dataset.image(row)) for row in range(len(asked.dataset))]
    (plain,) = asked.backbone.reference([asked.ref])(np.stack(images))
    exact = asked.backbone.prefix_fields(asked.ref.partition(":")[0])["precision"] == "float32"
    near = (1e-4 if exact else 3e-2) * np.abs(plain).max()
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=near)


# ---------------------------------------------------------------- what changes the key


def layer_of(model: Any, kind: str, which: int = 0) -> Any:
    return [each for each in model.layers if type(each).__name__ == kind][which]


def by_the_least_bit(kind: str, weight: int) -> Callable[[Any], None]:
    """Change one number of a layer's weight to the next one that float32 has."""

    def edit(model: Any) -> None:
        arrays = layer_of(model, kind).get_weights()
        arrays[weight].flat[-1] = np.nextafter(arrays[weight].flat[-1], np.float32(9))
        layer_of(model, kind).set_weights(arrays)

    return edit


def one_byte(photos: Path) -> None:
    path = photos / "a" / "00.bmp"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def one_byte_that_is_no_pixel(photos: Path) -> None:
    path = photos / "a" / "00.bmp"
    path.write_bytes(path.read_bytes() + b"\0")


def one_more(photos: Path) -> None:
    Image.new("RGB", (5, 5), "red").save(photos / "a" / "more.bmp")


def one_less(photos: Path) -> None:
    (photos / "b" / "01.bmp").unlink()


def other_format(photos: Path) -> None:
    path = photos / "a" / "00.bmp"
    Image.open(path).save(path.with_suffix(".png"))
    path.unlink()


# What is changed, how, and the field that the plan names.
CHANGES: dict[str, tuple[Case, str | None]] = {
    # weights
    "a kernel before the cut": (Case(edit=by_the_least_bit("Conv2D", 0)), "weights"),
    "a bias before the cut": (Case(edit=by_the_least_bit("Conv2D", 1)), "weights"),
    "a depthwise kernel": (Case(edit=by_the_least_bit("DepthwiseConv2D", 0)), "weights"),
    "BatchNorm: gamma": (Case(edit=by_the_least_bit("BatchNormalization", 0)), "weights"),
    "BatchNorm: beta": (Case(edit=by_the_least_bit("BatchNormalization", 1)), "weights"),
    "BatchNorm: mean": (Case(edit=by_the_least_bit("BatchNormalization", 2)), "weights"),
    "BatchNorm: variance": (Case(edit=by_the_least_bit("BatchNormalization", 3)), "weights"),
    # graph
    "an activation": (Case(model={"first": {"activation": "tanh"}}), "graph"),
    "a stride": (Case(model={"first": {"strides": 2}}), "graph"),
    "a padding": (Case(model={"first": {"padding": "valid"}}), "graph"),
    "a dilation": (Case(model={"first": {"dilation_rate": 2}}), "graph"),
    "the epsilon of BatchNorm": (Case(model={"norm": {"epsilon": 1e-2}}), "graph"),
    "a layer more": (Case(model={"before": lambda x: layers.ReLU()(x)}), "graph"),
    "an operation more": (Case(model={"before": lambda x: x * 2.0}), "graph"),
    "an operation without effect": (Case(model={"before": lambda x: x + 0.0}), "graph"),
    "a constant": (Case(model={"join": lambda x, y: x - y * 0.25}), "graph"),
    "the operands exchanged": (Case(model={"join": lambda x, y: y * 0.5 - x}), "graph"),
    "another operation": (Case(model={"join": lambda x, y: x + y * 0.5}), "graph"),
    # pixels
    "the resize rule: crop": (Case(pixels={"resize": "crop"}), "preprocessing.resize"),
    "the resize rule: pad": (Case(pixels={"resize": "pad"}), "preprocessing.resize"),
    "the interpolation": (
        Case(pixels={"interpolation": "bicubic"}),
        "preprocessing.interpolation",
    ),
    "no antialiasing": (Case(pixels={"interpolation": "nearest"}), "preprocessing.antialias"),
    "the scaling: 0 to 1": (Case(pixels={"scaling": "unit"}), "preprocessing.scaling"),
    "the scaling: 0 to 255": (Case(pixels={"scaling": "none"}), "preprocessing.scaling"),
    "the scaling: ImageNet's mean": (Case(pixels={"scaling": "torch"}), "preprocessing.scaling"),
    "the channel order": (Case(pixels={"scaling": "caffe"}), "preprocessing.scaling"),
    "the input size": (Case(pixels={"input_size": 10}), "input_size"),
    "the input's aspect": (Case(pixels={"input_size": (8, 9)}), "input_size"),
    # precision
    "computed in float16": (Case(model={"dtype": "mixed_float16"}), "precision"),
    "computed in bfloat16": (Case(model={"dtype": "mixed_bfloat16"}), "precision"),
    "one layer in float16": (Case(model={"first": {"dtype": "mixed_float16"}}), "precision"),
    # samples
    "one byte of an image": (Case(files=one_byte), "samples"),
    "one byte that is no pixel's": (Case(files=one_byte_that_is_no_pixel), "samples"),
    "the same pixels in another format": (Case(files=other_format), "samples"),
    "a sample more": (Case(files=one_more), "samples"),
    "a sample less": (Case(files=one_less), "samples"),
    # where it is cut: another name, so there is nothing to explain
    "the layer": (Case(ref="subtract"), None),
    "the layer: BatchNorm": (Case(ref="batch_normalization"), None),
    "the mean": (Case(ref="cut:avg"), "derived"),
    "the maximum": (Case(ref="cut:max"), "derived"),
}


@pytest.mark.parametrize(
    "change",
    few(
        CHANGES,
        *("BatchNorm: mean", "the resize rule: crop", "one byte of an image"),
    ),
)
def test_what_could_change_an_activation_changes_the_key(
    change: str, usual: Any, photos: Path, store: FeatureStore, keys_seen: list[Identity]
) -> None:
    case, names = CHANGES[change]
    asked = case.ask(photos)
    assert identity(asked.key_in(store)) not in keys_seen
    keys_seen.append(identity(asked.key_in(store)))
    (layer,) = plan(asked.dataset, asked.backbone, [asked.ref], store).layers
    new = len(asked.dataset)
    if names == "samples":  # The others are copied.
        known = Dataset.open(usual[0]).sample_digests
        new = len(set(asked.dataset.sample_digests) - set(known))
    elif names == "derived":
        assert str(layer.why).startswith("derived from cut: ")
        new = 0
    elif names is not None:
        assert f"{names}: stored " in str(layer.why)
    else:
        assert layer.why is None
    found, computed = asked.features_from(store)
    assert computed == new
    assert_same_rows(found, asked)


# ---------------------------------------------------------------- what does not


def relabelled(photos: Path) -> None:
    for path in sorted(photos.glob("a/*"))[:3]:
        path.rename(photos / "b" / path.name)


def without_labels(photos: Path) -> None:
    for path in sorted(photos.glob("*/*")):
        path.rename(photos / path.name)
    for path in photos.glob("?"):
        path.rmdir()


def renamed(photos: Path) -> None:
    for number, path in enumerate(sorted(photos.glob("*/*"), reverse=True)):
        path.rename(path.with_name(f"{number:03} é.image"))


def moved(photos: Path) -> Path:
    return Path(shutil.move(photos, photos.with_name("elsewhere")))


def linked(photos: Path) -> None:
    path = photos / "a" / "00.bmp"
    path.rename(photos.parent / "original.bmp")
    path.symlink_to(photos.parent / "original.bmp")


def touched(photos: Path) -> None:
    for path in photos.glob("*/*"):
        os.utime(path, (1, 1))
        path.chmod(0o444)


def copied_twice(photos: Path) -> None:
    shutil.copy(photos / "a" / "00.bmp", photos / "a" / "again.bmp")


def beside_junk(photos: Path) -> None:
    (photos / "a" / "junk.jpg").write_bytes(b"no image")
    (photos / "a" / ".hidden.bmp").write_bytes((photos / "a" / "00.bmp").read_bytes())


def as_table(photos: Path, step: int = -1) -> Path:
    """List the images in a table, in another order, all with one label and in one split."""
    lines = [f"{path.relative_to(photos.parent)},x,train" for path in sorted(photos.glob("*/*"))]
    table = photos.with_name("table.csv")
    table.write_text("\n".join(["path,label,split", *lines[::step]]) + "\n")
    return table


def other_weights_in_the_tail(model: Any) -> None:
    for layer in (layer_of(model, "Conv2D", 1), layer_of(model, "BatchNormalization", 1)):
        layer.set_weights([np.ones_like(each) for each in layer.get_weights()])


def frozen(model: Any) -> None:
    model.trainable = False


def compiled(model: Any) -> None:
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])


def trained_in_the_tail(model: Any) -> None:
    for layer in model.layers[: model.layers.index(model.get_layer("cut"))]:
        layer.trainable = False
    model.compile("sgd", "categorical_crossentropy")
    model.fit(np.zeros((4, 8, 8, 3)), np.eye(3)[[0, 1, 2, 0]], verbose=0)


def nested(model: Any) -> Any:
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Dense(2)(model(image)))


def cut_off(model: Any) -> Any:
    return keras.Model(model.input, model.get_layer("cut").output)


def saved(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return keras.models.load_model(f"{folder}/model.keras", compile=False)


def with_saved_weights(model: Any) -> Any:
    other = network(named="other")
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/model.weights.h5")
        other.load_weights(f"{folder}/model.weights.h5")
    return other


def dropped_out(x: Any) -> Any:
    return layers.SpatialDropout2D(0.3)(layers.GaussianNoise(0.1)(layers.Dropout(0.5)(x)))


def after_others(patch: pytest.MonkeyPatch) -> None:
    network()
    for kind in (layers.Conv2D, layers.DepthwiseConv2D):
        for _ in range(3):
            kind(3, 3)
    keras.Input((4,)) * 3.0


def seeded_otherwise(patch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(99)


def compressed_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("featurestore.store.blocks.ZSTD_LEVEL", 19)


def with_workers(count: int) -> Callable[[pytest.MonkeyPatch], None]:
    def around(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("os.cpu_count", lambda: count)
        patch.setattr("os.sched_getaffinity", lambda process: set(range(count)), raising=False)

    return around


def set_up_to_be_trained(model: Any) -> Any:
    settings = {"kernel_initializer": "zeros", "kernel_regularizer": "l2"}
    other = network(first={**settings, "bias_constraint": "non_neg"})
    other.set_weights(model.get_weights())
    return other


SAME: dict[str, Case] = {
    "nothing": Case(),
    # the data set
    "labels": Case(files=relabelled),
    "no labels": Case(files=without_labels),
    "names of files": Case(files=renamed),
    "where the folder is": Case(files=moved),
    "a link in a file's place": Case(files=linked),
    "times and permissions": Case(files=touched),
    "a file twice": Case(files=copied_twice),
    "files that are no samples": Case(files=beside_junk),
    "a table instead of a folder": Case(files=lambda photos: as_table(photos, 1)),
    "the order of listing": Case(files=as_table),
    "splits: fractions": Case(scan={"val": 0.5, "test": 0.3}),
    "splits: seed": Case(scan={"seed": 7}),
    "groups": Case(scan={"group_by": "[0-9]"}),
    "the name of the data set": Case(scan={"name": "another"}),
    # the model
    "weights after the cut": Case(edit=other_weights_in_the_tail),
    "training after the cut": Case(edit=trained_in_the_tail),
    "graph after the cut": Case(model={"tail": lambda x: layers.Flatten()(x[:, :2, :2])}),
    "nothing after the cut": Case(edit=cut_off),
    "a model around it": Case(edit=nested),
    "names of layers": Case(model={"named": "mine"}),
    "trainable flags": Case(edit=frozen),
    "an optimizer": Case(edit=compiled),
    "initializers and regularizers": Case(edit=set_up_to_be_trained),
    "dropout before the cut": Case(model={"before": dropped_out}),
    "a model saved and loaded": Case(edit=saved),
    "weights saved and loaded": Case(edit=with_saved_weights),
    # how it is done
    "models built before it": Case(around=after_others),
    "seeds": Case(around=seeded_otherwise),
    "a batch size of 1": Case(how={"batch_size": 1}),
    "a batch size of 5": Case(how={"batch_size": 5}),
    "rows of a block": Case(around=in_small_blocks),
    "compression": Case(around=compressed_more),
    "one worker": Case(around=with_workers(1)),
    "nine workers": Case(around=with_workers(9)),
}


@pytest.mark.parametrize(
    "same",
    few(
        SAME,
        *("labels", "weights after the cut"),
    ),
)
def test_what_cannot_change_an_activation_changes_no_key(
    same: str, usual: Any, photos: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SAME[same]
    if case.around is not None:
        case.around(monkeypatch)
    asked = case.ask(photos)
    assert asked.key_in(store) == usual[2]
    found, computed = asked.features_from(store)
    assert computed == 0
    assert_same_rows(found, asked)


@pytest.mark.parametrize("ref", ["conv2d", "depthwise_conv2d", "subtract"])
def test_a_layer_without_a_name_is_called_the_same_whatever_was_built_before(
    ref: str, photos: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Case(ref=ref).ask(photos).key_in(store)
    after_others(monkeypatch)
    assert Case(ref=ref).ask(photos).key_in(store) == before


# ---------------------------------------------------------------- in other processes

PROGRAM = """
import json, os, sys
import featurestore.images
if "DECODER" in os.environ:
    featurestore.images.DECODER = os.environ["DECODER"]
from pathlib import Path
import keras
from tests.reliability.test_stale import Case, after_others
from featurestore.extraction import plan
from featurestore.store import FeatureStore
after_others(None)
asked = Case().ask(Path(sys.argv[1]))
(layer,) = plan(asked.dataset, asked.backbone, [asked.ref], FeatureStore(sys.argv[2])).layers
print(json.dumps({
    "key": [layer.key.prefix_digest, layer.key.ref, layer.key.dataset_digest],
    "missing": len(layer.missing), "why": layer.why, "hash": hash("featurestore"),
}))
"""


def asked_by_another_process(photos: Path, store: FeatureStore, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(photos), store.location],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_another_process_asks_for_the_same_key(
    usual: Any, photos: Path, store: FeatureStore
) -> None:
    found = asked_by_another_process(
        photos,
        store,
        PYTHONHASHSEED="123",
        TF_NUM_INTRAOP_THREADS="1",
        TF_ENABLE_ONEDNN_OPTS="0",
        LC_ALL="C",
        TZ="Asia/Kathmandu",
    )
    assert found["hash"] != hash("featurestore")
    assert tuple(found["key"]) == identity(usual[2])
    assert (found["missing"], found["why"]) == (0, None)


def test_another_decoder_rule_changes_the_key(
    usual: Any, photos: Path, store: FeatureStore
) -> None:
    found = asked_by_another_process(photos, store, DECODER="pillow-rgb-2")
    assert found["key"][0] != usual[2].prefix_digest
    assert tuple(found["key"][1:]) == identity(usual[2])[1:]
    assert found["missing"] == 1
    assert found["why"] == "preprocessing.decoder: stored pillow-rgb-1, requested pillow-rgb-2"


def test_asking_for_more_precision_serves_nothing_of_less(
    usual: Any, photos: Path, store: FeatureStore, tmp_path: Path
) -> None:
    """The stored type is no part of the key: float16 is replaced where float32 is asked for."""
    asked = Case(how={"dtype": "float32"}).ask(photos)
    assert asked.key_in(store) == usual[2]
    (layer,) = plan(asked.dataset, asked.backbone, ["cut"], store, dtype="float32").layers
    assert layer.why == "stored as float16"
    found, computed = asked.features_from(store)
    assert computed == len(asked.dataset)
    np.testing.assert_array_equal(
        found, asked.features_from(FeatureStore(tmp_path / "new", create=True))[0]
    )


@promise
def test_a_value_of_an_array_and_its_shape_are_samples() -> None:
    X = np.random.default_rng(0).integers(0, 256, (6, 4, 8), dtype=np.uint8)
    usual = Dataset.from_arrays(X, name="arrays").digest
    assert Dataset.from_arrays(X[::-1], list("abcabc"), name="other").digest == usual
    other = X.copy()
    other[3, 2, 1] ^= 1
    assert Dataset.from_arrays(other, name="arrays").digest != usual
    assert Dataset.from_arrays(X.reshape(6, 8, 4), name="arrays").digest != usual
    assert Dataset.from_arrays(np.repeat(X[..., None], 3, 3), name="arrays").digest != usual


# ---------------------------------------------------------------- files that change under way


def flip_last_byte(path: Path) -> bytes:
    data = path.read_bytes()
    return data[:-1] + bytes([data[-1] ^ 255])


def rewritten(path: Path, other: Path) -> None:
    """Same size, same modification time: only the bytes are others."""
    before = path.stat()
    path.write_bytes(flip_last_byte(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path, other: Path) -> None:
    """The same, by a new file that is renamed over it."""
    before, new = path.stat(), path.with_name(".new")
    new.write_bytes(flip_last_byte(path))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


def appended(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def overwritten_by_another_sample(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def swapped_with_another_sample(path: Path, other: Path) -> None:
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


def swapped_by_renaming(path: Path, other: Path) -> None:
    path.rename(path.with_name(".kept"))
    other.rename(path)
    path.with_name(".kept").rename(other)


def linked_to_another_sample(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def deleted(path: Path, other: Path) -> None:
    path.unlink()


def turned_into_a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


FILES: dict[Callable[[Path, Path], None], type[FeatureStoreError]] = {
    rewritten: SourceChangedError,
    replaced: SourceChangedError,
    appended: SourceChangedError,
    truncated: SourceChangedError,
    emptied: SourceChangedError,
    overwritten_by_another_sample: SourceChangedError,
    swapped_with_another_sample: SourceChangedError,
    swapped_by_renaming: SourceChangedError,
    linked_to_another_sample: SourceChangedError,
    deleted: DatasetError,
    turned_into_a_folder: DatasetError,
}


def named(change: Callable[[Path, Path], None]) -> str:
    return change.__name__


MOMENTS = {"scan": None, "plan": ExtractionStarted, "first batch": RowsComputed}


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan a minute after the files were written, so that the scan's index takes them all."""
    true_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time() + 60_000_000_000)
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))


def assert_digests_are_those_of_the_files(dataset: Dataset) -> None:
    for path, digest in zip(dataset.paths, dataset.sample_digests, strict=True):
        assert digest_bytes(Path(str(path)).read_bytes()) == digest


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize("change", few(FILES, rewritten), ids=named)
def test_a_new_scan_notices_a_file_that_changed(
    change: Callable[[Path, Path], None], photos: Path
) -> None:
    dataset = Dataset.open(photos)
    other, path = (Path(str(each)) for each in dataset.paths[-2:])
    change(path, other)
    again = Dataset.open(photos)
    assert_digests_are_those_of_the_files(again)
    assert (again.digest == dataset.digest) == ("swapped" in change.__name__)


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("change", few(FILES, rewritten), ids=named)
def test_a_file_that_changes_is_never_stored_under_its_old_digest(
    change: Callable[[Path, Path], None],
    after: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_small_blocks(monkeypatch)
    backbone = Backbone.open("pixels", input_size=8)
    store = FeatureStore(tmp_path / "store", create=True)
    dataset = Dataset.open(photos)
    right = dict(zip(dataset.sample_digests, pixels_of(dataset, backbone), strict=True))
    moment, (other, path) = MOMENTS[after], (Path(str(each)) for each in dataset.paths[-2:])
    waiting = [lambda: change(path, other)]

    def on_event(event: object) -> None:
        if moment is not None and isinstance(event, moment) and waiting:
            waiting.pop()()

    if moment is None:
        waiting.pop()()
    with pytest.raises(
        FILES[change], match=r"or run `featurestore scan .*fit heads again"
    ) as caught:
        extract(dataset, backbone, ["pixels"], store, batch_size=1, on_event=on_event)
    assert not waiting
    assert type(caught.value) is FILES[change]
    (key,) = store.features.keys()
    group = store.features.get(key)
    assert group.missing() == [2]  # the block of the two files
    for block in (0, 1):
        for row, found in enumerate(group.read_block(block), start=4 * block):
            np.testing.assert_array_equal(found, right[dataset.sample_digests[row]])

    again = Dataset.open(photos)
    assert_digests_are_those_of_the_files(again)
    found = extract(again, backbone, ["pixels"], store)["pixels"].group.read()
    np.testing.assert_array_equal(found, pixels_of(again, backbone))


def pixels_of(dataset: Dataset, backbone: Backbone) -> np.ndarray:
    images = [backbone.resize(dataset.image(row)) for row in range(len(dataset))]
    return backbone.reference(["pixels"])(np.stack(images))[0].astype("float16")


@promise
def test_an_array_that_changes_is_noticed(tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(0, 256, (6, 4, 8), dtype=np.uint8)
    dataset, store = (
        Dataset.from_arrays(X, name="arrays"),
        FeatureStore(tmp_path / "store", create=True),
    )
    X[2, 1, 1] ^= 1
    with pytest.raises(SourceChangedError, match="create the data set again"):
        extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], store)
    again = Dataset.from_arrays(X, name="arrays")
    assert extract(again, Backbone.open("pixels", input_size=8), ["pixels"], store)[
        "pixels"
    ].complete
