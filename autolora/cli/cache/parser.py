"""The commands of ``autolora cache`` and their options."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from autolora.cli import arguments
from autolora.cli.arguments import Parser, add_command, add_json

_VERBS = """\
  path      say which files are read and written, and what they hold
  merge     join files: of each problem and environment the better record
  validate  check files: layout, graphs, times that cannot be
  diff      say in which records two files differ
  prune     remove the records of other environments, or old ones
  export    take the records of one environment out of a file
"""
_FILES = """\
FILE is a cache file, a folder (its *.json files that are caches), a pattern
such as 'node-*.json', or - for standard input.
"""
_NAMES = "path, merge, validate, diff, prune, export"


def add_cache(commands: Any) -> None:
    """Adds ``cache`` and its commands."""
    prog = "autolora cache"
    parser = commands.add_parser(
        "cache",
        prog=prog,
        usage=f"{prog} VERB [options]",
        description="Works on timing caches: the files that 'autolora tune' writes and layers "
        f"read.\n\nverbs:\n{_VERBS}",
        epilog="examples:\n"
        "  autolora cache path\n"
        "  autolora cache merge node-*.json -o team.json\n\n"
        "'autolora cache VERB --help' tells more about each.\n",
    )
    parser.set_defaults(run=lambda _: parser.error(f"no verb given; one of {_NAMES}"))
    verbs = parser.add_subparsers(
        metavar="VERB", help=argparse.SUPPRESS, parser_class=partial(Parser, intermixed=True)
    )
    for add in (_add_path, _add_merge, _add_validate, _add_diff, _add_prune, _add_export):
        add(verbs)


def _add_path(verbs: Any) -> None:
    path = add_command(
        verbs,
        "cache path",
        "[--write | --json]",
        "Says which files are read, in order: for each whether it is there, how many\n"
        "records it holds, how many of them are of this machine and its libraries, and\n"
        "how many of the same device under others. The first is the one that 'autolora\n"
        "tune' writes: the first of AUTOLORA_CACHE, or timings.v1.json in the user's\n"
        "cache folder. The file in the site-wide cache folder is always the last.",
        "examples:\n"
        "  autolora cache path\n"
        '  cp "$(autolora cache path --write)" /shared/timings.json\n',
    )
    how = path.add_mutually_exclusive_group()
    how.add_argument(
        "--write", action="store_true", help="print nothing but the path of the file to write"
    )
    add_json(how)


def _add_merge(verbs: Any) -> None:
    merge = add_command(
        verbs,
        "cache merge",
        "FILE... -o OUT [--json]",
        "Joins cache files, and OUT with them where it exists. For the same problem and\n"
        "environment the better record stays: higher effort, more objectives, more\n"
        "rounds, smaller spread, newer. Says what came from where, and how each conflict\n"
        "was decided. The order of the files does not matter.\n\n" + _FILES,
        "examples:\n"
        "  autolora cache merge node-*.json -o team.json\n"
        "  ssh node7 'cat timings.v1.json' | autolora cache merge - -o team.json\n",
    )
    _add_files(merge, "+")
    _add_output(merge, "file to write, - for standard output", required=True)
    add_json(merge)


def _add_validate(verbs: Any) -> None:
    validate = add_command(
        verbs,
        "cache validate",
        "FILE... [--json]",
        "Checks cache files: whether they are of the schema, whether every graph is known\n"
        "and computes its record's problem, and whether the times can be. What is odd but\n"
        "not wrong is a note.\n\n"
        + _FILES
        + "\nExit code: 0 if no file has an error, 1 if one has, 2 if one is missing.",
        "example:\n  autolora cache validate team.json\n",
    )
    _add_files(validate, "+")
    add_json(validate)


def _add_diff(verbs: Any) -> None:
    diff = add_command(
        verbs,
        "cache diff",
        "A B [--json]",
        "Says which records are in one of two files only, and which differ and how.\n\n"
        + _FILES.replace("FILE is a", "A and B: a").rstrip()
        + " Several files\nare joined.\n"
        "\nExit code: 0 if the records are the same, 1 if they differ, 2 for trouble.",
        "example:\n  autolora cache diff mine.json team.json\n",
    )
    for side in ("a", "b"):
        diff.add_argument(side, metavar=side.upper(), help=argparse.SUPPRESS)
    add_json(diff)


def _add_prune(verbs: Any) -> None:
    prune = add_command(
        verbs,
        "cache prune",
        "[FILE] [options]",
        "Removes records from a cache file: those of none of the environments to keep,\n"
        "and those that are older. What others add meanwhile is not lost. FILE is the one\n"
        "that 'autolora tune' writes unless given; - reads standard input.",
        "examples:\n"
        "  autolora cache prune --older-than 90d --dry-run\n"
        "  autolora cache prune team.json --keep-environment this\n",
    )
    _add_files(prune, "?")
    _add_environments(prune, "--keep-environment", default=[])
    prune.add_argument(
        "--older-than",
        type=arguments.age,
        metavar="AGE",
        help="remove records measured longer ago: 12h, 90d, 4w",
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.add_argument("--yes", action="store_true", help="even if no record is left")
    _add_output(prune, "where FILE is -: file to write instead of standard output")
    add_json(prune)


def _add_export(verbs: Any) -> None:
    export = add_command(
        verbs,
        "cache export",
        "[FILE...] --environment ID [options]",
        "Writes the records of one environment or several as a cache file of their own,\n"
        "to standard output unless -o is given. Without FILE they are those of every\n"
        "file of the search path, joined.\n\n" + _FILES,
        "example:\n  autolora cache export --environment this -o this-node.json\n",
    )
    _add_files(export, "*")
    _add_environments(export, "--environment", required=True)
    _add_output(export, "file to write; it is joined with what is there")
    export.add_argument("--json", action="store_true", help="with -o: print one JSON document")


def _add_files(parser: Parser, number: str) -> None:
    name = "file" if number == "?" else "files"
    parser.add_argument(name, nargs=number, metavar="FILE", help=argparse.SUPPRESS)


def _add_environments(parser: Parser, option: str, **settings: Any) -> None:
    parser.add_argument(
        option,
        action="append",
        metavar="ID",
        help="'this' for this machine and its libraries, or the first digits of an id, at least "
        "4; may be given several times",
        **settings,
    )


def _add_output(parser: Parser, text: str, *, required: bool = False) -> None:
    parser.add_argument("-o", "--output", required=required, metavar="OUT", help=text)
