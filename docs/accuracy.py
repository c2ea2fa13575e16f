"""Draw the README's picture: validation accuracy of every head on every layer.

The figures come from the newest run of the quickstart pipeline:

    featurestore run pipelines/quickstart.yaml
    pip install matplotlib && python docs/accuracy.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "accuracy.svg"


def main() -> None:
    """Write docs/accuracy.svg."""
    runs = (ROOT / "runs" / "quickstart").glob("*/manifest.json")
    newest = max(runs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise SystemExit("no quickstart run; run: featurestore run pipelines/quickstart.yaml")
    manifest = json.loads(newest.read_text(encoding="utf-8"))
    rows = [row for row in manifest["heads"] if row["on"] == "features"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    heads = list(dict.fromkeys(map(label, rows)))
    accuracy = np.full((len(heads), len(layers)), np.nan)
    for row in rows:
        position = heads.index(label(row)), layers.index(row["layer"])
        accuracy[position] = row["metrics"]["val"]["accuracy"]
    draw(accuracy, heads, layers)


def label(row: dict) -> str:
    """Name a head with its parameters: ``logistic C=0.1``."""
    return " ".join([row["name"], *(f"{key}={value}" for key, value in row["params"].items())])


def draw(accuracy: np.ndarray, heads: list[str], layers: list[str]) -> None:
    """Draw a heat map with its figures.

    Parameters
    ----------
    accuracy : numpy.ndarray of shape (head, layer)
        Validation accuracy, in [0, 1].
    heads, layers : list of str
        Labels of the rows and columns.
    """
    plt.rcParams.update({"svg.hashsalt": "accuracy", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8.4, 2.8), layout="constrained")
    image = axes.imshow(accuracy, cmap="viridis", aspect="auto")
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
    axes.set_xlabel("layer, mean over height and width (first to last)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="validation accuracy")
    figure.savefig(PICTURE, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
