"""What OpenVINO makes of every network of keras.applications, against TensorFlow's frozen graph.

Each network has random weights, its own input size, and a process of its own: does OpenVINO convert
it, does it agree with the plain layers, how fast is it, and how long is it until the first batch?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import ROOT, STAMPS, machine
from featurestore.backbone import numerics
from featurestore.backbone.families import APPLICATIONS
from featurestore.errors import FeatureStoreError, FeatureStoreWarning

ENGINES = ("tensorflow", "openvino")
TURN_SECONDS = 2.0
# A batch of 16 images takes too long in the largest networks.
BATCH_OPERATIONS = 64e9
# Two turns whose ratios are further apart were disturbed, so that a third one decides.
STEADY = 1.3


def measure(name: str) -> dict[str, Any]:
    """Measure one network.

    Returns
    -------
    dict
        ``name``, ``side``, ``layer``, ``gflop`` of an image, ``batch``, and for each engine a dict:
        ``error`` if it does not compute the network; otherwise ``start`` (seconds from the request
        to the end of the first batch), ``processor`` (what of the processor's time that took),
        ``distance`` from the plain layers, ``check`` (what the check of the first batch says; empty
        if it passes), ``speeds`` (images/s of each turn) and ``thrift`` (images a second of the
        processor's time, which other work on the machine hardly moves).
    """
    fs.Backbone.open("pixels", input_size=8, engine="tensorflow").forward(["pixels"])(
        np.zeros((1, 8, 8, 3), "uint8")
    )
    backbone = fs.Backbone.open(name, "random")
    layer = backbone.layer_names[-1]
    operations = backbone.cuts.flops([layer])
    batch = int(min(16, max(2, 2 ** int(np.log2(BATCH_OPERATIONS / operations)))))
    data = fs.Dataset.open(STAMPS)
    images = np.stack([backbone.resize(data.image(row)) for row in range(batch)])
    rows = numerics.sampled(batch)
    (wanted,) = backbone.reference([layer])(images[rows])
    passes, found = {}, {}
    for engine in ENGINES:
        started, processor = time.perf_counter(), time.process_time()
        try:
            passes[engine] = backbone.forward_with(engine, [layer])
            (first,) = passes[engine](images)
        except FeatureStoreError as error:
            found[engine] = {"error": str(error)}
            continue
        found[engine] = {
            "start": time.perf_counter() - started,
            "processor": time.process_time() - processor,
            "distance": numerics.distance(first[rows], wanted),
            "check": "",
            "speeds": [],
            "thrift": [],
        }
        # What the check finds out of the network itself, it need not find out twice.
        if engine == "openvino" or found[engine]["distance"] > numerics.TOLERANCE:
            found[engine]["check"] = verdict(backbone, layer, images, first, engine)
    for number in range(3):
        ratios = speedups(found) if len(passes) == len(ENGINES) else [1.0] * number
        if number == 2 and max(ratios) / min(ratios) <= STEADY:
            break
        for engine, compute in passes.items():
            fastest, thrifty = turn(compute, images)
            found[engine]["speeds"].append(fastest)
            found[engine]["thrift"].append(thrifty)
    size = {"side": backbone.input_size[0], "layer": layer, "gflop": operations / 1e9}
    return {"name": name, **size, "batch": batch, **found}


def verdict(
    backbone: fs.Backbone, layer: str, images: np.ndarray, found: np.ndarray, engine: str
) -> str:
    """Return what the check of the first batch says."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", FeatureStoreWarning)
        try:
            numerics.check(backbone.computation([layer]), images, [found], engine)
        except FeatureStoreError as error:
            return f"{type(error).__name__}: {error}"
    return "; ".join(str(each.message) for each in seen)


def turn(compute: Any, images: np.ndarray) -> tuple[float, float]:
    """Return the images a second of the fastest batch, and a processor second of the middle one."""
    compute(images)
    times, processor = [time.perf_counter()], [time.process_time()]
    while len(times) < 3 or times[-1] - times[0] < TURN_SECONDS:
        compute(images)
        times.append(time.perf_counter())
        processor.append(time.process_time())
    count = len(images)
    return float(count / np.diff(times).min()), float(count / np.median(np.diff(processor)))


def speedups(found: dict[str, Any]) -> list[float]:
    """Return how much faster OpenVINO was in each turn."""
    tensorflow, openvino = (found[engine]["speeds"] for engine in ENGINES)
    return [b / a for a, b in zip(tensorflow, openvino, strict=True)]


def row(found: dict[str, Any]) -> str:
    """Write one network as a row of the table."""
    cells = [f"{found['name']}, {found['side']}²", f"{found['gflop']:.1f}", str(found["batch"])]
    a, b = (found[engine] for engine in ENGINES)
    if "error" in b or "error" in a:
        return f"| {' | '.join(cells)} | {b.get('error') or a['error']} | | | | |"
    said = [f"{engine}: {found[engine]['check']}" for engine in ENGINES if found[engine]["check"]]
    cells += [
        "; ".join(said) or "agrees",
        f"{b['distance']:.0e} / {a['distance']:.0e}",
        f"{max(b['speeds']) / max(a['speeds']):.2f}",
        f"{max(b['thrift']) / max(a['thrift']):.2f}",
        f"{b['processor']:.1f} / {a['processor']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def summary(results: list[dict[str, Any]]) -> str:
    """Return the medians over the networks that both engines compute."""
    both = [each for each in results if all("speeds" in each[engine] for engine in ENGINES)]
    if not both:
        return "No network was computed by both engines."
    said = []
    for measured in ("speeds", "thrift"):
        pairs = [[max(each[engine][measured]) for engine in ENGINES] for each in both]
        ratios = [b / a for a, b in pairs]
        said.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    starts = [median(each[engine]["processor"] for each in both) for engine in ENGINES]
    return (
        f"{len(both)} of {len(results)} networks. Times as fast as TensorFlow: {said[0]}; by the"
        f" processor's time: {said[1]}. Processor's seconds to the first batch: {starts[1]:.1f},"
        f" TensorFlow: {starts[0]:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(APPLICATIONS), metavar="NETWORK")
    parser.add_argument("--results", type=Path, help="JSON lines; what is in there is not repeated")
    parser.add_argument("--one", action="store_true", help="print one network as JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.names[0])))
        return
    results = []
    if asked.results and asked.results.exists():
        results = [json.loads(line) for line in asked.results.read_text().splitlines()]
    for name in asked.names:
        if any(each["name"] == name for each in results):
            continue
        command = [sys.executable, "-m", "benchmarks.engines", "--one", name]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            results.append({"name": name, "failed": done.returncode})
        else:
            results.append(json.loads(done.stdout.splitlines()[-1]))
        if asked.results:
            with asked.results.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(f"`python -m benchmarks.engines` — {machine()}\n")
    print("| network | GFLOP | batch | check | distance | speed-up | processor | start-up, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for each in results:
        failed = f"| {each['name']} | | | exit status {each.get('failed')} | | | | |"
        print(failed if "failed" in each else row(each))
    print("\n" + summary([each for each in results if "failed" not in each]))


if __name__ == "__main__":
    main()
