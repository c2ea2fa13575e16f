"""Draw time against the number of heads, from the table of benchmarks/RESULTS.md.

pip install matplotlib && python docs/heads_in_bulk.py
"""

from __future__ import annotations

import matplotlib
from speed import ROOT, number, table

matplotlib.use("svg")
import matplotlib.pyplot as plt

PICTURE = ROOT / "docs" / "heads-in-bulk.svg"


def main() -> None:
    """Write docs/heads-in-bulk.svg."""
    rows = table("Time against the number of logistic heads")
    heads = [number(row["heads"]) for row in rows]
    plt.rcParams.update({"svg.hashsalt": "heads-in-bulk", "font.size": 9})
    figure, axes = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
    for name, color in (("scikit-learn, s", "tab:gray"), ("featurestore, s", "tab:blue")):
        seconds = [number(row[name]) for row in rows]
        axes.plot(heads, seconds, marker="o", color=color, label=name.partition(",")[0])
    axes.set_xlabel("logistic heads, C from 1e-5 to 10")
    axes.set_ylabel("processor seconds")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
