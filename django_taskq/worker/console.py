"""
What an operator sees of a worker: one structured line per event, or a progress bar.

The lines are a net: a project that writes the log ``django_taskq`` somewhere by
its own LOGGING setting is left alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from django_taskq import conf

__all__ = ["Bar", "burst_bar", "install", "would_be_written"]

_LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.INFO}
# What each log record has by itself; the rest was given by "extra".
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def would_be_written(logger: logging.Logger, level: int) -> bool:
    """Return whether a record of this level would reach any handler that does not drop it."""
    if not logger.isEnabledFor(level):
        return False
    found: logging.Logger | None = logger
    has_handlers = False
    while found is not None:
        for handler in found.handlers:
            has_handlers = True
            if (
                level >= handler.level
                and not any(map(_drops, handler.filters))
                and not isinstance(handler, logging.NullHandler)
            ):
                return True
        if not found.propagate:
            break
        found = found.parent
    return not has_handlers and logging.lastResort is not None and level >= logging.lastResort.level


def _drops(given: Any) -> bool:
    name = type(given).__name__
    return (name == "RequireDebugTrue" and not conf.is_debug()) or (name == "RequireDebugFalse" and conf.is_debug())


class Line(logging.Formatter):
    """Writes ``time LEVEL message key=value …``, the keys being what the record carries as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class chose the name
        extras = [
            f"{key}={_quoted(value)}"
            for key, value in vars(record).items()
            if key not in _OWN and value is not None and value != ""
        ]
        return " ".join([super().formatMessage(record), *extras])


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return repr(text) if any(mark in text for mark in " \"'=\n") else text


def install(verbosity: int, stream: TextIO | None = None) -> logging.Handler | None:
    """
    Write the log ``django_taskq`` to ``stream`` (stderr) if nothing else would write its INFO records.

    ``verbosity`` 0 shows warnings and errors, 1 also what the worker does, 2 what becomes of each task,
    3 everything. On a terminal 1 shows the tasks, too; in a log file a line for
    each success would cost more than running it. Return the handler, None where the project has one of its own.
    """
    logger = logging.getLogger("django_taskq")
    if would_be_written(logger, logging.INFO):
        return None
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Line())
    level = _LEVELS.get(verbosity, logging.DEBUG)
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(level)
    # On a terminal in debug mode Django's own log of its tasks says the same: once is enough.
    is_told = would_be_written(logging.getLogger("django.tasks"), logging.INFO)
    if verbosity == 1 and (is_told or not stream.isatty()):
        logging.getLogger("django_taskq.tasks").setLevel(logging.WARNING)
    # Or handlers of the root that are stricter than INFO would write warnings a second time.
    logger.propagate = False
    return handler


class Bar:
    """How far a burst is. ``advance`` and ``reach`` may be called by any thread."""

    def __init__(self, progress: Any, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._row = progress.add_task("tasks", total=total)

    def advance(self, count: int) -> None:
        """Count so many tasks more."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Show that so many tasks are done; tasks that came later make the whole grow."""
        self._done = done
        self._total = max(self._total, done)
        self._progress.update(self._row, completed=done, total=self._total)


@contextmanager
def burst_bar(total: int, stream: TextIO | None = None) -> Iterator[Bar | None]:
    """Show a progress bar while the block runs, if ``stream`` (stderr) is a terminal; give None elsewhere."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield Bar(progress, total)
