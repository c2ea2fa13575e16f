"""Pipelines: YAML files of what to do, and the code that runs them.

`featurestore.run` is in the module of the same name.
"""

from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile, parse_value, read_spec

__all__ = ["PipelineSpec", "SpecFile", "parse_value", "read_spec"]
