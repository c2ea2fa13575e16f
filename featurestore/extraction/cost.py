"""What the stages of an extraction take, alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """Seconds that a stage takes while no other runs: on the clock, and of all processors."""

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

    The slowest stage decides, unless all together need more of the processors than this process got
    while it measured.

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
    """What one row of a layer takes.

    Attributes
    ----------
    bytes : float
        On disk.
    compress, copy, derive : Stage
        To compress it; to read it from another array; to derive it from another layer.
    """

    bytes: float = 0.0
    compress: Stage = Stage()
    copy: Stage = Stage()
    derive: Stage = Stage()


@dataclass(frozen=True)
class BatchCost:
    """What one row of a plan takes, measured on one batch.

    Attributes
    ----------
    setup : float
        Seconds to prepare and check the compiled model, once.
    decode, forward : Stage
        To read, decode and resize an image; to compute its activations in their stored types.
    layers : mapping of str to LayerCost
        By layer ref.
    too_wide : mapping of str to str
        What float16 cannot hold, by the ref of a layer whose stored type is "auto".
    """

    setup: float
    decode: Stage
    forward: Stage
    layers: Mapping[str, LayerCost]
    too_wide: Mapping[str, str] = field(default_factory=dict)
