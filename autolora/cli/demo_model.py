"""The demo's model, a small Llama, and its training data.

Llama's block: RMSNorm, causal attention with rotary positions, RMSNorm, SwiGLU; no biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a :class:`Llama`."""

    hidden: int = 512
    ffn: int = 1376
    layers: int = 4
    heads: int = 8
    vocabulary: int = 128


class Block(nn.Module):
    """Causal self-attention with rotary positions and SwiGLU, each with a norm and a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, hidden, ffn = shape.heads, shape.hidden, shape.ffn
        self.attention_norm, self.ffn_norm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden, hidden, bias=False) for _ in range(4)
        )
        self.gate_proj, self.up_proj = (nn.Linear(hidden, ffn, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X ``(batch, length, hidden)`` → the same shape."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))  # type: ignore[no-any-return]

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X ``(batch, length, hidden)`` → the same shape."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, length, head)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """A decoder with random weights, scaled so that a layer preserves the size of its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self.head_size = shape.hidden // shape.heads
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers ``(batch, length)`` → logits ``(batch, length, vocabulary)``."""
        x = self.embed(ids)
        cos, sin = _positions(ids.shape[1], self.head_size, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.lm_head(self.norm(x))  # type: ignore[no-any-return]


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of next-token prediction, in float32."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def sequences(step: int, batch: int, length: int, vocabulary: int) -> Tensor:
    """The input of a step, ``(batch, length + 1)``.

    A sequence starts at random and continues with ``t → 5·t + 7`` modulo the vocabulary.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = [torch.randint(vocabulary, (batch,), generator=generator)]
    for _ in range(length):
        tokens.append((5 * tokens[-1] + 7) % vocabulary)
    return torch.stack(tokens, dim=1)


def _positions(length: int, head: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = 10000 ** -(torch.arange(0, head, 2, device=like.device) / head)
    angles = torch.outer(torch.arange(length, device=like.device), frequencies)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)  # (length, head / 2) each


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
