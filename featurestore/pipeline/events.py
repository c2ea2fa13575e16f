"""Events of a pipeline, in addition to those of its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """A stage, or a part of it, begins; ``what`` says which."""

    stage: str
    what: str


@dataclass(frozen=True)
class StageSkipped:
    """A stage had nothing to do: its result, ``what``, is up to date."""

    stage: str
    what: str


@dataclass(frozen=True)
class StageNoted:
    """A stage found something that the user should know."""

    stage: str
    what: str


PipelineEvent = StageStarted | StageSkipped | StageNoted
