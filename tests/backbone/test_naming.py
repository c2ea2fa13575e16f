from featurestore.backbone.naming import canonical_names


class Stub:
    """Something with a name, as far as naming is concerned."""

    def __init__(self, name: str) -> None:
        self.name = name


class Conv2D(Stub):
    pass


class Dense(Stub):
    pass


def names_of(*operations, paths=None):
    return canonical_names([(each, (paths or {}).get(each.name, ())) for each in operations])


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
