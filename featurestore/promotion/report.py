"""Metrics of a promoted model as a table, by what its samples were used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.table import Grid, cell

if TYPE_CHECKING:
    import pandas


class Measured(dict[str, dict[str, Any]]):
    """Metrics of each group of samples, which show themselves as a table."""

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas DataFrame, a row for each group; without confusion matrices."""
        import pandas

        rows = [{"split": split, **metrics} for split, metrics in self.items()]
        return pandas.DataFrame(rows).drop(columns="confusion", errors="ignore")

    def __repr__(self) -> str:
        return splits_grid({"now": self}, tuned=False).text() if self else "(no rows)"

    def _repr_html_(self) -> str:
        return splits_grid({"now": self}, tuned=False).html()


def splits_grid(measures: Mapping[str, Mapping[str, dict[str, Any]]], tuned: bool) -> Grid:
    """Show metrics by split, before and (if tuned) after fine-tuning, and the use of their rows."""
    rows = [
        {"split": split, "when": when, **metrics}
        for when, by_split in measures.items()
        for split, metrics in by_split.items()
        if tuned or when != "after"
    ]
    fixed = ("split", "when", "images_were", "confusion")
    measured = [name for name in (rows[0] if rows else {}) if name not in fixed]
    fields = [*(["when"] if tuned else []), "split", "images_were", *measured]
    return Grid(rows, fields, {"when": "fine-tuning"})


def headline(metrics: Mapping[str, Any]) -> str:
    """Return the main metric: ``accuracy 0.903`` or ``r2 0.71``."""
    name = "accuracy" if "accuracy" in metrics else "r2"
    return f"{name} {cell(metrics.get(name))}"
