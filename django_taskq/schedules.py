"""
``@schedule``: make a task again and again, or once, at moments that a rule gives.

Declares only: a worker brings the declarations into the database when it starts, and the worker that
leads makes the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from django_taskq import conf
from django_taskq.domain.schedules import check_policy, check_rule
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import declarations, definitions
from django_taskq.lifecycle.calls import (
    NAME_LENGTH,
    Declared,
    call_text,
    check_call,
    check_name,
    check_option,
    check_overlap,
    options_text,
)

__all__ = ["schedule"]

T = TypeVar("T")


def schedule(
    *,
    cron: str | None = None,
    every: timedelta | None = None,
    at: datetime | None = None,
    name: str | None = None,
    timezone: str | ZoneInfo | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    priority: int | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    jitter: timedelta | float = 0,
    misfire: str = "once",
    misfire_limit: int = 10,
    misfire_grace: timedelta | float = 60,
    overlap: str = "queue",
) -> Callable[[T], T]:
    """
    Declare a schedule of a task; stands above ``@task``, once or, with a ``name`` each, several times.

    One of ``cron`` (5 fields, or 6 with seconds first), ``every`` (counted from ``start``, else from 1970) and
    ``at`` (once). ``timezone`` is what cron means by a time (default: ``TIME_ZONE``). ``args`` and ``kwargs`` are the
    call's. No tick before ``start`` or after ``end``. ``jitter``: start up to so much later.
    ``misfire``: what becomes of ticks later than ``misfire_grace``: one task for all of them ("once"), one each for
    the last ``misfire_limit`` ("all"), none ("skip"). ``overlap``: whether a tick is made ("queue"), left out ("skip"),
    or cancels what is live ("replace"), while an earlier task of the schedule is live.
    Raise InvalidOptions for a value outside its rule, InvalidPayload for arguments that JSON cannot hold.
    """
    rule = check_rule(
        cron=cron,
        every=every,
        at=at,
        timezone=conf.time_zone() if timezone is None else timezone,
        start=start,
        end=end,
    )
    policy = check_policy(
        jitter=jitter,
        misfire=misfire,
        misfire_limit=misfire_limit,
        misfire_grace=misfire_grace,
        overlap=overlap,
    )
    if isinstance(args, str) or not isinstance(args, Sequence):
        raise InvalidOptions(f"args must be a list or a tuple, got {args!r}", field="args", code="type")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidOptions(f"kwargs must be a dict, got {kwargs!r}", field="kwargs", code="type")

    def declare(task: T) -> T:
        definition: Any = task
        if not hasattr(definition, "func") or not hasattr(definition, "using"):
            raise TypeError(
                f"@schedule stands above @task, got {task!r}; write @schedule(…) over @task over the function"
            )
        known = definitions.known_as(definitions.stored_name(definition))
        if known is not None and known is not definition:
            raise InvalidOptions(
                f"a schedule makes tasks by their stored name, with the options that @task gave {known.module_path}; "
                "what using() changed would be lost: give queue_name and priority to @schedule, the rest to @task",
                field="task",
                code="copy",
            )
        # Refused here and not at the first tick.
        check_option(definition, "queue_name", queue_name)
        check_option(definition, "priority", priority)
        check_call(definition, list(args), dict(kwargs or {}))
        check_overlap(definition, policy)
        declarations.declare(
            Declared(
                name=check_name(definitions.stored_name(definition)[-NAME_LENGTH:] if name is None else name),
                definition=definition,
                rule=rule,
                args=call_text(definition, tuple(args), dict(kwargs or {})),
                options=options_text(policy, queue_name=queue_name, priority=priority),
            )
        )
        return task

    return declare
