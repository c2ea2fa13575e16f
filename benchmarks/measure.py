"""What the benchmarks share: the machine in words, images, and processes measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
STAMPS = DATA / "stamps"
MOBILENETV2 = DATA / "mobilenetv2" / "mobilenetv2_notop.weights.h5"
MOBILENET = DATA / "mobilenet" / "mobilenet_notop.weights.h5"
VGG16 = DATA / "vgg16" / "vgg16_notop.weights.h5"


def machine() -> str:
    """Describe this machine, its load and the libraries, in a line."""
    from featurestore.versions import versions

    found = versions()
    names = ("tensorflow", "keras", "openvino", "zarr")
    libraries = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({processor()}), "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {libraries}"
    )


def processor() -> str:
    """Name the processor and the widest instructions that it has for networks."""
    model, flags = platform.machine(), set[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
        if line.startswith("flags"):
            flags = set(line.split())
            break
    widest = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    return next((f"{model}, {each}" for each in widest if each in flags), model)


def network(name: str, weights: str | Path, side: int, precision: str = "float32") -> Any:
    """Open a backbone of ``keras.applications``, or one of KerasHub with random weights."""
    import featurestore as fs

    if name not in ("vit-s16", "dinov2-s14"):
        return fs.Backbone.open(name, weights=weights, input_size=side, precision=precision)
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    size = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "image_shape": (side, side, 3)}
    if name == "vit-s16":
        model = keras_hub.models.ViTBackbone(patch_size=(16, 16), mlp_dim=4 * 384, **size)
    else:
        size |= {"num_register_tokens": 4, "position_embedding_shape": (side, side)}
        model = keras_hub.models.DINOV2Backbone(14, intermediate_dim=4 * 384, **size)
    return fs.Backbone.open(model, name=name, scaling="torch", precision=precision)


def answer(command: list[str], cache: str = "") -> Any:
    """Run a command with a folder for the scan index; return the JSON of its last line."""
    environment = {
        **os.environ,
        "FEATURESTORE_CACHE": cache,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(script: str, *arguments: str, cache: str) -> dict[str, float]:
    """Run a Python script in a process of its own, with a folder for the scan index.

    Returns
    -------
    dict
        ``seconds`` and ``peak_bytes`` of the whole process.
    """
    wrapper = (
        "import json, resource, runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(json.dumps({'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))"
    )
    started = time.perf_counter()
    found = answer([sys.executable, "-c", wrapper, script, *arguments], cache)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": 1024 * found["peak"]}


def spread(values: list[float]) -> str:
    """Write repeated measurements as ``median (least to most)``."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_fashion(folder: Path, count: int) -> None:
    """Write the first images of Fashion-MNIST as PNG files, a sub-folder for each class."""
    import numpy as np
    from PIL import Image

    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, names = arrays["X"][:count], arrays["y"][:count]
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        place = folder / str(name).replace("/", "-")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.png")


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = (200, 160)) -> None:
    """Write crops of the stamps' photographs as small JPEG files, (width, height) each."""
    import numpy as np
    from PIL import Image

    photographs = sorted(STAMPS.glob("*/*.png"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        with Image.open(photographs[number % len(photographs)]) as opened:
            image = opened.convert("RGB")
        scale = draw.uniform(0.5, 0.9) * min(image.width / size[0], image.height / size[1])
        width, height = (max(1, round(scale * each)) for each in size)
        left = int(draw.integers(0, image.width - width + 1))
        top = int(draw.integers(0, image.height - height + 1))
        crop = image.crop((left, top, left + width, top + height)).resize(size)
        crop.save(folder / f"{number:05}.jpg", quality=90)
