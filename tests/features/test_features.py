from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, IncompleteFeaturesError, InputError, StoreError
from featurestore.features import Features
from featurestore.features import batches as batching
from featurestore.features.batches import Batches
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, blocks
from tests.toys import drop_block

TAIL = (4, 4, 2)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Blocks of 8 rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_ROWS", 8)
        yield


def images(count: int) -> np.ndarray:
    ramp = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(count, 2, 2)
    return ramp.copy()


def labels_of(X: np.ndarray, kind: str) -> list | None:
    """Labels that follow from the pixels, every seventh missing."""
    numbers = [int(x.reshape(4).view("<u4")[0]) for x in X]
    if kind == "none":
        return None
    form = {"str": lambda n: "abc"[n % 3], "int": lambda n: 10 + n % 3, "float": lambda n: n / 2}
    return [None if n % 7 == 6 else form[kind](n) for n in numbers]


def stored(
    location: str | Path,
    dataset: Dataset,
    tail: tuple[int, ...] = TAIL,
    *,
    skip: tuple[int, ...] = (),
) -> Features:
    """Features that begin with bytes of their sample's digest: what is misaligned is seen."""
    store = FeatureStore(location, create=True)
    prefix = "blake2b:" + "3f" * 32
    key = FeatureKey("net", "pool", prefix, dataset.digest)
    shape = (len(dataset), *tail)
    group = store.features.create(key, shape=shape, sample_ids=dataset.sample_ids)
    size = int(np.prod(tail))
    values = np.zeros((len(dataset), size), np.float16)
    values[:, :4] = dataset.sample_ids[:, :4]
    rows = values.reshape(shape)
    for block in set(group.missing()) - set(skip):
        span = group.features.span(block)
        group.write_block(block, rows[span.start : span.stop])
    return Features(group, dataset, store)


def made(count: int = 60, kind: str = "str", **options) -> Dataset:
    X = images(count)
    return Dataset.from_arrays(X, labels_of(X, kind), name="ramp", **options)


def ids_in(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x.reshape(len(x), np.prod(x.shape[1:], dtype=int))[:, :4].astype(np.uint8)


def expected_rows(dataset: Dataset, split: str | None, labelled: bool) -> list[int]:
    found = []
    for row in range(len(dataset)):
        value = None if dataset.labels is None else dataset.labels[row]
        has_label = value is not None and value == value
        if (split is None or dataset.splits[row] == split) and (has_label or not labelled):
            found.append(row)
    return found


@pytest.fixture(scope="module")
def places() -> Iterator[str]:
    numbers = itertools.count()
    return (f"memory://features-{next(numbers)}/store" for _ in itertools.count())


kinds = st.sampled_from(["str", "int", "float", "none"])


@given(
    count=st.integers(1, 40),
    kind=kinds,
    split=st.sampled_from([None, "train", "val", "test"]),
    labelled=st.sampled_from([{}, {"labelled": True}, {"labelled": False}]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 9),
)
def test_rows_stay_with_their_labels(places, count, kind, split, labelled, order, seed) -> None:
    X = images(count)
    order.shuffle(shuffled := list(range(count)))
    X = X[shuffled]
    y = labels_of(X, kind)
    if y is not None and all(label is None for label in y):
        return
    dataset = Dataset.from_arrays(X, y, name="ramp", val=0.3, test=0.2, seed=seed)
    features = stored(next(places), dataset)
    rows = expected_rows(dataset, split, labelled.get("labelled", kind != "none"))
    X_read, y_read = features.arrays(split, **labelled)
    assert X_read.dtype == np.float32
    assert features.rows(split, **labelled).tolist() == rows
    assert np.array_equal(ids_in(X_read), dataset.sample_ids[rows][:, :4])
    lazy = features.dask(split, **labelled).compute(scheduler="synchronous")
    assert np.array_equal(ids_in(lazy), ids_in(X_read))
    read = None if y_read is None else y_read.astype(object)
    assert str(read) == str(y_of(features, rows))  # NaN does not equal itself
    if kind == "none":
        assert y_read is None
        return
    assert len(y_read) == len(X_read)
    X_read, y_read = features.arrays(split)
    target = dict(zip(map(tuple, ids_in(X_read).tolist()), y_read.tolist(), strict=True))
    of_image = dict(zip(dataset.sample_digests, dataset.labels, strict=True))
    assert y_read.tolist() == [
        of_image[dataset.sample_digests[row]] for row in features.rows(split)
    ]
    batches = Batches.of(features, split, batch_size=7, shuffle=True, seed=seed)
    seen = list(epoch(batches, 0))
    assert sorted(row for x, _ in seen for row in ids_in(x).tolist()) == sorted(
        ids_in(X_read).tolist()
    )
    for x, codes in seen:
        for row, code in zip(ids_in(x).tolist(), codes.tolist(), strict=True):
            value = features.classes[code] if features.classes else code
            assert value == target[tuple(row)]


def y_of(features: Features, rows: list[int]) -> Any:
    return None if features.labels is None else features.labels[rows].astype(object)


def epoch(batches: Batches, number: int) -> Iterator[tuple[np.ndarray, ...]]:
    passed = batches.epoch(number)
    return (passed.batch(index) for index in range(len(batches)))


def test_labels_with_gaps(tmp_path: Path) -> None:
    for kind in ("str", "int"):
        dataset = made(kind=kind)
        features = stored(tmp_path / kind, dataset)
        assert features.labels.dtype == object
        assert features.labels.tolist() == dataset.labels.tolist()
        assert None not in features.labels[features.rows()].tolist()
    dataset = made(kind="float")
    y = stored(tmp_path / "float", dataset).labels
    assert np.array_equal(y, dataset.labels, equal_nan=True)
    assert np.isnan(y).any()


def test_what_it_tells(tmp_path: Path) -> None:
    dataset = made()
    features = stored(tmp_path / "s", dataset)
    assert (len(features), features.shape, features.dtype) == (60, (60, *TAIL), "float16")
    assert (features.ref, features.task, features.classes) == (
        "pool",
        "classification",
        ("a", "b", "c"),
    )
    assert features.complete
    assert repr(features) == f"Features('{features.key}', 'ramp', float16 (60, 4, 4, 2))"


def test_the_same_samples_with_other_labels_and_splits(tmp_path: Path) -> None:
    first = stored(tmp_path / "s", made())
    other = made(kind="int", val=0.5, seed=3)
    assert other.manifest_digest != first.dataset.manifest_digest
    features = Features(first.group, other, first.store)
    X, y = features.arrays("val")
    rows = expected_rows(other, "val", True)
    assert np.array_equal(ids_in(X), other.sample_ids[rows][:, :4])
    assert y.tolist() == other.labels[rows].tolist()


def test_other_samples_are_refused(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    with pytest.raises(StoreError, match=r"belongs to the samples .*`featurestore extract`"):
        Features(features.group, made(59), features.store)
    ids = features.group.samples.copy()
    ids[[0, 1]] = ids[[1, 0]]
    features.group.sample.write(0, ids)
    with pytest.raises(DamagedError, match="row ids are not those of data set 'ramp'"):
        Features(features.group, features.dataset, features.store).rows()


def test_a_split_that_there_is_not(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    with pytest.raises(InputError, match="no split 'trian'; did you mean 'train'"):
        features.arrays("trian")


# In every form, a missing or damaged block raises.


def ways(features: Features) -> dict:
    def py() -> None:
        batches = features.py_dataset(None)
        for index in range(len(batches)):
            batches[index]

    return {
        "arrays": lambda: features.arrays(),
        "dask": lambda: features.dask().sum().compute(scheduler="synchronous"),
        "dask split": lambda: features.dask("train").sum().compute(),
        "xarray": lambda: features.xarray()["features"].sum().compute(),
        "py": py,
    }


@pytest.mark.parametrize("way", ["arrays", "dask", "dask split", "xarray", "py"])
def test_a_missing_block_is_never_zeros(tmp_path: Path, way: str) -> None:
    features = stored(tmp_path / "s", made(), skip=(3,))
    assert not features.complete
    with pytest.raises(IncompleteFeaturesError, match=r"block 3, rows 24–31\); run `featurestore"):
        ways(features)[way]()


@pytest.mark.parametrize("way", ["arrays", "dask", "xarray", "py"])
def test_a_damaged_block_is_never_read(tmp_path: Path, way: str) -> None:
    features = stored(tmp_path / "s", made())
    block = tmp_path / "s" / features.group.features.file(3)
    block.write_bytes(block.read_bytes()[:20])
    with pytest.raises(
        DamagedError, match=r"block 3 \(rows 24–31\) is damaged.*featurestore repair"
    ):
        ways(features)[way]()


def test_a_damaged_block_stops_an_epoch(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    block = tmp_path / "s" / features.group.features.file(3)
    block.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"block 3 \(rows 24–31\) is damaged"):
        ways(features)["py"]()


def test_rows_that_exist_can_be_read_while_others_are_missing(tmp_path: Path) -> None:
    splits = ["val" if index < 30 else "train" for index in range(60)]
    dataset = made(splits=splits)
    val = set(dataset.rows("val") // 8)
    absent = tuple(set(range(8)) - val)
    features = stored(tmp_path / "s", dataset, skip=absent)
    if absent:
        assert len(features.arrays("val")[0]) == len(dataset.rows("val", labelled=True))


# What there is, taken explicitly.


@pytest.mark.reliability
@given(
    kind=kinds,
    skip=st.sets(st.integers(0, 4)),
    split=st.sampled_from([None, "train", "val", "test"]),
)
def test_completed_takes_the_rows_that_exist(places, kind, skip, split) -> None:
    dataset = made(40, kind, val=0.3, test=0.2, groups=[f"g{index // 5}" for index in range(40)])
    features = stored(next(places), dataset, skip=tuple(skip))
    taken = features.completed()
    assert features.blocks is None
    assert taken is (taken if skip else features)
    labelled = kind != "none"
    there = [row for row in expected_rows(dataset, split, labelled) if row // 8 not in skip]
    assert taken.rows(split, labelled=labelled).tolist() == there
    X, y = taken.arrays(split, labelled=labelled)
    ids = dataset.sample_ids[there][:, :4]
    assert np.array_equal(ids_in(X), ids)
    if labelled:
        assert y.tolist() == dataset.labels[there].tolist()
        assert np.array_equal(y, taken.labels[taken.rows(split)])
    lazy = taken.dask(split, labelled=labelled)
    assert lazy.shape == X.shape
    assert np.array_equal(ids_in(lazy.compute(scheduler="synchronous")), ids)
    batches = Batches.of(taken, split, batch_size=7, shuffle=False, seed=0)
    assert sorted(flat(epoch(batches, 0))) == sorted(map(tuple, ids.tolist()))
    everything = [row for row in range(40) if row // 8 not in skip]
    joined, whole = taken.xarray(), features.xarray().isel(row=everything)
    assert set(joined.coords) == {"sample", "split", "group", *(["label"] if labelled else [])}
    assert all(joined[name].equals(whole[name]) for name in joined.coords)
    assert joined["sample"].values.tolist() == [dataset.sample_digests[row] for row in everything]
    assert np.array_equal(ids_in(joined["features"].values), dataset.sample_ids[everything][:, :4])
    assert len(taken) == taken.shape[0] == len(everything)
    assert taken.complete == (not skip)


def test_completed_features_stream(tmp_path: Path) -> None:
    taken = stored(tmp_path / "s", made(), skip=(0, 3)).completed()
    X, y = taken.arrays("train")
    batches = all_of(taken.py_dataset("train", batch_size=7))
    assert np.array_equal(np.concatenate([x for x, _ in batches]), X)
    codes = np.concatenate([codes for _, codes in batches])
    assert np.array_equal(np.array(taken.classes)[codes], y)


def test_completed_is_what_existed_then(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made(), skip=(0, 3))
    taken = features.completed()
    assert taken.blocks == (1, 2, 4, 5, 6, 7)
    features.group.write_block(3, np.zeros((8, *TAIL), np.float16))
    assert len(taken) == 44
    assert not taken.complete
    assert len(taken.completed()) == len(features.completed()) == 52
    features.group.write_block(0, np.zeros((8, *TAIL), np.float16))
    assert taken.completed().blocks is None
    assert features.complete
    drop_block(features.group, 1)
    with pytest.raises(IncompleteFeaturesError, match="block 1, rows 8"):
        taken.arrays()


# The order in which images were given


def given_twice(tmp_path: Path, kind: str = "int", **options: Any) -> tuple[np.ndarray, Features]:
    """Features of 40 images that were given in another order, some of them twice."""
    order = np.concatenate([np.random.default_rng(1).permutation(40), [3, 5, 3]])
    X = images(40)[order]
    dataset = Dataset.from_arrays(X, labels_of(X, kind), name="ramp", ids=order, val=0.3)
    return order, stored(tmp_path / "s", dataset, **options)


@pytest.mark.parametrize("kind", ["int", "str", "float", "none"])
def test_arrays_in_the_order_given(tmp_path: Path, kind: str) -> None:
    order, features = given_twice(tmp_path, kind)
    digests = dict(zip(order, features.dataset.to_frame()["sample"], strict=True))
    X, y = features.arrays(order="input")
    assert features.rows(order="input").tolist() == features.dataset.input_order.tolist()
    expected = [list(bytes.fromhex(digests[number].partition(":")[2])[:4]) for number in order]
    assert ids_in(X).tolist() == expected
    labels = labels_of(images(40)[order], kind)
    if labels is None:
        assert y is None
    else:
        assert [None if label != label else label for label in y.tolist()] == labels
    split, targets = features.arrays("val", order="input", labelled=True)
    if kind != "none":
        assert None not in targets.tolist()
        assert sorted(map(tuple, ids_in(split))) == sorted(
            map(tuple, ids_in(X)[np.isin(features.dataset.input_order, features.rows("val"))])
        )


def test_xarray_has_the_columns_that_were_given(tmp_path: Path) -> None:
    order, features = given_twice(tmp_path)
    X, _ = features.arrays(order="input")
    joined = features.xarray()
    rows = zip(joined["id"].values, ids_in(joined["features"]), strict=True)
    by_id = {int(number): ids for number, ids in rows}
    assert [by_id[number].tolist() for number in order] == ids_in(X).tolist()


def test_frames_have_the_columns_that_were_given(tmp_path: Path) -> None:
    X = images(40)
    dataset = Dataset.from_arrays(X, labels_of(X, "int"), name="ramp", ids=range(40), val=0.3)
    features = stored(tmp_path / "s", dataset, (48,))
    given, content = features.to_frame(order="input"), features.to_frame(labelled=False)
    assert given["id"].tolist() == list(range(40))
    assert given["sample"].tolist() == [dataset.sample_digests[row] for row in dataset.input_order]
    assert content["sample"].tolist() == dataset.sample_digests
    columns = [f"feature_{number}" for number in range(4)]
    by_id = content.set_index("id").loc[range(40)]
    assert np.array_equal(by_id[columns], given[columns])
    val = features.to_frame("val", order="input")
    assert val["id"].is_monotonic_increasing
    assert set(val["split"]) == {"val"}
    assert len(val) == len(features.rows("val"))


def test_integers_with_gaps_keep_their_digits(tmp_path: Path) -> None:
    ids = [2**60 + 1, None, *range(58)]
    dataset = Dataset.from_arrays(images(60), name="ramp", ids=ids)
    coordinate = stored(tmp_path / "whole", dataset).xarray()["id"].values.tolist()
    assert set(coordinate) == set(ids)
    pooled = stored(tmp_path / "pooled", dataset, (48,))
    assert pooled.to_frame(order="input")["id"].tolist()[0] == 2**60 + 1


def test_columns_named_like_features_get_another_name(tmp_path: Path) -> None:
    for number, image in enumerate(images(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    own = ["feature_0", "features", "channel", "height"]
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(3)]})
    table[own] = [[f"{name} {number}" for name in own] for number in range(3)]
    dataset = Dataset.open(table, name="t", root=tmp_path)
    frame = stored(tmp_path / "pooled", dataset, (48,)).to_frame(order="input")
    assert frame.columns.is_unique
    assert frame["feature_0_input"].tolist() == table["feature_0"].tolist()
    assert frame["feature_0"].dtype == np.float32
    joined = stored(tmp_path / "whole", dataset).xarray()
    for name in own:
        coordinate = joined[name if name == "feature_0" else f"{name}_input"]
        assert sorted(coordinate.values.tolist()) == table[name].tolist()
    assert joined["features"].shape == (3, *TAIL)


def test_what_was_never_read_or_stored_is_nan_in_the_order_given(tmp_path: Path) -> None:
    order, features = given_twice(tmp_path, skip=(1,))
    with pytest.raises(IncompleteFeaturesError):
        features.arrays(order="input")
    taken = features.completed()
    absent = taken.rows(order="input") < 0
    assert 0 < absent.sum() < len(order)
    X, _ = taken.arrays(order="input")
    assert np.array_equal(np.isnan(X).all(axis=(1, 2, 3)), absent)
    assert not np.isnan(taken.arrays("train", order="input")[0]).any()
    with pytest.raises(InputError, match="int32, which would cut off decimals; expected float16"):
        taken.arrays(dtype="int32")
    with pytest.raises(InputError, match="no order 'inptu'; did you mean 'input'"):
        taken.rows(order="inptu")


# dask and xarray


def test_dask_is_lazy_and_chunked_by_block(tmp_path: Path) -> None:
    import dask.array

    features = stored(tmp_path / "s", made())
    whole = features.dask(labelled=False)
    assert isinstance(whole, dask.array.Array)
    assert whole.chunks[0] == (8,) * 7 + (4,)
    assert whole.dtype == features.dtype
    assert np.array_equal(ids_in(whole), features.dataset.sample_ids[:, :4])
    for split in ("train", "val"):
        rows = features.dataset.rows(split)
        assert np.array_equal(
            ids_in(features.dask(split)), features.dataset.sample_ids[rows][:, :4]
        )
    assert features.dask("test").shape == (0, *TAIL)
    assert np.asarray(features.dask("test")).shape == (0, *TAIL)


def test_xarray_joins_the_coordinates(tmp_path: Path) -> None:
    dataset = made(groups=[f"g{index // 5}" for index in range(60)])
    joined = stored(tmp_path / "s", dataset).xarray()
    assert joined["features"].dims == ("row", "height", "width", "channel")
    assert joined["sample"].values.tolist() == dataset.sample_digests
    told = [label if isinstance(label, str) else None for label in joined["label"].values]
    assert told == dataset.labels.tolist()
    assert joined["group"].values.tolist() == dataset.groups.tolist()
    train = joined.where(joined["split"] == "train", drop=True)
    rows = dataset.rows("train", labelled=False)
    assert np.array_equal(ids_in(train["features"].values), dataset.sample_ids[rows][:, :4])
    assert "label" not in stored(tmp_path / "t", made(kind="none")).xarray().coords


# PyDataset


def flat(batches) -> list[tuple]:
    return [tuple(row) for batch in batches for row in ids_in(batch[0]).tolist()]


def test_a_batch_has_rows(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    with pytest.raises(InputError, match="batch size is 0; expected 1 or more, such as 256"):
        features.py_dataset("train", batch_size=0)


def all_of(batches: Any) -> list[tuple[np.ndarray, ...]]:
    return [batches[index] for index in range(len(batches))]


def test_py_dataset_streams_the_split(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    X, y = features.arrays("train")
    batches = all_of(features.py_dataset("train", batch_size=7))
    assert len(batches) == -(-len(X) // 7)
    assert {(x.dtype.name, codes.dtype.name) for x, codes in batches} == {("float32", "int32")}
    assert np.array_equal(np.concatenate([x for x, _ in batches]), X)
    codes = np.concatenate([codes for _, codes in batches])
    assert np.array_equal(np.array(features.classes)[codes], y)
    ((x,),) = all_of(stored(tmp_path / "t", made(kind="none")).py_dataset(batch_size=60))
    assert x.shape == (60, *TAIL)
    ((_, y),) = all_of(stored(tmp_path / "u", made(kind="float")).py_dataset())
    assert y.dtype == np.float32


def test_a_split_without_rows(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())
    assert len(features.py_dataset("test", shuffle=True)) == 0
    X, y = features.arrays("test")
    assert (X.shape, y.shape) == ((0, *TAIL), (0,))


def test_shuffling_is_repeatable_and_differs_between_epochs(tmp_path: Path) -> None:
    features = stored(tmp_path / "s", made())

    def epochs(seed: int) -> list[list[tuple]]:
        batches = features.py_dataset("train", batch_size=7, shuffle=True, seed=seed)
        first = flat(all_of(batches))
        batches.on_epoch_end()
        return [first, flat(all_of(batches))]

    first, second = epochs(0)
    assert [first, second] == epochs(0)
    assert first != second
    assert first != epochs(1)[0]
    assert sorted(first) == sorted(second) == sorted(flat([features.arrays("train")]))


@pytest.mark.parametrize("workers", [1, 3])
def test_keras_fits_from_a_py_dataset(tmp_path: Path, workers: int) -> None:
    import keras

    features = stored(tmp_path / "s", made(kind="float"), (4,))
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-7), "mse")
    batches = features.py_dataset("train", batch_size=7, shuffle=True, workers=workers)
    X, _ = features.arrays("train")
    model.fit(batches, epochs=2, verbose=0)
    ordered = features.py_dataset("train", batch_size=7, workers=workers)
    predicted = model.predict(ordered, verbose=0)
    assert np.allclose(predicted, model.predict(X, verbose=0), rtol=1e-4)


class Counted(FeatureGroup):
    """A group that notes which blocks are read, slowly."""

    def read_block(self, block: int, out: np.ndarray | None = None) -> np.ndarray:
        self.attrs["read"].append(block)
        time.sleep(0.002)
        return super().read_block(block, out)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_reads_each_block_once_however_many_threads_ask(
    tmp_path: Path, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WINDOW_BYTES", 0)
    group = stored(tmp_path / "s", made(200)).group
    counted = Counted(group.key, {"read": []}, group.features, group.sample)
    source = Batches(counted, np.arange(200), None, 7, shuffle, seed=0)
    epoch = source.epoch(0)

    def use(index: int) -> tuple[np.ndarray, ...]:
        batch = epoch.batch(index)
        time.sleep(0.005)
        return batch

    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(use, range(len(source))))
    assert sorted(counted.attrs["read"]) == list(range(25))
    whole = np.concatenate([x for (x,) in batches])
    assert np.array_equal(ids_in(whole), group.samples[epoch.order][:, :4])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batches_across_windows(
    tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WINDOW_BYTES", 0)
    features = stored(tmp_path / "s", made(100))
    source = Batches.of(features, "train", batch_size=batch_size, shuffle=True, seed=0)
    epoch = pickle.loads(pickle.dumps(source.epoch(5)))
    batches = [epoch.batch(index) for index in range(len(source))]
    assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(source) - 1)
    whole = np.concatenate([x for x, _ in batches])
    assert np.array_equal(ids_in(whole), features.group.samples[source.rows[epoch.order]][:, :4])
    assert np.concatenate([y for _, y in batches]).tolist() == source.targets[epoch.order].tolist()


@pytest.fixture(scope="module")
def bare_group() -> FeatureGroup:
    """Without blocks, each of which would have one row."""
    key = FeatureKey("net", "pool", "blake2b:" + "3f" * 32, "blake2b:" + "9c" * 32)
    ids = np.zeros((500, 16), np.uint8)
    return FeatureStore("memory://bare/store", create=True).features.create(
        key, shape=(500, 2**24), sample_ids=ids
    )


@given(rows=st.integers(1, 500), seed=st.integers(0, 2**31), number=st.integers(0, 99))
def test_an_epoch_is_a_permutation_that_holds_few_blocks(bare_group, rows, seed, number) -> None:
    chosen = np.random.default_rng(seed).choice(500, rows, replace=False)
    batches = Batches(bare_group, np.sort(chosen), None, 64, True, seed)
    order = batches.epoch(number).order
    assert np.array_equal(np.sort(order), np.arange(rows))
    assert np.array_equal(order, batches.epoch(number).order)
    windows = [set(order[at : at + batches.window]) for at in range(0, rows, batches.window)]
    assert sum(map(len, windows)) == rows
    assert not np.array_equal(order, batches.epoch(number + 1).order) or rows < 5


def test_what_failed_before_its_first_block_is_not_found_beside_what_is_stored(tmp_path) -> None:
    dataset = made()
    features = stored(tmp_path / "s", dataset)
    features.store.datasets.add(dataset)
    failed = FeatureKey("net", "pool", "blake2b:" + "77" * 32, dataset.digest)
    shape = (len(dataset), *TAIL)
    features.store.features.create(failed, shape=shape, sample_ids=dataset.sample_ids)

    assert Features.open("ramp", "pool", features.store).key == features.key


def test_groups_are_those_of_the_rows(tmp_path: Path) -> None:
    dataset = made(40, val=0.3, groups=[f"g{index // 5}" for index in range(40)])
    features = stored(tmp_path / "store", dataset)
    groups = features.groups
    assert groups is not None
    assert groups.tolist() == dataset.groups.tolist()
    assert len(groups[features.rows("train")]) == len(features.arrays("train")[0])
    assert stored(tmp_path / "other", made(10)).groups is None
