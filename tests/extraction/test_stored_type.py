"""``dtype="auto"``: float16, and float32 for a layer that float16 cannot hold."""

from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import ActivationError, DatasetError
from featurestore.extraction import (
    ExtractionStarted,
    Float16Replaced,
    Float32Chosen,
    Float32Reused,
    RowsComputed,
    extract,
    plan,
)
from featurestore.extraction.stored_type import cast
from featurestore.features import Features
from featurestore.store import FeatureStore
from tests.extraction.conftest import stop_after
from tests.extraction.test_executor import scaled_model
from tests.reliability.acts import content
from tests.reliability.faults import Killed, failing
from tests.toys import in_small_blocks, take_photos

FOUND = "an activation of 102000, and float16 holds at most 65504"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Three layers: `plain` fits float16 always, `large` only for images without white."""
    image = keras.Input((4, 4, 3))
    plain = keras.layers.Rescaling(0.5, name="plain")(image)
    large = keras.layers.Rescaling(800.0, name="large")(plain)
    end = keras.layers.Rescaling(1.0, name="end")(large)
    return Backbone.open(keras.Model(image, end), name="scaling", scaling="none")


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_blocks(monkeypatch)


@pytest.fixture
def arrays() -> Dataset:
    """Twelve images in three blocks; one in the last block has a white pixel."""
    return images(12)


def images(count: int, white: bool = True) -> Dataset:
    X = np.random.default_rng(0).integers(1, 100, (count, 4, 4, 3), dtype=np.uint8)
    for shade in range(255):
        if not white:
            break
        X[0, 0, 0] = 255, shade, 0
        dataset = Dataset.from_arrays(X, name="arrays")
        if [dataset.image(row).max() for row in range(count)].index(255) >= count - 4:
            return dataset
    return Dataset.from_arrays(X, name="arrays")


def in_one(extraction, layer):
    """What is stored of a layer, its type, and how its rows came there."""
    report = extraction.reports[layer]
    rows = report.rows_computed, report.rows_copied, report.rows_reused
    return report.dtype, rows


def values(dataset, backbone, layer):
    batch = np.stack([dataset.image(row, backbone.resize) for row in range(len(dataset))])
    return backbone.reference([layer])(batch)[0]


def test_the_first_batch_decides_for_each_layer(arrays, backbone, store):
    events, layers = [], ["plain", "large", "end", "plain:avg"]
    extraction = extract(arrays, backbone, layers, store, on_event=events.append)
    assert in_one(extraction, "plain") == ("float16", (12, 0, 0))
    assert in_one(extraction, "large") == ("float32", (12, 0, 0))
    assert in_one(extraction, "plain:avg") == ("float16", (12, 0, 0))
    assert [event for event in events if isinstance(event, Float32Chosen)] == [
        Float32Chosen("large", FOUND),
        Float32Chosen("end", FOUND),
    ]
    # One batch is computed again for every one of the two layers.
    assert [event.rows for event in events if isinstance(event, ExtractionStarted)] == [12, 12, 12]
    np.testing.assert_allclose(
        extraction["large"].group.read(), values(arrays, backbone, "large"), rtol=1e-6
    )
    recorded = {layer: extraction[layer].group.provenance["dtype"] for layer in extraction}
    assert recorded["large"] == {"requested": "auto", "float32_reason": FOUND}
    assert recorded["plain"] == {"requested": "auto"}

    events.clear()
    for dtype in ("auto", "float16", "float32"):
        again = extract(arrays, backbone, "large", store, dtype=dtype, on_event=events.append)
        assert in_one(again, "large") == ("float32", (0, 0, 12))
    assert events == [Float32Reused("large")]  # Float16 was requested; the others are as stored.
    with pytest.raises(ActivationError, match=r"102000.*--dtype float32"):
        extract(arrays, backbone, "large:max", store, dtype="float16")


def test_a_late_block_computes_its_layer_again_and_no_other(arrays, backbone, store):
    events = []
    options = {"batch_size": 2, "on_event": events.append}
    extraction = extract(arrays, backbone, ["large", "plain"], store, **options)
    at = [type(event).__name__ for event in events].index("Float32Chosen")
    assert events[at] == Float32Chosen("large", FOUND)
    assert RowsComputed(8, 12) in events[:at]  # two blocks were stored as float16
    assert in_one(extraction, "large") == ("float32", (12, 0, 0))
    # The layer before it kept what it had: none of its rows is computed or stored twice.
    assert in_one(extraction, "plain") == ("float16", (12, 0, 0))
    np.testing.assert_allclose(
        extraction["large"].group.read(), values(arrays, backbone, "large"), rtol=1e-6
    )
    assert [damage for item in store.items() for damage in store.check(item)] == []
    assert store.garbage() == []


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1e-8, "float32"), (0.0, "float16"), (1.0, "float16")]
)
def test_values_that_fade_need_float32_and_zeros_do_not(arrays, store, factor, dtype):
    backbone, events = scaled_model(factor), []
    extraction = extract(arrays, backbone, "huge", store, batch_size=2, on_event=events.append)
    assert in_one(extraction, "huge") == (dtype, (12, 0, 0))
    expected = values(arrays, backbone, "huge")
    np.testing.assert_allclose(extraction["huge"].group.read(), expected, rtol=1e-3)


def test_what_stopped_as_float16_goes_on_as_auto(arrays, backbone, store):
    with pytest.raises(ActivationError):
        extract(arrays, backbone, "large", store, dtype="float16", batch_size=2)
    (group,) = store.features.values()
    assert (str(group.dtype), group.missing()) == ("float16", [2])
    assert in_one(extract(arrays, backbone, "large", store), "large") == ("float32", (12, 0, 0))


def test_what_is_stored_decides(backbone, store):
    """A float16 array that is not complete goes on as it is."""
    dark = images(12, white=False)
    options = {"batch_size": 4, "on_event": stop_after(4)}
    for dtype in ("float16", "float32"):
        place = FeatureStore(f"{store.location}-{dtype}", create=True)
        with pytest.raises(KeyboardInterrupt):
            extract(dark, backbone, "large", place, dtype=dtype, **options)
        extraction = extract(dark, backbone, "large", place, batch_size=4)
        assert in_one(extraction, "large") == (dtype, (8, 0, 4))


def check_whole(store, expected):
    """What is stored is read as before, or as float32; return whether it is float32."""
    features = Features.open("arrays", "plain", store)
    rows = features.group.read()
    assert rows.dtype == features.group.dtype
    np.testing.assert_array_equal(rows, expected.astype(rows.dtype))
    assert [damage for item in store.items() for damage in store.check(item)] == []
    assert [item for item in store.garbage() if item.kind != "leftover"] == []
    return rows.dtype == np.float32


def test_a_replacement_is_an_event_once_it_is_complete(arrays, backbone, store):
    extract(arrays, backbone, ["plain", "plain:avg"], store)
    events = []
    options = {"dtype": "float32", "on_event": events.append}
    extract(arrays, backbone, ["plain", "plain:max"], store, **options)
    assert [event for event in events if isinstance(event, Float16Replaced)] == [
        Float16Replaced("plain")
    ]
    assert events[-1] == Float16Replaced("plain")
    extract(arrays, backbone, ["plain", "plain:max"], store, **options)
    assert events[-1] == Float16Replaced("plain")


def test_features_that_cannot_be_replaced_stay(backbone, store, tmp_path):
    folder = tmp_path / "photos"
    take_photos(folder, 6)
    extract(folder, backbone, "plain", store)
    before = Features.open("photos", "plain", store).group.read()
    sorted(folder.rglob("*.png"))[-1].unlink()
    with pytest.raises(DatasetError):
        extract("photos", backbone, "plain", store, dtype="float32", batch_size=2)
    np.testing.assert_array_equal(Features.open("photos", "plain", store).group.read(), before)


def test_a_damaged_block_does_not_take_over(arrays, backbone, store):
    extract(arrays, backbone, "plain", store)
    with pytest.raises(KeyboardInterrupt):
        extract(
            arrays, backbone, "plain", store, dtype="float32", on_event=stop_after(8), batch_size=4
        )
    (block,) = Path(store.location).glob("features/*/features/0.0.0.0")
    block.write_bytes(block.read_bytes()[:-1])
    extraction = extract(arrays, backbone, "plain", store, dtype="float32", batch_size=4)
    assert in_one(extraction, "plain")[:1] == ("float32",)
    assert check_whole(store, values(arrays, backbone, "plain"))


def test_a_takeover_that_was_interrupted_ends_with_the_next_extraction(arrays, backbone, store):
    extract(arrays, backbone, "plain", store)
    with failing(Killed, match="*/c.*", calls=["unlink"]), pytest.raises(Killed):
        extract(arrays, backbone, "plain", store, dtype="float32")
    left = [*Path(store.location).glob("features/*/features/c.*")]
    assert len(left) == 3
    extraction = extract(arrays, backbone, "plain", store)
    assert in_one(extraction, "plain") == ("float32", (0, 0, 12))
    assert not any(path.exists() for path in left)
    assert store.garbage() == []
    assert check_whole(store, values(arrays, backbone, "plain"))


@pytest.mark.reliability
def test_a_replacement_that_is_killed_leaves_either_whole_and_resumes(arrays, backbone, tmp_path):
    def replace(number=None):
        """Replace features, up to a step of the disk; return its steps."""
        store = FeatureStore(tmp_path / f"store-{number}", create=True)
        extract(arrays, backbone, "plain", store)
        with failing(Killed if number is not None else None, at=number) as disk, suppress(Killed):
            extract(arrays, backbone, "plain", store, dtype="float32", batch_size=4)
        return store, [f"{step.call} {Path(step.path).name}" for step in disk.steps]

    expected = values(arrays, backbone, "plain")
    whole, steps = replace()
    assert check_whole(whole, expected)
    done, taken = [], []
    for number, step in enumerate(steps):
        store, _ = replace(number)
        taken.append(check_whole(store, expected))
        done.append(len(list(Path(store.location).glob("features/*/features/[0-9].0.0.0"))))
        extraction = extract(arrays, backbone, "plain", store, dtype="float32", batch_size=4)
        # Its complete blocks are kept.
        assert in_one(extraction, "plain")[1] == (12 - 4 * done[-1], 0, 4 * done[-1]), step
        assert check_whole(store, expected)
        store.gc(store.garbage())
        assert content(Path(store.location)) == content(Path(whole.location))
    assert (sorted(done), sorted(taken)) == (done, taken)
    assert (done[-1], taken[0], taken[-1]) == (3, False, True)


def test_growth_takes_rows_of_either_type(arrays, backbone, store, tmp_path):
    whole = np.stack([arrays.image(row) for row in range(12)])
    dark = Dataset.from_arrays(whole[:8], name="dark")
    assert extract(dark, backbone, "large", store)["large"].dtype == "float16"
    # Float16 rows have no use for float32; the other way round they have.
    grown = extract(arrays, backbone, "large", store, batch_size=2)
    assert in_one(grown, "large") == ("float32", (12, 0, 0))

    events = []
    fewer = Dataset.from_arrays(whole[2:], name="fewer")
    (layer,) = plan(fewer, backbone, "large", store).layers
    assert (layer.dtype, layer.why) == ("float32", f"float32 because it gave {FOUND}")
    extraction = extract(fewer, backbone, "large", store, on_event=events.append)
    assert in_one(extraction, "large") == ("float32", (0, 10, 0))
    assert not any(isinstance(event, Float32Chosen) for event in events)
    # Float32 that was requested says nothing about the range: its rows are copied as float16.
    exact = FeatureStore(tmp_path / "exact", create=True)
    extract(dark, backbone, "plain", exact, dtype="float32")
    assert in_one(extract(arrays, backbone, "plain", exact), "plain") == ("float16", (4, 8, 0))


def test_copies_that_do_not_fit_float16(arrays, backbone, store):
    extract(arrays, backbone, "large", store, dtype="float32")
    more = np.stack([arrays.image(row) for row in range(12)] + [np.full((4, 4, 3), 7, np.uint8)])
    extraction = extract(Dataset.from_arrays(more, name="more"), backbone, "large", store)
    assert in_one(extraction, "large") == ("float32", (1, 12, 0))


def test_a_derived_layer_that_does_not_fit(backbone, store):
    more = images(40)
    extract(more, backbone, "plain", store)
    extraction = extract(more, backbone, "large", store)
    assert in_one(extraction, "large")[0] == "float32"
    np.testing.assert_allclose(
        extraction["large"].group.read(), values(more, backbone, "large"), rtol=1e-6
    )


def test_a_dry_run_measures_it(arrays, backbone, store):
    measured = plan(arrays, backbone, ["plain", "large"], store, measure=True)
    assert [layer.dtype for layer in measured.layers] == ["float16", "float32"]
    assert measured.bytes_to_write == 12 * 48 * (2 + 4)
    assert measured.layers[1].why == f"float32 because it gave {FOUND}"
    assert not store.features.keys()


def test_activations_are_rounded_as_numpy_rounds_them():
    exact = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    exact = np.sort(exact[np.isfinite(exact)])
    middle = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
    beside = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    values = np.concatenate([exact, middle, *beside])
    rounded = cast(values, "float16").view(np.uint16)
    np.testing.assert_array_equal(rounded, values.astype(np.float16).view(np.uint16))
