"""ONNX models as files and as sessions of onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BackboneError, one_line
from featurestore.scratch import scratch

ENDING = ".onnx"
# From this version of the operators on, slices and shapes are tensors.
OLDEST_OPSET = 13
# A file of one piece is limited to 2 GB; the weights of larger ones lie beside it.
MOST_BYTES = 1_800_000_000
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}


def load(path: Path) -> Any:
    """Read an ONNX file, and the weights beside it; functions of its own are put in their place.

    Raises
    ------
    BackboneError
        If it is no such file, an old one, or not a plain graph of operations; or if a library that
        reads it is not installed.
    """
    if not path.is_file():
        raise BackboneError(f"no model file {str(path)!r}", "an .onnx file")
    try:
        import onnx
        import onnx.inliner
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise BackboneError(
            f"ONNX files need onnx and onnxruntime, which cannot be imported ({one_line(error)})",
            remedy="install them: pip install 'featurestore[onnx]'",
        ) from error
    try:
        model = onnx.load(str(path))
        if not model.graph.node:
            raise ValueError("it has no operations")
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # protobuf and onnx raise a dozen kinds
        raise BackboneError(
            f"{path.name!r} does not load as an ONNX model: {one_line(error)}"
        ) from error
    for node in model.graph.node:
        if any(part.HasField("g") or part.graphs for part in node.attribute):
            raise BackboneError(
                f"{path.name!r} branches or loops ({node.op_type})",
                "a network without control flow",
            )
        if node.op_type in _RANDOM:
            raise BackboneError(f"{path.name!r} draws random numbers ({node.op_type})")
    if opset(model) < OLDEST_OPSET:
        raise BackboneError(
            f"{path.name!r} has opset {opset(model)}",
            f"{OLDEST_OPSET} or later",
            "export it again with opset_version=18",
        )
    return model


def opset(model: Any) -> int:
    """Return the version of the operators of a model."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    return int(domains.get("", domains.get("ai.onnx", 0)))


def write(model: Any, path: Path) -> None:
    """Write a model; weights of more than 2 GB into a second file beside it."""
    import onnx

    if model.ByteSize() < MOST_BYTES:
        onnx.save(model, str(path))
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def session(model: Any, *, plain: bool = False) -> Any:
    """Return a session of onnxruntime, on the CPU; a ``plain`` one computes operation by operation.

    It raises BackboneError for a model that onnxruntime cannot compute.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with scratch() as folder:
        write(model, folder / "model.onnx")
        try:
            return onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever onnxruntime raises
            raise BackboneError(f"onnxruntime does not load it: {one_line(error)}") from error


def dtype_name(number: int) -> str:
    """Return NumPy's name of a type of ONNX."""
    import onnx

    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name)
