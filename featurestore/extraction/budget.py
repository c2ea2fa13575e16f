"""Which of the requested layers a budget stores, and how to get the others later."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from featurestore.errors import InputError
from featurestore.table import Grid, size

# Every subset of so many layers is tried; of more, the best layer is added again and again.
MOST_TRIED = 12


@dataclass(frozen=True)
class Wanted:
    """A requested layer, and the cost of storing it or of getting it later.

    Attributes
    ----------
    ref : str
    bytes : int
        Of its features on disk.
    seconds : float
        To compute it from the images.
    sources : mapping of str to float
        Seconds to derive it instead, by the ref of the asked layer that it is derived from.
    stored : bool
        Whether the store has it already: it stays, and counts.
    kept : int
        Bytes of those of its arrays that the store has, where others are not stored: they stay.
    """

    ref: str
    bytes: int
    seconds: float
    sources: Mapping[str, float] = field(default_factory=dict)
    stored: bool = False
    kept: int = 0

    @property
    def more(self) -> int:
        """Bytes that storing it adds."""
        return 0 if self.stored else self.bytes - self.kept

    def best(self, stored: Collection[str]) -> tuple[float, str | None]:
        """Return the seconds of the cheapest way to get it later, and the source of that way."""
        if self.ref in stored:
            return 0.0, None
        ways = [(seconds, ref) for ref, seconds in self.sources.items() if ref in stored]
        return min([*ways, (self.seconds, None)], key=lambda way: way[0])


@dataclass(frozen=True)
class Decision:
    """The decision on a requested layer.

    Attributes
    ----------
    ref : str
    store : bool
        Whether to store it now.
    bytes : int
        Of its features on disk, estimated.
    source : str or None
        Of a layer that is not stored: the layer that it is derived from when asked; None is the
        images.
    share : float
        Of a layer that is not stored: the time that takes, as a share of a full pass from the
        images.
    why : str
        What its features are for, or how to get it later, in one line.
    """

    ref: str
    store: bool
    bytes: int
    source: str | None
    share: float
    why: str


def bytes_of(budget: Any) -> int:
    """Return a number of bytes that may be written with a unit.

    Raises
    ------
    InputError
        If it is not a positive size.

    Examples
    --------
    >>> bytes_of("20GB"), bytes_of("1.5 GiB"), bytes_of(500)
    (20000000000, 1610612736, 500)
    """
    try:
        found = 0 if isinstance(budget, bool) else TypeAdapter(ByteSize).validate_python(budget)
    except ValidationError:
        found = 0
    if found <= 0:
        raise InputError(f"the budget is {budget!r}; expected a size such as 20GB, 500MB or 1.5GiB")
    return int(found)


# From a choice to what is least for the best one.
Rank = Callable[[Sequence[Wanted]], tuple[float, int, int]]


def budget_dict(decisions: Sequence[Decision]) -> dict[str, Any] | None:
    """Return decisions as JSON values by layer ref; None without a budget."""
    rows = {each.ref: asdict(each) for each in decisions}
    return {ref: {k: v for k, v in row.items() if k != "ref"} for ref, row in rows.items()} or None


def budget_grid(decisions: Sequence[Decision]) -> Grid:
    """Show what a budget stores, and how to get the other layers later."""
    rows = [
        {
            "layer": each.ref,
            "size": size(each.bytes),
            "budget": f"{'' if each.store else 'later: '}{each.why}",
        }
        for each in decisions
    ]
    return Grid(rows, ["layer", "size", "budget"], {"size": "on disk"})


def choose(wanted: Sequence[Wanted], budget: int) -> tuple[Decision, ...]:
    """Choose the layers whose features fit into a budget and save the most time later.

    Of choices that save the same, the one that stores more layers is taken, then the smaller.
    What is stored already stays.

    Parameters
    ----------
    wanted : sequence of Wanted
    budget : int
        Bytes for all asked layers together, those included that are stored already.

    Raises
    ------
    InputError
        If no layer fits.

    Examples
    --------
    >>> pool = Wanted("pool", 900, 10.0)
    >>> top = Wanted("top", 500, 11.0, {"pool": 1.0})
    >>> [(each.ref, each.why) for each in choose([pool, top], 1000)]
    [('pool', 'stored; top is derived from it'), ('top', 'from pool at 9% of a full pass')]
    """
    free = [each for each in wanted if not each.stored]
    held = [each for each in wanted if each.stored]
    left = budget - sum(each.bytes - each.more for each in wanted)
    if free and not held and left < min(each.more for each in free):
        least = min(free, key=lambda each: each.more)
        raise InputError(
            f"a budget of {size(budget)} stores none of the layers; expected at least "
            f"{_rounded_up(budget - left + least.more)}, for {least.ref}"
        )

    def rank(chosen: Sequence[Wanted]) -> tuple[float, int, int]:
        stored = {each.ref for each in (*held, *chosen)}
        seconds = math.fsum(each.best(stored)[0] for each in wanted)
        return seconds, -len(chosen), sum(each.more for each in chosen)

    ways = _subsets(free) if len(free) <= MOST_TRIED else _greedy(free, left, rank)
    fitting = (each for each in ways if sum(one.more for one in each) <= left)
    chosen = min(fitting, key=rank, default=())
    stored = {each.ref for each in (*held, *chosen)}
    return tuple(_decided(each, wanted, stored) for each in wanted)


def _subsets(free: Sequence[Wanted]) -> Iterator[tuple[Wanted, ...]]:
    for count in range(len(free) + 1):
        yield from combinations(free, count)


def _greedy(free: Sequence[Wanted], left: int, rank: Rank) -> Iterator[tuple[Wanted, ...]]:
    """Yield each layer alone, then ever more: the next saves the most time for its bytes."""
    yield from ((each,) for each in free)
    chosen: tuple[Wanted, ...] = ()
    while True:
        yield chosen
        room = left - sum(each.more for each in chosen)
        rest = [each for each in free if each not in chosen and each.more <= room]
        if not rest:
            return
        now, more = rank(chosen)[0], [(*chosen, each) for each in rest]
        chosen = max(more, key=lambda each: (now - rank(each)[0]) / max(1, each[-1].more))


def _decided(wanted: Wanted, every: Sequence[Wanted], stored: Collection[str]) -> Decision:
    if wanted.ref in stored:
        others = [each.ref for each in every if each.best(stored)[1] == wanted.ref]
        why = "stored already" if wanted.stored else "stored"
        if others:
            named = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
            why += f"; {named} {'is' if len(others) == 1 else 'are'} derived from it"
        return Decision(wanted.ref, True, wanted.bytes, None, 0.0, why)
    seconds, source = wanted.best(stored)
    share = 1.0 if source is None else seconds / max(wanted.seconds, seconds, 1e-12)
    why = f"from {source} at {share:.0%} of a full pass" if source else "by a pass of the images"
    if wanted.kept:
        why += f"; {size(wanted.kept)} of it stay"
    return Decision(wanted.ref, False, wanted.bytes, source, share, why)


def _rounded_up(count: int) -> str:
    """Write a size as `size` does, but never smaller than it is."""
    step = 1000 ** max(0, int(math.log(max(count, 1), 1000))) // 10 or 1
    return size(-(-count // step) * step)
