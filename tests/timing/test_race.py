"""Races on a clock that is made up: no test here measures anything."""

import random

import pytest

from autolora.timing.effort import EFFORTS
from autolora.timing.race import Pace, race
from autolora.timing.statistics import compare, instability, paired, spread, typical

PACE = Pace((3, 30), (3, 10), 1e9)


class Machine:
    """A machine on which every function takes a time that is known, made longer by noise.

    Args:
        truth: the times by name.
        noise: σ of a normal noise, its absolute value, as a share of the time.
        drift: by which share calls get slower from one to the next.
        spikes: how often a call takes five times as long.
        modes: how often a call is slow, and how many times as long it takes then.
        states: how often the machine changes between fast and slow, and how many times as long.
    """

    def __init__(
        self, truth, *, noise=0.0, drift=0.0, spikes=0.0, modes=(0, 1), states=(0, 1), seed=0
    ):
        self.truth = truth
        self.noise, self.drift, self.spikes = noise, drift, spikes
        self.modes, self.states = modes, states
        self.rng = random.Random(seed)
        self.calls = []
        self.spent = 0.0
        self.slow = False

    @property
    def runs(self):
        return {name: (lambda name=name: name) for name in self.truth}

    def measure(self, run):
        name = run()
        self.calls.append(name)
        time = self.truth[name] * (1 + self.drift * len(self.calls))
        time *= 1 + abs(self.rng.gauss(0, self.noise))
        time *= 5 if self.rng.random() < self.spikes else 1
        time *= self.modes[1] if self.rng.random() < self.modes[0] else 1
        self.slow ^= self.rng.random() < self.states[0]
        time *= self.states[1] if self.slow else 1
        self.spent += time
        return time

    def at_effort(self, effort, step_ms, seconds=None):
        """A race as the tuner has it, where a time of 100 is a step of ``step_ms``."""
        pace = EFFORTS[effort].pace_for(step_ms * 1e6, seconds)
        return self.race(pace=pace, clock=lambda: self.spent * step_ms / 1e5)

    def race(self, **options):
        options = {"baseline": "reference", "pace": PACE, "clock": lambda: 0.0, **options}
        pace = options.pop("pace")
        return race(self.runs, self.measure, pace, random.Random(1), **options)


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
            late = machine.calls.count("fast") > 8  # which the first two take to be even
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
    assert len(machine.calls) < 200


DISTURBANCES = {
    "noise": {"noise": 0.03},
    "much noise": {"noise": 0.10},
    "drift": {"drift": 1e-3},
    "drift and noise": {"drift": 2e-3, "noise": 0.03},
    "spikes": {"spikes": 0.10, "noise": 0.03},
    "two modes": {"modes": (0.5, 1.3), "noise": 0.01},
    "a slower second mode": {"modes": (0.3, 1.5), "noise": 0.01},
    "two states": {"states": (0.05, 1.4), "noise": 0.01},
    "two states that change often": {"states": (0.3, 1.4), "noise": 0.01},
    "all": {"noise": 0.02, "drift": 5e-4, "spikes": 0.05, "modes": (0.3, 1.2)},
}
MANY = {"a": 97, "b": 90, "c": 91, "d": 105, "e": 130, "f": 93, "g": 92.5, "h": 90.5}
FEW = {"a": 80, "b": 84, "c": 81, "d": 83, "e": 150, "f": 95}
NONE = {"a": 100.5, "b": 102, "c": 104}  # is faster than the reference


@pytest.mark.parametrize(
    ("disturbance", "rivals"),
    [
        *((name, FEW) for name in DISTURBANCES),
        *((name, NONE) for name in DISTURBANCES if "noise" in name or "two" in name),
        ("all", MANY),
    ],
)
def test_whatever_disturbs_the_machine_the_winner_is_nearly_the_fastest(disturbance, rivals):
    truth = {"reference": 100, **rivals}
    chosen = [
        truth[Machine(truth, seed=seed, **DISTURBANCES[disturbance]).at_effort("normal", 1).winner]
        for seed in range(100)
    ]
    assert max(chosen) <= 100  # never slower than the reference
    assert sum(time <= 1.02 * min(truth.values()) for time in chosen) >= 99


def test_a_machine_too_noisy_to_tell_is_said_to_be():
    truth = {"reference": 100, **MANY}
    wild = {"noise": 0.5, "spikes": 0.2, "modes": (0.5, 1.5)}
    results = [Machine(truth, seed=seed, **wild).race() for seed in range(20)]
    assert sum(result.undecided for result in results) >= 18
    assert all(result.within > 0.02 for result in results if result.undecided)
    quiet = [Machine(truth, seed=seed, noise=0.005).race() for seed in range(20)]
    assert not any(result.undecided for result in quiet)


CLOSE = {"a": 88, "b": 88.5, "c": 89, "d": 90, "e": 91, "f": 92, "g": 93, "h": 95, "i": 97}


@pytest.mark.parametrize(
    ("step_ms", "noise", "seconds", "undecided"),
    [
        (170, 0.03, None, 1),
        (170, 0.07, 80, 1),
        (8, 0.03, None, 1),
        (8, 0.07, 10, 1),
        (0.3, 0.01, None, 0),
        (0.3, 0.02, None, 0),
    ],
)
def test_slow_steps_and_tiny_ones_are_decided(step_ms, noise, seconds, undecided):
    """The same noise takes as many rounds whatever a step takes: the seconds follow."""
    truth, results, lost = {"reference": 100, **CLOSE}, [], []
    for seed in range(20):
        machine = Machine(truth, seed=seed, noise=noise, drift=1e-5, states=(0.01, 1.05))
        results.append(machine.at_effort("normal", step_ms, seconds))
        lost.append(truth[results[-1].winner] / min(truth.values()) - 1)
    assert sum(result.undecided for result in results) <= undecided
    assert sum(share > 0.01 for share in lost) <= 1
    assert all(
        result.undecided or share <= 0.02 for result, share in zip(results, lost, strict=True)
    )


def test_what_cannot_win_gets_no_more_rounds():
    machine = Machine({"reference": 100, "a": 80, "b": 80.8, "c": 86, "d": 88}, noise=0.03)
    heats = machine.at_effort("normal", 1).heats
    assert len(heats["d"]) < len(heats["a"])


def test_a_race_that_nothing_decides_uses_the_seconds_it_is_given():
    for seconds in (5, 20):
        machine = Machine({"reference": 100, "a": 99, "b": 99}, noise=0.5)
        result = machine.at_effort("normal", 30, seconds)
        assert seconds <= machine.spent * 30 / 1e5 < seconds + 3
        assert result.undecided
        assert result.within > 0.02


def test_a_pace_that_is_over_leaves_the_least_rounds():
    machine = Machine({"reference": 100, "a": 90, "b": 91}, noise=0.2)
    ticks = iter(range(10**6))
    result = machine.race(pace=Pace((2, 99), (2, 99), 1e-9), clock=lambda: next(ticks))
    assert len(result.samples["reference"]) == 4
    assert result.undecided


def test_statistics():
    assert spread([1, 2, 3, 4, 5]) == 2
    assert spread([5, 1]) == 4
    assert spread([7]) == 0
    assert typical([1, 2, 3, 4, 5]) == 2
    ratio, noise = paired([2, 4, 6], [1, 2, 3])
    assert (ratio, noise) == (2, 0)
    assert paired([1, 2], [1, 1])[1] > 0
    assert paired([3], [2]) == (1.5, 0)
    assert instability([[1, 2], [1, 2]]) == 2


def test_a_comparison_is_not_touched_by_drift():
    drift = [1 + number / 10 for number in range(20)]
    ratio, noise = compare([0.9 * time for time in drift], drift)
    assert ratio == pytest.approx(0.9)
    assert noise == pytest.approx(0, abs=1e-9)


def test_a_comparison_is_not_touched_by_slow_calls():
    rng = random.Random(0)
    slow = [[rng.choice([1, 1, 5]) for _ in range(40)] for _ in range(2)]
    ratio, noise = compare([0.9 * time for time in slow[0]], slow[1])
    assert ratio == pytest.approx(0.9)
    assert noise < 0.01


def test_the_error_of_a_comparison_is_about_right():
    rng = random.Random(0)
    found = [
        compare(*([1 + rng.gauss(0, 0.05) for _ in range(30)] for _ in range(2)))
        for _ in range(200)
    ]
    within = sum(abs(ratio - 1) <= 2 * noise for ratio, noise in found)
    assert 0.85 * 200 <= within <= 200
    assert compare([1.0], [2.0]) == (0.5, 1.0)  # one round tells nothing of its error
