"""ONNX files as backbones, against the reference evaluator of onnx."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import featurestore as fs
from featurestore.errors import BackboneError, FeatureStoreWarning

SIDE, PATCH, WIDTH = 16, 4, 8
PATCHES = (SIDE // PATCH) ** 2


def network(seed=0, *, prefix="", batch="batch", opset=18, channel=3, extra=(), changed=None):
    """A small transformer-like network with a class token, and a convolution in front."""
    random = np.random.default_rng(seed)
    weights = {
        "kernel": random.normal(size=(WIDTH, 3, PATCH, PATCH)) / 7,
        "bias": random.normal(size=WIDTH),
        "cls": random.normal(size=(1, 1, WIDTH)),
        "gain": random.normal(size=WIDTH),
        "shift": random.normal(size=WIDTH),
        "dense": random.normal(size=(WIDTH, WIDTH)),
        "last": random.normal(size=(WIDTH, 5)),
    }
    if changed:
        weights[changed] = weights[changed] + 1e-3
    n = lambda name: prefix + name  # noqa: E731
    node = helper.make_node
    nodes = [
        node("Constant", [], [n("flat")], value=numpy_helper.from_array(np.array([0, 8, -1]))),
        node(
            "Conv",
            ["image", n("kernel"), n("bias")],
            [n("conv")],
            name="/patch/proj/Conv",
            strides=[PATCH, PATCH],
        ),
        node("Relu", [n("conv")], [n("relu")], name="/patch/act/Relu"),
        node("Reshape", [n("relu"), n("flat")], [n("rows")], name="/patch/Reshape"),
        node("Transpose", [n("rows")], [n("tokens")], perm=[0, 2, 1], name="/patch/Transpose"),
        node("Shape", ["image"], [n("shape")], start=0, end=1),
        node("Concat", [n("shape"), n("two")], [n("size")], axis=0),
        node("Expand", [n("cls"), n("size")], [n("class")]),
        node("Concat", [n("class"), n("tokens")], [n("all")], axis=1),
        node(
            "LayerNormalization",
            [n("all"), n("gain"), n("shift")],
            [n("normed")],
            axis=-1,
            name="/blocks.0/norm/LayerNormalization",
        ),
        node("MatMul", [n("normed"), n("dense")], [n("mixed")], name="/blocks.0/mlp/MatMul"),
        node("Add", [n("all"), n("mixed")], [n("added")], name="/blocks.0/Add"),
        node(
            "ReduceMean",
            [n("added"), n("one")][: 1 if opset < 18 else 2],
            [n("mean")],
            name="/ReduceMean",
            keepdims=0,
            **({"axes": [1]} if opset < 18 else {}),
        ),
        node("MatMul", [n("mean"), n("last")], ["out"], name="/head/MatMul"),
    ]
    tensors = [numpy_helper.from_array(v.astype("float32"), n(k)) for k, v in weights.items()]
    tensors += [
        numpy_helper.from_array(np.array([1, WIDTH]), n("two")),
        numpy_helper.from_array(np.array([1]), n("one")),
    ]
    info = helper.make_tensor_value_info
    image = info("image", TensorProto.FLOAT, [batch, channel, SIDE, SIDE])
    outputs = [info("out", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "network", [image, *extra], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(network(), str(path))
    return path


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)


def truth(model, images, *names):
    """The values of some tensors by the reference evaluator, for pixels of 0 to 1."""
    model.graph.output.extend(map(helper.make_empty_tensor_value_info, names))
    pixels = images.transpose(0, 3, 1, 2).astype("float32") / np.float32(255)
    return ReferenceEvaluator(model).run(list(names), {"image": pixels})


def test_every_cut_has_the_values_of_the_file(file, images):
    backbone = fs.Backbone.open(file, scaling="unit")
    assert {"patch.act", "blocks.0", "head"} <= set(backbone.layer_names)
    relu, added, mean, out = truth(network(), images, "relu", "added", "mean", "out")
    refs = ["patch.act", "blocks.0", "mean", "head"]
    refs = [ref if ref in backbone.layer_names else "out" for ref in refs]
    computed = backbone.forward(refs)(images)
    for values, wanted in zip(
        computed, [relu.transpose(0, 2, 3, 1), added, mean, out], strict=True
    ):
        np.testing.assert_allclose(values, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    [
        ("avg", lambda x: x.mean(1)),
        ("max", lambda x: x.max(1)),
        ("cls", lambda x: x[:, 0]),
        ("patchavg", lambda x: x[:, 1:].mean(1)),
        ("cls+patchavg", lambda x: np.concatenate([x[:, 0], x[:, 1:].mean(1)], 1)),
        ("gem", lambda x: (np.maximum(x[:, 1:], 1e-6) ** 3).mean(1) ** (1 / 3)),
    ],
)
def test_reductions(file, images, reduction, wanted):
    backbone = fs.Backbone.open(file, scaling="unit")
    assert backbone.cuts.special_tokens == 1
    (added,) = truth(network(), images, "added")
    (values,) = backbone.forward([f"blocks.0:{reduction}"])(images)
    np.testing.assert_allclose(values, wanted(added), rtol=1e-4, atol=1e-5)
    assert backbone.shape(f"blocks.0:{reduction}") == values.shape[1:]


def test_the_key_is_of_operations_and_weights_up_to_the_cut(file, tmp_path):
    def digest(layer, **options):
        onnx.save(network(**options), str(tmp_path / "other.onnx"))
        backbone = fs.Backbone.open(tmp_path / "other.onnx", scaling="unit")
        return backbone.prefix_digest(layer)

    backbone = fs.Backbone.open(file, scaling="unit")
    assert digest("blocks.0", prefix="renamed_") == backbone.prefix_digest("blocks.0")
    assert digest("blocks.0", changed="last") == backbone.prefix_digest("blocks.0")
    assert digest("blocks.0", changed="dense") != backbone.prefix_digest("blocks.0")
    assert digest("patch.act", changed="dense") == backbone.prefix_digest("patch.act")
    assert fs.Backbone.open(file, scaling="tf").prefix_digest("blocks.0") != digest("blocks.0")


def test_extraction_heads_and_growth(file, tmp_path, images):
    data = fs.Dataset.from_arrays(images, ["a", "b"] * 10, name="noise")
    backbone = fs.Backbone.open(file, scaling="unit")
    store = fs.FeatureStore(tmp_path / "store", create=True)
    features = fs.extract(data, backbone, ["blocks.0:cls", "blocks.0"], store)
    stored = features["blocks.0:cls"].arrays()[0]
    (wanted,) = backbone.forward(["blocks.0:cls"])(np.stack([data.image(i) for i in range(20)]))
    np.testing.assert_allclose(stored, wanted, rtol=2e-3, atol=2e-3)
    again = fs.plan(data, fs.Backbone.from_spec(backbone.spec), ["blocks.0:cls"], store)
    assert not again.missing


def test_preprocessing_beside_the_file(file, tmp_path):
    config = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.25, 0.5],
        "do_normalize": True,
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    preprocessing = fs.Backbone.open(file).preprocessing
    assert (preprocessing.resize, preprocessing.interpolation) == ("crop", "bicubic")
    factor, offset, _ = preprocessing.factors()
    np.testing.assert_allclose(255 * factor + offset, [1, 2, 1], rtol=1e-6)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(BackboneError, match="does not state a preprocessing"):
        fs.Backbone.open(file)


def test_a_timm_config_says_how_much_it_keeps(file, tmp_path):
    trained = {"input_size": [3, SIDE, SIDE], "interpolation": "bicubic", "crop_pct": 0.9}
    trained |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": trained}))
    with pytest.warns(FeatureStoreWarning, match="central 90.0%"):
        preprocessing = fs.Backbone.open(file).preprocessing
    assert preprocessing.resize == "crop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 1}, "batches of exactly 1.*dynamic_axes"),
        ({"channel": 4}, "RGB images"),
        ({"opset": 12}, "opset 12"),
        (
            {"extra": [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 7])]},
            "takes 2 inputs: 'image'.*'ids'",
        ),
    ],
)
def test_files_that_are_refused(tmp_path, options, message):
    onnx.save(network(**options), str(tmp_path / "bad.onnx"))
    with pytest.raises(BackboneError, match=message):
        fs.Backbone.open(tmp_path / "bad.onnx", scaling="unit")


def test_a_broken_file_and_one_without_scaling(file, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(file.read_bytes()[:300])
    with pytest.raises(BackboneError, match="does not load"):
        fs.Backbone.open(tmp_path / "broken.onnx", scaling="unit")
    with pytest.raises(BackboneError, match="--scaling"):
        fs.Backbone.open(file)
    with pytest.raises(BackboneError, match="--engine openvino"):
        fs.Backbone.open(file, scaling="unit", engine="tensorflow").forward(["head"])
    with pytest.raises(BackboneError, match="no Keras model"):
        fs.Backbone.open(file, scaling="unit").cut("head")
