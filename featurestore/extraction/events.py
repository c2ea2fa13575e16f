"""Events of extraction, for a caller to show its progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneLoading:
    """A repair is about to load the backbone of damaged features."""

    model: str


@dataclass(frozen=True)
class ClusterStarting:
    """A cluster of processes is starting on this machine."""

    processes: int


@dataclass(frozen=True)
class ClusterJoined:
    """The extraction runs on a Dask cluster, which has these workers and threads now."""

    workers: int
    threads: int


@dataclass(frozen=True)
class WorkersPreparing:
    """Workers are building a backbone; if ``workers`` is 0, the first that joins builds it."""

    model: str
    workers: int


@dataclass(frozen=True)
class ExtractionStarted:
    """The forward pass is about to start.

    Attributes
    ----------
    model : str
        Name of the backbone.
    layers : tuple of str
        Layer refs that are written.
    rows : int
        Samples that go through the backbone.
    copied : int
        Rows that are copied from other arrays, all layers together.
    derived : int
        Rows that are derived from other layers, all layers together.
    """

    model: str
    layers: tuple[str, ...]
    rows: int
    copied: int = 0
    derived: int = 0


@dataclass(frozen=True)
class RowsComputed:
    """A batch went through the backbone; ``done`` of ``total`` samples so far."""

    done: int
    total: int


@dataclass(frozen=True)
class RowsCopied:
    """Rows were copied from other arrays; ``done`` of ``total`` so far, all layers together."""

    done: int
    total: int


@dataclass(frozen=True)
class RowsDerived:
    """Rows were derived from other layers; ``done`` of ``total`` so far, all layers together."""

    done: int
    total: int


@dataclass(frozen=True)
class Float32Chosen:
    """A layer is stored as float32 from its first row on, with ``dtype="auto"``.

    Attributes
    ----------
    layer : str
        Layer ref.
    reason : str
        What float16 cannot hold.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class Float16Replaced:
    """Float32 features that were requested took the place of the stored float16 ones of a layer.

    Heads fitted on the float16 features stay.
    """

    layer: str


@dataclass(frozen=True)
class Float32Reused:
    """Float16 was requested of a layer, and its stored float32 features are reused."""

    layer: str


@dataclass(frozen=True)
class BatchHalved:
    """Memory ran out: batches of ``before`` images are computed as several of ``after``."""

    before: int
    after: int


@dataclass(frozen=True)
class WaitingForOthers:
    """Another process writes or uses the features of these layer refs, which this one waits for."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class ExtractionFinished:
    """Every block is stored; ``seconds`` is the wall time since the start."""

    rows: int
    seconds: float


ExtractionEvent = (
    BackboneLoading
    | ClusterStarting
    | ClusterJoined
    | WorkersPreparing
    | ExtractionStarted
    | RowsComputed
    | RowsCopied
    | RowsDerived
    | Float32Chosen
    | Float16Replaced
    | Float32Reused
    | BatchHalved
    | WaitingForOthers
    | ExtractionFinished
)
