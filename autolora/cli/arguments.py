"""Command-line arguments: parsers, types of values, and options that several commands share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from autolora.capture.tokens import MOST, Tokens
from autolora.errors import AutoloraError
from autolora.objective import KINDS, bytes_from
from autolora.problem import DTYPES, QUANTISED

_DTYPES = {name: name for name in DTYPES}
_DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_AGES = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}

T = TypeVar("T")

# ---- parsers


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its texts and reports errors as an ``AutoloraError``.

    Args:
        intermixed: whether options may stand before, between and after positional arguments, of
            which argparse by itself takes only the first run.
        options: argparse's own.
    """

    _parsing = False

    def __init__(self, *, intermixed: bool = False, **options: Any) -> None:
        texts = partial(argparse.RawDescriptionHelpFormatter, max_help_position=26)
        super().__init__(formatter_class=texts, allow_abbrev=False, **options)
        self._intermixed = intermixed

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, or intermixed."""
        if self._parsing or not self._intermixed:  # parse_known_intermixed_args calls this method
            return super().parse_known_args(args, namespace)
        self._parsing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._parsing = False

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the whole usage."""
        raise AutoloraError(f"{message} (see '{self.prog} --help')")


def add_command(
    commands: Any, name: str, usage: str, description: str, epilog: str, **options: Any
) -> Parser:
    """Adds a command, which the module of that name carries out.

    The module is imported when the command runs, since importing torch takes a second.

    Args:
        commands: what ``add_subparsers`` returned.
        name: what is typed after ``autolora``, such as ``"cache merge"``.
        usage: its arguments, for the first line of its help.
        description: what it does.
        epilog: its examples.
        options: of its :class:`Parser`.
    """

    def run(options: argparse.Namespace) -> Any:
        module = import_module(f"autolora.cli.{name.replace(' ', '.')}")
        return module.run(options)

    prog = f"autolora {name}"
    parser: Parser = commands.add_parser(
        name.split()[-1],
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        **options,
    )
    parser.set_defaults(run=run, prog=prog)
    return parser


# ---- types of values


def count(text: str) -> int:
    """An integer from 1 to the largest size of a tensor."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST}, not {text!r}")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a positive number")


def probability(text: str) -> float:
    """A number in [0, 1)."""
    return _number(text, lambda value: 0 <= value < 1, "at least 0 and below 1")


def seconds(text: str) -> float:
    """A duration in seconds, from ``90``, ``60s``, ``5m`` or ``1.5h``."""
    return _time(text, 9, _SECONDS, "a time above 0, such as 90, 60s, 5m or 1h")


def age(text: str) -> float:
    """An age in seconds, from ``12h``, ``90d`` or ``4w``."""
    return _time(text, 5, _AGES, "an age, such as 12h, 90d or 4w")


def dtype(text: str) -> str:
    """The full name of a dtype, from its name or abbreviation."""
    if text not in _DTYPES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(_DTYPES)}, not {text!r}")
    return _DTYPES[text]


def modules(text: str) -> str | list[str]:
    """A list of names, or as it is if it is ``all-linear`` or a regular expression, as in PEFT."""
    if text == "all-linear" or re.search(r"[][*+?(){}|^$\\]", text):
        return text
    return [name.strip() for name in text.split(",")]


def _number(text: str, allowed: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")
    return value


def _time(text: str, digits: int, units: Mapping[str, int], expected: str) -> float:
    pattern = rf"([0-9]{{1,{digits}}}(?:\.[0-9]{{1,9}})?)([a-z]?)"
    match = re.fullmatch(pattern, text.strip().lower())
    value = 0.0 if match is None else float(match[1]) * units.get(match[2], 0)
    if not value:
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")
    return value


def _checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """A type whose errors argparse reports together with the name of the option."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except AutoloraError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("tokens ")) from None

    return converted


tokens = _checked(Tokens.of)
saved_bytes = _checked(bytes_from)

# ---- options; each function adds some to a parser or to a group of one


def add_target(parser: Any) -> None:
    """``TARGET``, and options for its adapters, dtypes and training step."""
    parser.add_argument("target", metavar="TARGET", help=argparse.SUPPRESS)
    adapters = parser.add_argument_group("adapters, for a model that does not bring its own")
    add_count(adapters, "--rank", "of the adapters", metavar="R")
    adapters.add_argument(
        "--alpha", type=positive, metavar="A", help="the scaling is A / R (A = R)"
    )
    adapters.add_argument(
        "--target-modules",
        type=modules,
        default="all-linear",
        metavar="NAMES",
        help="'all-linear' (default), names as q_proj,v_proj, or a regular expression",
    )
    adapters.add_argument(
        "--dropout", type=probability, default=0.0, metavar="P", help="of the adapters' input (0)"
    )
    adapters.add_argument("--dora", action="store_true", help="DoRA instead of LoRA")
    adapters.add_argument("--lora-bias", action="store_true", help="lora_B has a bias")
    adapters.add_argument(
        "--quantised",
        choices=QUANTISED,
        help="the base layers will be bitsandbytes': nf4 or int8",
    )
    dtypes = parser.add_argument_group("dtypes")
    for option, text in (
        ("--dtype", "of the base model (its own)"),
        ("--adapter-dtype", "of A and B (the base's; for a config.json float32, as in PEFT)"),
        ("--compute-dtype", "in which the adapter branch runs (adapter dtype)"),
        ("--autocast", "train under torch.autocast of this dtype (off)"),
    ):
        add_dtype(dtypes, option, text)
    size = parser.add_argument_group("size and place of the training")
    add_count(size, "--batch-size", "sequences per step (4)")
    add_count(size, "--seq-len", "tokens per sequence (512)")
    size.add_argument(
        "--tokens",
        type=tokens,
        default=Tokens(),
        metavar="N,N",
        help="rows that every layer gets, instead of what a run of the model shows; LOW:HIGH is "
        "a few of a range and those where the winner changes, LOW:HIGH:STEP every STEP",
    )
    add_device(size)
    size.add_argument(
        "--compiled", action="store_true", help="the training compiles the model by torch.compile"
    )


def add_count(
    parser: Any, option: str, text: str, default: int | None = None, metavar: str = "N"
) -> None:
    """An option whose value is an integer of at least 1."""
    parser.add_argument(option, type=count, default=default, metavar=metavar, help=text)


def add_dtype(parser: Any, option: str, text: str) -> None:
    """An option whose value is a dtype."""
    parser.add_argument(option, type=dtype, metavar="DTYPE", help=text)


def add_budget(parser: Any, text: str) -> None:
    """``--budget T``."""
    parser.add_argument("--budget", type=seconds, metavar="T", help=text)


def add_cache(parser: Any, text: str) -> None:
    """``--cache FILE``."""
    parser.add_argument("--cache", metavar="FILE", help=text)


def add_device(parser: Any) -> None:
    """``--device D``."""
    text = "cpu, cuda or cuda:N (default: cuda where there is one)"
    parser.add_argument("--device", metavar="D", help=text)


def add_json(parser: Any) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def add_objective(parser: Any, text: str) -> None:
    """``--objective`` and ``--max-saved-bytes``; ``text`` explains the first."""
    parser.add_argument(
        "--objective",
        choices=tuple(reversed(KINDS)),
        help=f"{text}: time (default), memory or accuracy",
    )
    parser.add_argument(
        "--max-saved-bytes",
        type=saved_bytes,
        metavar="N",
        help="limit of what a layer keeps for its backward pass: bytes, or 512K, 20M, 1G",
    )
