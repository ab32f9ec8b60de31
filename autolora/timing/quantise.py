"""Quantised layers of bitsandbytes, to measure the problems of quantised models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autolora.errors import AutoloraError


def quantised(W: Tensor, b: Tensor | None, layout: str) -> Any:
    """A quantised layer that has run once.

    Args:
        W: weight ``(out_features, in_features)`` in the dtype of the computation.
        b: bias ``(out_features,)``.
        layout: ``"nf4"``, with quantised constants as in QLoRA, or ``"int8"``.

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
    sizes, bias = (W.shape[1], W.shape[0]), b is not None
    kind: Any = bitsandbytes.nn
    if layout == "nf4":
        layer = kind.Linear4bit(*sizes, bias=bias, compute_dtype=W.dtype, quant_type="nf4")
        layer.weight = kind.Params4bit(
            W, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
    else:
        layer = kind.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
        layer.weight = kind.Int8Params(W, requires_grad=False, has_fp16_weights=False)
    if b is not None:
        layer.bias.data = b
    layer.requires_grad_(False).to(W.device)
    layer(W[:1])  # sets the dtypes and, for int8, the attribute that has the weight
    return layer
