"""Races on a clock that is made up: no test here measures anything."""

import random

import pytest

from autolora.tuning.stopwatch import Pace, cpu_measure, paired, race, spread

PACE = Pace((3, 30), (3, 10), 1e9)


class Machine:
    """A machine on which every function takes a time that is known, plus noise."""

    def __init__(self, truth, *, noise=0.0, drift=0.0, spikes=0.0, seed=0):
        self.truth = truth
        self.noise, self.drift, self.spikes = noise, drift, spikes
        self.rng = random.Random(seed)
        self.calls = []

    @property
    def runs(self):
        return {name: (lambda name=name: name) for name in self.truth}

    def measure(self, run):
        name = run()
        self.calls.append(name)
        time = self.truth[name] * (1 + self.drift * len(self.calls))
        time *= 1 + abs(self.rng.gauss(0, self.noise))
        return time * (5 if self.rng.random() < self.spikes else 1)

    def race(self, **options):
        options = {"baseline": "reference", **options}
        return race(self.runs, self.measure, PACE, random.Random(1), **options)


def test_the_fastest_wins_on_a_quiet_machine():
    machine = Machine({"reference": 100, "a": 90, "b": 80, "c": 120})
    result = machine.race()
    assert result.winner == "b"
    assert result.samples["b"][0] == 80


def test_hopeless_candidates_run_once():
    machine = Machine({"reference": 100, "slow": 900, "fast": 80})
    machine.race()
    assert machine.calls.count("slow") == 1


def test_the_race_ends_when_it_is_decided():
    machine = Machine({"reference": 100, "fast": 80})
    result = machine.race()
    assert len(result.samples["fast"]) == PACE.rounds[0] + PACE.confirmation[0]


def test_a_tie_with_the_baseline_goes_to_the_baseline():
    machine = Machine({"reference": 100, "a": 100, "b": 100}, noise=0.05)
    assert machine.race().winner == "reference"


def test_what_is_observed_cannot_win():
    machine = Machine({"reference": 100, "a": 90, "floor": 10})
    result = machine.race(observed={"floor"})
    assert result.winner == "a"
    assert set(result.confirmed) == {"reference", "a", "floor"}


def test_what_is_kept_is_confirmed_even_when_beaten():
    machine = Machine({"reference": 100, "a": 50, "flops": 500})
    assert "flops" in machine.race(kept={"flops"}).confirmed


def test_the_fastest_of_a_pool_stays_in_the_race_and_is_confirmed():
    machine = Machine({"reference": 100, "fast": 50, "lean": 90, "leaner": 200, "slow": 300})
    result = machine.race(pools=[{"lean", "leaner"}, {"slow"}, {"unknown"}])
    assert result.winner == "fast"
    assert set(result.confirmed) == {"reference", "fast", "lean", "slow"}
    assert len(result.samples["lean"]) == len(result.samples["fast"])
    assert len(result.samples["leaner"]) == 3  # not dropped before, though beaten by far


def test_of_a_pool_only_what_comes_close_can_win():
    for lean, winner in ((51, "lean"), (90, "fast")):
        machine = Machine({"reference": 100, "fast": 50, "second": 50.5, "lean": lean})
        lucky = machine.measure

        def measure(run, lucky=lucky, machine=machine):
            late = machine.calls.count("fast") > PACE.rounds[0]
            return lucky(run) * (0.01 if late and run() == "lean" else 1)

        machine.measure = measure
        assert machine.race(pools=[{"lean"}]).winner == winner


def test_between_is_called_before_every_timing():
    log = []
    machine = Machine({"reference": 100, "a": 90})
    race(
        machine.runs,
        lambda run: log.append("run") or machine.measure(run),
        PACE,
        random.Random(1),
        baseline="reference",
        between=lambda: log.append("between"),
    )
    assert log[0] == "between"  # before the warm-up, which is not timed
    assert log[1::2].count("between") == log[2::2].count("run") == len(log) // 2


def test_time_ends_a_race_that_nothing_decides():
    machine = Machine({"reference": 100, "a": 99, "b": 99}, noise=0.2)
    clock = iter(range(10**6))
    race(
        machine.runs,
        machine.measure,
        Pace((3, 10**6), (3, 10**6), 8),
        random.Random(1),
        baseline="reference",
        clock=lambda: next(clock),
    )
    assert len(machine.calls) < 100


@pytest.mark.parametrize(
    "disturbance",
    [{"noise": 0.03}, {"drift": 1e-3}, {"spikes": 0.05}, {"noise": 0.1, "spikes": 0.1}],
)
def test_noise_does_not_make_it_choose_what_is_slower(disturbance):
    truth = {"reference": 100, "a": 97, "b": 90, "c": 91, "d": 105, "e": 130}
    chosen = [Machine(truth, seed=seed, **disturbance).race().winner for seed in range(100)]
    assert sum(truth[name] <= 100 for name in chosen) == 100
    assert sum(truth[name] <= 90 * 1.02 for name in chosen) >= 90


def test_statistics():
    assert spread([1, 2, 3, 4, 5]) == 2
    assert spread([5, 1]) == 4
    assert spread([7]) == 0
    ratio, noise = paired([2, 4, 6], [1, 2, 3])
    assert (ratio, noise) == (2, 0)
    assert paired([1, 2], [1, 1])[1] > 0


def test_the_cpu_clock_counts_nanoseconds():
    assert cpu_measure(lambda: sum(range(1000))) > 0
