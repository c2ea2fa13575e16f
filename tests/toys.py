"""Small real things that the tests of commands and pipelines share: photographs and a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featurestore.cli import main
from featurestore.store import FeatureGroup, FeatureStore

COLOURS = {"blue": (60, 60, 180), "green": (60, 180, 60), "red": (180, 60, 60)}


def drop_block(group: FeatureGroup, block: int) -> None:
    """Remove a block of features, as if it had never been extracted."""
    group.features.files.remove(group.features.file(block))


def in_small_blocks(patch: Any, whole: int = 4, pooled: int | None = None) -> None:
    """Make blocks of so many rows: of whole activations, and of pooled ones if these differ."""

    def rows(row_bytes: int) -> int:
        return whole if row_bytes > 100 else pooled or whole

    for place in ("extraction.planning", "store.features"):
        patch.setattr(f"featurestore.{place}.block_rows", rows)


class Requests:
    """Stands before the bucket of a store, and notes each request to it.

    Attributes
    ----------
    made : list of (str, str)
        The method of obstore, and the path.
    peak : int
        The most that were made at the same time.
    before : callable
        Is called with both before each request; it may raise what the bucket would.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._files, self._lock, self._now = store._files, threading.Lock(), 0
        self._bucket = self._files._bucket
        self.made: list[tuple[str, str]] = []
        self.peak = 0
        self.before: Callable[[str, str], None] = lambda *_: time.sleep(0.001)

    def __enter__(self) -> Requests:
        self._files._bucket = self
        return self

    def __exit__(self, *_: object) -> None:
        self._files._bucket = self._bucket

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def request(path: Any = None, *args: Any, **options: Any) -> Any:
            with self._lock:
                self.made.append((method, str(path)))
                self._now += 1
                self.peak = max(self.peak, self._now)
            try:
                self.before(method, str(path))
                return getattr(self._bucket, method)(path, *args, **options)
            finally:
                with self._lock:
                    self._now -= 1

        return request


def take_photos(folder: Path, each: int = 12, colours: dict[str, Any] = COLOURS) -> Path:
    """Fill a folder with a sub-folder of noisy images for each colour."""
    generator = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = generator.normal(colour, 60, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def build_network(path: Path, *, size: int | None = 16, channels: int = 8, seed: int = 3) -> Path:
    """Save a network of two convolutions whose weights vary, and which scales inside."""
    import keras

    keras.utils.set_random_seed(seed)
    image = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name="conv_a")(x)
    x = keras.layers.MaxPooling2D(name="pool_a")(x)
    x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="conv_b")(x)
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.Model(image, x, name="tiny").save(path)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by path: what must not change is compared by it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that a foreseen error is."""
        assert self.status == 1, self
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(f"{lines[0]}\n")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


def featurestore(*args: Any) -> Result:
    """Run a command in this process, so that TensorFlow is loaded once for all of them."""
    out, err = StringIO(), StringIO()
    status: Any = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(each) for each in args])
        except SystemExit as leave:
            status = leave.code
    return Result(status, out.getvalue(), err.getvalue())


def featurestore_process(*args: Any, **environment: str) -> Result:
    """Run a command as a user does, in a process of its own."""
    command = [sys.executable, "-c", "from featurestore.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)
