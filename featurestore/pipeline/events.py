"""What a pipeline tells while it runs, beside the events of its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; ``what`` says on what."""

    stage: str
    what: str


@dataclass(frozen=True)
class StageSkipped:
    """A stage had nothing to do: its result is up to date."""

    stage: str
    what: str


@dataclass(frozen=True)
class StageNoted:
    """What the user should know of what a stage found."""

    stage: str
    what: str


PipelineEvent = StageStarted | StageSkipped | StageNoted
