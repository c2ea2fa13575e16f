"""Pipelines: YAML files of what to do, and the code that runs them.

`featurestore.run` is in the module of the same name.
"""

from featurestore.pipeline.events import PipelineEvent, StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile, parse_value, read_spec

__all__ = [
    "PipelineEvent",
    "PipelineSpec",
    "SpecFile",
    "StageNoted",
    "StageSkipped",
    "StageStarted",
    "parse_value",
    "read_spec",
]
