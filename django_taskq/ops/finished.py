"""
What has finished, in the order of its end, for clients that keep their place themselves.

Nothing is taken away by reading: each client has a cursor of its own and gets
all. Commits come out of order, a row may become visible after one that ended
later; so what ended less than ``lag`` ago is not shown yet. By then it is there:
``settle`` dates no end more than ``LATE_SECONDS`` before its writing.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.utils.translation import gettext_lazy as _

from django_taskq.domain.states import State
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle.streams import TaskOutcome
from django_taskq.models import FinishedTask
from django_taskq.ops.search import Order, Reader, position_of
from django_taskq.store.vendors import vendor_for

__all__ = ["FIRST_ENDED", "FinishedPage", "finished_since"]

FIRST_ENDED = Order(name="ends", label=_("first ended first"), columns=("finished_at", "id"))
_BEFORE_ALL = (datetime(1970, 1, 1, tzinfo=UTC), uuid.UUID(int=0))
_COLUMNS = ("finished_at", "id", "name", "queue", "state", "attempt", "reason", "error_class", "error_line", "result")


class FinishedPage(NamedTuple):
    """Outcomes in the order of their ends, where to go on, and whether the page was full, so that more may be there."""

    outcomes: list[TaskOutcome]
    cursor: str
    more: bool


def finished_since(alias: str, since: str | datetime | None, *, limit: int, lag: float | timedelta) -> FinishedPage:
    """
    Return up to ``limit`` tasks that ended after a cursor or a moment; None: from the oldest that is kept.

    A row is given once and none is passed over, if it was committed within ``lag`` seconds after its
    end. Reads an index from the cursor on. Raise InvalidCursor, or InvalidOptions.
    """
    seconds = lag.total_seconds() if isinstance(lag, timedelta) else lag
    if not 0 <= seconds < float("inf"):
        raise InvalidOptions(f"lag must be a span from 0 on, got {lag!r}", field="lag", code="range")
    if not 1 <= limit <= 10_000:
        raise InvalidOptions(f"limit must be between 1 and 10000, got {limit!r}", field="limit", code="range")
    # Before the rows are read: the moment must not be later than what they show.
    until = vendor_for(alias).now() - timedelta(seconds=seconds)
    reader = Reader(base=FinishedTask.objects.using(alias).filter(finished_at__lte=until), order=FIRST_ENDED)
    position = _position(since)
    rows = reader.take(limit, position, forward=True, columns=_COLUMNS)
    return FinishedPage(
        [_outcome(alias, row) for row in rows],
        reader.mark(rows[-1][:2] if rows else position),
        len(rows) == limit,
    )


def _position(since: str | datetime | None) -> tuple[datetime, uuid.UUID]:
    match since:
        case None:
            return _BEFORE_ALL
        case datetime():
            if since.tzinfo is None:
                raise InvalidOptions(f"since must be an aware datetime, got {since!r}", field="since", code="naive")
            return since, _BEFORE_ALL[1]
        case _:
            moment, key = position_of(FinishedTask, FIRST_ENDED, since)
            return moment, key


def _outcome(alias: str, row: tuple[Any, ...]) -> TaskOutcome:
    _finished_at, key, name, queue, state, attempt, reason, error_class, error_line, result = row
    return TaskOutcome(
        task_id=str(key),
        task=name,
        queue=queue,
        state=State(state).name.lower(),
        attempt=attempt,
        alias=alias,
        reason=reason or "",
        error_class=error_class or "",
        error=error_line or "",
        result=result,
    )
