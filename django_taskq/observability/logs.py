"""
Events as sentences in the log ``django_taskq``, with stable ``extra`` keys.

INFO a task's life, WARNING the worker repaired something, ERROR somebody must
look. Never arguments or results.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from django_taskq import events
from django_taskq.exceptions import error_class_path
from django_taskq.worker.console import would_be_written

__all__ = ["install"]

logger = logging.getLogger("django_taskq")
# A logger of their own, so that a project or an operator can turn what becomes of each task up or down.
task_logger = logging.getLogger("django_taskq.tasks")

# kind → level, sentence; the names in it are the event's own fields.
_SENTENCES: dict[type[events.Event], tuple[int, str]] = {
    events.TaskEnqueued: (logging.DEBUG, "Task %(task)s (%(task_id)s) enqueued on %(queue)s"),
    events.TaskStarted: (logging.DEBUG, "Task %(task)s (%(task_id)s) started, attempt %(attempt)d"),
    events.TaskSucceeded: (logging.INFO, "Task %(task)s (%(task_id)s) succeeded in %(run_seconds).3f s"),
    events.TaskFailed: (logging.WARNING, "Task %(task)s (%(task_id)s) failed in attempt %(attempt)d: %(outcome)s"),
    events.TaskRetried: (logging.INFO, "Task %(task)s (%(task_id)s) will be tried again"),
    events.TaskSkipped: (logging.INFO, "Task %(task)s (%(task_id)s) was skipped: %(reason)s"),
    events.TaskSnoozed: (logging.INFO, "Task %(task)s (%(task_id)s) put itself off"),
    events.TaskInterrupted: (logging.INFO, "Task %(task)s (%(task_id)s) was interrupted and handed back"),
    events.TaskRescued: (logging.WARNING, "Task %(task)s (%(task_id)s) was rescued from worker %(worker_id)d"),
    events.TaskDead: (logging.ERROR, "Task %(task)s (%(task_id)s) is dead: %(reason)s"),
    events.TaskCancelled: (logging.INFO, "Task %(task)s (%(task_id)s) was cancelled"),
    events.TaskReplayed: (logging.INFO, "Task %(task)s (%(task_id)s) was replayed by %(actor)s"),
    events.TaskDiscarded: (logging.INFO, "Task %(task)s (%(task_id)s) was discarded by %(actor)s"),
    events.StepStarted: (logging.DEBUG, "Step %(step)s of task %(task)s (%(task_id)s) started"),
    events.StepSucceeded: (logging.DEBUG, "Step %(step)s of task %(task)s (%(task_id)s) done in %(run_seconds).3f s"),
    events.StepFailed: (logging.INFO, "Step %(step)s of task %(task)s (%(task_id)s) failed"),
    events.SettlementRefused: (
        logging.WARNING,
        "The end of task %(task)s (%(task_id)s) was not written: worker %(worker_id)d had lost its lease",
    ),
    events.WorkflowStarted: (logging.DEBUG, "%(workflow)s started with %(total)d members"),
    events.WorkflowCompleted: (logging.INFO, "%(workflow)s completed"),
    # Its dead members have told at ERROR.
    events.WorkflowFailed: (logging.WARNING, "%(workflow)s failed: %(failed)d of %(total)d members are dead"),
    events.WorkflowCancelled: (logging.INFO, "%(workflow)s was cancelled"),
    events.WorkflowReplayed: (logging.INFO, "%(workflow)s was replayed by %(actor)s: %(count)d tasks"),
    events.WorkflowMended: (logging.WARNING, "%(workflow)s was at odds with its tasks and was mended: %(found)s"),
    events.CallbackDead: (logging.WARNING, "%(workflow)s called %(callback)s, and task %(task_id)s is dead"),
    events.EnqueueDeduplicated: (
        logging.DEBUG,
        "Task %(task)s was not stored again: %(task_id)s has its key and was %(how)s",
    ),
    events.EnqueueRejected: (logging.WARNING, "Task %(task)s was not enqueued on %(queue)s: %(error_class)s"),
    events.EnqueueDropped: (
        logging.WARNING,
        "%(count)d tasks %(task)s were dropped: queue %(queue)s is full",
    ),
    events.WorkerStarted: (logging.INFO, "Worker %(worker)s started as %(worker_id)d"),
    events.WorkerStopped: (logging.INFO, "Worker %(worker)s (%(worker_id)d) stopped"),
    events.WorkerLost: (logging.ERROR, "Worker %(worker)s (%(worker_id)d) fell silent and was declared dead"),
    events.QueuePaused: (logging.WARNING, "Queue %(queue)s was paused by %(actor)s: %(reason)s"),
    events.QueueResumed: (logging.INFO, "Queue %(queue)s was resumed by %(actor)s"),
    events.LimitChanged: (logging.WARNING, "The %(kind)s limit %(limit)s was changed by %(actor)s: %(reason)s"),
    events.TaskTypePaused: (logging.WARNING, "Tasks called %(task)s were paused by %(actor)s: %(reason)s"),
    events.TaskTypeResumed: (logging.INFO, "Tasks called %(task)s were resumed by %(actor)s"),
    events.EverythingPaused: (logging.WARNING, "Everything was paused by %(actor)s: %(reason)s"),
    events.EverythingResumed: (logging.INFO, "Everything was resumed by %(actor)s"),
    events.ScheduleTicked: (logging.INFO, "Schedule %(schedule)s made task %(task)s (%(task_id)s)"),
    events.ScheduleSkipped: (logging.INFO, "Schedule %(schedule)s made no task: %(why)s"),
    events.ScheduleFailed: (
        logging.ERROR,
        "Schedule %(schedule)s could not make a task of %(task)s, and will try again: %(error_class)s",
    ),
    events.TasksPruned: (logging.INFO, "%(count)d %(state)s tasks were pruned"),
}
# A list of what may be written, not of what may not: arguments and results travel in other fields.
_FACTS = (
    "task_id",
    "task",
    "queue",
    "attempt",
    "step",
    "worker_id",
    "reason",
    "outcome",
    "actor",
    "run_seconds",
    "wait_seconds",
    "state",
    "count",
    "workflow_id",
    "kind",
    "limit",
    "callback",
    "schedule",
    "why",
    "found",
    "how",
    "total",
)


def install() -> None:
    """Start to write the log."""
    for kind, (level, _) in _SENTENCES.items():
        events.subscribe(kind, _write, when=partial(would_be_written, _logger_of(kind), level))


def _logger_of(kind: type[events.Event]) -> logging.Logger:
    return task_logger if issubclass(kind, events.TaskEvent | events.WorkflowEvent) else logger


def _write(event: Any) -> None:
    level, sentence = _SENTENCES[type(event)]
    facts = {name: _one_line(getattr(event, name)) for name in _FACTS if hasattr(event, name)}
    if isinstance(event, events.WorkerEvent):
        # A log record has a "name" of its own.
        facts["worker"] = _one_line(event.name)
    if isinstance(event, events.WorkflowEvent):
        facts["workflow"] = f"{event.kind.capitalize()} {_one_line(event.name)} ({event.workflow_id})".replace(
            "  ", " "
        )
        counts = getattr(event, "counts", None)
        if counts is not None:
            facts |= {"total": counts.total, "failed": counts.failed}
    if isinstance(event, events.EnqueueRejected | events.ScheduleFailed):
        # Its message may quote an argument.
        facts["error_class"] = error_class_path(event.error)
    _logger_of(type(event)).log(level, sentence, facts, extra=facts, exc_info=getattr(event, "exception", None))


def _one_line(value: Any) -> Any:
    """Return text with everything escaped that could start a line of its own or steer a terminal."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
