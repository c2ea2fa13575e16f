"""What a model file holds, looked at before Keras builds anything of it.

Keras refuses code too, in safe mode; what it says then is rarely why. Here the reason is found.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

CONFIG = "config.json"
# A member of more bytes than this was packed no tighter than so many times.
_FREE_BYTES = 2**24
_MOST_RATIO = 100
_MOST_MEMBERS = 10_000
_MOST_CONFIG_BYTES = 2**26
# Building takes Keras the square of their number.
_MOST_LAYERS = 5_000
# Keras names its own things so; "builtins" are functions that it knows by name.
_KERAS = {"keras", "builtins"}


def model_fault(path: Path) -> str | None:
    """Tell why a ``.keras`` or ``.h5`` model file must not be loaded; None where it may be.

    What is found is in one line. A file that holds no model at all is left to Keras to refuse.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return archive_fault(archive) or _config_fault(archive.read(CONFIG))
        return _config_fault(hdf5_config(path))
    except Exception as error:  # zipfile, zlib and h5py raise a dozen kinds
        return f"it cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"


def hdf5_config(path: Path) -> Any:
    """Return the model's configuration in an HDF5 file, as it is there; None where none is."""
    import h5py

    with h5py.File(path, "r") as content:
        return content.attrs.get("model_config")


def archive_fault(archive: zipfile.ZipFile | IO[bytes]) -> str | None:
    """Tell why an archive must not be unpacked: places outside, far more than it seems."""
    if not isinstance(archive, zipfile.ZipFile):
        archive = zipfile.ZipFile(archive)
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        return f"it holds {len(members):,} members, more than {_MOST_MEMBERS:,}"
    for each in members:
        parts = PurePosixPath(each.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            return f"its member {each.filename[:60]!r} lies outside of it"
        if each.file_size > max(_FREE_BYTES, _MOST_RATIO * each.compress_size):
            return (
                f"its member {each.filename[:60]!r} has {each.file_size:,} bytes, packed into "
                f"{each.compress_size:,}"
            )
    return None


def _config_fault(text: Any) -> str | None:
    if not isinstance(text, str | bytes):
        return "its model configuration is not text"
    if len(text) > _MOST_CONFIG_BYTES:
        return f"its model configuration has {len(text):,} bytes"
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        return f"its model configuration is not JSON: {error}"
    layers = 0
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            fault = _part_fault(found)
            if fault:
                return fault
            layers += "inbound_nodes" in found
            waiting += found.values()
    return (
        f"it has {layers:,} layers, more than {_MOST_LAYERS:,}" if layers > _MOST_LAYERS else None
    )


def _part_fault(part: dict[str, Any]) -> str | None:
    kind, module = part.get("class_name"), part.get("module")
    if kind in ("Lambda", "__lambda__"):
        return "it has a Lambda layer, whose code would run; save the model without it"
    if kind == "TFSMLayer":
        return "it has a TFSMLayer, which runs a program from another file; save it without"
    if isinstance(part.get("vocabulary"), str):
        return f"it reads the file {part['vocabulary'][:60]!r}; save the model with the words"
    if isinstance(module, str) and module.partition(".")[0] not in _KERAS and not _known(part):
        what = part.get("config") if kind == "function" else kind
        return (
            f"it uses {str(what)[:60]!r} of {module[:60]!r}, which is not part of Keras; register "
            "it with keras.saving.register_keras_serializable, or save the model without it"
        )
    return None


def _known(part: dict[str, Any]) -> bool:
    """Whether the caller's own program has registered what is named."""
    import keras

    return keras.saving.get_registered_object(part.get("registered_name")) is not None
