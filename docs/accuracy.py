"""Draw the README's picture: validation accuracy of every head on every layer.

The figures come from the newest run of the quickstart pipeline. Draw it again if they change; the
test that compares them runs with ``-m assets``, and in ``.ci/run``:

    featurestore run pipelines/quickstart.yaml
    pip install matplotlib && python docs/accuracy.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "accuracy.svg"
HEADS = ["logistic C=0.01", "logistic C=0.1", "logistic C=1", "ridge", "knn", "forest"]


def main() -> None:
    """Write docs/accuracy.svg."""
    runs = (ROOT / "runs" / "quickstart").glob("*/record.json")
    newest = max(runs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise SystemExit("no quickstart run; run: featurestore run pipelines/quickstart.yaml")
    draw(*accuracies(json.loads(newest.read_text(encoding="utf-8"))))


def accuracies(record: dict[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the validation accuracies of a run, (head, layer), with the heads and the layers.

    The record lists the heads best first, and the features in the order of the network.
    """
    layers = [key.split("/")[1].rpartition("-")[0] for key in record["features"]]
    accuracy = np.full((len(HEADS), len(layers)), np.nan)
    for row in record["heads"]:
        if row["model"] != "pixels":
            position = HEADS.index(label(row)), layers.index(row["layer"])
            accuracy[position] = row["metrics"]["val"]["accuracy"]
    return accuracy, HEADS, layers


def drawn() -> list[float]:
    """Return the accuracies that the picture shows, head by head."""
    texts = re.findall(r">(\d\.\d{3})</text>", PICTURE.read_text(encoding="utf-8"))
    return [float(text) for text in texts]


def label(row: dict[str, Any]) -> str:
    """Name a head with its parameters: ``logistic C=0.1``."""
    return " ".join([row["estimator"], *(f"{key}={value}" for key, value in row["params"].items())])


def draw(accuracy: np.ndarray, heads: list[str], layers: list[str]) -> None:
    """Draw a heat map with its figures.

    Parameters
    ----------
    accuracy : numpy.ndarray of shape (head, layer)
        Validation accuracy, in [0, 1].
    heads, layers : list of str
        Labels of the rows and columns.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The figures stay text, which `drawn` reads.
    plt.rcParams.update({"svg.hashsalt": "accuracy", "svg.fonttype": "none", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8.4, 2.6), layout="constrained")
    axes.imshow(accuracy, cmap="viridis", aspect="auto")
    best = np.unravel_index(np.nanargmax(accuracy), accuracy.shape)
    middle = (np.nanmin(accuracy) + np.nanmax(accuracy)) / 2
    for (row, column), value in np.ndenumerate(accuracy):
        axes.text(
            column,
            row,
            f"{value:.3f}",
            ha="center",
            va="center",
            color="black" if value > middle else "white",
            weight="bold" if (row, column) == best else "normal",
        )
    names = [layer.removesuffix(":avg") for layer in layers]
    axes.set_xticks(range(len(layers)), names, fontsize=8.5)
    axes.set_yticks(range(len(heads)), heads)
    axes.set_xlabel("validation accuracy by layer, first to last (mean over height and width)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
