"""
What can be observed: one value per event, told in the past tense, after commit.

Logic calls ``emit``; logs, metrics and the signals of ``signals.py`` only
listen. ``wanted`` answers before an event is made, so that nothing is paid
where nobody listens. A listener that raises is logged and passed over.
Its surprise: four kinds at the end have no signal. Three carry a whole batch:
they let counters cost a task less than its own events would.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connections, transaction
from django.dispatch import Signal

from django_taskq import signals
from django_taskq.domain.outcomes import ErrorInfo
from django_taskq.domain.values import lean
from django_taskq.domain.workflows import Counts

__all__ = [
    "AttemptsSettled",
    "CallbackDead",
    "CallbackEnqueued",
    "EnqueueDeduplicated",
    "EnqueueDropped",
    "EnqueueRejected",
    "Event",
    "EverythingPaused",
    "EverythingResumed",
    "LimitChanged",
    "QueuePaused",
    "QueueResumed",
    "ResultsDropped",
    "ScheduleEvent",
    "ScheduleFailed",
    "ScheduleSkipped",
    "ScheduleTicked",
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
    "TaskSkipped",
    "TaskSnoozed",
    "TaskStarted",
    "TaskSucceeded",
    "TaskTypePaused",
    "TaskTypeResumed",
    "TasksClaimed",
    "TasksPruned",
    "TasksStored",
    "WorkerEvent",
    "WorkerLost",
    "WorkerStarted",
    "WorkerStopped",
    "WorkflowAdvanced",
    "WorkflowCancelled",
    "WorkflowCompleted",
    "WorkflowEvent",
    "WorkflowFailed",
    "WorkflowMended",
    "WorkflowReplayed",
    "WorkflowStarted",
    "emit",
    "emit_on_commit",
    "subscribe",
    "unsubscribe",
    "wanted",
]

logger = logging.getLogger("django_taskq")


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened and is committed."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent(Event):
    """An event of one task. ``task_id`` is its public id, ``task`` its name, ``alias`` its database."""

    task_id: str
    task: str
    queue: str
    attempt: int = 0
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnqueued(TaskEvent):
    """A task was stored, and its transaction committed. ``run_after`` is None for "now"."""

    run_after: datetime | None = None
    result: Any = field(default=None, repr=False, compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted(TaskEvent):
    """A worker is about to call the task function. ``wait_seconds``: since the task could have run."""

    worker_id: int
    wait_seconds: float
    claim: Any = field(default=None, repr=False, compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSucceeded(TaskEvent):
    """The function returned and that was committed."""

    worker_id: int
    run_seconds: float
    wait_seconds: float
    claim: Any = field(default=None, repr=False, compare=False)
    result: str | None = field(default=None, repr=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(TaskEvent):
    """An attempt did not succeed. TaskRetried, TaskDead or TaskCancelled follows and says what came of it."""

    worker_id: int
    outcome: str
    run_seconds: float
    error: ErrorInfo | None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRetried(TaskEvent):
    """The task will run again, not before ``run_after``."""

    run_after: datetime | None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSkipped(TaskEvent):
    """The task had nothing to do, and succeeded without a result. Follows TaskSucceeded."""

    reason: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSnoozed(TaskEvent):
    """The task put itself off; the attempt is not counted."""

    run_after: datetime | None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInterrupted(TaskEvent):
    """A stopping worker handed the running task back; the attempt is not counted."""

    worker_id: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRescued(TaskEvent):
    """The worker that held the task is gone. TaskRetried, TaskDead or TaskCancelled follows."""

    worker_id: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDead(TaskEvent):
    """The task is a dead letter now."""

    reason: str
    run_seconds: float = 0.0
    error: ErrorInfo | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    claim: Any = field(default=None, repr=False, compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCancelled(TaskEvent):
    """The task ended as cancelled. Sent once per task, unless an operator replays it and it is cancelled again."""

    claim: Any = field(default=None, repr=False, compare=False)
    exception: BaseException | None = field(default=None, repr=False, compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReplayed(TaskEvent):
    """An operator sent a dead or cancelled task back."""

    actor: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDiscarded(TaskEvent):
    """An operator gave a dead task up."""

    actor: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(TaskEvent):
    """An event of one step of a task. ``step`` is its name."""

    step: str
    worker_id: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(StepEvent):
    """A step is about to be run. One whose result is kept from an earlier attempt is not."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class StepSucceeded(StepEvent):
    """The result of a step is kept."""

    run_seconds: float


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(StepEvent):
    """A step raised. What becomes of the attempt is told by other events."""

    run_seconds: float
    error: ErrorInfo


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementRefused(TaskEvent):
    """A worker wanted to write how an attempt ended, but its lease was lost; nothing was written."""

    worker_id: int
    outcome: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueRejected(Event):
    """An enqueue failed; no row was left. ``error`` says why."""

    task: str
    queue: str
    error: BaseException = field(compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueDeduplicated(TaskEvent):
    """
    An enqueue stored no task: one with the same key was there. ``task_id`` is that one's.

    ``how`` is "returned", "replaced" or "rescheduled"; ``key`` is the key as it is stored.
    """

    key: str
    how: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueDropped(Event):
    """``count`` tasks were not stored, since their queue was full and its FULL_POLICY is "drop"."""

    task: str
    queue: str
    count: int
    depth: int
    bound: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent(Event):
    """An event of one worker."""

    worker_id: int
    name: str
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(WorkerEvent):
    """A worker announced itself."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopped(WorkerEvent):
    """A worker said good-bye."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(WorkerEvent):
    """A worker fell silent for longer than its lease and was declared dead."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowEvent(Event):
    """An event of one workflow. ``kind`` is "chain", "batch" or "workflow", ``name`` what the project calls it."""

    workflow_id: str
    kind: str
    name: str
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStarted(WorkflowEvent):
    """A workflow was stored, or its turn came inside another one."""

    total: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowAdvanced(WorkflowEvent):
    """Members ended, together with those that were settled with them: told once per settlement, not per member."""

    counts: Counts


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCompleted(WorkflowEvent):
    """All members of a workflow ended, and no more of them without success than it allows."""

    counts: Counts


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFailed(WorkflowEvent):
    """All members of a workflow ended, more of them dead than it allows."""

    counts: Counts


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCancelled(WorkflowEvent):
    """A workflow ended as cancelled: on request, or because members of it were."""

    counts: Counts


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowReplayed(WorkflowEvent):
    """An operator sent members back, and the workflow is running again."""

    actor: str
    count: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowMended(WorkflowEvent):
    """The duty *reconcile* found a workflow at odds with its tasks. ``found`` says what was wrong."""

    found: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEnqueued(WorkflowEvent):
    """A callback was stored as a task. ``callback`` is "then", "catch", "finally" or "progress"."""

    callback: str
    task_id: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackDead(WorkflowEvent):
    """A callback is a dead letter; the workflow's own state does not change by it."""

    callback: str
    task_id: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePaused(Event):
    """Workers stop claiming from a queue."""

    queue: str
    actor: str
    reason: str = ""
    until: datetime | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class QueueResumed(Event):
    """Workers claim from a queue again. ``actor`` is "its end" where the time of the pause was over."""

    queue: str
    actor: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChanged(Event):
    """An operator set a limit's bound, or reset it to the code's: then ``amount`` is None."""

    limit: str
    kind: str
    amount: int | None
    per_seconds: float | None
    burst: int | None
    until: datetime | None
    actor: str
    reason: str = ""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTypePaused(Event):
    """Workers stop running tasks of one type."""

    task: str
    actor: str
    reason: str = ""
    until: datetime | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEvent(Event):
    """An event of one schedule. ``schedule`` is its name, ``at`` the tick, ``since`` the first it stands for."""

    schedule: str
    task: str
    at: datetime
    since: datetime | None = None
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTypeResumed(Event):
    """Workers run tasks of a type again. ``actor`` is "its end" where the time of the pause was over."""

    task: str
    actor: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTicked(ScheduleEvent):
    """A schedule made a task. ``manual``: an operator ran it, so that ``at`` is no tick of its rule."""

    task_id: str
    manual: bool = False


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class EverythingPaused(Event):
    """Workers stop claiming."""

    actor: str
    reason: str = ""
    until: datetime | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSkipped(ScheduleEvent):
    """A schedule made no task for a tick. ``why``: "overlap", "paused", "missed", or "skipped" on request."""

    why: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class EverythingResumed(Event):
    """Workers claim again. ``actor`` is "its end" where the time of the pause was over."""

    actor: str


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFailed(ScheduleEvent):
    """A schedule could not make its task. The tick is not lost: it is tried again, not before ``again_at``."""

    error: BaseException = field(compare=False)
    again_at: datetime


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TasksPruned(Event):
    """Retention deleted ``count`` finished tasks that had ended in ``state``."""

    state: str
    count: int


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TasksStored(Event):
    """``count`` tasks of one name were stored on one queue. For counters; no signal."""

    task: str
    queue: str
    count: int
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TasksClaimed(Event):
    """A worker took these claims. For counters; no signal."""

    claims: Sequence[Any]
    worker_id: int
    alias: str = "default"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptsSettled(Event):
    """One settlement was committed: pairs of what ended and where it went. For counters; no signal."""

    settled: Sequence[tuple[Any, Any]]
    refused: Sequence[Any]
    alias: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ResultsDropped(Event):
    """A stream of results in this process had no room for ``count`` outcomes. For counters; no signal."""

    count: int


_SIGNALS: dict[type[Event], Signal] = {
    TaskEnqueued: signals.task_enqueued,
    TaskStarted: signals.task_started,
    TaskSucceeded: signals.task_succeeded,
    TaskFailed: signals.task_failed,
    TaskRetried: signals.task_retried,
    TaskSnoozed: signals.task_snoozed,
    TaskSkipped: signals.task_skipped,
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
    EnqueueDeduplicated: signals.enqueue_deduplicated,
    EnqueueDropped: signals.enqueue_dropped,
    WorkerStarted: signals.worker_started,
    WorkerStopped: signals.worker_stopped,
    WorkerLost: signals.worker_lost,
    LimitChanged: signals.limit_changed,
    QueuePaused: signals.queue_paused,
    QueueResumed: signals.queue_resumed,
    TaskTypePaused: signals.task_type_paused,
    TaskTypeResumed: signals.task_type_resumed,
    EverythingPaused: signals.everything_paused,
    EverythingResumed: signals.everything_resumed,
    ScheduleTicked: signals.schedule_ticked,
    ScheduleSkipped: signals.schedule_skipped,
    ScheduleFailed: signals.schedule_failed,
    TasksPruned: signals.tasks_pruned,
    WorkflowStarted: signals.workflow_started,
    WorkflowAdvanced: signals.workflow_advanced,
    WorkflowCompleted: signals.workflow_completed,
    WorkflowFailed: signals.workflow_failed,
    WorkflowCancelled: signals.workflow_cancelled,
    WorkflowReplayed: signals.workflow_replayed,
    WorkflowMended: signals.workflow_mended,
    CallbackEnqueued: signals.callback_enqueued,
    CallbackDead: signals.callback_dead,
}

Listener = Callable[[Any], None]
Condition = Callable[[], bool]

_listeners: dict[type[Event], tuple[tuple[Listener, Condition | None], ...]] = {}
# For changing, not for reading: two that subscribe at once must not lose one of the two.
_changing = threading.Lock()


def subscribe(kind: type[Event], listener: Listener, *, when: Condition | None = None) -> None:
    """
    Call ``listener(event)`` for each event of exactly this kind, in the thread that emits it.

    ``when`` says whether the listener cares at the moment; it must be cheap.
    Subscribing the same listener again changes nothing.
    """
    with _changing:
        _listeners[kind] = (*_without(kind, listener), (listener, when))


def unsubscribe(kind: type[Event], listener: Listener) -> None:
    """Undo ``subscribe``; does nothing for a listener that is not there."""
    with _changing:
        _listeners[kind] = _without(kind, listener)


def _without(kind: type[Event], listener: Listener) -> tuple[tuple[Listener, Condition | None], ...]:
    # Compared by value: each look at a method makes a new object of it.
    return tuple(pair for pair in _listeners.get(kind, ()) if pair[0] != listener)


def wanted(kind: type[Event]) -> bool:
    """Return whether anybody listens to this kind of event just now."""
    signal = _SIGNALS.get(kind)
    if signal is not None and signal.receivers:
        return True
    # A loop, as this is asked twice for each enqueue: a generator costs more than what it asks.
    for _, when in _listeners.get(kind, ()):  # noqa: SIM110
        if when is None or when():
            return True
    return False


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
