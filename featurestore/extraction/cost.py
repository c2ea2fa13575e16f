"""The time of the stages of an extraction, alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """Seconds of a stage that runs alone: on the clock, and summed over all processors."""

    wall: float = 0.0
    processor: float = 0.0

    def __mul__(self, factor: float) -> Stage:
        return Stage(self.wall * factor, self.processor * factor)

    @classmethod
    def sum(cls, stages: Iterable[Stage]) -> Stage:
        """Return the time of stages that run one after the other."""
        pairs = [(stage.wall, stage.processor) for stage in stages]
        return cls(*map(sum, zip(*pairs, strict=True))) if pairs else cls()


def overlapped(stages: Iterable[Stage]) -> float:
    """Return the seconds of stages that run at the same time.

    They take as long as the slowest one, unless all together need more processor time than this
    process was given while it measured.

    Examples
    --------
    >>> overlapped([Stage(1, 2), Stage(4, 8)])  # both use two processors
    5.0
    >>> overlapped([Stage(1, 2), Stage(4, 0)])  # the second runs on a GPU
    4
    """
    stages = [stage for stage in stages if stage.wall > 0]
    processors = max((stage.processor / stage.wall for stage in stages), default=0.0)
    together = Stage.sum(stages).processor / processors if processors else 0.0
    return max(together, *(stage.wall for stage in stages), 0)


@dataclass(frozen=True)
class LayerCost:
    """The cost of one row of a layer.

    Attributes
    ----------
    bytes : float
        On disk.
    compress, copy, derive : Stage
        Time to compress it, to read it from another array, to derive it from another layer.
    """

    bytes: float = 0.0
    compress: Stage = Stage()
    copy: Stage = Stage()
    derive: Stage = Stage()


@dataclass(frozen=True)
class BatchCost:
    """The cost of one row of a plan, measured on one batch.

    Attributes
    ----------
    setup : float
        Seconds to prepare and check the compiled model.
    decode, forward : Stage
        Time to read, decode and resize an image, and to compute its activations in stored types.
    layers : mapping of str to LayerCost
        By layer ref.
    too_wide : mapping of str to str
        What float16 cannot hold, by layer ref.
    """

    setup: float
    decode: Stage
    forward: Stage
    layers: Mapping[str, LayerCost]
    too_wide: Mapping[str, str] = field(default_factory=dict)
