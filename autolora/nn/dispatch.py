"""Running a layer along its graph.

The first call with a given token count, dtypes and gradient needs chooses the graph and stores the
choice in the :class:`~autolora.nn.layer_state.LayerState` of the layer; later calls find it there.
A call inside code that torch.compile traces is :mod:`autolora.nn.tracing`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.graphs.function import LayerTensors, run
from autolora.graphs.operators import TRACEABLE
from autolora.nn.choosing import decide_and_report, without_graph
from autolora.nn.layer_state import UNDECIDED, Choice, LayerState
from autolora.nn.layer_tensors import PLAIN
from autolora.nn.siblings.family import decide_group, note_input
from autolora.nn.siblings.running import run_group
from autolora.nn.statement import problem_of_call

_AGAIN = 64  # calls after which siblings that run one by one are looked at again


def run_layer(
    state: LayerState,
    x: Tensor,
    tensors: LayerTensors,
    s: float,
    p: float = 0.0,
    module: Any = None,
) -> Tensor | None:
    """Runs the layer along its graph; None if its own ``forward`` has to be used.

    Args:
        state: of the layer.
        x: input ``(..., in_features)``.
        tensors: of the layer.
        s: scaling.
        p: dropout probability; 0 if dropout is not active.
        module: the layer, if it may run together with its siblings.
    """
    if torch.compiler.is_compiling():
        from autolora.nn.tracing import leave_traced, run_layer_traced

        if not TRACEABLE:
            leave_traced(state, tensors)
            return None
        return run_layer_traced(state, x, tensors, s, p)
    W, b, A, B, c, M = tensors
    kind = "cpu" if x.is_cpu else "cuda"
    if (
        type(x) not in PLAIN
        or not (x.is_cpu or x.is_cuda)
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
        or (p and not x.is_contiguous())  # the mask is drawn in memory order
    ):
        return None
    given, origin = x.dtype, x
    if quantised := type(W) not in PLAIN:  # it ignores autocast and computes in its own dtype
        own = getattr(W, "compute_dtype", None)
        x = x if own is None else x.to(own)
    autocast = torch.is_autocast_enabled(kind)
    key = (
        x.numel(),
        x.dim() > 1,
        x.dtype,
        x.requires_grad,
        torch.is_grad_enabled(),
        torch.get_autocast_dtype(kind) if autocast else None,
        b.dtype if quantised and b is not None else quantised or W.dtype,
        quantised or W.requires_grad,
        A.shape[0],
        A.dtype,
        A.requires_grad,
        B.requires_grad,
        c is not None and c.requires_grad,
        M is not None and M.requires_grad,
        p > 0,
        x.device,
    )
    choice = state.choices.get(key)
    if choice is None:
        choice = _choose(state, x, tensors, p)
        state.remember(key, choice)
        group = choice.group = None if state.family is None else UNDECIDED
        if group is None and module is not None and choice.problem and choice.problem.gradients:
            note_input(state, module, origin)  # from the next call on they run together
    else:
        group = choice.group
    if group is not None:
        Y = _run_grouped(choice, state, origin, x, tensors, s)
        if Y is not None:
            return Y.to(given) if quantised else Y
    choice.calls += 1
    if choice.alone and not choice.calls % _AGAIN:
        choice.group = UNDECIDED  # what kept the siblings apart may be over
    if choice.executable is None:
        return None
    if not autocast:
        Y = run(choice.executable, x, tensors, s, p)
        return Y.to(given) if quantised else Y
    # The graph casts explicitly; autocast would change some of its dtypes.
    if not quantised:
        given = torch.get_autocast_dtype(kind)
        x, W, b = x.to(given), W.to(given), None if b is None else b.to(given)
    torch.set_autocast_enabled(kind, False)
    try:
        return run(choice.executable, x, (W, b, A, B, c, M), s, p).to(given)
    finally:
        torch.set_autocast_enabled(kind, True)


def _run_grouped(
    choice: Choice, state: LayerState, origin: Tensor, x: Tensor, tensors: LayerTensors, s: float
) -> Tensor | None:
    """Y by the graph of the layer and its siblings; None if the layer runs by itself.

    Args:
        choice: for this call.
        state: of the layer.
        origin: its input.
        x: its input, in the dtype that a quantised layer computes in.
        tensors: of the layer.
        s: scaling.
    """
    if choice.group is UNDECIDED:
        choice.group = decide_group(state, choice, x)
    if choice.group is None:
        return None
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    if not autocast:
        return run_group(choice.group, state, origin, tensors, s, x.dtype)
    plain = isinstance(tensors[0], Tensor)
    dtype = torch.get_autocast_dtype(kind) if plain else x.dtype
    torch.set_autocast_enabled(kind, False)
    try:
        return run_group(choice.group, state, origin, tensors, s, dtype)
    finally:
        torch.set_autocast_enabled(kind, True)


def left(state: LayerState, reason: str) -> None:
    """Counts a call in which the layer uses its own ``forward``, for :func:`~autolora.explain`."""
    key = ("left", reason)
    choice = state.choices.get(key)
    if choice is None:
        choice = without_graph(reason)
        state.remember(key, choice)
    choice.calls += 1


def _choose(state: LayerState, x: Tensor, tensors: LayerTensors, p: float) -> Choice:
    problem = problem_of_call(x, tensors, p, state.policy.compute_dtype)
    if isinstance(problem, str):
        return without_graph(problem)
    return decide_and_report(problem, x.device, state.policy)
