"""``autolora demo``: what tuning brings, shown on a small model that is built here."""

from __future__ import annotations

import copy
import random
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from autolora.cache.lookup.lookup import Lookup
from autolora.capture.run import run_problems
from autolora.cli.demo_model import TARGETS, Llama, Shape, next_token_loss, sequences
from autolora.cli.output.console import print_json, print_line, print_paragraph
from autolora.cli.output.figures import bar
from autolora.cli.output.progress import progress
from autolora.cli.targets import device_of, torch_dtype
from autolora.cli.tune import in_order, print_records, tuned_json
from autolora.environment import Environment
from autolora.errors import AutoloraError
from autolora.graphs.base import BaseGraph
from autolora.graphs.space import reference_graph
from autolora.nn.adding import add_lora
from autolora.nn.choosing import ask, pin
from autolora.objective import TIME
from autolora.problem import Problem
from autolora.timing.clock import measure_for
from autolora.timing.statistics import paired
from autolora.tuning.tuner import tune_problems
from autolora.units import duration, percent, ratio

BATCH, LENGTH, LEARNING_RATE, WARM_UP = 4, 256, 5e-3, 2

Step = Callable[[Tensor], Tensor]

_SHAPE = Shape()
_BAR = 40
_COLOURS = {"reference": "", "tuned": "green", "no adapters": "dim"}
# Largest difference of the losses of equal trainings, relative to the first loss.
_DRIFT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass(slots=True)
class Run:
    """A training run.

    Args:
        name: which graphs it runs.
        step: one training step on a batch, which returns the loss.
        nanoseconds: of each step after the warm-up.
        losses: of all steps.
    """

    name: str
    step: Step
    nanoseconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    @property
    def median_ns(self) -> float:
        """The median time of a step."""
        return median(self.nanoseconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of the runs.

    Args:
        reference_ns: median time of a step with the reference graphs.
        tuned_ns: the same with the tuned graphs.
        bare_ns: median time of forward and backward without adapters.
        speedup: reference over tuned, the median of pairs of steps.
        noise: its standard error.
        overhead_removed: share of the adapters' time that is saved; None if they take none.
        first_loss: of the reference.
        last_loss: of the reference.
        largest_difference: between the losses of any step.
        equal: whether this is within the rounding of the dtype.
    """

    reference_ns: float
    tuned_ns: float
    bare_ns: float
    speedup: float
    noise: float
    overhead_removed: float | None
    first_loss: float
    last_loss: float
    largest_difference: float
    equal: bool


def run(options: Namespace) -> int:
    """Tunes the model, trains it with both kinds of graphs, and prints the comparison."""
    device = device_of(options.device)
    dtype = torch_dtype(options.dtype) or torch.float32
    if dtype is torch.float16:
        raise AutoloraError("float16 trains with loss scaling only; try the demo with bfloat16")
    if options.rank > _SHAPE.hidden:
        raise AutoloraError(f"rank must be at most {_SHAPE.hidden} for the demo's model")
    torch.manual_seed(0)
    bare = Llama(_SHAPE).to(device, dtype)
    adapted = add_lora(copy.deepcopy(bare), rank=options.rank, target_modules=TARGETS)
    if not options.json:
        print_paragraph(
            f"A Llama of {_SHAPE.layers} layers (hidden {_SHAPE.hidden}, ffn {_SHAPE.ffn}), rank "
            f"{options.rank}, {BATCH} sequences of {LENGTH} tokens a step. First it is tuned, into "
            "a temporary cache."
        )
        print_line()
    with tempfile.TemporaryDirectory(prefix="autolora-demo-") as folder:
        path = Path(folder) / "timings.v1.json"
        found = run_problems(adapted, _batch(0, device)[:, :-1])
        with progress() as on_progress:
            result = tune_problems(
                found.problems, cache=path, device=device, on_progress=on_progress
            )
        if result.interrupted:
            raise KeyboardInterrupt
        if not options.json:
            print_records(in_order(result, found.problems), found)
            print_line()
        runs = _runs(bare, adapted, path, device)
        _train(runs, options.steps, device)
    compared = _compare(*runs, dtype)
    if options.json:
        losses = {run.name: [loss.item() for loss in run.losses] for run in runs[:2]}
        tuning = tuned_json(result, found)
        print_json({"steps": options.steps, **asdict(compared), "losses": losses, "tuning": tuning})
    else:
        _print(compared, runs, options.steps, dtype)
    return 0


def _runs(
    bare: nn.Module, adapted: nn.Module, path: Path, device: torch.device
) -> tuple[Run, Run, Run]:
    """The model with the reference graphs, with the tuned graphs, and without adapters."""
    lookup, environment = Lookup([path]), Environment.of(device)

    def tuned(problem: Problem) -> BaseGraph:
        return ask(lookup, problem, environment, TIME)[0] or reference_graph(problem)

    other = copy.deepcopy(adapted)
    pin(adapted, reference_graph)
    pin(other, tuned)
    bare.requires_grad_(False)
    for name in ("q_proj", "k_proj", "v_proj"):  # gradients flow as far as in the adapted model
        layer = bare.get_submodule(f"blocks.0.{name}")
        layer.register_forward_hook(lambda _, __, y: y.requires_grad_())
    return (
        Run("reference", _step(adapted)),
        Run("tuned", _step(other)),
        Run("no adapters", _step(bare)),
    )


def _step(model: nn.Module) -> Step:
    """A training step; only forward and backward if no parameter is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None

    def step(ids: Tensor) -> Tensor:
        if optimizer:
            optimizer.zero_grad()
        loss = next_token_loss(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer:
            optimizer.step()
        return loss.detach()

    return step


def _train(runs: tuple[Run, ...], steps: int, device: torch.device) -> None:
    """Runs the steps of all runs in turn, in random order; the warm-up steps are not timed."""
    measure, rng = measure_for(device), random.Random(0)
    for number in range(WARM_UP + steps):
        ids = _batch(number, device)
        for run in rng.sample(runs, len(runs)):
            time = measure(lambda run=run, ids=ids: run.losses.append(run.step(ids)))  # type: ignore[misc]
            if number >= WARM_UP:
                run.nanoseconds.append(time)


def _compare(reference: Run, tuned: Run, bare: Run, dtype: torch.dtype) -> Comparison:
    speedup, noise = paired(reference.nanoseconds, tuned.nanoseconds)
    overhead = reference.median_ns - bare.median_ns
    saved = reference.median_ns - tuned.median_ns
    losses = [(a.item(), b.item()) for a, b in zip(reference.losses, tuned.losses, strict=True)]
    largest = max(abs(a - b) for a, b in losses)
    return Comparison(
        reference_ns=reference.median_ns,
        tuned_ns=tuned.median_ns,
        bare_ns=bare.median_ns,
        speedup=speedup,
        noise=noise,
        overhead_removed=saved / overhead if overhead > 0 else None,
        first_loss=losses[0][0],
        last_loss=losses[-1][0],
        largest_difference=largest,
        equal=largest <= _DRIFT[dtype] * losses[0][0],
    )


def _print(compared: Comparison, runs: tuple[Run, ...], steps: int, dtype: torch.dtype) -> None:
    print_line(f"One training step, the median of {steps}, in turn in one process", "bold")
    slowest = max(run.median_ns for run in runs)
    for run in runs:
        filled = bar(run.median_ns / slowest, _BAR)
        print_line(f"  {run.name:<12}{duration(run.median_ns):>8}  {filled}", _COLOURS[run.name])
    print_line()
    print_paragraph(_verdict(compared))
    name = str(dtype).removeprefix("torch.")
    print_paragraph(
        f"Loss {compared.first_loss:.4f} at first and {compared.last_loss:.4f} in the end; the two "
        f"trainings differ by at most {compared.largest_difference:.1e} at any step, "
        + (f"within the rounding of {name}." if compared.equal else f"MORE than {name} explains.")
    )
    print_paragraph("Next: 'autolora tune --help' tells how to tune a model of your own.")


def _verdict(compared: Comparison) -> str:
    """The speed-up as a sentence; less than twice the noise is no difference."""
    if abs(compared.speedup - 1) <= 2 * compared.noise:
        return (
            f"No difference in speed that stands out from the noise: {ratio(compared.speedup)} "
            f"± {2 * compared.noise:.2f}. A machine that is busy with other work often shows that."
        )
    if compared.speedup < 1:
        return f"The tuned graphs are slower here: {ratio(compared.speedup)} the reference's speed."
    text = f"Tuned training is {ratio(compared.speedup)} as fast (± {2 * compared.noise:.2f})"
    if compared.overhead_removed is not None:
        text += f"; {percent(compared.overhead_removed)} of the time that adapters cost is gone"
    return text + "."


def _batch(step: int, device: torch.device) -> Tensor:
    return sequences(step, BATCH, LENGTH, _SHAPE.vocabulary).to(device)
