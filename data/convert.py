"""From the vetted bytes of a package to files that featurestore reads.

Each converter takes the members of an archive (inner path -> bytes, digests already checked) and
an empty folder, and fills the folder. None touches the network, and none unpickles anything.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from catalog import FetchError

if TYPE_CHECKING:
    import numpy as np

Members = Mapping[str, bytes]


class ConversionError(FetchError):
    """The bytes are the pinned ones, yet they do not fit the model they are meant for."""


def copy(members: Members, out: Path) -> None:
    """Write each member under its own file name."""
    for inner, content in members.items():
        (out / PurePosixPath(inner).name).write_bytes(content)


def stamps(members: Members, out: Path) -> None:
    """Flatten ``…/stamps/<class>/<kind>/<name>.png`` to ``<class>/<kind>-<name>.png``, unchanged.

    The kind stays in the name because names repeat between kinds (a photographed and a drawn lion).
    """
    for inner, content in members.items():
        label, *rest = inner.split("/stamps/", 1)[1].split("/")
        target = out / label / re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(rest))
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            raise ConversionError(f"two stamps flatten to one name, {label}/{target.name}")
        target.write_bytes(content)


def digits(members: Members, out: Path) -> None:
    """Write scikit-learn's digits, 64 values 0-16 and a label a row, as ``<digit>/<row>.png``."""
    import numpy as np

    (packed,) = members.values()
    table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode()), delimiter=",").astype(int)
    for row, (*values, label) in enumerate(table.tolist()):
        pixels = np.rint(np.reshape(values, (8, 8)) * (255 / 16)).astype(np.uint8)
        _write_png(out / str(label) / f"{row:04d}.png", pixels)


# Photograph -> label. All are stationary: what is on the left half is also on the right one.
TEXTURES = {
    "brick.png": "brick",
    "coins.png": "coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "ihc.png": "tissue",
    "moon.png": "moon",
    "page.png": "print",
    "retina.jpg": "retina",
}
PATCH = 32  # pixels
TRAIN_PATCHES, EVAL_PATCHES = 16, 30  # at most, a class and split
FLAT = 5.0  # grey levels of standard deviation under which a patch shows nothing (empty sky)
NOISE = 4.0  # grey levels
CONTRAST = 0.4  # how much of a patch's own brightness and contrast may be taken away


def textures(members: Members, out: Path) -> None:
    """Cut grey patches of photographs into a small task with few labels, and its table.

    ``textures.csv`` has the columns path, label, split, group. Training patches come from the left
    half of each photograph, val and test patches from the right one, a column of patches between
    them unused, so that no pixel is seen twice; ``group`` is the column of patches. Each is turned,
    mirrored, changed in brightness and contrast, and made noisy: what is left to learn is texture.
    """
    rows: list[tuple[str, str, str, str]] = []
    for number, (file, label) in enumerate(TEXTURES.items()):
        image = _grey(members[f"skimage/data/{file}"])
        for split, x, y, pixels in _patches(image, seed=number):
            path = f"{label}/{split}-{x:02d}-{y:02d}.png"
            _write_png(out / path, pixels)
            rows.append((path, label, split, f"{label}-{x:02d}"))
    with (out / "textures.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(sorted(rows))


def _patches(image: np.ndarray, seed: int) -> list[tuple[str, int, int, np.ndarray]]:
    """Choose and degrade the patches of one photograph: (split, column, row, uint8 pixels)."""
    import numpy as np

    # RandomState: its stream is frozen by NumPy's promise, default_rng's is not.
    rng = np.random.RandomState(seed)
    columns, rows = image.shape[1] // PATCH, image.shape[0] // PATCH

    def cut(x: int, y: int) -> np.ndarray:
        return image[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]

    def choose(xs: range, count: int) -> list[tuple[int, int]]:
        cells = [(x, y) for x in xs for y in range(rows) if cut(x, y).std() > FLAT]
        return [cells[i] for i in rng.permutation(len(cells))[:count]]

    left = choose(range(columns // 2), TRAIN_PATCHES)
    right = choose(range(columns // 2 + 1, columns), 2 * EVAL_PATCHES)
    splits = [("train", left), ("val", right[::2]), ("test", right[1::2])]
    return [(s, x, y, _degrade(cut(x, y), rng)) for s, cells in splits for x, y in cells]


def _degrade(patch: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Turn, mirror, dim, and make noisy, so that neither brightness nor orientation tells."""
    import numpy as np

    patch = np.rot90(patch, rng.randint(4))
    patch = patch[:, :: rng.choice((-1, 1))]
    mean = patch.mean()
    dimmed = (patch - mean) * rng.uniform(1 - CONTRAST, 1)
    base = (1 - CONTRAST) * mean + CONTRAST * rng.uniform(60, 190)
    noisy = dimmed + base + rng.normal(0, NOISE, patch.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion_mnist(members: Members, out: Path) -> None:
    """Write one .npz: X (row, height, width) uint8, y (row,) class names, split (row,).

    One file and not 70,000: ``Dataset.from_arrays(X, y)`` takes the arrays as they are.
    """
    import numpy as np

    folder = "usr/share/datasets/fashion-mnist"
    images, labels, splits = [], [], []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images.append(_idx(members[f"{folder}/{prefix}-images-idx3-ubyte.gz"]))
        labels.append(_idx(members[f"{folder}/{prefix}-labels-idx1-ubyte.gz"]))
        splits.append(np.full(len(labels[-1]), split))
    names = np.asarray(FASHION)[np.concatenate(labels)]
    np.savez_compressed(
        out / "fashion-mnist.npz",
        X=np.concatenate(images),
        y=names,
        split=np.concatenate(splits),
    )


def mobilenetv2(members: Members, out: Path) -> None:
    """Write the model file as it was shipped, and the weights of the backbone nested in it."""
    (content,) = members.values()
    shipped = out / "mobilenetv2.h5"
    shipped.write_bytes(content)
    keras = _keras()
    backbone = keras.models.load_model(shipped, compile=False).get_layer("mobilenetv2_1.00_160")
    backbone.save_weights(out / "mobilenetv2_notop.weights.h5")


def vgg16(members: Members, out: Path) -> None:
    """Write the 13 convolutions of an ONNX graph as weights of ``keras.applications.VGG16``."""
    import onnx
    from onnx import numpy_helper

    (content,) = members.values()
    graph = onnx.load_model_from_string(content).graph
    found = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> np.ndarray:
        return numpy_helper.to_array(_look_up(found, f"functional_1/{name}"))

    model = _keras().applications.VGG16(include_top=False, weights=None)
    for layer in model.layers:
        if layer.weights:
            # ONNX keeps kernels as (out, in, height, width), Keras as (height, width, in, out).
            kernel = read(f"{layer.name}_1/convolution/ReadVariableOp:0").transpose(2, 3, 1, 0)
            _set(layer, [kernel, read(f"{layer.name}_1/Squeeze:0")])
    model.save_weights(out / "vgg16_notop.weights.h5")


def mobilenet(members: Members, out: Path) -> None:
    """Write a TensorFlow 1 graph's constants as weights of ``keras.applications.MobileNet``."""
    from tensorflow import make_ndarray
    from tensorflow.core.framework.graph_pb2 import GraphDef

    (content,) = members.values()
    found = {node.name: node for node in GraphDef.FromString(content).node if node.op == "Const"}

    def read(name: str) -> np.ndarray:
        return make_ndarray(_look_up(found, f"MobilenetV1/{name}").attr["value"].tensor)

    applications = _keras().applications
    for include_top, file in ((True, "mobilenet"), (False, "mobilenet_notop")):
        model = applications.MobileNet(include_top=include_top, weights=None)
        for layer in model.layers:
            if layer.weights:
                _set(layer, _mobilenet_weights(layer.name, read))
        model.save_weights(out / f"{file}.weights.h5")


def _mobilenet_weights(layer: str, read: Callable[[str], np.ndarray]) -> list[np.ndarray]:
    """Return the arrays of one Keras layer, found by what the graph calls it."""
    if layer == "conv_preds":
        # The graph has 1001 classes, the first of them "background", which Keras leaves out.
        logits = "Logits/Conv2d_1c_1x1"
        return [read(f"{logits}/weights")[..., 1:], read(f"{logits}/biases")[1:]]
    found = re.fullmatch(r"conv(?:1|_(dw|pw)_(\d+))(_bn)?", layer)
    if found is None:
        raise ConversionError(f"keras.applications.MobileNet has a layer {layer!r} unknown here")
    kind, number, norm = found.groups()
    name = {
        None: "Conv2d_0",
        "dw": f"Conv2d_{number}_depthwise",
        "pw": f"Conv2d_{number}_pointwise",
    }
    if norm:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        return [read(f"{name[kind]}/BatchNorm/{part}") for part in parts]
    return [read(f"{name[kind]}/{'depthwise_weights' if kind == 'dw' else 'weights'}")]


CONVERTERS: dict[str, Callable[[Members, Path], None]] = {
    "copy": copy,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "mobilenet": mobilenet,
    "mobilenetv2": mobilenetv2,
    "stamps": stamps,
    "textures": textures,
    "vgg16": vgg16,
}


def _keras() -> Any:
    """Import Keras with TensorFlow's start-up chatter off; no GPU is needed to copy weights."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    return keras


def _look_up(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise ConversionError(f"the source has no tensor {name!r}")
    return found[name]


def _set(layer: Any, arrays: list[np.ndarray]) -> None:
    expected = [tuple(weight.shape) for weight in layer.weights]
    shapes = [array.shape for array in arrays]
    if shapes != expected:
        raise ConversionError(f"layer {layer.name!r} wants shapes {expected}, the source {shapes}")
    layer.set_weights(arrays)


def _idx(packed: bytes) -> np.ndarray:
    """Read an array of bytes in IDX format: 0, 0, type 8, rank, big-endian shape."""
    import numpy as np

    content = gzip.decompress(packed)
    if content[:3] != b"\0\0\x08":
        raise ConversionError(f"not an IDX file of bytes: it begins with {content[:4]!r}")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _grey(content: bytes) -> np.ndarray:
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L"), dtype=np.float64)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
