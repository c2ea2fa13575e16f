"""How well does each score of `rank` predict the layer that a trained head does best on.

The trained head is logistic regression, its C chosen by validation rows, measured on test rows.
Scores see training rows only.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from scipy.stats import kendalltau, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import DATA, MOBILENET, MOBILENETV2, STAMPS, VGG16, machine
from featurestore.heads.joint import logistic
from featurestore.heads.transferability import SCORES, transferability

EXPANDED = (1, 3, 5, 6, 8, 10, 12, 13, 15, 16)
LAYERS = {
    "mobilenetv2": [
        *(f"block_{number}_expand_relu:avg" for number in EXPANDED),
        *(f"block_{number}_add:avg" for number in (5, 9, 12, 15)),
        "out_relu:avg",
    ],
    "mobilenet": [
        *(f"conv_pw_{number}_relu:avg" for number in (1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13)),
        "conv_pw_6_relu:max",
        "conv_pw_13_relu:max",
    ],
    "vgg16": [
        *(f"block{number}_pool:avg" for number in (1, 2, 3, 4, 5)),
        *("block3_conv1:avg", "block4_conv1:avg", "block4_conv3:avg"),
        *("block5_conv1:avg", "block5_conv3:avg", "block5_pool"),
    ],
}
WEIGHTS = {"mobilenetv2": MOBILENETV2, "mobilenet": MOBILENET, "vgg16": VGG16}
# Input sizes; training and validation rows; repetitions.
CASES = {
    "stamps": ({"mobilenetv2": 160, "mobilenet": 160, "vgg16": 112}, 150, 60, 3),
    "textures": ({"mobilenetv2": 160, "mobilenet": 160, "vgg16": 112}, 40, 100, 5),
    "fashion": ({"mobilenetv2": 96, "mobilenet": 96, "vgg16": 64}, 2000, 1000, 1),
}
VALIDATION = "(validation accuracy of the trained head)"
Measured = tuple[int, str, str, dict[str, float]]
C = tuple(10.0**power for power in range(-5, 2))


def dataset(name: str) -> fs.Dataset:
    if name == "stamps":
        return fs.Dataset.open(STAMPS, val=0, test=0)
    if name == "textures":
        return fs.Dataset.open(DATA / "textures" / "textures.csv")
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, labels = arrays["X"][:10_000], arrays["y"][:10_000].tolist()
    return fs.Dataset.from_arrays(images, labels, name="fashion-10000", val=0, test=0)


def splits(data: fs.Dataset, case: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows to train on, to choose C by and to measure on."""
    _, train, val, seeds = CASES[case]
    for seed in range(seeds):
        if case == "textures":  # Patches of one part of a photograph stay in one split.
            found = [data.rows(each) for each in ("train", "val", "test")]
            some, _ = train_test_split(
                found[0], train_size=train, random_state=seed, stratify=data.targets[found[0]]
            )
            yield some, found[1], found[2]
            continue
        rest, test = train_test_split(
            np.arange(len(data)),
            train_size=train + val,
            random_state=seed,
            stratify=data.targets,
        )
        some, chosen = train_test_split(
            rest, train_size=train, random_state=seed, stratify=data.targets[rest]
        )
        yield some, chosen, test


def trained(X: np.ndarray, y: np.ndarray, rows: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Return the validation and the test accuracy of the best of several heads."""
    scaler = StandardScaler().fit(X[rows[0]])
    train, val, test = (scaler.transform(X[each]) for each in rows)
    heads = [LogisticRegression(C=c, max_iter=1000) for c in C]
    logistic.fit(heads, train, y[rows[0]])
    best = max(heads, key=lambda head: head.score(val, y[rows[1]]))
    return best.score(val, y[rows[1]]), best.score(test, y[rows[2]])


def measured(case: str, store: fs.FeatureStore) -> Iterator[Measured]:
    """Yield repetition, network, layer and what was measured."""
    data = dataset(case)
    for name, layers in LAYERS.items():
        size = CASES[case][0][name]
        backbone = fs.Backbone.open(name, WEIGHTS[name], size)
        features = fs.extract(data, backbone, layers, store)
        for layer in layers:
            X = np.asarray(features[layer].group.read(np.arange(len(data)), np.float32))
            X, y = X.reshape(len(X), -1), data.targets
            for seed, rows in enumerate(splits(data, case)):
                groups = None if data.groups is None else data.groups[rows[0]]
                started = time.perf_counter()
                found = transferability(X[rows[0]], y[rows[0]], groups)
                seconds = time.perf_counter() - started
                val, test = trained(X, y, rows)
                more = {VALIDATION: val, "test": test, "seconds": seconds}
                yield seed, name, layer, {**found, **more}


def correlated(found: list[Measured]) -> Iterator[list[str]]:
    """Yield a line for each score: how well it orders layers by the accuracy of trained heads.

    The accuracy of a layer is the mean over repetitions; correlations are means over repetitions.
    """
    networks = list(dict.fromkeys(each[1] for each in found))
    accuracy = {
        layer: np.mean([each[3]["test"] for each in found if each[1:3] == layer])
        for layer in {each[1:3] for each in found}
    }
    for name in (*SCORES, VALIDATION):
        spearman: dict[str, list[float]] = {network: [] for network in (*networks, "all")}
        kendall, lost = [], []
        for seed in {each[0] for each in found}:
            mine = [each for each in found if each[0] == seed]
            for network, values in spearman.items():
                some = [each for each in mine if network in (each[1], "all")]
                scored = [each[3][name] for each in some]
                true = [accuracy[each[1:3]] for each in some]
                values.append(spearmanr(scored, true).statistic)
            kendall.append(kendalltau(scored, true).statistic)
            lost.append(max(true) - true[int(np.argmax(scored))])
        cells = [*spearman.values(), kendall, lost]
        yield [name, *(f"{np.mean(each):.2f}" for each in cells[:-1]), f"{np.mean(lost):.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="/tmp/featurestore-rank")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    store = fs.FeatureStore(asked.store, create=True)
    print(f"`python -m benchmarks.rank {' '.join(asked.cases)}` — {machine()}\n")
    for case in asked.cases:
        found = list(measured(case, store))
        _, train, val, seeds = CASES[case]
        layers, accuracy = len(found) // seeds, [each[3]["test"] for each in found]
        seconds = [each[3]["seconds"] for each in found]
        print(
            f"{case}: {layers} layers, {train} training and {val} validation rows, {seeds} "
            f"repetitions; test accuracy {min(accuracy):.3f} to {max(accuracy):.3f}; all scores of "
            f"a layer in {np.median(seconds):.2f} s (at most {max(seconds):.2f})\n"
        )
        print(f"| score | {' | '.join(LAYERS)} | all layers | Kendall, all | lost |")
        print("| --- " * (len(LAYERS) + 4) + "|")
        for line in correlated(found):
            print(f"| {' | '.join(line)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
