"""Writes the tables of the documents from the result files of tools/results.

    python tools/figures.py [--check]

In README.md and docs/*.md, what stands between ``<!-- figures: NAME -->`` and ``<!-- end of figures
-->`` is the table NAME of ``tools/common/tables.py``, for each machine that has results, with a
line that says where, when and by which command it was measured. ``<!-- figures: NAME MACHINE -->``
shows one machine only. ``--check`` writes nothing, prints which documents differ from their
results, and exits with 1 if any does.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from common.tables import TABLES

ROOT = Path(__file__).parents[1]
MANY = 3  # benchmarks whose commands a table shows
_START = re.compile(r"^<!-- figures: ", re.MULTILINE)
_BLOCK = re.compile(
    r"^(<!-- figures: (\S+)(?: (\S+))? -->\n)(.*?)^(<!-- end of figures -->)$",
    re.MULTILINE | re.DOTALL,
)


def documents(root):
    """The documents of a checkout that may hold figures."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def rewritten(text, results):
    """A document with all its blocks made anew.

    Args:
        text: of the document.
        results: the folder of result files.

    Raises:
        ValueError: a block has no end, or there is no such table, or there are no results for it.
    """
    if len(_START.findall(text)) != len(_BLOCK.findall(text)):
        raise ValueError("a block of figures has no '<!-- end of figures -->' of its own")

    def made(found):
        first, name, only, _, last = found.groups()
        return f"{first}{figures(name, only, results)}{last}"

    return _BLOCK.sub(made, text)


def figures(name, only, results):
    """The table of each machine that has results, or of one of them.

    Raises:
        ValueError: there is no such table, or there are no results for it.
    """
    if name not in TABLES:
        raise ValueError(f"unknown figures {name!r}; one of: {', '.join(TABLES)}")
    make, *benchmarks = TABLES[name]
    tables = []
    for folder in sorted(results.glob(only or "*")):
        paths = [folder / f"{each}.json" for each in benchmarks]
        if read := [json.loads(p.read_text(encoding="utf-8")) for p in paths if p.exists()]:
            lines = list(make(list(rows_of(read))))
            tables.append(f"{table(lines)}\n{caption(read)}\n")
    if not tables:
        raise ValueError(f"no results of {' or '.join(benchmarks)} on {only or 'any machine'}")
    return "\n".join(tables)


def rows_of(read):
    """The rows of several results, each with the tool that made it."""
    for each in read:
        tool = Path(each["command"].split()[1]).stem
        yield from ({**row, "tool": tool} for row in each["rows"])


def table(lines):
    """A table of markdown from lines of cells, the heading first."""
    heading, *others = lines
    lines = [heading, ["---"] * len(heading), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def caption(read):
    """The line under a table: where, when and by which commands it was measured.

    The commands of a table of many benchmarks stand at the tables of each.
    """
    machine, versions = read[0]["environment"], read[0]["versions"]
    threads = f"{machine['threads']} of {machine['cores']} cores, {machine['capability']}"
    place = f"{machine['device_name']}, {threads}, torch {versions['torch']}"
    if len(read) > MANY:
        states = " and ".join(sorted({state(each) for each in read}))
        dates = sorted({each["date"][:10] for each in read})
        return f"{place}, autolora {states}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    commands = []
    for each in read:
        policy = each["environment"]["OMP_WAIT_POLICY"]
        prefix = f"OMP_WAIT_POLICY={policy} " if policy else ""
        at = f"{each['date'][:10]}, autolora {state(each)}"
        commands.append(f"`{prefix}{each['command']}` ({at})")
    return f"{place}: {'; '.join(commands)}."


def state(result):
    """The state of the package that a result is of."""
    return result["versions"]["commit"] or result["versions"]["autolora"]


def differing(root):
    """The documents that are not what their results say, each with its text as it should be."""
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        try:
            wanted = rewritten(text, root / "tools/results")
        except ValueError as error:
            raise ValueError(f"{path.relative_to(root)}: {error}") from error
        if wanted != text:
            yield path, wanted


def main() -> None:
    """Writes the documents, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say which documents differ")
    options = parser.parse_args()
    try:
        found = list(differing(ROOT))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for path, text in found:
        if not options.check:
            path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT), "differs from its results" if options.check else "written")
    if options.check and found:
        raise SystemExit("python tools/figures.py writes them")


if __name__ == "__main__":
    main()
