"""Numbers that can be relied on: refused where they are wrong, the same whichever way they came.

Two computations of one activation agree where they differ by no more than the order in which
float32 is added up can make them. Stored as float32, that is ``NEAR`` of the layer's largest
activation; stored as float16, one step of that type more, which is 1e-3 of the value.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import ActivationError, BackboneError
from featurestore.extraction import RowsComputed, extract, plan
from featurestore.store import FeatureStore
from tests.reliability.promises import few, promise
from tests.toys import drop_block, in_small_blocks

layers = keras.layers
ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"

NEAR = {"small": 1e-5, "mobilenetv2": 1e-4}
STEP = {"float16": 1e-3, "float32": 0.0}


# ---------------------------------------------------------------- networks and images


def small_network() -> Backbone:
    """BatchNorm, depthwise convolution, a squeeze and excitation, softmax over channels."""
    keras.utils.set_random_seed(4)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0, name="first")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization(name="depthwise")(y)
    weight = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(y))
    x = layers.Add(name="added")([x, y * layers.Reshape((1, 1, 8))(weight)])
    x = layers.Softmax(axis=-1, name="attention")(layers.Conv2D(12, 1)(x))
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(5, activation="softmax", name="odds")(layers.Flatten()(x))
    model = keras.Model(image, x)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-0.7, 0.7, 8))
            layer.moving_variance.assign(np.linspace(0.1, 3, 8))
    return Backbone.open(model, name="small", scaling="tf")


def take_photos(folder: Path, size: int) -> Path:
    """Take 45 photographs, from smooth to noisy, one black and one white."""
    generator = np.random.default_rng(2)
    for number in range(45):
        side = int(generator.integers(2, size))
        pixels = generator.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
        if number < 2:
            pixels[:] = 255 * number
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((size, size - 4)).save(place / f"{number:02}.png")
    return folder


@dataclass(frozen=True)
class World:
    """A network and images, and what the usual extraction of them gives."""

    name: str
    photos: Path
    dataset: Dataset
    backbone: Backbone
    refs: list[str]
    usual: dict[str, dict[str, np.ndarray]]  # type, layer ref, (row, …) float32


def extracted(
    dataset: Dataset, backbone: Backbone, refs: Sequence[str], store: FeatureStore, **options: Any
) -> dict[str, np.ndarray]:
    found = extract(dataset, backbone, refs, store, **options)
    return {ref: each.group.read(dtype="float32") for ref, each in found.items()}


def small_world(folder: Path) -> tuple[Path, Backbone, list[str]]:
    refs = ["first", "depthwise", "attention", "attention:max", "pool:avg", "odds"]
    return take_photos(folder / "photos", 16), small_network(), refs


def trained_world(folder: Path) -> tuple[Path, Backbone, list[str]]:
    weights = DATA / "mobilenetv2" / "mobilenetv2_notop.weights.h5"
    backbone = Backbone.open("mobilenetv2", weights, 160)
    refs = ["block_3_expand_relu:avg", "block_13_expand_relu", "out_relu", "out_relu:avg"]
    return take_photos(folder / "photos", 160), backbone, refs


WORLDS = {"small": small_world, "mobilenetv2": trained_world}


@pytest.fixture(
    scope="module", params=["small", pytest.param("mobilenetv2", marks=pytest.mark.assets)]
)
def world(request: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    photos, backbone, refs = WORLDS[request.param](folder)
    dataset = Dataset.open(photos)
    usual = {
        dtype: extracted(
            dataset, backbone, refs, FeatureStore(folder / dtype, create=True), dtype=dtype
        )
        for dtype in STEP
    }
    return World(request.param, photos, dataset, backbone, refs, usual)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


# ---------------------------------------------------------------- the same numbers, however


def by_batches_of(size: int) -> Callable[..., dict[str, np.ndarray]]:
    def way(world: World, store: FeatureStore, dtype: str, patch: Any) -> dict[str, np.ndarray]:
        return extracted(
            world.dataset, world.backbone, world.refs, store, dtype=dtype, batch_size=size
        )

    return way


def with_workers(count: int) -> Callable[..., dict[str, np.ndarray]]:
    def way(world: World, store: FeatureStore, dtype: str, patch: Any) -> dict[str, np.ndarray]:
        patch.setattr("os.cpu_count", lambda: count)
        return extracted(world.dataset, world.backbone, world.refs, store, dtype=dtype)

    return way


class Interrupted(Exception):  # noqa: N818
    pass


def by_resume(world: World, store: FeatureStore, dtype: str, patch: Any) -> dict[str, np.ndarray]:
    """Stopped and resumed, each time with batches of another size."""
    in_small_blocks(patch, 8, pooled=16)

    def stop(event: object) -> None:
        if isinstance(event, RowsComputed):
            raise Interrupted

    for batch_size in (16, 5, 7):
        with pytest.raises(Interrupted):
            extract(
                world.dataset,
                world.backbone,
                world.refs,
                store,
                dtype=dtype,
                batch_size=batch_size,
                on_event=stop,
            )
    decided = plan(world.dataset, world.backbone, world.refs, store, dtype=dtype)
    assert 0 < decided.rows_to_compute < 45 * len(world.refs)
    return extracted(world.dataset, world.backbone, world.refs, store, dtype=dtype)


def by_blocks_lost(
    world: World, store: FeatureStore, dtype: str, patch: Any
) -> dict[str, np.ndarray]:
    in_small_blocks(patch, 8, pooled=16)
    for found in extract(
        world.dataset, world.backbone, world.refs, store, dtype=dtype, batch_size=45
    ).values():
        drop_block(found.group, 1)
    return extracted(world.dataset, world.backbone, world.refs, store, dtype=dtype, batch_size=3)


def layer_by_layer(
    world: World, store: FeatureStore, dtype: str, patch: Any
) -> dict[str, np.ndarray]:
    for count in range(1, len(world.refs)):
        extract(world.dataset, world.backbone, world.refs[-count:], store, dtype=dtype)
    found = extract(world.dataset, world.backbone, world.refs, store, dtype=dtype)
    computed = {ref: report.rows_computed for ref, report in found.reports.items()}
    assert computed == {ref: 45 * (ref == world.refs[0]) for ref in world.refs}
    return {ref: each.group.read(dtype="float32") for ref, each in found.items()}


WAYS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "batches of 1": by_batches_of(1),
    "batches of 7": by_batches_of(7),
    "batches of 32": by_batches_of(32),
    "one batch of 45": by_batches_of(45),
    "one worker": with_workers(1),
    "eleven workers": with_workers(11),
    "resumed": by_resume,
    "blocks lost and computed again": by_blocks_lost,
    "layers added one by one": layer_by_layer,
}


def assert_agree(world: World, dtype: str, found: np.ndarray, ref: str, rows: Any) -> None:
    usual = world.usual[dtype][ref]
    near = NEAR[world.name] * np.abs(usual).max()
    np.testing.assert_allclose(found, usual[rows], rtol=STEP[dtype], atol=near, err_msg=ref)


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("way", few(WAYS, "resumed"))
def test_the_same_rows_whichever_way_they_came(
    way: str, dtype: str, world: World, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = WAYS[way](world, store, dtype, monkeypatch)
    assert list(found) == world.refs
    for ref in world.refs:
        assert found[ref].shape == world.usual[dtype][ref].shape
        assert_agree(world, dtype, found[ref], ref, slice(None))


@pytest.mark.parametrize("dtype", STEP)
def test_part_of_a_data_set_has_the_same_rows(
    dtype: str, world: World, store: FeatureStore, tmp_path: Path
) -> None:
    """The half of a data set, listed backwards: other neighbours in other batches."""
    half = sorted(path for path in world.photos.glob("*/*") if int(path.stem) % 2)
    table = tmp_path / "half.csv"
    table.write_text("\n".join(["path", *map(str, reversed(half))]) + "\n")
    dataset = Dataset.open(table)
    found = extracted(dataset, world.backbone, world.refs, store, dtype=dtype, batch_size=7)
    rows = [world.dataset.sample_digests.index(digest) for digest in dataset.sample_digests]
    assert len(rows) == 22
    for ref in world.refs:
        assert_agree(world, dtype, found[ref], ref, rows)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from tests.reliability.test_numbers import WORLDS, Dataset, FeatureStore, extracted, take_photos
name, photos, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
_, backbone, refs = WORLDS[name](folder)
for dtype in ("float16", "float32"):
    store = FeatureStore(folder / dtype, create=True)
    found = extracted(Dataset.open(photos), backbone, refs, store, dtype=dtype)
    np.savez(folder / f"{dtype}.npz", **found)
"""


def test_another_process_of_one_thread_and_other_kernels_gives_the_same_rows(
    world: World, tmp_path: Path
) -> None:
    one = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, world.name, str(world.photos), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **one, "TF_ENABLE_ONEDNN_OPTS": "0"},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for dtype in STEP:
        found = np.load(tmp_path / f"{dtype}.npz")
        for ref in world.refs:
            assert_agree(world, dtype, found[ref], ref, slice(None))


# ---------------------------------------------------------------- numbers that are refused

BLOCK = 4


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Twelve images of 4×4 in three blocks, all of them dark but one, which has a white pixel."""
    in_small_blocks(monkeypatch, BLOCK)
    X = np.random.default_rng(0).integers(1, 100, (12, 4, 4, 3), dtype=np.uint8)
    X[5, 1, 2, 0] = 255
    return Dataset.from_arrays(X, name="arrays")


def white_row(dataset: Dataset) -> int:
    (row,) = [row for row in range(12) if dataset.image(row).max() == 255]
    return row


def of_image(compute: Callable[[Any], Any], name: str = "end") -> Backbone:
    """Make a backbone of operations on the pixels, 0 to 255."""
    image = keras.Input((4, 4, 3))
    end = layers.Identity(name=name)(compute(image))
    return Backbone.open(keras.Model(image, end), name="operations", scaling="none")


def stored_rows(store: FeatureStore) -> dict[int, np.ndarray]:
    rows = {}
    for key in store.features.keys():
        group = store.features.get(key)
        for block in set(range(group.blocks)) - set(group.missing()):
            rows.update(enumerate(group.read_block(block), start=BLOCK * block))
    return rows


# What is finite for all pixels but the white one.
NOT_FINITE: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda x: keras.ops.sqrt(254.0 - x),
    "infinity": lambda x: 1.0 / (255.0 - x),
    "minus infinity": lambda x: keras.ops.log(255.0 - x),
    "overflow of float32": lambda x: (x / 100.0) ** 100.0,
}


def assert_stops_its_block(
    backbone: Backbone, arrays: Dataset, store: FeatureStore, message: str, **options: Any
) -> None:
    """Nothing of the white image's block is stored; what is stored beside it is right."""
    for _ in range(2):  # a second try is no way round
        with pytest.raises(ActivationError, match=message) as caught:
            extract(arrays, backbone, ["end"], store, **options)
        assert "\n" not in str(caught.value)
    stored = stored_rows(store)
    white = white_row(arrays)
    assert not stored.keys() & set(range(white - white % BLOCK, white - white % BLOCK + BLOCK))
    images = np.stack([arrays.image(row) for row in range(12)])
    right = backbone.reference(["end"])(images)[0]
    for row, found in stored.items():
        np.testing.assert_allclose(found, right[row], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
@pytest.mark.parametrize(("dtype", "batch_size"), [("float16", 1), ("float32", 32)])
@pytest.mark.parametrize("kind", few(NOT_FINITE, "NaN"))
def test_one_number_that_is_not_finite_stops_its_block(
    kind: str, dtype: str, batch_size: int, arrays: Dataset, store: FeatureStore
) -> None:
    backbone, message = of_image(NOT_FINITE[kind]), "layer 'end' gave 1 activations that are NaN or"
    assert_stops_its_block(backbone, arrays, store, message, dtype=dtype, batch_size=batch_size)


@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
@pytest.mark.parametrize("ref", few(["end:avg", "end:max"], "end:avg"))
def test_a_reduction_does_not_hide_it(ref: str, arrays: Dataset, store: FeatureStore) -> None:
    for compute in (NOT_FINITE["NaN"], NOT_FINITE["infinity"]):
        with pytest.raises(ActivationError, match=f"layer '{ref}' gave 1 activations that are NaN"):
            extract(arrays, of_image(compute), [ref], store)


@pytest.mark.parametrize("sign", few([1, -1], 1))
def test_overflow_of_float16_stops_its_block(
    sign: int, arrays: Dataset, store: FeatureStore
) -> None:
    backbone = of_image(lambda x: x * (400.0 * sign))
    message = r"layer 'end' gave an activation of 102000, and float16 .* `--dtype float32`"
    assert_stops_its_block(backbone, arrays, store, message, dtype="float16")
    # The way out that the message names.
    found = extract(arrays, backbone, ["end"], store, dtype="float32")["end"].group.read()
    assert np.abs(found).max() == 102000


@pytest.mark.parametrize(("value", "fits"), [(65504, True), (65505, False), (-65520, False)])
def test_the_last_number_of_float16(
    value: float, fits: bool, arrays: Dataset, store: FeatureStore
) -> None:
    backbone = of_image(lambda x: x * 0.0 + float(value))
    if not fits:
        with pytest.raises(ActivationError, match=f"an activation of {abs(value)}"):
            extract(arrays, backbone, ["end"], store, dtype="float16")
        assert not stored_rows(store)
    found = extract(arrays, backbone, ["end"], store)["end"].group.read()
    assert found.dtype == ("float16" if fits else "float32")
    np.testing.assert_array_equal(found, np.full((12, 4, 4, 3), value))


@promise
def test_weights_that_are_nan_store_nothing(arrays: Dataset, store: FeatureStore) -> None:
    diverged = layers.Dense(2, name="diverged", bias_initializer="ones")
    backbone = of_image(lambda x: layers.MaxPooling2D()(diverged(x)))
    (copy,) = [node.operation for node in backbone._graph.nodes if node.name == "diverged"]
    copy.bias.assign([np.nan, 1.0])
    with pytest.raises(BackboneError, match="'diverged' has weights that are NaN"):
        extract(arrays, backbone, ["end"], store)
    assert not stored_rows(store)


@keras.saving.register_keras_serializable("numbers")
class Traced(layers.Layer):
    """Stands for a compiler, a driver or a device that computes something else."""

    def call(self, x: Any) -> Any:
        return x if tf.executing_eagerly() else x * 1.001

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@pytest.mark.parametrize("batch_size", few([1, 5, 32], 5))
def test_a_path_that_disagrees_with_the_plain_layers_stops_before_anything_is_stored(
    batch_size: int, arrays: Dataset, store: FeatureStore
) -> None:
    backbone = of_image(lambda x: Traced(name="wrong")(x * 2.0))
    with pytest.raises(
        ActivationError, match=r"layer 'wrong(:avg)?' differs by 0\.001 of its largest"
    ):
        extract(arrays, backbone, ["multiply", "wrong", "wrong:avg"], store, batch_size=batch_size)
    assert not stored_rows(store)
    # Nothing is wrong with what comes before.
    extract(arrays, backbone, ["multiply"], store, batch_size=batch_size)
    assert len(stored_rows(store)) == 12


def test_weights_that_change_while_a_pass_is_compiled_are_noticed(
    arrays: Dataset, store: FeatureStore
) -> None:
    """The key was made of the former weights."""
    backbone = of_image(layers.Dense(4, name="dense"))
    (dense,) = [node.operation for node in backbone._graph.nodes if node.name == "dense"]
    compile_ = backbone.forward

    def forward(refs: Any) -> Any:
        compiled = compile_(refs)
        dense.kernel.assign(dense.kernel * 1.01)
        return compiled

    backbone.forward = forward  # type: ignore[method-assign]
    with pytest.raises(ActivationError, match="'end' differs by"):
        extract(arrays, backbone, ["end"], store)
    assert not stored_rows(store)
