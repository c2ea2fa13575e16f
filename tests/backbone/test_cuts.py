"""Features from the stored activation of an earlier layer, without the image."""

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone, forward, numerics
from featurestore.errors import BackboneError

layers = keras.layers


def made_of(make, **options):
    image = keras.Input((16, 16, 3))
    end = make(layers.Rescaling(1 / 255, name="scaled")(image))
    return Backbone.open(keras.Model(image, end), name="m", **options)


def derived(backbone, source, refs, images, dtype="float16"):
    """What a tail gives for the activations of its source as they are stored."""
    (whole,) = backbone.forward([source])(images)
    return backbone.tail(source, refs)(whole.astype(dtype))


def checked(backbone, source, refs, stored, images, dtype="float16"):
    stored = stored.astype(dtype, copy=False)
    return [
        backbone.check_tail(backbone.tail(source, [ref]), ref, stored, images, dtype)
        for ref in refs
    ]


def check_all(backbone, ref, images, dtype="float16", allowed=2.0**-11):
    """Derive a ref from every layer that it can be derived from, nearest first."""
    sources = backbone.cuts.derivable_from(ref)
    wanted, *stored = backbone.reference([ref, *sources])(images)
    for source, whole in zip(sources, stored, strict=True):
        tail = forward.plain(backbone.computation([ref], source=source))
        if source == sources[0]:  # compiling takes longer
            tail = backbone.tail(source, [ref])
        (found,) = tail(whole.astype(dtype))
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert numerics.distance(found, wanted) <= allowed
    return sources


def test_only_layers_that_every_path_leads_through(backbone, batch):
    """`conv2d` goes around `left` and its BatchNorm, to where they are added."""
    around = {"left", "batch_normalization"}
    assert backbone.cuts.derivable_from("left") == ["conv2d", "rescaling"]
    assert backbone.cuts.derivable_from("batch_normalization") == ["left", "conv2d", "rescaling"]
    whole = check_all(backbone, "logits", batch, "float32", 1e-6)
    before = backbone.cuts.before("logits")
    assert whole == [name for name in reversed(before) if name not in around]
    assert check_all(backbone, "pool:avg", batch) == ["pool", "add", "conv2d", "rescaling"]
    assert backbone.cuts.derivable_from("rescaling") == []
    assert backbone.cuts.derivable_from("rescaling:max") == ["rescaling"]


def test_several_refs_of_one_tail(backbone, batch):
    refs = ["add:max", "pool", "logits"]
    wanted = backbone.forward(refs)(batch)
    found = derived(backbone, "conv2d", refs, batch, "float32")
    for each, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, want, atol=1e-6)
    tail = backbone.tail("conv2d", refs)
    assert [each.shape[0] for each in tail(np.zeros((7, 16, 16, 4), np.float16))] == [7] * 3


def test_the_maximum_of_what_is_stored_is_the_stored_maximum(backbone, batch):
    (found,) = derived(backbone, "pool", ["pool:max"], batch)
    (wanted,) = backbone.forward(["pool:max"])(batch)
    np.testing.assert_array_equal(found.astype("float16"), wanted.astype("float16"))


def test_a_tail_from_elsewhere_is_refused(backbone):
    with pytest.raises(
        BackboneError, match="cannot be derived from 'left'; expected pool, add, conv2d"
    ):
        backbone.tail("left", ["pool:avg"])
    with pytest.raises(BackboneError, match="cannot be derived from 'pool'"):
        backbone.cuts.flops(["left"], "pool")
    with pytest.raises(BackboneError, match=r"'rescaling' cannot be .*; expected the image"):
        backbone.tail("pool", ["rescaling"])


def test_flops_from_a_layer_and_from_the_image(backbone):
    info = {each.name: each for each in backbone.layers()}
    assert backbone.cuts.flops(["logits"]) == info["logits"].flops
    assert backbone.cuts.flops(["pool:avg"], "pool") == 0
    last = info["logits"].flops - info["pool"].flops
    assert backbone.cuts.flops(["logits", "global_average_pooling2d"], "pool") == last > 0
    assert backbone.cuts.flops(["left", "add"]) == info["add"].flops


def test_a_tail_inside_nested_models_and_of_layers_that_are_shared(batch):
    def make(x):
        shared = layers.Conv2D(3, 3, padding="same", activation="relu", name="shared")
        given = keras.Input((16, 16, 3))
        inner = layers.Conv2D(3, 1, name="in_a")(given)
        inner = layers.Conv2D(3, 1, name="in_b")(shared(inner))
        return shared(layers.Dropout(0.5, name="drop")(keras.Model(given, inner)(x)))

    made = made_of(make)
    assert made.layer_names == ["scaled", "in_a", "shared", "in_b", "drop", "shared@2"]
    assert check_all(made, "shared@2", batch, "float32", 1e-6) == [
        "drop",
        "in_b",
        "shared",
        "in_a",
        "scaled",
    ]
    assert check_all(made, "drop", batch, "float32", 0.0) == ["in_b", "shared", "in_a", "scaled"]


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "mixed_bfloat16"])
def test_networks_of_half_precision_go_on_in_their_own_type(policy, batch):
    """Their activations are stored as they are, and what follows must not see float32."""

    def make(x):
        x = layers.Conv2D(4, 3, activation="relu", name="conv", dtype=policy)(x)
        x = layers.MaxPooling2D(name="pool", dtype=policy)(x)
        return keras.ops.add(x, keras.ops.multiply(x, 0.001))

    made = made_of(make)
    end = made.layer_names[-1]
    assert check_all(made, end, batch, "float32", 0.0) == ["pool", "conv", "scaled"]
    (found,) = checked(made, "pool", [end], made.reference(["pool"])(batch)[0], batch)
    assert found.apart == 0.0


def test_integers_are_no_source(batch):
    made = made_of(lambda x: keras.ops.cast(keras.ops.argmax(x, axis=-1, keepdims=True), "float32"))
    assert "int" in made._graph.nodes[-2].outputs[0].dtype
    assert made.cuts.derivable_from(made.layer_names[-1]) == ["scaled"]


def test_weights_that_are_nan_count_behind_the_source_only(batch):
    def make(x):
        broken = layers.Dense(3, name="broken")
        x = broken(x)
        broken.kernel.assign(np.full((3, 3), np.nan))
        return layers.Dense(2, name="end")(x)

    made = made_of(make)
    made.tail("broken", ["end"])
    with pytest.raises(BackboneError, match="'broken' has weights that are NaN"):
        made.tail("scaled", ["end"])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_rounding_explains_holds(backbone, batch, dtype):
    (stored,) = backbone.forward(["pool"])(batch)
    refs = ["pool:avg", "logits"]
    for each in checked(backbone, "pool", refs, stored, batch, dtype):
        assert each.holds
        assert each.allowed == (1.5 * 2.0**-11 if dtype == "float16" else numerics.TOLERANCE)


def test_stored_rows_of_other_images_do_not_hold(backbone, batch):
    (stored,) = backbone.forward(["pool"])(batch)
    (found,) = checked(backbone, "pool", ["logits"], np.roll(stored, 1, axis=0), batch)
    assert not found.holds
    assert found.apart > 0.01


def test_a_tail_that_amplifies_what_storing_rounds_does_not_hold(batch):
    """The difference of two nearly equal numbers: float16 has lost it, float32 has not."""

    def make(x):
        x = layers.Rescaling(1.0, 100.0, name="raised")(x)
        return layers.Rescaling(1.0, -100.0, name="lowered")(x)

    made = made_of(make)
    (stored,) = made.forward(["raised"])(batch)
    args = made, "raised", ["lowered", "raised:avg"], stored, batch
    lowered, average = checked(*args, "float16")
    assert (lowered.holds, average.holds) == (False, True)
    assert lowered.apart > 0.01
    assert all(each.holds for each in checked(*args, "float32"))


def check_real(network, ref, source, around):
    height, width = network.input_size
    images = np.random.default_rng(5).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    sources, layer = network.cuts.derivable_from(ref), ref.partition(":")[0]
    assert source in sources
    assert around not in sources
    assert set(sources) <= {*network.cuts.before(layer), layer}
    assert 0 < network.cuts.flops([ref], source) < network.cuts.flops([ref])
    (stored,) = network.reference([source])(images)
    (found,) = checked(network, source, [ref], stored, images)
    assert found.holds


def test_a_real_network(mobilenet):
    check_real(mobilenet, "block_6_expand", "block_5_add", "block_5_project")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ref", "source", "around"),
    [
        ("VGG16", "block5_pool", "block4_pool", None),
        ("ResNet50", "conv3_block1_out:avg", "conv2_block3_out", "conv3_block1_2_conv"),
    ],
)
def test_other_real_networks(name, ref, source, around):
    check_real(Backbone.open(name, "random", 32), ref, source, around)
