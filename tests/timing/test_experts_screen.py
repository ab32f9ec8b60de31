"""Whole steps of the graphs of experts correct what isolation predicts."""

import random
from dataclasses import dataclass

import pytest

from autolora.graphs.experts.space import products, structures, uniform
from autolora.problem import Experts
from autolora.timing.experts.whole import timed_whole
from autolora.timing.screen import Prediction

PROBLEM = Experts(32, 48, 64, 4, 2, 4, "float32", "cpu")


@dataclass
class Steps:
    """Steps along graphs that take a stated time, and how often each was timed."""

    seconds: dict

    def __post_init__(self):
        self.timed = []

    def step(self, graph):
        """A step along a graph, which is timed by what it is."""
        return lambda: graph

    def clear(self):
        """Nothing is kept."""

    def measure(self, run):
        """The stated time of a step."""
        graph = run()
        self.timed.append(graph)
        taken = self.seconds(graph)
        if isinstance(taken, Exception):
            raise taken
        return taken


def graph_with(structure, *executors):
    return uniform(structure, PROBLEM, *executors)


def neighbours(graph):
    """Graphs with one looped product run by bmm instead, or the other way round."""
    for name, executor in graph.executors:
        other = "bmm" if executor == "loop" else "loop"
        changed = type(graph).of(graph.graph, {**dict(graph.executors), name: other})
        yield Prediction(changed, 100.0)


def test_whole_steps_overrule_the_times_of_their_products():
    structure = structures(PROBLEM)[0]
    one, two = graph_with(structure, "loop", "loop"), graph_with(structure, "bmm", "bmm")
    steps = Steps(lambda graph: 50.0 if graph == two else 200.0)
    predictions = [Prediction(one, 100.0), Prediction(two, 110.0)]
    found = timed_whole(predictions, lambda graph: [], steps, steps.measure, random.Random(0))
    assert [(each.graph, each.nanoseconds) for each in found] == [(two, 50.0), (one, 200.0)]


def test_executors_are_exchanged_while_that_makes_a_step_faster():
    structure = structures(PROBLEM)[0]
    start = graph_with(structure, "loop", "loop")
    wanted = list(products(structure, PROBLEM))[:2]

    def seconds(graph):
        right = sum((executor == "bmm") == (name in wanted) for name, executor in graph.executors)
        return 1000.0 - 10 * right

    steps = Steps(seconds)
    found = timed_whole(
        [Prediction(start, 100.0)], neighbours, steps, steps.measure, random.Random(0)
    )
    best = dict(found[0].graph.executors)
    assert {name for name, executor in best.items() if executor == "bmm"} == set(wanted)


def test_what_is_not_timed_whole_is_scaled_and_what_does_not_fit_is_left_out():
    first, second, *others = (
        Prediction(graph_with(structure, "loop", "loop"), 1e9 + number)
        for number, structure in enumerate(structures(PROBLEM))
    )
    assert len(others) > 6
    steps = Steps(lambda graph: MemoryError() if graph == second.graph else 3e9)
    found = timed_whole(
        [first, second, *others], lambda graph: [], steps, steps.measure, random.Random(0)
    )
    assert second.graph not in {each.graph for each in found}
    untimed = [each for each in found if each.graph not in steps.timed]
    assert untimed
    assert all(each.nanoseconds == pytest.approx(3e9, rel=1e-6) for each in untimed)


def test_without_predictions_nothing_is_timed():
    steps = Steps(lambda graph: 1.0)
    assert timed_whole([], lambda graph: [], steps, steps.measure, random.Random(0)) == []
    assert steps.timed == []
