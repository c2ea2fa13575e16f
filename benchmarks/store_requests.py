"""How many requests commands make of a store in a bucket, and how long they take at 30 ms each.

A toy network's 20 pooled layers of a few images are stored behind `memory://`; what stands before
the bucket counts the requests that obstore makes, and waits 30 ms with each, as for a bucket in
another region. The commands run in this process: what they load is loaded before. `local` is the
same in a folder. A request that lists more than 1,000 files is several to a real server.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import featurestore as fs
from benchmarks.measure import machine
from featurestore import objects
from featurestore.cli import main

ARRAYS, SECONDS, TURNS = 20, 0.03, 5
REFS = [f"conv_{number:02}:avg" for number in range(ARRAYS)]
made: Counter[str] = Counter()


class Counted:
    """A bucket that counts requests, and waits with each."""

    def __init__(self, bucket: Any) -> None:
        self._bucket = bucket

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def request(*args: Any, **options: Any) -> Any:
            made[method] += 1
            time.sleep(SECONDS)
            return getattr(self._bucket, method)(*args, **options)

        return request


def network() -> fs.Backbone:
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 3))
    for number in range(ARRAYS + 1):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"conv_{number:02}")(x)
    return fs.Backbone.open(keras.Model(image, x), name="deep", scaling="tf")


def data(count: int) -> fs.Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return fs.Dataset.from_arrays(images, np.arange(count) % 3, name="images", val=0.25)


def command(*words: str) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            main(list(words))
        except SystemExit as leave:
            if leave.code:
                raise RuntimeError(f"{words} failed") from leave


def acts(store: str, backbone: fs.Backbone) -> dict[str, Callable[[], Any]]:
    """Fill a store, and return what is counted, none of which changes the store."""
    images, more = data(24), data(30)
    fs.extract(images, backbone, REFS, store)
    features = fs.Features.open("images", REFS[0], store)
    heads = [fs.fit_head(features, "ridge", {"alpha": alpha}) for alpha in (1.0, 2.0, 3.0)]
    return {
        "`ls`": lambda: command("ls", "--store", store),
        "`ls --input-size 9`, which shows none": lambda: command(
            "ls", "--input-size", "9", "--store", store
        ),
        "plan of a new layer": lambda: fs.plan(images, backbone, ["conv_20:avg"], store),
        "plan of the same layers": lambda: fs.plan(images, backbone, REFS, store),
        "plan of the same layers, grown data set": lambda: fs.plan(more, backbone, REFS, store),
        "`extract` with nothing to do": lambda: fs.extract(images, backbone, REFS, store),
        "`Features.open`": lambda: fs.Features.open("images", REFS[0], store),
        "`rank`": lambda: command("rank", "images", "--store", store),
        "`heads`, 3 of them": lambda: command("heads", "--store", store),
        "`show` a key": lambda: command("show", str(features.key), "--store", store),
        "`show` a head": lambda: command("show", heads[0].id, "--store", store),
        "`verify`": lambda: command("verify", "--store", store),
    }


def seconds_of(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def measure() -> None:
    bucket, backbone = objects._bucket, network()
    with tempfile.TemporaryDirectory() as folder:
        local = acts(f"{folder}/store", backbone)
        for act in local.values():
            act()  # Loads what it needs.
        objects._bucket = cache(lambda url: Counted(bucket(url)))
        remote = acts("memory://benchmark/store", backbone)
        print(f"{machine()}; {ARRAYS} arrays\n")
        print(f"| what | requests | at {1000 * SECONDS:.0f} ms each, s | local, ms |")
        print("| --- | --- | --- | --- |")
        for name, act in remote.items():
            made.clear()
            taken = seconds_of(act)
            here = 1000 * median(seconds_of(local[name]) for _ in range(TURNS))
            print(f"| {name} | {made.total()} | {taken:.2f} | {here:.0f} |", flush=True)


if __name__ == "__main__":
    measure()
