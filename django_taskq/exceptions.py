"""
Every error django_taskq raises.

TaskqError
├── InvalidOptions (ValueError)      an option's value is outside its rule
├── InvalidPayload (TypeError, ValueError)  arguments or a result that JSON cannot hold
│   └── PayloadTooLarge
├── TaskNotFound (LookupError)       no task has this id
├── InvalidWorkflow (ValueError)     a chain, batch or workflow that cannot be
├── WorkflowNotFound (LookupError)   no chain, batch or workflow has this id
├── WorkflowEnded                    nothing can be added to it any more
├── ResultNotReady (ValueError)      the task has not ended successfully (yet)
├── WaitTimeout (TimeoutError)       the task did not end within the time given
├── EnqueueCancelled                 the caller gave up before the task was accepted
├── EnqueueTimeout (TimeoutError)    the database did not accept the task in time
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
└── Cancel       cancelled
TaskCancelled (Cancel)        raised by context.raise_if_cancelled()
TaskTimeout (TimeoutError)    the attempt's time is over; retried
BudgetExceeded (TimeoutError) the task's whole time is over; dead
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

__all__ = [
    "BudgetExceeded",
    "Cancel",
    "EnqueueCancelled",
    "EnqueueTimeout",
    "GiveUp",
    "InvalidCursor",
    "InvalidOptions",
    "InvalidPayload",
    "InvalidStep",
    "InvalidTransition",
    "InvalidWorkflow",
    "LeaseLost",
    "PayloadTooLarge",
    "ResultNotReady",
    "Retry",
    "ShutdownTimeout",
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


class TaskNotFound(TaskqError, LookupError):
    """No live or finished task has this id; malformed ids end here too."""


class InvalidWorkflow(TaskqError, ValueError):
    """A chain, batch or workflow that cannot be: empty, with a circle, or with something in it that is no task."""


class WorkflowNotFound(TaskqError, LookupError):
    """No chain, batch or workflow has this id; malformed ids end here too."""


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
