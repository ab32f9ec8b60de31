"""Layers whose token counts vary with the data, and the counts to tune for them."""

import doctest
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolora.cache.lookup.lookup import NEAR
from autolora.capture import varying as module
from autolora.capture.varying import MANY, Varying, counts_around, note_of, thinned, varying_layers
from autolora.problem import Problem

WIDE = Problem(8, 16, 1, 2, "float32", "cpu")
NARROW = Problem(16, 8, 1, 2, "float32", "cpu", gradients=("A", "B"))
SIZES = {"gate": (8, 16), "experts.0.up": (8, 16), "experts.1.up": (8, 16), "down": (16, 8)}


@pytest.mark.parametrize(
    ("least", "most", "limit", "counts"),
    [
        (10, 20, None, [4, 8, 16, 32, 64]),
        (1, 1, None, [1, 2]),
        (16, 16, None, [8, 16, 32]),
        (10, 20, 30, [4, 8, 16, 30]),
        (10, 20, 15, [4, 8, 16, 20]),  # a limit that is no limit
        (10, 20, 100, [4, 8, 16, 32, 64]),
    ],
)
def test_counts_around_those_seen(least, most, limit, counts):
    assert counts_around(least, most, limit) == tuple(counts)


counts_lists = st.lists(st.integers(1, 5000), min_size=1, max_size=30, unique=True)


@given(counts_lists, counts_lists)
def test_thinning_keeps_the_range_and_all_uses(wide, narrow):
    uses = {WIDE.at(count): count for count in wide} | {NARROW.at(count): 1 for count in narrow}
    thin = thinned(uses)
    for problem, counts in ((WIDE, wide), (NARROW, narrow)):
        kept = {each.tokens: number for each, number in thin.items() if each.at(1) == problem}
        assert sum(kept.values()) == sum(uses[problem.at(count)] for count in counts)
        assert (min(kept), max(kept)) == (min(counts), max(counts))
        if len(counts) <= MANY:
            assert kept == {count: uses[problem.at(count)] for count in counts}
        else:
            assert all(high <= NEAR * low for low, high in pairwise(sorted(kept)))


def test_calls_count_for_the_nearest_count():
    uses = Counter({WIDE.at(count): 1 for count in (4, 5, 7, 9, 10, 11, 12, 13, 14)})
    assert thinned(uses) == {WIDE.at(4): 2, WIDE.at(8): 3, WIDE.at(14): 4}


def test_layers_whose_paths_differ_in_numbers_vary_together():
    first = [("gate", WIDE.at(9)), ("experts.0.up", WIDE.at(4)), ("down", NARROW.at(9))]
    again = [("gate", WIDE.at(9)), ("experts.0.up", WIDE.at(6)), ("down", NARROW.at(9))]
    found = varying_layers((first, again), SIZES, 9)
    assert found == dict.fromkeys(
        ("experts.0.up", "experts.1.up"), Varying(4, 6, (2, 4, 8, 9), (WIDE,))
    )
    assert found["experts.0.up"].instead_of(WIDE.at(5)) == found["experts.0.up"].problems
    assert found["experts.0.up"].instead_of(NARROW) == [NARROW]


def test_the_range_is_that_of_all_layers_of_one_size():
    sizes = {"a.x": (8, 16), "b.y": (8, 16), "c.z": (16, 8)}
    runs = [
        [("a.x", WIDE.at(low)), ("b.y", WIDE.at(10 * low)), ("c.z", NARROW.at(low))]
        for low in (4, 5)
    ]
    found = varying_layers(runs, sizes)
    assert [(each.least, each.most) for each in found.values()] == [(4, 50), (4, 50), (4, 5)]


@pytest.mark.parametrize(
    "again",
    [
        [("experts.0.up", WIDE.at(4))],  # the same
        [("experts.1.up", WIDE.at(4))],  # another layer, with as many tokens
        [],  # none, as a layer that is left out by chance
    ],
)
def test_layers_that_do_not_vary(again):
    assert varying_layers(([("experts.0.up", WIDE.at(4))], again), SIZES) == {}


def test_the_note():
    assert note_of({}, [("gate", WIDE)]) == []
    layers = [("gate", WIDE.at(99)), ("up", WIDE.at(8)), ("up", WIDE.at(4))]
    assert note_of({"up": (5, 7)}, layers) == [
        "1 layer gets as many tokens as the data send it, here 5 to 7: tuned for 4, 8"
    ]
    assert (
        "2 layers get as many tokens as the data send them, here 3 to 7"
        in note_of({"up": (5, 7), "down": (3, 4)}, layers)[0]
    )


def test_the_examples_in_the_code():
    found = doctest.testmod(module)
    assert (found.attempted, found.failed) == (1, 0)
