"""
What can be observed: one value per event, told in the past tense, after commit.

Logic calls ``emit``; logs, metrics and the signals of ``signals.py`` only
listen. ``wanted`` answers before an event is made, so that nothing is paid
where nobody listens. A listener that raises is logged and passed over.
Its surprise: three kinds at the end carry a whole batch and have no signal.
They let counters cost a task less than its own events would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from django.db import connections, transaction
from django.dispatch import Signal

from django_taskq import signals
from django_taskq.domain.outcomes import ErrorInfo

__all__ = [
    "AttemptsSettled",
    "EnqueueRejected",
    "Event",
    "QueuePaused",
    "QueueResumed",
    "SettlementRefused",
    "StepEvent",
    "StepFailed",
    "StepStarted",
    "StepSucceeded",
    "TaskCancelled",
    "TaskDead",
    "TaskDiscarded",
    "TaskEnqueued",
    "TaskEvent",
    "TaskFailed",
    "TaskInterrupted",
    "TaskReplayed",
    "TaskRescued",
    "TaskRetried",
    "TaskSnoozed",
    "TaskStarted",
    "TaskSucceeded",
    "TasksClaimed",
    "TasksPruned",
    "TasksStored",
    "WorkerEvent",
    "WorkerLost",
    "WorkerStarted",
    "WorkerStopped",
    "emit",
    "emit_on_commit",
    "subscribe",
    "unsubscribe",
    "wanted",
]

logger = logging.getLogger("django_taskq")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Event:
    """Something that happened and is committed."""

    # Written once here: generated for each of two dozen kinds, the three took 200 KiB of every worker.

    def __repr__(self) -> str:
        shown = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, item.name) == getattr(other, item.name) for item in fields(self) if item.compare
        )

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, item.name) for item in fields(self) if item.compare)))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskEvent(Event):
    """An event of one task. ``task_id`` is its public id, ``task`` its name, ``alias`` its database."""

    task_id: str
    task: str
    queue: str
    attempt: int = 0
    alias: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskEnqueued(TaskEvent):
    """A task was stored, and its transaction committed. ``run_after`` is None for "now"."""

    run_after: datetime | None = None
    result: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskStarted(TaskEvent):
    """A worker is about to call the task function. ``wait_seconds``: since the task could have run."""

    worker_id: int
    wait_seconds: float
    claim: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskSucceeded(TaskEvent):
    """The function returned and that was committed."""

    worker_id: int
    run_seconds: float
    wait_seconds: float
    claim: Any = field(default=None, repr=False, compare=False)
    result: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskFailed(TaskEvent):
    """An attempt did not succeed. TaskRetried, TaskDead or TaskCancelled follows and says what came of it."""

    worker_id: int
    outcome: str
    run_seconds: float
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskRetried(TaskEvent):
    """The task will run again, not before ``run_after``."""

    run_after: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskSnoozed(TaskEvent):
    """The task put itself off; the attempt is not counted."""

    run_after: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskInterrupted(TaskEvent):
    """A stopping worker handed the running task back; the attempt is not counted."""

    worker_id: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskRescued(TaskEvent):
    """The worker that held the task is gone. TaskRetried, TaskDead or TaskCancelled follows."""

    worker_id: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskDead(TaskEvent):
    """The task is a dead letter now."""

    reason: str
    run_seconds: float = 0.0
    error: ErrorInfo | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    claim: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskCancelled(TaskEvent):
    """The task ended as cancelled. Sent once per task, unless an operator replays it and it is cancelled again."""

    claim: Any = field(default=None, repr=False, compare=False)
    exception: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskReplayed(TaskEvent):
    """An operator sent a dead or cancelled task back."""

    actor: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TaskDiscarded(TaskEvent):
    """An operator gave a dead task up."""

    actor: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepEvent(TaskEvent):
    """An event of one step of a task. ``step`` is its name."""

    step: str
    worker_id: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepStarted(StepEvent):
    """A step is about to be run. One whose result is kept from an earlier attempt is not."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepSucceeded(StepEvent):
    """The result of a step is kept."""

    run_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StepFailed(StepEvent):
    """A step raised. What becomes of the attempt is told by other events."""

    run_seconds: float
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class SettlementRefused(TaskEvent):
    """A worker wanted to write how an attempt ended, but its lease was lost; nothing was written."""

    worker_id: int
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class EnqueueRejected(Event):
    """An enqueue failed; no row was left. ``error`` says why."""

    task: str
    queue: str
    error: BaseException = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class WorkerEvent(Event):
    """An event of one worker."""

    worker_id: int
    name: str
    alias: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class WorkerStarted(WorkerEvent):
    """A worker announced itself."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class WorkerStopped(WorkerEvent):
    """A worker said good-bye."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class WorkerLost(WorkerEvent):
    """A worker fell silent for longer than its lease and was declared dead."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class QueuePaused(Event):
    """Workers stop claiming from a queue."""

    queue: str
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class QueueResumed(Event):
    """Workers claim from a queue again."""

    queue: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TasksPruned(Event):
    """Retention deleted ``count`` finished tasks that had ended in ``state``."""

    state: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TasksStored(Event):
    """``count`` tasks of one name were stored on one queue. For counters; no signal."""

    task: str
    queue: str
    count: int
    alias: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TasksClaimed(Event):
    """A worker took these claims. For counters; no signal."""

    claims: Sequence[Any]
    worker_id: int
    alias: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AttemptsSettled(Event):
    """One settlement was committed: pairs of what ended and where it went. For counters; no signal."""

    settled: Sequence[tuple[Any, Any]]
    refused: Sequence[Any]
    alias: str = "default"


_SIGNALS: dict[type[Event], Signal] = {
    TaskEnqueued: signals.task_enqueued,
    TaskStarted: signals.task_started,
    TaskSucceeded: signals.task_succeeded,
    TaskFailed: signals.task_failed,
    TaskRetried: signals.task_retried,
    TaskSnoozed: signals.task_snoozed,
    TaskInterrupted: signals.task_interrupted,
    TaskRescued: signals.task_rescued,
    TaskDead: signals.task_dead,
    TaskCancelled: signals.task_cancelled,
    TaskReplayed: signals.task_replayed,
    TaskDiscarded: signals.task_discarded,
    StepStarted: signals.step_started,
    StepSucceeded: signals.step_succeeded,
    StepFailed: signals.step_failed,
    SettlementRefused: signals.settlement_refused,
    EnqueueRejected: signals.enqueue_rejected,
    WorkerStarted: signals.worker_started,
    WorkerStopped: signals.worker_stopped,
    WorkerLost: signals.worker_lost,
    QueuePaused: signals.queue_paused,
    QueueResumed: signals.queue_resumed,
    TasksPruned: signals.tasks_pruned,
}

Listener = Callable[[Any], None]
Condition = Callable[[], bool]

_listeners: dict[type[Event], tuple[tuple[Listener, Condition | None], ...]] = {}


def subscribe(kind: type[Event], listener: Listener, *, when: Condition | None = None) -> None:
    """
    Call ``listener(event)`` for each event of exactly this kind, in the thread that emits it.

    ``when`` says whether the listener cares at the moment; it must be cheap.
    Subscribing the same listener again changes nothing.
    """
    # Compared by value: each look at a method makes a new object of it.
    kept = tuple(pair for pair in _listeners.get(kind, ()) if pair[0] != listener)
    _listeners[kind] = (*kept, (listener, when))


def unsubscribe(kind: type[Event], listener: Listener) -> None:
    """Undo ``subscribe``; does nothing for a listener that is not there."""
    _listeners[kind] = tuple(pair for pair in _listeners.get(kind, ()) if pair[0] != listener)


def wanted(kind: type[Event]) -> bool:
    """Return whether anybody listens to this kind of event just now."""
    signal = _SIGNALS.get(kind)
    if signal is not None and signal.receivers:
        return True
    return any(when is None or when() for _, when in _listeners.get(kind, ()))


def emit(event: Event) -> None:
    """Tell everybody who listens. The caller has committed what the event says."""
    kind = type(event)
    for listener, when in _listeners.get(kind, ()):
        try:
            if when is None or when():
                listener(event)
        except Exception:
            logger.exception("A listener to %s failed", kind.__name__)
    signal = _SIGNALS.get(kind)
    if signal is not None and signal.receivers:
        signal.send_robust(sender=kind, event=event)


def emit_on_commit(kind: type[Event], events: Iterable[Event], *, using: str) -> None:
    """
    Emit once the current transaction on this database commits; at once where there is none.

    ``events`` are all of this kind, and are made only if somebody wants them now.
    In a transaction that is managed by hand (autocommit off, no ``atomic``)
    Django knows no commit, so the events are emitted at once.
    """
    pending = list(events) if wanted(kind) else []
    if not pending:
        return

    def send() -> None:
        for event in pending:
            emit(event)

    connection = connections[using]
    if connection.in_atomic_block or connection.get_autocommit():
        transaction.on_commit(send, using=using, robust=True)
    else:
        send()
