"""
The signals of ``django.tasks``: enqueued, started, finished.

Sent after the commit. ``task_finished`` of a failure is sent inside an
``except`` block, so that a receiver finds the traceback in ``sys.exc_info()``.
Its surprise: Django always connects receivers that only log. Where every
handler would drop what they say, they do not count as listeners, since
building a result and a log record costs as much as running the task.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any

from django_taskq import conf, events
from django_taskq.compat import contract_of, contracts
from django_taskq.lifecycle import definitions
from django_taskq.lifecycle.results import result_of_claim

__all__ = ["install"]

_LOOK_SECONDS = 1.0


def install() -> None:
    """Start to listen."""
    events.subscribe(events.TaskEnqueued, _enqueued, when=_heard("task_enqueued", logging.DEBUG))
    events.subscribe(events.TaskStarted, _started, when=_heard("task_started", logging.INFO))
    events.subscribe(events.TaskSucceeded, _succeeded, when=_heard("task_finished", logging.INFO))
    finished = _heard("task_finished", logging.ERROR)
    events.subscribe(events.TaskDead, _dead, when=finished)
    events.subscribe(events.TaskCancelled, _cancelled, when=finished)


def _heard(name: str, level: int) -> Callable[[], bool]:
    """Return a cheap test whether anybody hears a signal; looked up once a second."""
    seen = [0.0, 0]

    def heard() -> bool:
        tick = time.monotonic()
        if tick - seen[0] > _LOOK_SECONDS or not seen[0]:
            seen[0], seen[1] = tick, any(_is_heard(contract, name, level) for contract in contracts())
        return bool(seen[1])

    return heard


def _is_heard(contract: Any, name: str, level: int) -> bool:
    signal = getattr(contract.signals, name)
    own = getattr(contract.signals, f"log_{name}", None)
    receivers = [found() if isinstance(found, weakref.ReferenceType) else found for _, found, *_ in signal.receivers]
    if any(receiver is not own for receiver in receivers):
        return True
    return own in receivers and would_be_written(logging.getLogger(contract.name), level)


def would_be_written(logger: logging.Logger, level: int) -> bool:
    """Return whether a record of this level would reach any handler that does not drop it."""
    if not logger.isEnabledFor(level):
        return False
    found: logging.Logger | None = logger
    has_handlers = False
    while found is not None:
        for handler in found.handlers:
            has_handlers = True
            if level >= handler.level and not any(map(_drops, handler.filters)) and not isinstance(
                handler, logging.NullHandler
            ):
                return True
        if not found.propagate:
            break
        found = found.parent
    return not has_handlers and logging.lastResort is not None and level >= logging.lastResort.level


def _drops(given: Any) -> bool:
    name = type(given).__name__
    return (name == "RequireDebugTrue" and not conf.is_debug()) or (name == "RequireDebugFalse" and conf.is_debug())


def _enqueued(event: events.TaskEnqueued) -> None:
    if event.result is not None:
        contract_of(event.result.task).signals.task_enqueued.send(_sender(event.result.task), task_result=event.result)


def _sender(task: Any) -> type[Any]:
    return type(task.get_backend())


def _started(event: events.TaskStarted) -> None:
    run = event.claim
    result = result_of_claim(
        run.claim, run.task, event.task_id, alias=event.alias, status="RUNNING", started=run.started
    )
    contract_of(run.task).signals.task_started.send(sender=_sender(run.task), task_result=result)


def _succeeded(event: events.TaskSucceeded) -> None:
    ended = event.claim
    task = definitions.find(ended.claim.name)
    if task is None:
        return
    result = result_of_claim(
        ended.claim,
        task,
        event.task_id,
        alias=event.alias,
        status="SUCCESSFUL",
        started=ended.started,
        finished=ended.ended,
        value=event.result,
    )
    contract_of(task).signals.task_finished.send(_sender(task), task_result=result)


def _dead(event: events.TaskDead) -> None:
    path = event.error.class_path if event.error else "django_taskq.exceptions.TaskqError"
    _finish(event, (path, event.error.traceback if event.error else ""))


def _cancelled(event: events.TaskCancelled) -> None:
    _finish(event, ("django_taskq.exceptions.TaskCancelled", ""))


def _finish(event: events.TaskDead | events.TaskCancelled, error: tuple[str, str]) -> None:
    ended = event.claim
    task = None if ended is None else definitions.find(event.task)
    if task is None:
        return
    result = result_of_claim(
        ended.claim,
        task,
        event.task_id,
        alias=event.alias,
        status="FAILED",
        started=ended.started,
        finished=ended.ended,
        error=error,
    )
    signal = contract_of(task).signals.task_finished
    if event.exception is None:
        signal.send(_sender(task), task_result=result)
        return
    try:
        raise event.exception
    except BaseException:
        signal.send(_sender(task), task_result=result)
