"""
The signals of ``django.tasks``: enqueued, started, finished.

Sent after the commit. ``task_finished`` of a failure is sent inside an
``except`` block, so that a receiver finds the traceback in ``sys.exc_info()``.
Its surprise: Django always connects receivers that only log. Where every
handler would drop what they say, they do not count as listeners, since
building a result and a log record costs as much as running the task. What results are
made of is loaded with the first that somebody hears of.
"""

from __future__ import annotations

import logging
from functools import lru_cache, partial
from typing import Any

from django_taskq import events
from django_taskq.compat import contract_of, contracts
from django_taskq.lifecycle import definitions
from django_taskq.worker.console import would_be_written

__all__ = ["install", "would_be_written"]


def install() -> None:
    """Start to listen."""
    events.subscribe(events.TaskEnqueued, _enqueued, when=partial(_is_heard, "task_enqueued", logging.DEBUG))
    events.subscribe(events.TaskStarted, _started, when=partial(_is_heard, "task_started", logging.INFO))
    events.subscribe(events.TaskSucceeded, _succeeded, when=partial(_is_heard, "task_finished", logging.INFO))
    finished = partial(_is_heard, "task_finished", logging.ERROR)
    events.subscribe(events.TaskDead, _dead, when=finished)
    events.subscribe(events.TaskCancelled, _cancelled, when=finished)


def _is_heard(name: str, level: int) -> bool:
    """Return whether anybody hears a signal of the contract just now."""
    for contract in contracts():
        receivers = getattr(contract.signals, name).receivers
        # Each receiver begins with its key: (id of the function, id of the sender).
        own = id(getattr(contract.signals, f"log_{name}", None))
        for receiver in receivers:
            if receiver[0][0] != own:
                return True
        if receivers and would_be_written(_logger(contract.name), level):
            return True
    return False


# getLogger takes a lock, and this is asked for every batch.
_logger = lru_cache(maxsize=4)(logging.getLogger)


def _enqueued(event: events.TaskEnqueued) -> None:
    if event.result is not None:
        contract_of(event.result.task).signals.task_enqueued.send_robust(
            sender=_sender(event.result.task), task_result=event.result
        )


def _sender(task: Any) -> type[Any]:
    return type(task.get_backend())


def _started(event: events.TaskStarted) -> None:
    from django_taskq.lifecycle.results import result_of_claim

    run = event.claim
    result = result_of_claim(
        run.claim, run.task, event.task_id, alias=event.alias, status="RUNNING", started=run.started
    )
    contract_of(run.task).signals.task_started.send_robust(sender=_sender(run.task), task_result=result)


def _succeeded(event: events.TaskSucceeded) -> None:
    ended = event.claim
    task = definitions.find(ended.claim.name)
    if task is None:
        return
    from django_taskq.lifecycle.results import result_of_claim

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
    contract_of(task).signals.task_finished.send_robust(sender=_sender(task), task_result=result)


def _dead(event: events.TaskDead) -> None:
    path = event.error.class_path if event.error else "django_taskq.exceptions.TaskqError"
    _finish(event, (path, event.error.traceback if event.error else ""))


def _cancelled(event: events.TaskCancelled) -> None:
    _finish(event, ("django_taskq.exceptions.TaskCancelled", ""))


def _finish(event: events.TaskDead | events.TaskCancelled, error: tuple[str, str]) -> None:
    task = definitions.find(event.task)
    if task is None:
        return
    result = _result_of_row(event, task) if event.claim is None else _result_of_attempt(event, task, error)
    if result is None:
        return
    signal = contract_of(task).signals.task_finished
    if event.exception is None:
        signal.send_robust(sender=_sender(task), task_result=result)
        return
    traceback = event.exception.__traceback__
    try:
        raise event.exception
    except BaseException:
        signal.send_robust(sender=_sender(task), task_result=result)
    finally:
        # Raising it added this frame, which is no part of what went wrong.
        event.exception.__traceback__ = traceback


def _result_of_attempt(event: events.TaskDead | events.TaskCancelled, task: Any, error: tuple[str, str]) -> Any:
    from django_taskq.lifecycle.results import result_of_claim

    ended = event.claim
    return result_of_claim(
        ended.claim,
        task,
        event.task_id,
        alias=event.alias,
        status="FAILED",
        started=ended.started,
        finished=ended.ended,
        error=error,
    )


def _result_of_row(event: events.TaskDead | events.TaskCancelled, task: Any) -> Any:
    """Return the result of a task that an operator ended while it waited; None if it is gone already."""
    from django_taskq.lifecycle.results import result_of_row
    from django_taskq.store import tasks as store

    row = store.find(event.alias, event.task_id)
    if row is None:
        return None
    return result_of_row(row, task, store.attempts_of(event.alias, row.pk), backend=task.backend)
