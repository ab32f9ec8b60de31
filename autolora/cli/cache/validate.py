"""``autolora cache validate``: checks cache files."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

from autolora.cache.files.disk import Unreadable
from autolora.cache.records.table import Key
from autolora.cache.records.validation import Finding, Graphs, Validation, validate
from autolora.cli import INVALID
from autolora.cli.cache.files import CacheFile, find_files, logger, read_bytes
from autolora.cli.output.console import print_json, print_line, print_lines
from autolora.cli.output.figures import first_lines
from autolora.errors import AutoloraError
from autolora.graphs.kinds import find_graph, reference_graph
from autolora.units import count

_GRAPHS = Graphs(find_graph, lambda problem: reference_graph(problem).name)
_MARK = re.compile(rb'"schema_version"\s*:')
_HEAD = 1000  # bytes of a cache file that contain the mark


def run(options: Namespace) -> int:
    """Prints the errors and notes of each file."""
    done: list[tuple[CacheFile, Validation]] = []
    for file in find_files(options.files):
        validation = _validated(file)
        if validation is None:
            logger.warning("%s is left out: it is no timing cache", file.name)
            continue
        done.append((file, validation))
        if not options.json:
            _print(file, validation)
    if not done:
        raise AutoloraError("none of these files is a timing cache")
    if options.json:
        print_json({"files": [_json(file, validation) for file, validation in done]})
    return INVALID if any(validation.errors for _, validation in done) else 0


def _validated(file: CacheFile) -> Validation | None:
    """The findings in a file; None if it was not named itself and is not a cache."""
    try:
        data = read_bytes(file)
    except Unreadable as error:
        return Validation(0, (Finding("error", f"it cannot be read: {error}"),))
    if not file.named and not _MARK.search(data, 0, _HEAD):
        return None
    return validate(data, _GRAPHS)


def _json(file: CacheFile, validation: Validation) -> dict[str, Any]:
    return {
        "file": file.name,
        "valid": not validation.errors,
        "records": validation.records,
        "findings": [_finding_json(finding) for finding in validation.findings],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    key = finding.key
    try:
        problem = key and key.problem.to_json()
    except ValueError:  # it is invalid, which is the finding
        problem = None
    return {
        "severity": finding.severity,
        "cause": finding.cause,
        "problem": problem,
        "environment": key and key.environment,
    }


def _print(file: CacheFile, validation: Validation) -> None:
    findings = sorted(validation.findings, key=lambda finding: finding.severity)  # errors first
    print_lines(first_lines(findings, lambda finding: _line(file, finding), indent=""))
    verdict = count(validation.errors, "error") if validation.errors else "valid"
    notes = len(findings) - validation.errors
    verdict += f", {count(notes, 'note')}" if notes else ""
    print_line(f"{file.name}: {count(validation.records, 'record')}, {verdict}")


def _line(file: CacheFile, finding: Finding) -> str:
    key = finding.key
    record = "" if key is None else f"{_title(key)} ({key.environment}): "
    return f"{file.name}: {finding.severity}: {record}{finding.cause}"


def _title(key: Key) -> str:
    """The problem of a record, which may be invalid, in one line."""
    try:
        return key.problem.title
    except ValueError:
        return f"sizes {', '.join(map(str, key.sizes))}, {key.tokens} tokens"
