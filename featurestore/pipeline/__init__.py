"""Pipelines and sweeps: YAML files of what to do, and the code that runs them."""

from featurestore.pipeline.events import PipelineEvent, StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.run import run_pipeline
from featurestore.pipeline.spec import PipelineSpec, SweepSpec
from featurestore.pipeline.spec_file import SpecFile, parse_value, read_spec
from featurestore.pipeline.sweep import run_sweep

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
    "run_pipeline",
    "run_sweep",
]
