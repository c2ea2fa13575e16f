from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InputError
from featurestore.extraction.budget import Wanted, bytes_of, choose

POOL = Wanted("pool", 900, 10.0)
AVERAGE = Wanted("pool:avg", 10, 10.0, {"pool": 0.2})
TOP = Wanted("top", 500, 11.0, {"pool": 1.0})


@pytest.mark.parametrize(
    ("text", "count"),
    [("20GB", 20 * 10**9), ("500MB", 500 * 10**6), ("1.5GiB", 3 * 2**29), ("7 kB", 7000), (5, 5)],
)
def test_sizes(text, count):
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "x", "-5GB", "0", 0, -3, True, None, "20 apples", [1]])
def test_what_is_no_size_is_refused_in_a_line(text):
    with pytest.raises(InputError, match="expected a size such as 20GB") as caught:
        bytes_of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "stored"),
    [
        (1410, ["pool", "pool:avg", "top"]),  # all of it fits
        (1409, ["pool", "top"]),  # pool:avg costs less later than top
        (1399, ["pool", "pool:avg"]),
        (900, ["pool"]),
        (899, ["pool:avg", "top"]),
        (10, ["pool:avg"]),
    ],
)
def test_what_a_budget_stores(budget, stored):
    decided = choose([POOL, AVERAGE, TOP], budget)
    assert [each.ref for each in decided if each.store] == stored


def test_reasons():
    decided = choose([POOL, AVERAGE, TOP], 900)
    assert [each.why for each in decided] == [
        "stored; pool:avg and top are derived from it",
        "from pool at 2% of a full pass",
        "from pool at 9% of a full pass",
    ]
    assert [each.source for each in decided] == [None, "pool", "pool"]
    (pool, *_) = choose([POOL, AVERAGE, TOP], 600)
    assert (pool.source, pool.share) == (None, 1.0)
    assert pool.why == "by a pass of the images"


def test_what_is_kept_of_a_layer_counts_and_is_not_stored_again():
    pool = Wanted("pool", 900, 10.0, kept=300)
    (decided, top) = choose([pool, TOP], 899)
    assert (decided.store, top.store) == (False, True)
    assert decided.why == "by a pass of the images; 300 B of it stay"
    assert choose([pool, TOP], 1400)[0].store
    with pytest.raises(InputError, match="at least 800 B, for top"):
        choose([pool, TOP], 799)


def test_three_are_named_as_in_a_sentence():
    small = [Wanted(name, 500, 9.0, {"pool": 1.0}) for name in "abc"]
    assert choose([POOL, *small], 900)[0].why == "stored; a, b and c are derived from it"


def test_what_is_stored_stays_and_counts():
    held = Wanted("top", 500, 11.0, {"pool": 1.0}, stored=True)
    assert [each.store for each in choose([POOL, AVERAGE, held], 1000)] == [False, True, True]
    # Over the budget already: nothing is removed, and nothing more is stored.
    decided = choose([POOL, AVERAGE, held], 400)
    assert [each.store for each in decided] == [False, False, True]
    assert decided[2].why == "stored already"


def test_a_budget_too_small_names_the_smallest_that_is_not():
    with pytest.raises(InputError) as caught:
        choose([Wanted("pool", 24_345_678, 1.0), Wanted("top", 99_000_001, 1.0)], 5_000_000)
    assert str(caught.value) == (
        "a budget of 5.0 MB stores none of the layers; expected at least 24.4 MB, for pool"
    )
    expected = bytes_of("24.4 MB")
    assert any(each.store for each in choose([Wanted("pool", 24_345_678, 1.0)], expected))


seconds = st.integers(0, 100).map(float)


@st.composite
def layers(draw, least=1, most=6):
    """Layers, of which each may be derived from those before it."""
    count = draw(st.integers(least, most))
    found = []
    for number in range(count):
        names = [each.ref for each in found if draw(st.booleans())]
        sources = {name: draw(seconds) for name in names}
        held = draw(st.integers(0, 9)) == 0
        size = draw(st.integers(1, 100))
        found.append(Wanted(f"l{number}", size, draw(seconds), sources, held))
    return found


def later(wanted, stored):
    return sum(
        min([one.seconds, *(s for ref, s in one.sources.items() if ref in stored)])
        for one in wanted
        if one.ref not in stored
    )


@given(layers(), st.integers(1, 400))
def test_no_other_choice_within_the_budget_saves_more(wanted, budget):
    held = {each.ref for each in wanted if each.stored}
    sizes = {each.ref: each.bytes for each in wanted}
    fitting = [
        set(more) | held
        for count in range(len(wanted) + 1)
        for more in combinations([ref for ref in sizes if ref not in held], count)
        if not more or sum(sizes[ref] for ref in (*more, *held)) <= budget
    ]
    try:
        decided = choose(wanted, budget)
    except InputError:
        assert fitting == [set()]
        return
    stored = {each.ref for each in decided if each.store}
    assert stored in fitting
    assert later(wanted, stored) == min(later(wanted, each) for each in fitting)
    if sum(sizes.values()) <= budget:
        assert stored == set(sizes)


@given(layers(13, 20), st.integers(100, 2000))
def test_many_layers_keep_within_the_budget(wanted, budget):
    decided = choose(wanted, budget)
    stored = {each.ref for each in decided if each.store}
    held = {each.ref for each in wanted if each.stored}
    assert held <= stored
    assert stored == held or sum(each.bytes for each in decided if each.store) <= budget
    fits = budget >= sum(each.bytes for each in wanted)
    assert not fits or len(stored) == len(wanted)
