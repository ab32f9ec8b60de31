"""Running a layer along its graph.

The first call with a given token count, dtypes and gradient needs chooses the graph and stores the
choice in the :class:`~autolora.nn.layer_state.LayerState` of the layer; later calls find it there.
A call inside code that torch.compile traces is :mod:`autolora.nn.tracing`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autolora.graphs.function import LayerTensors, run
from autolora.graphs.operators import TRACEABLE
from autolora.nn.choosing import decide_and_report, without_graph
from autolora.nn.layer_state import Choice, LayerState
from autolora.nn.layer_tensors import PLAIN
from autolora.nn.statement import problem_of_call


def run_layer(
    state: LayerState, x: Tensor, tensors: LayerTensors, s: float, p: float = 0.0
) -> Tensor | None:
    """Runs the layer along its graph; None if its own ``forward`` has to be used.

    Args:
        state: of the layer.
        x: input ``(..., in_features)``.
        tensors: of the layer.
        s: scaling.
        p: dropout probability; 0 if dropout is not active.
    """
    if torch.compiler.is_compiling():
        if not TRACEABLE:
            return None
        from autolora.nn.tracing import run_layer_traced

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
    given = x.dtype
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
    choice.calls += 1
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
