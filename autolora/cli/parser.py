"""The commands and their options; the module of a command is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from autolora.cache.records.precedence import EFFORTS
from autolora.cli import arguments
from autolora.cli.arguments import Parser, add_command, add_count
from autolora.cli.cache.parser import add_cache
from autolora.errors import AutoloraError
from autolora.version import __version__

MANY = 10_000  # problems that are not measured without a yes

_DESCRIPTION = """\
Train LoRA models faster. A LoRA layer can be computed along many graphs that
give the same result; autolora times them on the device that will train the
model and keeps the winners in a cache, which the layers read while training.

commands:
  tune     measure a model's LoRA layers, keep the winners in the cache
  run      run a training script with its PEFT models accelerated
  show     show what the cache holds
  explain  say which graph each layer of a model would run, and why
  check    time winners of the cache again, say which no longer win
  report   make a page of what was measured, with plots
  cache    path, merge, validate, diff, prune, export: work on cache files
  demo     tune and train a small built-in model, and compare
"""
_FIRST_STEPS = """\
first steps:
  autolora demo
  autolora tune model.py --rank 8 --batch-size 4 --seq-len 512
  autolora tune path/to/config.json --rank 16 --dtype bfloat16 --tokens 2048
  autolora show

'autolora COMMAND --help' tells more about each.
"""
_NAMES = "tune, run, show, explain, check, report, cache, demo"
_WITH_TARGET = ("tune", "explain")
_TARGET = """\
TARGET is one of
  model.py:NAME   NAME is an nn.Module, or a class or function that makes one
                  without arguments
  model.py        the same, called model or build_model, or the only one there
  package.module  as model.py, with :NAME or without; it is imported, with the
                  current folder first on the path
  config.json     of a Hugging Face model, or its folder; weights are not needed
A file or module is imported: what trains in it belongs under
  if __name__ == "__main__":
A model file or module finds the ARGUMENTS after -- in sys.argv, and no others.
The model's code is run to see how many tokens reach each layer, without its
numbers: no memory, little time. A model of transformers gets inputs made from
its configuration. Another one gets what example_inputs(batch_size, seq_len),
a function beside it, returns: a tensor, or a tuple or dict of arguments.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; ``run(options)`` of the result carries out the command.

    Raises:
        AutoloraError: the arguments are invalid.
    """
    parser = _parser()
    own = tuple(argv)
    to_code: tuple[str, ...] = ()
    if argv and argv[0] in _WITH_TARGET and "--" in argv:
        end = own.index("--")
        own, to_code = own[:end], own[end + 1 :]
    given = argparse.Namespace(argv=own, arguments=to_code, prog=parser.prog)
    options, unknown = parser.parse_known_args(own, given)
    if unknown:
        raise AutoloraError(
            f"unrecognized arguments: {' '.join(unknown)} (see '{options.prog} --help')"
        )
    if not hasattr(options, "run"):
        parser.error(f"no command given; one of {_NAMES}")
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="autolora",
        usage="autolora COMMAND [options]",
        description=_DESCRIPTION,
        epilog=_FIRST_STEPS,
    )
    parser.add_argument("--version", action="version", version=f"autolora {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, parser_class=Parser)
    _add_tune(commands)
    _add_run(commands)
    _add_show(commands)
    _add_explain(commands)
    _add_check(commands)
    _add_report(commands)
    add_cache(commands)
    _add_demo(commands)
    return parser


def _add_tune(commands: Any) -> None:
    tune = add_command(
        commands,
        "tune",
        "TARGET [options] [-- ARGUMENTS]",
        "Finds the problems that a model's LoRA layers pose in training, times the\n"
        "graphs that solve each, and writes the winners to the timing cache.\n\n" + _TARGET,
        "examples:\n"
        "  autolora tune model.py:build_model --rank 8 --batch-size 4 --seq-len 512\n"
        "  autolora tune Llama-3-8B/config.json --rank 16 --tokens 512:8192 --budget 5m\n"
        "  autolora tune model.py --rank 8 --objective memory\n"
        "  autolora tune package.module:Model --rank 8 -- --size small\n",
    )
    arguments.add_target(tune)
    measuring = tune.add_argument_group("measuring")
    measuring.add_argument(
        "--effort",
        choices=EFFORTS,
        default="normal",
        help="how hard to measure: quick, normal (default) or thorough; estimate times nothing "
        "and writes nothing, and says what would run unmeasured",
    )
    arguments.add_budget(
        measuring, "for the whole run: 90, 60s, 5m, 1h; most for the layers that take most time"
    )
    arguments.add_objective(measuring, "what to find graphs for")
    measuring.add_argument(
        "--compile-mode",
        metavar="MODE",
        help="measure the layers --compiled in this mode of torch.compile (default)",
    )
    arguments.add_cache(measuring, "file to write (default: 'autolora cache path')")
    measuring.add_argument(
        "--force",
        action="store_true",
        help="measure also what is in the cache; the better record stays",
    )
    measuring.add_argument(
        "--yes", action="store_true", help=f"measure even more than {MANY:,} problems"
    )
    arguments.add_json(tune)


def _add_run(commands: Any) -> None:
    run = add_command(
        commands,
        "run",
        "[options] SCRIPT [arguments of the script]",
        "Runs a training script as 'python SCRIPT' would, with every PEFT model that it\n"
        "makes accelerated. Nothing is installed: the script by itself runs as before.\n"
        "At the end a paragraph on stderr says what ran on measured graphs.",
        "examples:\n"
        "  autolora run train.py --epochs 3\n"
        "  autolora run --tune --budget 2m train.py\n"
        "  autolora run -m package.train --epochs 3\n"
        "  torchrun --nproc-per-node 8 -m autolora run train.py\n",
    )
    run.add_argument("script", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        metavar="MODULE",
        help="run a module, as 'python -m MODULE' would; what follows is its own",
    )
    arguments.add_dtype(run, "--compute-dtype", "in which the adapter branch runs (as in PEFT)")
    arguments.add_objective(run, "what graphs are chosen for")
    run.add_argument(
        "--tune",
        action="store_true",
        help="record the first steps of the training, measure what the cache lacks, and go on",
    )
    arguments.add_budget(run, "for --tune: 90, 60s (default), 5m, 1h")
    run.add_argument(
        "--report", action="store_true", help="say at the end which graph each layer ran, and why"
    )
    run.add_argument(
        "--report-json", metavar="FILE", help="write that there, for 'autolora report --results'"
    )


def _add_show(commands: Any) -> None:
    show = add_command(
        commands,
        "show",
        "[options]",
        "Shows the records of the timing cache, by the machine they were measured on.",
        "examples:\n  autolora show\n  autolora show --cache cluster.json --verbose\n",
    )
    arguments.add_cache(show, "file to show (default: every file of the search path)")
    more = show.add_mutually_exclusive_group()
    more.add_argument(
        "-v", "--verbose", action="store_true", help="show every candidate with its figures"
    )
    more.add_argument(
        "--crossovers",
        action="store_true",
        help="show for each layer shape which graph runs from how many to how many tokens",
    )
    arguments.add_objective(show, "show what layers would run for this")
    arguments.add_json(show)


def _add_explain(commands: Any) -> None:
    explain = add_command(
        commands,
        "explain",
        "TARGET [options] [-- ARGUMENTS]",
        "Says for each LoRA layer of a model which graph it would run in training,\n"
        "and whether that was measured, interpolated or not tuned at all.\n\n" + _TARGET,
        "example:\n  autolora explain model.py --rank 8 --batch-size 4 --seq-len 512\n",
    )
    arguments.add_target(explain)
    arguments.add_objective(explain, "what graphs are wanted for")
    arguments.add_cache(explain, "file to ask (default: every file of the search path)")
    arguments.add_json(explain)


def _add_check(commands: Any) -> None:
    check = add_command(
        commands,
        "check",
        "[options]",
        "Times a sample of the timing cache again on this machine: the winner of each\n"
        "record, the reference graph and the winner's closest rivals. Says which winners\n"
        "no longer win, and by how much. Records of other machines are left alone.\n\n"
        "Exit code: 0 if the winners still win, 1 if one is slower than another graph by\n"
        "more than 5 % or no longer valid (with --fix too), 2 if one cannot be timed.",
        "examples:\n"
        "  autolora check\n"
        "  autolora check --cache cluster.json --sample 100 --budget 5m --fix\n",
    )
    add_count(
        check, "--sample", "how many records to check, of problems as different as may be (20)", 20
    )
    add_count(check, "--seed", "draws the sample (1)", 1)
    arguments.add_budget(check, "begin to check no further record after so long: 90, 60s, 5m, 1h")
    check.add_argument(
        "--fix",
        action="store_true",
        help="tune what has drifted anew, as hard as before, and replace its records",
    )
    arguments.add_cache(check, "file to check (default: every file of the search path)")
    arguments.add_device(check)
    arguments.add_json(check)


def _add_report(commands: Any) -> None:
    report = add_command(
        commands,
        "report",
        "[FILE...] [options]",
        "Makes one HTML page of what was measured: layers before and after, every problem\n"
        "with its candidates, the token counts where the winner changes, machines side by\n"
        "side. FILE is as for 'autolora cache merge', every file of the search path if none.",
        "examples:\n"
        "  autolora report\n"
        "  autolora report team.json --against last-week.json -o team.html\n"
        "  autolora explain model.py --rank 8 --json > model.json\n"
        "  autolora report --results model.json --plots figures\n",
        intermixed=True,
    )
    report.add_argument("files", nargs="*", metavar="FILE", help=argparse.SUPPRESS)
    report.add_argument(
        "-o", "--output", default="report.html", metavar="OUT", help="file to write (report.html)"
    )
    report.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSON of a tool, of explain, or of run --report-json: show that as well",
    )
    report.add_argument("--against", metavar="FILE", help="show what has changed since this cache")
    report.add_argument(
        "--plots", metavar="FOLDER", help="write plots there, as SVG and PNG (needs matplotlib)"
    )


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        "[options]",
        "Builds a small Llama-style model (hidden 512, ffn 1376, 4 layers), tunes it into\n"
        "a temporary cache, then trains two copies of it in turn, one along the reference\n"
        "graphs (what PEFT runs) and one along the tuned graphs, and compares step times\n"
        "and losses. Takes about a minute; needs neither PEFT nor transformers.",
        "example:\n  autolora demo --dtype bfloat16 --rank 32\n",
    )
    add_count(demo, "--steps", "training steps to compare (10)", 10)
    add_count(demo, "--rank", "of the adapters (8)", 8, metavar="R")
    arguments.add_dtype(demo, "--dtype", "of the model (float32)")
    arguments.add_device(demo)
    arguments.add_json(demo)
