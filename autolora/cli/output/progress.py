"""The progress of measuring on stderr: a bar on a terminal, otherwise one line per problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as bars

from autolora.cli.output.console import console, print_status
from autolora.tuning.result import Progress
from autolora.units import wait

_STAGES = {"screen": "screening", "race": "racing", "done": "measured"}


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """Yields the ``on_progress`` of a tuner."""
    screen = console(sys.stderr)
    if not screen.is_terminal:
        yield _print
        return
    # Without auto_refresh: a drawing thread would be timed together with the graphs.
    columns = (bars.BarColumn(20), bars.TextColumn("{task.description}"))
    with bars.Progress(*columns, console=screen, auto_refresh=False, transient=True) as shown:
        task = shown.add_task("", total=None)

        def show(now: Progress) -> None:
            shown.update(task, total=now.total, completed=now.done, description=_text(now))
            shown.refresh()

        yield show


def _print(now: Progress) -> None:
    if now.stage == "done":
        print_status(_text(now))


def _text(now: Progress) -> str:
    problem = now.problem
    text = f"{now.done}/{now.total}  {_STAGES[now.stage]} {problem.shape_text}, "
    text += f"{problem.tokens} tokens"
    if now.seconds_left and now.done < now.total:
        text += f", about {wait(max(2, now.seconds_left))} left"
    return text
