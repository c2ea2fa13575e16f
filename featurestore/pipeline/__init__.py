"""Pipelines and sweeps: YAML files of what to do, and the code that runs them.

`featurestore.run` and `featurestore.sweep` are in the modules of the same names.
"""

from featurestore.pipeline.events import PipelineEvent, StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.spec import PipelineSpec, SweepSpec
from featurestore.pipeline.spec_file import SpecFile, parse_value, read_spec

__all__ = [
    "PipelineEvent",
    "PipelineSpec",
    "SpecFile",
    "StageNoted",
    "StageSkipped",
    "StageStarted",
    "SweepSpec",
    "parse_value",
    "read_spec",
]
