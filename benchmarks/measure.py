"""What the benchmarks share: the machine in words, and a process with its time and peak memory."""

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

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
STAMPS = DATA / "stamps"
MOBILENETV2 = DATA / "mobilenetv2" / "mobilenetv2_notop.weights.h5"
VGG16 = DATA / "vgg16" / "vgg16_notop.weights.h5"


def machine() -> str:
    """Describe this machine and the libraries, in a line."""
    from featurestore.versions import versions

    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    found = versions()
    libraries = ", ".join(f"{name} {found[name]}" for name in ("tensorflow", "keras", "zarr"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({model}), "
        f"Python {platform.python_version()}, {libraries}"
    )


def run(script: str, *arguments: str, cache: str) -> dict[str, float]:
    """Run a Python script in a process of its own, with a folder for the scan index.

    Returns
    -------
    dict
        ``seconds`` and ``peak_bytes`` of the whole process.
    """
    environment = {
        **os.environ,
        "FEATURESTORE_CACHE": cache,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    wrapper = (
        "import json, resource, runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(json.dumps({'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", wrapper, script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")
    peak = json.loads(done.stdout.strip().splitlines()[-1])["peak"]
    return {"seconds": seconds, "peak_bytes": 1024 * peak}


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
