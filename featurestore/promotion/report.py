"""Metrics of a promoted model as a table, by what its samples were used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.table import Grid, cell, printable

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


def headline(measured: Mapping[str, Any]) -> str:
    """Return the main metric: ``accuracy 0.903`` or ``r2 0.71``."""
    name = "accuracy" if "accuracy" in measured else "r2"
    return f"{name} {cell(measured.get(name))}"


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what must be known of the metrics in a promotion's report, each in one line."""
    return [
        note
        for note in (_measured_note(report), _precision_note(report), threshold_note(report))
        if note
    ]


def _measured_note(report: Mapping[str, Any]) -> str:
    before, after = (report["measured_on"][when] for when in ("before", "after"))
    if before == after:
        return f"measured on {before}" + ("" if before == "images" else ", by the head")
    return f"measured on {before} before fine-tuning, on {after} after it"


def _precision_note(report: Mapping[str, Any]) -> str:
    """Return what computing in float32 changed; empty for features of float32."""
    stored = report["stored"]
    if not stored:
        return ""
    changes = []
    for split, metrics in stored["metrics"].items():
        _, model = headline(report["before"][split]).split()
        changes.append(f"{split} {headline(metrics)} there, {model} in the model")
    what = f"the head was fitted on {stored['precision']} features; the model computes in float32"
    return "; ".join([what, *changes])


def threshold_note(report: Mapping[str, Any]) -> str:
    """Return what a threshold means for the probabilities, in one line; empty without one.

    ``report`` may be the metadata of a file from elsewhere.
    """
    match report.get("threshold"):
        case {"class": str() | int() as name, "value": float() | int() as value, "of": str() as of}:
            what = "probability" if of == "predict_proba" else "decision value"
            return (
                f"the head predicts {printable(str(name))} from a {what} of {value:.3g}; the "
                "model's probabilities are shifted so that this is 0.5, and so is its log loss"
            )
    return ""
