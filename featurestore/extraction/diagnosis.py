"""What `diagnose` returns: the speed of every stage, the bottleneck, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from featurestore.extraction.cost import Stage, overlapped
from featurestore.table import Grid, plural, show_html, size

# Ignore another engine or precision that is faster by less than this factor.
WORTH = 1.15
_NAMES = {
    "read": "reading the images",
    "decode": "decoding and resizing the images",
    "forward": "the forward pass",
    "write": "compressing and writing the features",
}


@dataclass(frozen=True)
class Speed:
    """The forward pass by one engine in one precision: the time of one image, or why not."""

    engine: str
    precision: str
    stage: Stage | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of :func:`diagnose`.

    Attributes
    ----------
    model : str
    input_size : (int, int)
        Height and width.
    layers : list of str
    source : str
        Of the images: a folder, or the name of a data set.
    images : int
        Number of images that were measured.
    stages : dict of str to Stage
        Time of one image in a stage that runs alone: ``read``, ``decode``, ``forward``, ``write``.
    speeds : list of Speed
        The first is that of an extraction, and in ``stages``.
    bytes : float
        Of an image's features on disk.
    place : str
        The folder or URL where blocks were written.
    processors : int
        Those that this process may use.
    free_memory : int or None
        Bytes.
    gpus, unused_gpus : list of str
        The GPUs that TensorFlow uses; if it uses none, the NVIDIA GPUs of the machine.
    """

    model: str
    input_size: tuple[int, int]
    layers: list[str]
    source: str
    images: int
    stages: dict[str, Stage]
    speeds: list[Speed]
    bytes: float
    place: str
    processors: int
    free_memory: int | None
    gpus: list[str]
    unused_gpus: list[str]

    def images_per_second(self, speed: Speed | None = None) -> float:
        """Return the images/s of an extraction, by default with its own forward pass."""
        stage = (speed or self.speeds[0]).stage or Stage()
        return 1 / overlapped({**self.stages, "forward": stage}.values())

    @property
    def bottleneck(self) -> str:
        """The slowest stage: ``read``, ``decode``, ``forward`` or ``write``."""
        stages = self.stages
        slowest = max(stages, key=lambda name: stages[name].wall)
        if stages[slowest].wall < overlapped(stages.values()):  # They share the processors.
            return max(stages, key=lambda name: stages[name].processor)
        # Threads that together use less than half a processor to decode wait for a server.
        waiting = stages["decode"].processor < stages["decode"].wall / 2
        return "read" if slowest == "decode" and waiting else slowest

    @property
    def advice(self) -> list[str]:
        """The bottleneck, and what helps: a sentence each."""
        whole = [ref for ref in self.layers if ":" not in ref]
        pooled = f", or a pooled layer such as {whole[0]}:avg" if whole else ""
        remedies = {
            "read": "Copy the images to a faster disk.",
            "decode": f"Store the images in a size nearer to {_by(self.input_size)}, or use more "
            "cores; arrays in memory need no decoding (Dataset.from_arrays).",
            "forward": self._faster_forward(),
            "write": f"An image has {size(self.bytes)} of features: use another disk{pooled}.",
        }
        return [
            f"An extraction reaches about {_rate(self.images_per_second())} images/s. The "
            f"bottleneck is {_NAMES[self.bottleneck]}.",
            remedies[self.bottleneck],
        ]

    def _faster_forward(self) -> str:
        if self.unused_gpus:
            return (
                f"TensorFlow does not use the {self.unused_gpus[0]}: install the extra `gpu` "
                '(pip install -e ".[gpu]"), and do not hide it with CUDA_VISIBLE_DEVICES.'
            )
        measured = [speed for speed in self.speeds if speed.stage]
        fastest = max(measured, key=self.images_per_second)
        if self.images_per_second(fastest) > WORTH * self.images_per_second():
            options = f"--engine {fastest.engine} --precision {fastest.precision}"
            return f"With `{options}`, expect {_rate(self.images_per_second(fastest))} images/s."
        return (
            f"Use a smaller --input-size than {max(self.input_size)}, an earlier --layer, a "
            f"smaller network or {'a faster' if self.gpus else 'a'} GPU."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values, as ``featurestore doctor --json`` prints it.

        ``stages`` and ``forward`` are images/s: by stage, and by engine and precision.
        """
        fields = {**vars(self), "input_size": list(self.input_size)}
        fields["stages"] = {name: 1 / stage.wall for name, stage in self.stages.items()}
        fields["forward"] = [
            {
                **{"engine": speed.engine, "precision": speed.precision, "reason": speed.reason},
                "images_per_second": speed.stage and 1 / speed.stage.wall,
            }
            for speed in fields.pop("speeds")
        ]
        fields |= {"bottleneck": self.bottleneck, "images_per_second": self.images_per_second()}
        return {**fields, "advice": self.advice}

    def __repr__(self) -> str:
        rate = _rate(self.images_per_second())
        return f"Diagnosis({self.model!r}: {rate} images/s, bottleneck {self.bottleneck})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), *self.parts())

    def parts(self) -> Iterator[Grid | str]:
        """Yield what is shown: lines of text, and a table between them."""
        memory = f", {size(self.free_memory)} of memory free" if self.free_memory else ""
        unused = [f"{gpu}, which TensorFlow does not use" for gpu in self.unused_gpus]
        gpus = ", ".join(self.gpus or unused) or "none"
        yield f"{plural(self.processors, 'core')}{memory}, GPU: {gpus}"
        yield ""
        yield Grid([*self._rows()], ["stage", "rate", "how"], {"rate": "images/s"})
        yield ""
        yield from self.advice

    def _rows(self) -> Iterator[dict[str, Any]]:
        how = {
            "read": f"{plural(self.images, 'image')} of {self.source}",
            "forward": f"{self.model} at {_by(self.input_size)} to {', '.join(self.layers)}",
            "write": f"{size(self.bytes)} an image, to {self.place}",
        }
        for name, stage in self.stages.items():
            if name != "forward":
                yield {"stage": name, "rate": _rate(1 / stage.wall), "how": how.get(name)}
                continue
            for number, speed in enumerate(self.speeds):
                yield {
                    "stage": f"forward, {speed.engine} {speed.precision}",
                    "rate": speed.stage and _rate(1 / speed.stage.wall),
                    "how": speed.reason or (None if number else how[name]),
                }


def _rate(images: float) -> str:
    """Format images a second."""
    return f"{images:,.0f}" if images >= 100 else f"{images:.1f}"


def _by(sides: tuple[int, int]) -> str:
    height, width = sides
    return f"{width}×{height}"
