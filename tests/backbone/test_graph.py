"""The flat graph of a model: order, names, shapes, and what cannot be one."""

import keras
import numpy as np
import pytest

from featurestore.backbone.graph import canonical_names, flatten
from featurestore.errors import BackboneError

layers = keras.layers


def run_whole(graph, images):
    numbers = [number for number, _ in graph.outputs]
    return np.asarray(graph.run(images, numbers, lambda node: node.operation)[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["InceptionV3", "NASNetMobile", "EfficientNetV2B0"])
def test_a_large_network_keeps_the_order_of_keras(name):
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(96, 96, 3)
    )
    graph = flatten(model)
    assert [node.operation for node in graph.nodes[1:]] == model.operations[1:]
    assert graph.bottlenecks() == bottlenecks_by_removal(graph)


def test_a_graph_computes_what_the_model_computes(tiny, batch):
    model = tiny()
    images = batch.astype("float32")
    np.testing.assert_array_equal(run_whole(flatten(model), images), model(images))


def test_nested_models_dissolve(tiny, batch):
    base = tiny()
    inner = keras.Sequential([keras.Input((16, 16, 3)), base, layers.ReLU()])
    image = keras.Input((16, 16, 3))
    outer = keras.Model(image, layers.Dense(2, name="top")(inner(image, training=False)))
    graph = flatten(outer)
    assert not any(isinstance(node.operation, keras.Model) for node in graph.nodes)
    assert [node.name for node in graph.nodes[-3:]] == ["logits", "re_lu", "top"]
    images = batch.astype("float32")
    np.testing.assert_allclose(run_whole(graph, images), outer(images), rtol=1e-6)


def test_a_nested_model_called_twice_is_there_twice(tiny, batch):
    base = tiny()
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, base(image) + base(image[:, ::-1]))
    graph = flatten(model)
    assert {"left", "left@2", "pool", "pool@2"} <= set(graph.by_name)
    images = batch.astype("float32")
    np.testing.assert_allclose(run_whole(graph, images), model(images), rtol=1e-6)


def test_names_do_not_depend_on_what_was_built_before(tiny):
    first = [node.name for node in flatten(tiny()).nodes]
    for _ in range(3):
        layers.Conv2D(1, 1)
    assert [node.name for node in flatten(tiny()).nodes] == first
    assert first == [
        "image",
        "rescaling",
        "conv2d",
        "left",
        "batch_normalization",
        "add",
        "pool",
        "multiply",
        "conv2d_1",
        "global_average_pooling2d",
        "logits",
    ]


def bottlenecks_by_removal(graph):
    """Which nodes, taken away, leave no way from the image to an output."""
    verdicts = []
    for removed in range(len(graph.nodes)):
        reached = set() if removed == 0 else {0}
        for number, node in enumerate(graph.nodes):
            if number != removed and any(parent in reached for parent, _ in node.inputs):
                reached.add(number)
        verdicts.append(not any(number in reached for number, _ in graph.outputs))
    return verdicts


def test_a_real_network_keeps_the_order_of_keras_and_has_its_bottlenecks(mobilenet):
    model = mobilenet.cut(mobilenet.layer_names[-1])
    graph = flatten(model)
    assert [node.operation for node in graph.nodes[1:]] == model.operations[1:]
    assert graph.bottlenecks() == bottlenecks_by_removal(graph)


def test_with_two_outputs_a_bottleneck_leads_to_both():
    image = keras.Input((8, 8, 3))
    stem = layers.Conv2D(2, 3, name="stem")(image)
    first, second = layers.Flatten(name="a")(stem), layers.ReLU(name="b")(stem)
    graph = flatten(keras.Model(image, [first, second]))
    verdicts = dict(zip([node.name for node in graph.nodes], graph.bottlenecks(), strict=True))
    assert verdicts == {"image": True, "stem": True, "a": False, "b": False}


def test_shapes_of_an_open_input_size(tiny):
    graph = flatten(tiny(size=None))
    (output,) = graph.sized((32, 24)).nodes[graph.by_name["pool"]].outputs
    assert output.shape == (None, 16, 12, 4)
    assert len(graph.nodes[1].operation._inbound_nodes) == 1, "asking must not extend the model"


def test_an_impossible_input_size_is_one_line():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(2, 9)(image))
    with pytest.raises(BackboneError, match="does not take images of 4×4") as caught:
        flatten(model).sized((4, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.Bidirectional])
def test_a_layer_that_remembers_is_refused(wrap):
    image = keras.Input(batch_shape=(1, 16, 16, 3))
    steps = layers.Reshape((16, 48))(image)
    layer = wrap(layers.LSTM(4, stateful=True))
    layer.name = "memory"
    with pytest.raises(
        BackboneError, match=r"'memory' .* is stateful: .* stateful=False"
    ) as caught:
        flatten(keras.Model(image, layer(steps)))
    assert "\n" not in str(caught.value)


def quantized():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(4, name="odd")(image))
    model.quantize("int8")
    return model


def ending_with(layer):
    image = keras.Input((8, 8, 3))
    return keras.Model(image, layer(layers.Reshape((8, 24))(image)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (quantized, "is quantized"),
        (lambda: ending_with(layers.Masking(name="odd")), "gives a mask"),
        (
            lambda: ending_with(layers.MaxPooling1D(data_format="channels_first", name="odd")),
            "computes channels_first",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_layers_that_are_refused(model, message):
    with pytest.raises(BackboneError, match=rf"'odd' \(\w+\) {message}") as caught:
        flatten(model())
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_tensorflow_refuses_is_refused_at_once():
    image = keras.Input((8, 8, 3))
    with pytest.raises(BackboneError, match=r"'Faltung ä' .* has a name .*; expected Latin"):
        flatten(keras.Model(image, layers.Conv2D(2, 3, name="Faltung ä")(image)))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def two_inputs():
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([left, right], layers.Add()([left, right]))


def on_input(*shape):
    image = keras.Input(shape)
    return keras.Model(image, layers.ReLU()(image))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Subclassed, "a Subclassed that is not functional; expected a model of layers"),
        (
            lambda: keras.Sequential([layers.Dense(2)]),
            "a Sequential that is not functional; expected .* keras.Input",
        ),
        (two_inputs, "takes 2 inputs"),
        (lambda: on_input(8, 8, 1), "RGB image"),
        (lambda: on_input(20), "RGB image"),
    ],
)
def test_models_that_cannot_be_a_backbone(model, message):
    with pytest.raises(BackboneError, match=message) as caught:
        flatten(model())
    assert "\n" not in str(caught.value)


class Stub:
    """Something with a name, as far as naming is concerned."""

    def __init__(self, name: str) -> None:
        self.name = name


class Conv2D(Stub):
    pass


class Dense(Stub):
    pass


def names_of(*operations, paths=None):
    return canonical_names([(layer, (paths or {}).get(layer.name, ())) for layer in operations])


def test_automatic_names_are_ranked_within_their_class():
    assert names_of(Conv2D("conv2d_94"), Dense("dense_3"), Conv2D("conv2d_97")) == [
        "conv2d",
        "dense",
        "conv2d_1",
    ]


def test_ranks_follow_the_number_not_the_place():
    assert names_of(Conv2D("conv2d_9"), Conv2D("conv2d_10"), Conv2D("conv2d")) == [
        "conv2d_1",
        "conv2d_2",
        "conv2d",
    ]


def test_names_given_by_hand_stay():
    assert names_of(Conv2D("stem"), Conv2D("block1_conv2d_3"), Dense("conv2d_7")) == [
        "stem",
        "block1_conv2d_3",
        "conv2d_7",
    ]


def test_a_clash_carries_the_name_of_its_model():
    operations = [(Conv2D("stem"), ("base",)), (Conv2D("stem"), ("functional_7",))]
    assert canonical_names(operations) == ["stem", "functional.stem"]


def test_clashes_of_clashes_are_numbered():
    operations = [(Dense("top"), ("sequential_1",)) for _ in range(3)]
    assert canonical_names(operations) == ["top", "sequential.top", "sequential.top_2"]


def test_names_that_a_cut_model_uses_itself_are_not_given_away():
    assert names_of(Dense("scaling"), Dense("image")) == ["scaling_2", "image_2"]


def test_naming_again_changes_nothing():
    operations = [Conv2D("conv2d_94"), Dense("scaling"), Conv2D("conv2d_97"), Dense("x")]
    once = names_of(*operations)
    for operation, name in zip(operations, once, strict=True):
        operation.name = name
    assert names_of(*operations) == once
