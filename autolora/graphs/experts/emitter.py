"""The lines of one pass of a graph of experts: loops over slices of the rows, and whole calls.

Generated code adds no dispatch to the torch calls. What a loop makes for the rest of its body alone
lives as long as one turn of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from autolora.graphs.contraction import Contraction, axes_of
from autolora.graphs.experts.graph import (
    GROUPED,
    LOOPS,
    ONEDNN,
    TURNED,
    ExpertsGraph,
    is_ragged,
)
from autolora.graphs.tensors import NARROW
from autolora.problem import Experts

_RESULTS = ("Y", "dX", "dA", "dB")


@dataclass(slots=True)
class _Loop:
    """A loop that is being written.

    Args:
        local: the tensors that are made and read in it alone.
        body: its lines.
        sliced: the tensors whose part of one expert has a name there.
    """

    local: frozenset[str]
    body: list[str] = field(default_factory=list)
    sliced: set[str] = field(default_factory=set)


class Emitter:
    """Writes the lines of one pass.

    Args:
        problem: of the experts; its sizes do not matter.
        graph: names the executor of each product.
        like: a tensor of the dtype and device of those that are made.
    """

    def __init__(self, problem: Experts, graph: ExpertsGraph, like: str) -> None:
        self.problem, self.graph, self.like = problem, graph, like
        self.lines: list[str] = []
        self.padded: set[str] = set()

    def emit(self, steps: Sequence[Contraction], kept: Collection[str]) -> list[str]:
        """The lines of some steps.

        Args:
            steps: of a pass.
            kept: tensors that are needed after it, beside the results.
        """
        wanted = {*kept, *_RESULTS}
        runs = _runs(steps, self.graph)
        for n, run in enumerate(runs):
            later = [each for other in runs[n + 1 :] for each in other]
            if self.graph.executor_of(run[0]) not in LOOPS:
                for step in run:
                    self._whole(step)
                continue
            made = {step.out for step in run}
            read = {name for step in later for name in step.reads}
            self._loop(run, frozenset(made - wanted - read))
        return self.lines

    def _loop(self, steps: Sequence[Contraction], local: frozenset[str]) -> None:
        loop = _Loop(local)
        made: set[str] = set()
        for step in steps:
            if step.out not in local and step.onto != step.out and step.out not in made:
                self.lines.append(self._allocate(step))
            made.add(step.out)
            self._turn(step, loop)
        self.lines.append("for e, begin, end in routing.spans:")
        self.lines += [f"    {line}" for line in loop.body]

    def _allocate(self, step: Contraction) -> str:
        """The line that makes room for a result: matrices of experts without rows are zero."""
        axes = axes_of(step.out)
        if is_ragged(step.out):
            return f"{step.out} = {self.like}.new_empty((len(routing.ids), {axes[1]}))"
        rows, columns = reversed(axes) if self._stored_turned(step) else axes
        made = f"{self.like}.new_zeros((routing.experts, {rows}, {columns}))"
        return f"{step.out} = {made}{'.transpose(1, 2)' * self._stored_turned(step)}"

    def _turn(self, step: Contraction, loop: _Loop) -> None:
        """Adds the line of a step for one expert to the body of a loop."""
        executor = self.graph.executor_of(step)
        (first, first_t), (second, second_t) = step.operands
        a, b = self._of_one(first, loop), self._of_one(second, loop)
        turned = executor == TURNED or self._stored_turned(step)
        onto = "" if step.onto == "b" and not self.problem.bias else step.onto
        added = self._of_one(onto, loop) if onto and onto != step.out else ""
        scale = ", alpha=s" if step.scaled else ""
        local = step.out in loop.local
        end = ".t()" * turned
        if executor == ONEDNN:
            narrow = self.problem.dtype in NARROW
            wide = ".float()" * narrow
            fused = onto == "b" and not step.scaled
            left, rows = f"{a}{'.t()' * first_t}{wide}", f"{b}{'.t()' * (not second_t)}{wide}"
            product = f"onednn({left}, {rows}{f', {added}{wide}' * fused})"
            product += ".mul_(s)" * step.scaled + f".to(torch.{self.problem.dtype})" * narrow
            if added and not fused:
                product = f"torch.add({added}, {product})"
            if onto == step.out:
                loop.body.append(f"{self._of_one(step.out, loop)}.add_({product})")
                return
            if local:
                loop.body.append(f"{step.out}_e = {product}")
            else:
                loop.body.append(f"{self._of_one(step.out, loop)}.copy_({product})")
            loop.sliced.add(step.out)
            return
        left, right = f"{a}{'.t()' * first_t}", f"{b}{'.t()' * second_t}"
        if turned:
            left, right = f"{b}{'.t()' * (not second_t)}", f"{a}{'.t()' * (not first_t)}"
        if onto == step.out:
            into = f"{self._of_one(step.out, loop)}{end}"
            loop.body.append(f"{into}.addmm_({left}, {right}{scale})")
            return
        if added:
            call = f"torch.addmm({added}{end}, {left}, {right}{scale}"
        elif scale:
            call = f"torch.addmm({self._zero(a)}, {left}, {right}, beta=0{scale}"
        else:
            call = f"torch.mm({left}, {right}"
        if local:
            loop.sliced.add(step.out)
            loop.body.append(f"{step.out}_e = {call}){end}")
        else:
            loop.body.append(f"{call}, out={self._of_one(step.out, loop)}{end})")

    def _of_one(self, name: str, loop: _Loop) -> str:
        """The variable that holds the part of a tensor that belongs to the expert of a turn."""
        if name not in loop.sliced:
            loop.sliced.add(name)
            part = "begin:end" if name != "b" and is_ragged(name) else "e"
            loop.body.append(f"{name}_e = {name}[{part}]")
        return f"{name}_e"

    def _whole(self, step: Contraction) -> None:
        """Adds the lines of a step for all experts at once."""
        executor = self.graph.executor_of(step)
        (first, first_t), (second, second_t) = step.operands
        onto = "" if step.onto == "b" and not self.problem.bias else step.onto
        if "m" not in step.axes:
            self._batched(step)
            return
        if executor == GROUPED:
            product = (
                f"grouped_mm({first}{'.t()' * first_t}, "
                f"{second}{'.transpose(1, 2)' * (second_t and not is_ragged(second))}, routing)"
            )
        else:
            left = self._padded(first)
            if is_ragged(second):
                product = f"bmm_sums({left}, {self._padded(second)}, routing)"
            else:
                right = second + ".transpose(1, 2)" * second_t
                product = f"bmm_rows({left}, {right}, routing)"
        scale = ", alpha=s" if step.scaled else ""
        if onto == step.out:
            self.padded.discard(step.out)
            self.lines.append(f"{onto} = {onto}.add_({product}{scale})")
            return
        product += ".mul_(s)" * step.scaled
        if onto == "b":
            product = f"onto_slices({product}, b, routing)"
        self.lines.append(f"{step.out} = {product}")

    def _batched(self, step: Contraction) -> None:
        """Adds the line of a product of two stacks of matrices."""
        (first, first_t), (second, second_t) = step.operands
        turned = self._stored_turned(step)
        if turned:
            first, second, first_t, second_t = second, first, not second_t, not first_t
        left = first + ".transpose(1, 2)" * first_t
        right = second + ".transpose(1, 2)" * second_t
        end = ".transpose(1, 2)" * turned
        scale = ", alpha=s" if step.scaled else ""
        if step.onto:
            text = f"torch.baddbmm({step.onto}{end}, {left}, {right}{scale}){end}"
        else:
            text = f"torch.bmm({left}, {right})" + ".mul_(s)" * step.scaled + end
        self.lines.append(f"{step.out} = {text}")

    def _padded(self, name: str) -> str:
        """The variable of the padded rows of a tensor."""
        if name not in self.padded:
            self.padded.add(name)
            self.lines.append(f"{name}_p = padded({name}, routing)")
        return f"{name}_p"

    def _stored_turned(self, step: Contraction) -> bool:
        """Whether the result is stored like a weight ``(experts, in_features, out_features)``."""
        return step.out == "V" and self.problem.layout == "conv1d"

    def _zero(self, like: str) -> str:
        """What a scaled product is added to, times zero, since torch.mm takes no factor."""
        cpu = self.problem.device == "cpu"
        return f"zero_{self.problem.dtype}" if cpu else f"{like}.new_empty(())"


def _runs(steps: Sequence[Contraction], graph: ExpertsGraph) -> list[list[Contraction]]:
    """The steps, neighbours that share a loop together."""
    runs: list[list[Contraction]] = []
    before = ""
    for step in steps:
        executor = graph.executor_of(step)
        if runs and executor in LOOPS and before in LOOPS:
            runs[-1].append(step)
        else:
            runs.append([step])
        before = executor
    return runs
