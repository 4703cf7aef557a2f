"""
Every error django_taskq raises.

TaskqError
├── InvalidOptions (ValueError)      an option's value is outside its rule
├── InvalidPayload (TypeError, ValueError)  arguments or a result that JSON cannot hold
│   ├── PayloadTooLarge
│   └── InvalidArguments             arguments that do not fit the task function's signature or annotations
├── TaskNotFound (LookupError)       no task has this id
├── LimitNotFound (LookupError)      no task has a limit of this name
├── InvalidWorkflow (ValueError)     a chain, batch or workflow that cannot be
├── WorkflowNotFound (LookupError)   no chain, batch or workflow has this id
├── ScheduleNotFound (LookupError)   no schedule has this name
├── ScheduleRefused                  a schedule does not allow that: declared in code, run a moment ago
├── WorkflowEnded                    nothing can be added to it any more
├── ResultNotReady (ValueError)      the task has not ended successfully (yet)
├── WaitTimeout (TimeoutError)       the task did not end within the time given
├── EnqueueCancelled                 the caller gave up before the task was accepted
├── EnqueueTimeout (TimeoutError)    the database did not accept the task in time
├── DuplicateTask                    another task holds the unique key
├── IdempotencyConflict              the idempotency key was used for another call
├── EnqueueRefused                   there is a rule against new tasks just now; nothing was stored
│   ├── EnqueuePaused                a pause that refuses new tasks
│   └── QueueFull                    as many tasks are ready as MAX_READY allows
├── UnknownTask (LookupError)        no task definition has this name
├── InvalidCursor (ValueError)       no page of this order gave that cursor
├── InvalidTransition                the state machine has no such move
├── UnsupportedCapability            this backend or database cannot do that
├── StoreUnavailable                 the database refused, repeatedly
├── WorkerLost                       the worker that held the task is gone (kept as an error, never raised)
├── LeaseLost                        this attempt no longer holds its task; it writes nothing more
├── InvalidStep (ValueError)         a step where none can be, or a second one of the same name
└── ShutdownTimeout (TimeoutError)   work was still running when the grace time was over

What a task raises to steer its own fate is not an error and stands apart:

Steering (Exception)
├── Retry        again later, this attempt counts
├── Snooze       again later, this attempt does not count
├── GiveUp       dead at once, kept for a human
├── Skip         nothing to do: succeeded, without a result
└── Cancel       cancelled
TaskCancelled (Cancel)        raised by context.raise_if_cancelled()
TaskTimeout (TimeoutError)    the attempt's time is over; retried
BudgetExceeded (TimeoutError) the task's whole time is over; dead
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

__all__ = [
    "BudgetExceeded",
    "Cancel",
    "DuplicateTask",
    "EnqueueCancelled",
    "EnqueuePaused",
    "EnqueueRefused",
    "EnqueueTimeout",
    "GiveUp",
    "IdempotencyConflict",
    "InvalidArguments",
    "InvalidCursor",
    "InvalidOptions",
    "InvalidPayload",
    "InvalidStep",
    "InvalidTransition",
    "InvalidWorkflow",
    "LeaseLost",
    "LimitNotFound",
    "PayloadTooLarge",
    "QueueFull",
    "ResultNotReady",
    "Retry",
    "ScheduleNotFound",
    "ScheduleRefused",
    "ShutdownTimeout",
    "Skip",
    "Snooze",
    "Steering",
    "StoreUnavailable",
    "TaskCancelled",
    "TaskNotFound",
    "TaskTimeout",
    "TaskqError",
    "UnknownTask",
    "UnsupportedCapability",
    "WaitTimeout",
    "WorkerLost",
    "WorkflowEnded",
    "WorkflowNotFound",
]


class TaskqError(Exception):
    """Root of all errors raised by django_taskq."""


class InvalidOptions(TaskqError, ValueError):
    """
    An option of a task has a value its rule forbids.

    ``field`` names the option, ``code`` the rule in one word.
    """

    def __init__(self, message: str, *, field: str = "", code: str = "invalid") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class InvalidPayload(TaskqError, TypeError, ValueError):
    """Arguments, a result or metadata that cannot be written as JSON and read back unchanged."""


class PayloadTooLarge(InvalidPayload):
    """The JSON text is longer than MAX_PAYLOAD_BYTES or MAX_RESULT_BYTES allows."""


class InvalidArguments(InvalidPayload):
    """
    Arguments that do not fit the signature or the annotations of the task function, where ``validate`` asks for it.

    ``path`` says where, as in ``argument order.lines[2].price``; ``rule`` what has to be there.
    """

    def __init__(self, message: str, *, path: str = "", rule: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.rule = rule


class TaskNotFound(TaskqError, LookupError):
    """No live or finished task has this id; malformed ids end here too."""


class LimitNotFound(TaskqError, LookupError):
    """No task has a limit of this kind and name."""


class InvalidWorkflow(TaskqError, ValueError):
    """A chain, batch or workflow that cannot be: empty, with a circle, or with something in it that is no task."""


class WorkflowNotFound(TaskqError, LookupError):
    """No chain, batch or workflow has this id; malformed ids end here too."""


class ScheduleNotFound(TaskqError, LookupError):
    """No schedule has this name."""


class ScheduleRefused(TaskqError):
    """A schedule does not allow that: it is declared in code, was run a moment ago, or its last task is live."""


class WorkflowEnded(TaskqError):
    """The workflow has ended, or is being cancelled: nothing can be added to it, and no signal reaches it."""


class ResultNotReady(TaskqError, ValueError):
    """The task has no result: it has not ended, or it did not end well."""


class WaitTimeout(TaskqError, TimeoutError):
    """The task had not ended when the time to wait was over."""


class EnqueueCancelled(TaskqError):
    """The enqueue was cancelled before the database accepted it; no row was left."""


class EnqueueTimeout(TaskqError, TimeoutError):
    """The enqueue took longer than ``enqueue_timeout``; no row was left."""


class _KeyTaken(TaskqError):
    def __init__(self, message: str, *, key: str = "", task_id: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.task_id = task_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _key_taken, (type(self), str(self), self.key, self.task_id)


def _key_taken(kind: type[_KeyTaken], message: str, key: str, task_id: str | None) -> _KeyTaken:
    return kind(message, key=key, task_id=task_id)


class DuplicateTask(_KeyTaken):
    """
    Another task holds the unique key, so none was stored.

    ``task_id`` is that task's id, ``key`` the key as it is stored. ``task_id`` is None where both calls were in one
    ``enqueue_many``, of which nothing was stored.
    """


class IdempotencyConflict(_KeyTaken):
    """
    The idempotency key was used before, for another task or for other arguments; no task was stored.

    ``task_id`` is the id of the task that was accepted under the ``key``.
    """


class EnqueueRefused(TaskqError):
    """There is a rule against new tasks just now; nothing was stored."""


class EnqueuePaused(EnqueueRefused):
    """
    A pause refuses new tasks.

    ``scope`` is "queue", "task" or "everything", ``name`` what is paused, "" for everything; ``reason``,
    ``actor`` and ``until`` are those of the pause.
    """

    def __init__(self, scope: str, name: str, reason: str = "", actor: str = "", until: datetime | None = None) -> None:
        what = f"{scope} {name!r}" if name else scope
        text = f"{what} is paused and takes no new tasks"
        text += f" until {until.isoformat()}" if until is not None else " until somebody resumes it"
        super().__init__(f"{text}: {reason}" if reason else text)
        self.scope = scope
        self.name = name
        self.reason = reason
        self.actor = actor
        self.until = until

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.scope, self.name, self.reason, self.actor, self.until)


class QueueFull(EnqueueRefused):
    """
    As many tasks are ready in a queue as its MAX_READY allows.

    ``queue``, ``depth`` (what was counted), ``bound``, and ``count``: how many tasks were to be added.
    """

    def __init__(self, queue: str, depth: int, bound: int, count: int = 1) -> None:
        super().__init__(
            f"queue {queue!r} has {depth} ready tasks and MAX_READY allows {bound}, got {count} more; "
            "enqueue them later, or start more workers"
        )
        self.queue = queue
        self.depth = depth
        self.bound = bound
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.depth, self.bound, self.count)


class UnknownTask(TaskqError, LookupError):
    """The name leads to no task definition in this process."""


class InvalidCursor(TaskqError, ValueError):
    """A cursor that was not made by a page of the same order."""


class InvalidTransition(TaskqError):
    """A move that the state machine does not have, such as replaying a running task."""


class UnsupportedCapability(TaskqError):
    """The backend or the database cannot do what was asked."""

    def __init__(self, capability: str, backend: str) -> None:
        super().__init__(f"{backend} does not support {capability}")
        self.capability = capability
        self.backend = backend

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.capability, self.backend)


class StoreUnavailable(TaskqError):
    """The database refused three times in a row; the cause is chained."""


class ShutdownTimeout(TaskqError, TimeoutError):
    """Tasks were still running when the grace time of a shutdown was over; all clean-up was done first."""


class WorkerLost(TaskqError):
    """What the attempt of a task shows whose worker fell silent. Never raised."""


class LeaseLost(TaskqError):
    """The attempt no longer holds its task, so what it wanted to write of a step was not written; let it pass."""


class InvalidStep(TaskqError, ValueError):
    """A step where none can be: inside another, in a transaction, in an ``atomic`` task, or twice in one attempt."""


class Steering(Exception):
    """What a task raises to choose how its attempt ends."""


def _seconds(value: float | timedelta, field: str) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 <= seconds < float("inf"):
        raise InvalidOptions(f"{field} must be 0 seconds or more, got {value!r}", field=field, code="range")
    return seconds


class Retry(Steering):
    """
    End this attempt and run the task again after ``delay`` (seconds or timedelta).

    The attempt counts. Without a delay the task's backoff decides; with no
    attempts left the task is dead like after any other failure.
    """

    def __init__(self, message: str = "retry asked for", *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = None if delay is None else _seconds(delay, "delay")


class Snooze(Steering):
    """
    End this attempt and run the task again after ``delay`` (seconds or timedelta), as if it had not run.

    The attempt is given back. The idea is Oban's ``{:snooze, seconds}``.
    """

    def __init__(self, delay: float | timedelta) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = _seconds(delay, "delay")


class GiveUp(Steering):
    """End the task as dead now, whatever attempts are left; ``message`` is kept as the reason."""

    def __init__(self, message: str = "gave up") -> None:
        super().__init__(message)


class Skip(Steering):
    """
    End the task as succeeded, without a result: there is nothing to do.

    ``message`` is kept as the reason. A middleware raises it instead of calling on.
    """

    def __init__(self, message: str = "nothing to do") -> None:
        super().__init__(message)


class Cancel(Steering):
    """End the task as cancelled."""

    def __init__(self, message: str = "cancelled by the task") -> None:
        super().__init__(message)


class TaskCancelled(Cancel):
    """Somebody asked this running task to stop, and it agreed."""

    def __init__(self, message: str = "cancel requested") -> None:
        super().__init__(message)


class TaskTimeout(TaskqError, TimeoutError):
    """The attempt ran longer than its timeout. Counts as a failure that may be retried."""


class BudgetExceeded(TaskqError, TimeoutError):
    """The task's whole budget (``max_time``) is used up. Not retried."""


def error_class_path(error: BaseException | type[BaseException]) -> str:
    """Return the importable path of an exception's class, as ``django.tasks`` writes it."""
    kind: Any = error if isinstance(error, type) else type(error)
    return f"{kind.__module__}.{kind.__qualname__}"
