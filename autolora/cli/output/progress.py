"""Where a tuning run stands, on stderr: a bar on a terminal, else a line per problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn

from autolora.cli.output.console import console, say
from autolora.cli.output.figures import wait
from autolora.cli.output.tables import layer_title
from autolora.tuning.result import Progress as Standing

_STAGES = {"screen": "screening", "race": "racing", "done": "measured"}


@contextmanager
def progress() -> Iterator[Callable[[Standing], None]]:
    """Gives what a tuner tells its progress to."""
    screen = console(sys.stderr)
    if not screen.is_terminal:
        yield _line
        return
    # Drawn only when the tuner tells something: a thread that draws would be timed with the graphs.
    columns = (BarColumn(20), TextColumn("{task.description}"))
    with Progress(*columns, console=screen, auto_refresh=False, transient=True) as shown:
        task = shown.add_task("", total=None)

        def tell(standing: Standing) -> None:
            shown.update(
                task,
                total=standing.total,
                completed=standing.done,
                description=f"{standing.done}/{standing.total}  {_words(standing)}",
            )
            shown.refresh()

        yield tell


def _line(standing: Standing) -> None:
    if standing.stage == "done":
        say(f"{standing.done}/{standing.total}  {_words(standing)}")


def _words(standing: Standing) -> str:
    problem = standing.problem
    words = f"{_STAGES[standing.stage]} {layer_title(problem)}, {problem.tokens} tokens"
    if standing.seconds_left and standing.done < standing.total:
        words += f", about {wait(max(2, standing.seconds_left))} left"
    return words
