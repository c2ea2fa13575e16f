import pytest

from featurestore.errors import nearest


@pytest.mark.parametrize(
    ("name", "known", "phrase"),
    [
        ("blok4_pool", ["block4_pool", "fc1"], "did you mean 'block4_pool'?"),
        ("VGG", ["vgg16", "vgg19"], "did you mean 'vgg16' or 'vgg19'?"),
        ("logisitc", ["logistic-0a1b2c3d4e5f", "ridge-112233445566"],
         "did you mean 'logistic-0a1b2c3d4e5f'?"),
        ("zzz", ["a", "b"], "known: a, b"),
        ("zzz", [], "known: none"),
    ],
)  # fmt: skip
def test_nearest_offers_what_is_near_else_what_there_is(name, known, phrase):
    assert nearest(name, known) == phrase
