from __future__ import annotations

import pytest

from featurestore.store.variants import FIELDS, Variant, choices, tell_apart


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("/a/w.h5", "random"), ["w.h5", "random"]),
        (("/a/w.h5", "/b/w.h5"), ["a/w.h5", "b/w.h5"]),
        (("/a/v/1.weights.h5", "/a/v/2.weights.h5"), ["1.weights.h5", "2.weights.h5"]),
    ],
)
def test_weights_files_are_named_from_where_they_differ(
    paths: tuple[str, ...], names: list[str]
) -> None:
    variants = [Variant(weights=path) for path in paths]
    what, options = choices(variants)
    assert what == "weights"
    assert sorted(options.split(" or ")) == sorted(f"--weights {name}" for name in names)
    for variant, name in zip(variants, names, strict=True):
        assert [each for each in variants if each.fits(Variant(weights=name))] == [variant]


def test_what_no_option_can_select() -> None:
    assert choices([Variant(input_size=(8, 9)), Variant(input_size=8)]) == ("input size", "")
    assert choices([Variant(), Variant()]) == ("", "")


def test_a_value_is_any_of_a_list() -> None:
    small = Variant(input_size=96, resize="crop")
    assert small.fits(Variant(input_size=[96, 160]))
    assert small.fits(Variant())
    assert not small.fits(Variant(input_size=[96], resize="pad"))
    oblong = Variant.of({"prefix": {"input_size": [8, 9]}})
    assert oblong.fits(Variant(input_size=(8, 9)))
    assert not oblong.fits(Variant(input_size=8))
    assert Variant.of({"prefix": "odd", "backbone": {"weights": 7}}) == Variant()


def test_a_table_has_columns_for_what_differs_within_a_model() -> None:
    def row(model: str, prefix: str = "0", **fields: object) -> dict[str, object]:
        return {"model": model, "layer": "l", "prefix": prefix, **dict.fromkeys(FIELDS), **fields}

    def columns(*rows: dict[str, object]) -> list[str]:
        return [*tell_apart(rows)[1].values()]

    assert columns(row("a", input_size=8), row("a", input_size=9, prefix="1")) == ["input size"]
    assert columns(row("a", scaling="tf"), row("b", scaling="caffe", prefix="1")) == []
    assert columns(row("a"), row("a", prefix="1")) == ["prefix"]
