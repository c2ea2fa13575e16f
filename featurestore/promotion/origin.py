"""The backbone and the data set behind a stored head, also if their files were moved since."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from featurestore.backbone import Backbone
from featurestore.backbone.onnx_files import ENDING
from featurestore.dataset import Dataset
from featurestore.errors import BackboneError, PromotionError, StoreError
from featurestore.heads import Head


def load_backbone(
    head: Head, model: str | Path | None = None, weights: str | Path | None = None
) -> Backbone:
    """Build the backbone that a head records, or the same one from other files.

    Raises
    ------
    PromotionError
        If the head does not record its backbone, or a file of it is gone.
    """
    spec = dict(head.provenance["backbone"] or {"source": "model"})
    if model is not None:
        spec = {"name": head.key.model, **spec, "source": "file", "weights": None}
        spec["path"] = str(Path(model).absolute())
    if weights is not None:
        spec["weights"] = str(Path(weights).absolute())
    again = f"`featurestore promote {head.id} -o MODEL.keras --model FILE`"
    if spec["source"] == "model":
        raise PromotionError(
            f"the backbone of {head.id} was a Keras model in memory; save it to a file, then: "
            f"{again}"
        )
    try:
        return Backbone.from_spec(spec)
    except BackboneError as error:
        raise PromotionError(
            f"cannot load the backbone of {head.id}: {error}; if a file was moved or renamed, "
            f"{again} (--weights FILE for weights)"
        ) from error


def load_data(head: Head) -> Dataset:
    """Load the data set as a head was fitted on it, with its images where they are now.

    Labels and splits are those of then. An image that was moved since is found by its digest if the
    data set was scanned again under the same name.
    """
    recorded, datasets = head.provenance["dataset"], head.store.datasets
    data = datasets.load(recorded["name"], recorded["manifest_digest"])
    with suppress(StoreError):
        # An augmented data set has the images of the plain one.
        now = datasets.load(data.options.get("plain") or data.name)
        places = dict(zip(now.sample_digests, now.paths, strict=True))
        then = zip(data.sample_digests, data.paths, strict=True)
        paths = [places.get(digest) or path for digest, path in then]
        return Dataset(data.name, now.source, data.options, data.samples.moved(paths))
    return data


def ending(head: Head) -> str:
    """Return how the file of a promoted head ends: as that of its backbone if that is ONNX."""
    path = str((head.provenance["backbone"] or {}).get("path"))
    return ENDING if path.lower().endswith(ENDING) else ".keras"
