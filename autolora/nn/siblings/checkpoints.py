"""Regions of torch's non-reentrant checkpointing, which run twice and must do the same both times.

Such a region saves nothing in its forward pass and runs again in the backward pass; torch raises an
error if it then saves another number of tensors. Whether siblings run together must therefore not
change in between.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

_FORWARD, _AGAIN = "frame", "target_frame_ref"  # what the hooks of a region refer to

# A torch that does not tell its hooks runs siblings one by one.
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_decided: WeakKeyDictionary[Any, dict[object, bool]] = WeakKeyDictionary()


def as_in_forward(group: object, together: bool) -> tuple[bool, bool]:
    """Whether a group runs together in the region that is running, and whether that runs again.

    In the forward pass, and outside of regions, as given; when the region runs again as it did, so
    not if the layers had not been known as siblings.
    """
    if _top_hooks is None:
        return False, False
    hooks = _top_hooks(False)
    if hooks is None:
        return together, False
    pack = getattr(hooks[0], "_torchdynamo_orig_callable", hooks[0])
    names = getattr(getattr(pack, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(pack, "__closure__", None) or (), strict=False))
    try:
        if _FORWARD in cells:
            frame = cells[_FORWARD].cell_contents
            return _decided.setdefault(frame, {}).setdefault(group, together), False
        if _AGAIN in cells:
            frame = cells[_AGAIN].cell_contents()
            return _decided.get(frame, {}).get(group, False), True
    except (TypeError, ValueError):  # of another torch
        return False, False
    return together, False
