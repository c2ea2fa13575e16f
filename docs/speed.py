"""Draw the picture of docs/performance.md from the tables of benchmarks/RESULTS.md.

pip install matplotlib && python docs/speed.py
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "speed.svg"


def table(heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table under a heading of RESULTS.md."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def number(cell: str) -> float:
    """Return the first number of a cell."""
    digits = re.match(r"[\d.]+", cell)
    if digits is None:
        raise SystemExit(f"no number in {cell!r}")
    return float(digits[0])


def main() -> None:
    """Write docs/speed.svg."""
    engines = [row for row in table("OpenVINO against TensorFlow") if row["speed-up (turns)"]]
    stages = table("Extraction, against decoding and the forward pass alone")
    plt.rcParams.update({"svg.hashsalt": "speed", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")

    speed = sorted((number(row["speed-up (turns)"]), row["network"]) for row in engines)
    left.barh([name for _, name in speed], [ratio for ratio, _ in speed], color="tab:blue")
    left.axvline(1, color="black", linewidth=0.8)
    left.set_title("OpenVINO, times as fast as TensorFlow (float32)", fontsize=9)

    share = [(number(row["of the best possible"]), row["network"].split(",")[0]) for row in stages]
    right.barh([name for _, name in share], [part for part, _ in share], color="tab:green")
    right.axvline(0.9, color="black", linewidth=0.8, linestyle="dotted")
    right.set_xlim(0, 1.1)
    right.set_title("Extraction: share of the best possible", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
