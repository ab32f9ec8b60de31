"""Layers of bitsandbytes with random weights, to measure the problems of quantised models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autolora.errors import AutoloraError


def quantised(W: Tensor, b: Tensor | None, layout: str) -> Any:
    """A layer ``(out_features, in_features)`` of bitsandbytes that has run once.

    Args:
        W: its weight, in the dtype that it computes in.
        b: its bias.
        layout: ``"nf4"``, with its constants quantised too as in QLoRA, or ``"int8"``.

    Raises:
        AutoloraError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise AutoloraError(
            f"problems of {layout} layers are measured with bitsandbytes, which is not installed: "
            "pip install 'autolora[quantised]'"
        ) from error
    out_features, in_features = W.shape
    kind: Any = bitsandbytes.nn
    if layout == "nf4":
        layer = kind.Linear4bit(
            in_features, out_features, bias=b is not None, compute_dtype=W.dtype, quant_type="nf4"
        )
        layer.weight = kind.Params4bit(
            W, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
    else:
        layer = kind.Linear8bitLt(
            in_features, out_features, bias=b is not None, has_fp16_weights=False
        )
        layer.weight = kind.Int8Params(W, requires_grad=False, has_fp16_weights=False)
    if b is not None:
        layer.bias.data = b
    layer.requires_grad_(False).to(W.device)
    layer(W[:1])  # settles the dtypes and, for int8, where the weight is kept
    return layer
