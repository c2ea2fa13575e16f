"""The report of an extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import NotFoundError, nearest
from featurestore.features import Features
from featurestore.store import Garbage
from featurestore.table import Grid, duration, plural, show_html, size

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.extraction.writer import RunStats
    from featurestore.store import GroupState


@dataclass(frozen=True)
class LayerReport:
    """The result for one layer ref: the fields of ``featurestore extract --json``.

    ``bytes`` are on disk, compressed. This call computed rows, copied them from other arrays of the
    same prefix digest and reduction, or derived them from the stored layer ``derived_from``; the
    reused rows were in this array before.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    rows_computed: int
    rows_reused: int
    rows_copied: int
    rows_derived: int = 0
    derived_from: str | None = None

    @classmethod
    def of(cls, state: GroupState, stats: RunStats) -> LayerReport:
        """Return the report of a layer that is complete now."""
        group, ref = state.group, state.group.key.ref
        computed, copied, derived = stats.computed[ref], stats.copied[ref], stats.derived[ref]
        return cls(
            key=str(group.key),
            shape=group.shape,
            dtype=str(group.dtype),
            bytes=state.bytes,
            rows_computed=computed,
            # Not negative: rows that another process removed were computed twice.
            rows_reused=max(0, group.shape[0] - computed - copied - derived),
            rows_copied=copied,
            rows_derived=derived,
            derived_from=stats.sources.get(ref),
        )


class Extraction(dict[str, Features]):
    """The features of one extraction by layer ref, and a report.

    Attributes
    ----------
    dataset : Dataset
        The samples.
    reports : dict of str to LayerReport
        By layer ref.
    seconds : float
        Wall time of the call.
    freed : tuple of Garbage
        With ``replace``: the former arrays that were removed.
    """

    def __init__(
        self,
        features: dict[str, Features],
        reports: dict[str, LayerReport],
        dataset: Dataset,
        seconds: float,
        freed: Sequence[Garbage] = (),
    ) -> None:
        super().__init__(features)
        self.reports = reports
        self.dataset = dataset
        self.seconds = seconds
        self.freed = tuple(freed)

    def __missing__(self, ref: Any) -> Features:
        text = str(ref)
        if text != ref and text in self:  # a LayerRef
            return self[text]
        raise NotFoundError(f"layer {text!r} was not extracted", remedy=nearest(text, self))

    def __repr__(self) -> str:
        reports = self.reports.values()
        computed = sum(report.rows_computed for report in reports)
        copied = sum(report.rows_copied for report in reports)
        derived = sum(report.rows_derived for report in reports)
        reused = sum(report.rows_reused for report in reports)
        return (
            f"Extraction({self.dataset.name!r}, {', '.join(self)}: {computed:,} rows computed, "
            f"{copied:,} copied, {derived:,} derived, {reused:,} reused, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        return show_html(repr(self), self.grid(), *self.freed_lines)

    def grid(self) -> Grid:
        """Show the result for each layer."""
        fields = [
            "shape",
            "size",
            "rows_computed",
            "rows_copied",
            "rows_derived",
            "rows_reused",
            "key",
        ]
        return features_grid(self.to_dict(), fields, "on disk")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, as ``featurestore extract --json`` prints them."""
        return {
            "dataset": self.dataset.name,
            "rows": len(self.dataset),
            "features": {ref: asdict(report) for ref, report in self.reports.items()},
            "quarantined": [
                {"path": problem.path, "reason": problem.reason}
                for problem in self.dataset.problems
                if problem.kind == "quarantined"
            ],
            "freed": [
                {"key": item.name, "bytes": item.bytes, "reason": item.reason}
                for item in self.freed
            ],
            "seconds": round(self.seconds, 3),
        }

    @property
    def freed_lines(self) -> list[str]:
        """What was removed and why, a line for each array."""
        return [f"freed {size(item.bytes)}: {item.name}, {item.reason}" for item in self.freed]

    @property
    def cost(self) -> str:
        """What the extraction took, in one line."""
        stored = size(sum(report.bytes for report in self.reports.values()))
        return f"{plural(len(self.dataset), 'sample')} in {duration(self.seconds)}, {stored}"


def features_grid(report: Mapping[str, Any], fields: list[str], size_is: str) -> Grid:
    """Show the features of a plan or a report, by layer ref."""
    features = report["features"].items()
    rows = [{"layer": name, **row, "size": size(row["bytes"])} for name, row in features]
    if any(row["rows_derived"] for row in rows):
        for row in rows:
            if row["rows_derived"]:
                row["rows_derived"] = f"{row['rows_derived']:,} from {row['derived_from']}"
    else:
        fields = [name for name in fields if name != "rows_derived"]
    headings = {"rows_computed": "computed", "rows_to_compute": "computed"}
    headings |= {"rows_copied": "copied", "rows_derived": "derived", "rows_reused": "reused"}
    headings |= {"size": size_is}
    return Grid(rows, ["layer", *fields], headings)
