"""Options that several commands share; each function adds some to a parser or a group of it."""

from __future__ import annotations

import argparse
from typing import Any

from autolora.capture.tokens import Tokens
from autolora.cli import arguments
from autolora.objective import KINDS
from autolora.problem import QUANTISED


def add_target(parser: Any) -> None:
    """A model, its adapters, and the size and place of its training."""
    parser.add_argument("target", metavar="TARGET", help=argparse.SUPPRESS)
    adapters = parser.add_argument_group("adapters, for a model that does not bring its own")
    adapters.add_argument("--rank", type=arguments.count, metavar="R", help="of the adapters")
    adapters.add_argument(
        "--alpha", type=arguments.positive, metavar="A", help="the scaling is A / R (A = R)"
    )
    adapters.add_argument(
        "--target-modules",
        type=arguments.modules,
        default="all-linear",
        metavar="NAMES",
        help="'all-linear' (default), names as q_proj,v_proj, or a regular expression",
    )
    adapters.add_argument(
        "--dropout",
        type=arguments.probability,
        default=0.0,
        metavar="P",
        help="of the adapters' input (0)",
    )
    adapters.add_argument("--dora", action="store_true", help="DoRA instead of LoRA")
    adapters.add_argument("--lora-bias", action="store_true", help="lora_B has a bias")
    adapters.add_argument(
        "--quantised",
        choices=QUANTISED,
        help="the base layers will be bitsandbytes': nf4 or int8",
    )
    dtypes = parser.add_argument_group("dtypes")
    add_dtype(dtypes, "--dtype", "of the base model (its own)")
    add_dtype(
        dtypes,
        "--adapter-dtype",
        "of A and B (the base's; for a config.json float32, as in PEFT)",
    )
    add_dtype(dtypes, "--compute-dtype", "in which the adapter branch runs (adapter dtype)")
    add_dtype(dtypes, "--autocast", "train under torch.autocast of this dtype (off)")
    size = parser.add_argument_group("size and place of the training")
    size.add_argument(
        "--batch-size", type=arguments.count, metavar="N", help="sequences per step (4)"
    )
    size.add_argument(
        "--seq-len", type=arguments.count, metavar="N", help="tokens per sequence (512)"
    )
    size.add_argument(
        "--tokens",
        type=arguments.tokens,
        default=Tokens(),
        metavar="N,N",
        help="rows that every layer gets, instead of what a run of the model shows; LOW:HIGH is "
        "a few of a range and those where the winner changes, LOW:HIGH:STEP every STEP",
    )
    add_device(size)


def add_device(parser: Any) -> None:
    """``--device``."""
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: cuda where there is one)"
    )


def add_dtype(parser: Any, option: str, text: str) -> None:
    """An option whose value is a dtype."""
    parser.add_argument(option, type=arguments.dtype, metavar="DTYPE", help=text)


def add_cache(parser: Any, text: str) -> None:
    """``--cache FILE``."""
    parser.add_argument("--cache", metavar="FILE", help=text)


def add_json(parser: Any) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def add_objective(parser: Any, text: str) -> None:
    """``--objective`` and ``--max-saved-bytes``; ``text`` says what the first is for."""
    parser.add_argument(
        "--objective",
        choices=tuple(reversed(KINDS)),
        help=f"{text}: time (default), memory or accuracy",
    )
    parser.add_argument(
        "--max-saved-bytes",
        type=arguments.saved_bytes,
        metavar="N",
        help="limit of what a layer keeps for its backward pass: bytes, or 512K, 20M, 1G",
    )
