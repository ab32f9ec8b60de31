"""Running a model's code without the numbers of its weights: floats have a shape alone.

What is computed from known numbers stays known: positions, masks, counts. Integers and booleans
that depend on unknown floats are drawn at random, since they decide where data go: a mixture then
sends about as many tokens to each expert. Nothing large is allocated, and every device is the CPU.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

_MOST = 2**24  # elements of a tensor whose numbers are kept
_ORDERS = ("topk", "sort", "argsort", "argmax", "argmin", "max", "min", "multinomial")
_CPU = torch.device("cpu")
_NEEDS_NUMBERS = (DynamicOutputShapeException, DataDependentOutputException)
_aten = torch.ops.aten


class _Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Torch's fake tensors, but those of floats keep known numbers up to :data:`_MOST` elements."""

    def may_turn_const(self, t: Tensor) -> bool:
        return type(t) is Tensor and t.numel() <= _MOST and not t.is_meta


class Fakes(TorchDispatchMode):
    """While it is entered, computes with shapes where the numbers are not known.

    Floats are fake tensors, with or without numbers; integers are real tensors.
    """

    drawn: bool
    """Whether a number was drawn that would depend on data: another run may differ."""
    rows: int
    """The most rows of a sort or a search for maxima, such as the tokens of a router."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn, self.rows = False, 0
        self._shapes = _Shapes()

    def as_fake(self, tensor: Tensor) -> Tensor:
        """The tensor that replaces one from outside.

        Floats lose their numbers, unless there is only one; integers on the meta device are ones.
        """
        if isinstance(tensor, FakeTensor):
            return tensor
        if _countable(tensor) and _fits(tensor):
            return torch.ones_like(tensor, device=_CPU) if tensor.is_meta else tensor.to(_CPU)
        if tensor.numel() == 1 and not tensor.is_meta:
            return self._known(tensor.to(_CPU))
        return self._shape(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("lift", "lift_fresh", "lift_fresh_copy"):
            return self._known(args[0])  # of torch.tensor([...])
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = _CPU
        given, form = tree_flatten((args, kwargs))
        given = [self.as_fake(each) if isinstance(each, Tensor) else each for each in given]
        if all(each.constant is not None for each in given if isinstance(each, FakeTensor)):
            shapes = None if _is_small(given) else self._sized(func, given, form)
            if not all(map(_fits, tree_leaves(shapes))):
                return shapes
            return self._computed(func, given, form)
        try:
            shapes = self._run(func, given, form)
        except _NEEDS_NUMBERS as error:
            args, kwargs = tree_unflatten(given, form)
            return self._without_numbers(func, args, kwargs, error)
        return self._numbered(shapes, func, given, form)

    def _known(self, tensor: Tensor) -> Tensor:
        """A tensor that keeps its numbers."""
        if _countable(tensor) or isinstance(tensor, FakeTensor):
            return tensor
        with self._shapes:
            kept: Tensor = _aten.lift_fresh(tensor)
            return kept

    def _shape(self, tensor: Tensor) -> Tensor:
        """A fake tensor without numbers."""
        with self._shapes:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    def _run(self, func: Any, given: list[Any], form: Any) -> Any:
        """Runs an operation on shapes alone."""
        if func.overloadpacket.__name__ == "_grouped_mm":  # torch says its shape for bfloat16 only
            x, weights = given[:2]
            return x.new_empty((*x.shape[:-1], weights.shape[-1]))
        given = [self._shape(each) if _is_real(each) else each for each in given]
        args, kwargs = tree_unflatten(given, form)
        with self._shapes:
            return func(*args, **kwargs)

    def _sized(self, func: Any, given: list[Any], form: Any) -> Any:
        """The shapes of an operation's results, None if they depend on numbers."""
        try:
            return self._run(
                func,
                [self._shape(each) if isinstance(each, Tensor) else each for each in given],
                form,
            )
        except _NEEDS_NUMBERS:
            return None

    def _computed(self, func: Any, given: list[Any], form: Any) -> Any:
        """Runs an operation whose inputs are all known."""
        if any(isinstance(each, FakeTensor) for each in given):
            with self._shapes:
                given = [_aten.lift_fresh(each) if _is_real(each) else each for each in given]
            outcome = self._numbered(self._run(func, given, form), func, given, form)
        else:
            args, kwargs = tree_unflatten(given, form)
            outcome = tree_map_only(Tensor, self._known, func(*args, **kwargs))
        if "empty" in func.overloadpacket.__name__ and isinstance(outcome, FakeTensor):
            outcome.constant = None  # uninitialised memory
        return outcome

    def _numbered(self, shapes: Any, func: Any, given: list[Any], form: Any) -> Any:
        """The results of an operation on fake tensors, with integers that are known or drawn."""
        args, kwargs = tree_unflatten(given, form)
        return tree_map_only(FakeTensor, lambda y: self._numbers(y, func, args, kwargs), shapes)

    def _numbers(self, shape: FakeTensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        if not _countable(shape) or not _fits(shape):
            return shape
        if shape.constant is not None:
            return shape.constant
        name = func.overloadpacket.__name__
        if name in _ORDERS and shape.dtype == torch.int64 and shape.numel():
            return self._order(shape, _bound(func, args, kwargs))
        if name in ("eq", "ne"):  # random floats are never equal, but equal themselves
            return torch.full(shape.shape, (args[0] is args[1]) == (name == "eq"))
        if name in ("isnan", "isinf"):
            return torch.full(shape.shape, False)
        return self._draw(shape)

    def _order(self, shape: Tensor, given: dict[str, Any]) -> Tensor:
        """Random indices on the axis of a sort or search, all distinct if that is possible.

        Args:
            shape: of the indices.
            given: the arguments of the operation.
        """
        self.drawn = True
        x, axis = given["self"], given.get("dim", -1)
        if axis is None:
            x, axis = x.flatten(), 0
        places = x.shape[axis] if x.dim() else 1
        self.rows = max(self.rows, x.numel() // places)
        each = shape.numel() * places // x.numel()
        if each == 1 or each > places or x.numel() > _MOST:
            return torch.randint(places, shape.shape)
        return torch.rand(x.shape).argsort(axis).narrow(axis, 0, each).reshape(shape.shape)

    def _draw(self, shape: Tensor) -> Tensor:
        self.drawn = True
        return torch.randint(2, shape.shape).to(shape.dtype)

    def _without_numbers(self, func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
        """The result of an operation that depends on unknown numbers, or raises the error."""
        operation = func.overloadpacket
        if operation is _aten.equal:
            return False
        if operation is _aten._local_scalar_dense:
            self.drawn = True
            return torch.rand(()).to(args[0].dtype).item()
        if operation is _aten.nonzero and args[0].numel() <= _MOST:
            return self._draw(args[0].new_empty(args[0].shape, dtype=torch.bool)).nonzero()
        if operation is _aten.index:
            return self._run(func, *tree_flatten(((args[0], _places(args[1])), kwargs)))
        if operation is _aten.masked_select:
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
            chosen = (args[0].expand(shape), _places([args[1].expand(shape)]))
            return self._run(_aten.index.Tensor, *tree_flatten((chosen, {})))
        raise error


class _Attention(TorchFunctionMode):
    """Computes the shapes of attention without mask and softmax.

    Where a torch has no fused kernel, such as 2.6 for grouped heads on the CPU, it would build a
    causal mask in every layer and ask which of its rows are empty.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _attention(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> Tensor:
    if enable_gqa:  # one head of the keys and values broadcasts to all of the queries
        key, value = key[..., :1, :, :], value[..., :1, :, :]
    scores = query @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.requires_grad:
        scores = scores + attn_mask
    return scores @ value


@contextmanager
def running(mode: Fakes, seed: int) -> Iterator[None]:
    """Enters a mode with a seed; the states of the generators are restored afterwards."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it also logs what it raises
    silent = log.disabled
    log.disabled = True
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # which models draw from
    try:
        with torch.random.fork_rng(devices=[]), mode, _Attention():
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        log.disabled = silent


def shapes_only(value: Any) -> Any:
    """Any value with its fake tensors replaced by tensors on the meta device."""
    return tree_map_only(
        FakeTensor,
        lambda fake: torch.empty_strided(
            fake.shape, fake.stride(), dtype=fake.dtype, device="meta"
        ),
        value,
    )


def _countable(tensor: Tensor) -> bool:
    """Whether the elements are integers or booleans."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, FakeTensor)


def _fits(outcome: Any) -> bool:
    """Whether a result is small enough to keep its numbers."""
    return not isinstance(outcome, Tensor) or outcome.numel() <= _MOST


def _is_small(given: Sequence[Any]) -> bool:
    """Whether no result can be large: the product of all sizes and integers bounds it."""
    sizes = (each.numel() if isinstance(each, Tensor) else each for each in given)
    return math.prod(abs(size) for size in sizes if type(size) is int and size) <= _MOST


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an operation by name."""
    wanted = func._schema.arguments
    defaults = {each.name: each.default_value for each in wanted if each.has_default_value()}
    return {**defaults, **dict(zip((each.name for each in wanted), args, strict=False)), **kwargs}


def _places(indices: Any) -> list[Tensor | None]:
    """Indices with masks replaced by the indices of their true elements."""
    found: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        found += index.nonzero().unbind(1) if masks else (index,)
    return found
