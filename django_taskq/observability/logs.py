"""
Events as sentences in the log ``django_taskq``, with stable ``extra`` keys.

INFO a task's life, WARNING the worker repaired something, ERROR somebody must
look. Never arguments or results.
"""

from __future__ import annotations

import logging
from typing import Any

from django_taskq import events
from django_taskq.observability.contract import would_be_written

__all__ = ["install"]

logger = logging.getLogger("django_taskq")

# kind → level, sentence; the names in it are the event's own fields.
_SENTENCES: dict[type[events.Event], tuple[int, str]] = {
    events.TaskEnqueued: (logging.DEBUG, "Task {task} ({task_id}) enqueued on {queue}"),
    events.TaskStarted: (logging.DEBUG, "Task {task} ({task_id}) started, attempt {attempt}"),
    events.TaskSucceeded: (logging.INFO, "Task {task} ({task_id}) succeeded in {run_seconds:.3f} s"),
    events.TaskFailed: (logging.WARNING, "Task {task} ({task_id}) failed in attempt {attempt}: {outcome}"),
    events.TaskRetried: (logging.INFO, "Task {task} ({task_id}) will be tried again"),
    events.TaskSnoozed: (logging.INFO, "Task {task} ({task_id}) put itself off"),
    events.TaskInterrupted: (logging.INFO, "Task {task} ({task_id}) was interrupted and handed back"),
    events.TaskRescued: (logging.WARNING, "Task {task} ({task_id}) was rescued from worker {worker_id}"),
    events.TaskDead: (logging.ERROR, "Task {task} ({task_id}) is dead: {reason}"),
    events.TaskCancelled: (logging.INFO, "Task {task} ({task_id}) was cancelled"),
    events.TaskReplayed: (logging.INFO, "Task {task} ({task_id}) was replayed by {actor}"),
    events.TaskDiscarded: (logging.INFO, "Task {task} ({task_id}) was discarded by {actor}"),
    events.SettlementRefused: (
        logging.WARNING,
        "The end of task {task} ({task_id}) was not written: worker {worker_id} had lost its lease",
    ),
    events.EnqueueRejected: (logging.WARNING, "Task {task} was not enqueued on {queue}: {error}"),
    events.WorkerStarted: (logging.INFO, "Worker {name} started as {worker_id}"),
    events.WorkerStopped: (logging.INFO, "Worker {name} ({worker_id}) stopped"),
    events.WorkerLost: (logging.ERROR, "Worker {name} ({worker_id}) fell silent and was declared dead"),
    events.QueuePaused: (logging.WARNING, "Queue {queue} was paused by {actor}: {reason}"),
    events.QueueResumed: (logging.INFO, "Queue {queue} was resumed by {actor}"),
    events.TasksPruned: (logging.INFO, "{count} {state} tasks were pruned"),
}
_EXTRA = ("task_id", "task", "queue", "attempt", "worker_id", "reason", "outcome", "actor", "run_seconds", "wait_seconds")


def install() -> None:
    """Start to write the log."""
    for kind, (level, _) in _SENTENCES.items():
        events.subscribe(kind, _write, when=_Heard(level))


class _Heard:
    """Whether a record of one level would be written; asked once in many events, since the answer rarely changes."""

    __slots__ = ("_answer", "_left", "_level")

    def __init__(self, level: int) -> None:
        self._level = level
        self._left = 0
        self._answer = False

    def __call__(self) -> bool:
        if self._left <= 0 or self._level >= logging.WARNING:
            self._left = 200
            self._answer = would_be_written(logger, self._level)
        self._left -= 1
        return self._answer


def _write(event: Any) -> None:
    level, sentence = _SENTENCES[type(event)]
    facts = {name: getattr(event, name) for name in _EXTRA if hasattr(event, name)}
    extra = {key: value for key, value in facts.items() if key != "name"}
    values = {name: getattr(event, name) for name in _fields(event)}
    error = getattr(event, "exception", None)
    logger.log(level, sentence.format(**values), extra=extra, exc_info=error)


def _fields(event: Any) -> list[str]:
    found: list[str] = []
    for kind in type(event).__mro__:
        found += getattr(kind, "__slots__", ())
    return found
