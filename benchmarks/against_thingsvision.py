"""How fast images are extracted, against thingsvision 2.7.3 in an environment of its own.

Install it where nothing else is, since it wants older libraries, and give the path of that Python:

    python -m venv /tmp/thingsvision
    /tmp/thingsvision/bin/pip install thingsvision==2.7.3
    python -m benchmarks.against_thingsvision /tmp/thingsvision/bin/python

Both read the same small JPEG files. Counted are the images a second beyond the first 160, until all
features are there: in memory with thingsvision, and committed to a compressed store with
featurestore. thingsvision computes a Keras network with Keras, and others with PyTorch: VGG16 is
measured with PyTorch, and MobileNet, which torchvision does not have, with Keras; ViT-S/16 and
DINOv2-S/14 with registers are timm's there and KerasHub's here. Its weights are random, because it
downloads others; the time does not depend on them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import MOBILENET, VGG16, answer, machine, network, spread, write_jpegs

BATCH, FIRST = 32, 160
# Our network, its weights and layer; their source, network and layer; images; turns
CASES = {
    "vgg16": (VGG16, "block4_pool", "torchvision", "vgg16", "features.23", 192, 1),
    "mobilenet": (MOBILENET, "conv_pw_11_relu", "keras", "MobileNet", "conv_pw_11_relu", 480, 2),
    "vit-s16": (
        *("random", "vit_encoder/block_12"),
        *("timm", "vit_small_patch16_224", "blocks.11", 288, 2),
    ),
    "dinov2-s14": (
        *("random", "encoder/block_12"),
        *("timm", "vit_small_patch14_reg4_dinov2", "blocks.11", 288, 2),
    ),
    # timm's network, exported.
    "vit-s16.onnx": ("", "blocks.11", "timm", "vit_small_patch16_224", "blocks.11", 288, 2),
}


def ours(name: str, folder: str, precision: str) -> None:
    import featurestore as fs

    weights, layer, *_ = CASES[name]
    if name.endswith(".onnx"):
        file = Path(folder).with_name(name)
        backbone = fs.Backbone.open(file, scaling="torch", precision=precision)
    else:
        backbone = network(name, weights, 224, precision)
    reached: list[float] = []

    def note(event: Any) -> None:
        if type(event).__name__ == "RowsComputed" and event.done >= FIRST and not reached:
            reached.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as place:
        store = fs.FeatureStore(f"{place}/store", create=True)
        data = fs.Dataset.open(folder)
        fs.extract(data, backbone, layer, store, batch_size=BATCH, on_event=note)
        print(json.dumps((len(data) - FIRST) / (time.perf_counter() - reached[0])))


class Noting:
    """Batches that note when the first images are through: when the next batch is asked for."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.reached = batches, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches, 1):
            yield batch
            if number * BATCH == FIRST:
                self.reached = time.perf_counter()


def theirs(name: str, folder: str) -> None:
    """Run in the environment of thingsvision."""
    from thingsvision import get_extractor, get_extractor_from_model
    from thingsvision.utils.data import DataLoader, ImageDataset

    _, _, source, model, layer, *_ = CASES[name]
    if source == "timm":
        import timm

        # By name, it would take images of the size that the network was trained on.
        vit = timm.create_model(model, pretrained=False, img_size=224)
        extractor = get_extractor_from_model(model=vit, device="cpu", backend="pt")
    else:
        extractor = get_extractor(model_name=model, source=source, device="cpu", pretrained=False)
    with tempfile.TemporaryDirectory() as place:
        images = ImageDataset(
            root=folder,
            out_path=place,
            backend=extractor.get_backend(),
            transforms=extractor.get_transformations(),
        )
        batches = Noting(
            DataLoader(dataset=images, batch_size=BATCH, backend=extractor.get_backend())
        )
        extractor.extract_features(
            batches=batches, module_name=layer, flatten_acts=False, output_type="ndarray"
        )
    print(json.dumps((len(images) - FIRST) / (time.perf_counter() - batches.reached)))


def export(name: str, path: str) -> None:
    """Run in the environment of thingsvision: write a network of timm as an ONNX file."""
    import timm
    import torch

    # The exporter of this release does not know the fused operation.
    timm.layers.set_fused_attn(False)
    network = timm.create_model(CASES[name][3], pretrained=False, num_classes=0).eval()
    batch = {"image": {0: "batch"}}
    torch.onnx.export(
        network,
        torch.zeros(2, 3, 224, 224),
        path,
        input_names=["image"],
        dynamic_axes=batch,
        opset_version=17,
    )
    print("true")


def main(python: str, precision: str = "float32", *names: str) -> None:
    version = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in "
    version += "('thingsvision', 'torch', 'timm', 'tensorflow')}))"
    found = ", ".join(f"{name} {each}" for name, each in answer([python, "-c", version]).items())
    print(
        f"`python -m benchmarks.against_thingsvision PYTHON {precision}` — {machine()}; {found}\n"
    )
    print("| network, layer, 224² | images | thingsvision, img/s | featurestore, img/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, (_, layer, source, _, other, count, turns) in CASES.items():
        if names and name not in names:
            continue
        paces: dict[str, list[float]] = {"theirs": [], "ours": []}
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            write_jpegs(Path(folder, "images"), count)
            if name.endswith(".onnx"):
                answer([python, __file__, "export", name, f"{folder}/{name}"])
            for _ in range(turns):
                for who, own in (("theirs", [python]), ("ours", [sys.executable])):
                    more = [precision] if who == "ours" else []
                    command = [*own, __file__, who, name, f"{folder}/images", *more]
                    paces[who].append(answer(command, cache))
        pairs = zip(paces["ours"], paces["theirs"], strict=True)
        print(
            f"| {name} {layer} ({source} {other}) | {count:,} | {spread(paces['theirs'])} "
            f"| {spread(paces['ours'])} | {median(one / two for one, two in pairs):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1] in ("ours", "theirs", "export"):
        {"ours": ours, "theirs": theirs, "export": export}[sys.argv[1]](*sys.argv[2:])
    else:
        main(*sys.argv[1:])
