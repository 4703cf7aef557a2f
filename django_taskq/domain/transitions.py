"""
The state machine: the only place that chooses a next state.

``decide`` is for an attempt that ended; the functions below it are the
operator's moves. All are pure: same facts, same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from django_taskq.domain.outcomes import (
    BudgetOver,
    Cancelled,
    Crashed,
    ErrorInfo,
    Expired,
    Failed,
    GaveUp,
    Interrupted,
    Lost,
    NotYet,
    Outcome,
    Skipped,
    Snoozed,
    Succeeded,
    TimedOut,
    Undecodable,
    Unknown,
)
from django_taskq.domain.states import LIVE, Ack, DeadReason, State, StepState
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidTransition, WorkerLost, error_class_path

__all__ = [
    "AttemptEnd",
    "Facts",
    "Transition",
    "after_cancel",
    "after_replay",
    "check_requeue",
    "decide",
    "initial_state",
    "may_leave_step",
    "step_after",
    "succeeded",
]


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision needs to know of a claimed task."""

    attempt: int
    max_attempts: int
    ack: int = Ack.LATE
    deadline_at: datetime | None = None
    cancel_requested: bool = False


class AttemptEnd:
    """How an ``Attempt`` row says that its attempt ended. Stored as text."""

    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    GAVE_UP = "gave_up"
    UNDECODABLE = "undecodable"
    BUDGET = "budget_expired"
    LOST = "lost"
    INTERRUPTED = "interrupted"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """
    Where the task goes and what is written with it.

    ``attempt_back``: this attempt is not counted. ``record``: how the Attempt
    row calls the end, None where no row is kept. ``run_after`` is set for SCHEDULED.
    ``note`` stands where an error's message would, for an end that is no error.
    """

    state: State
    reason: DeadReason | None = None
    run_after: datetime | None = None
    attempt_back: bool = False
    record: str | None = None
    error: ErrorInfo | None = None
    result: str | None = None
    note: str = ""


_SUCCEEDED = Transition(state=State.SUCCEEDED)


def decide(facts: Facts, outcome: Outcome, *, now: datetime) -> Transition:  # noqa: C901, PLR0912 - one arm per outcome
    """Return what becomes of a running task whose attempt ended with ``outcome`` at ``now``."""
    match outcome:
        case Succeeded(result=result):
            return succeeded(result)
        case Failed(error=error, retry_in=wait):
            return _again_or_dead(facts, error, wait, AttemptEnd.FAILED, now)
        case TimedOut(error=error, retry_in=wait):
            return _again_or_dead(facts, error, wait, AttemptEnd.TIMED_OUT, now)
        case Lost(error=error):
            if facts.cancel_requested:
                return Transition(state=State.CANCELLED, record=AttemptEnd.LOST, error=error)
            if facts.ack == Ack.FIRST:
                return _dead(DeadReason.LOST, AttemptEnd.LOST, error)
            # At once, without backoff: the worker died, which says little
            # about the task, and attempts bound a task that kills workers.
            return _again_or_dead(facts, error, 0.0, AttemptEnd.LOST, now)
        case Crashed(error=error):
            return _dead(DeadReason.CRASHED, AttemptEnd.CRASHED, error)
        case GaveUp(error=error):
            return _dead(DeadReason.GAVE_UP, AttemptEnd.GAVE_UP, error)
        case Undecodable(error=error):
            return _dead(DeadReason.UNDECODABLE, AttemptEnd.UNDECODABLE, error)
        case BudgetOver(error=error):
            if error is None:
                return Transition(state=State.DEAD, reason=DeadReason.BUDGET, attempt_back=True)
            return _dead(DeadReason.BUDGET, AttemptEnd.BUDGET, error)
        case Expired():
            return Transition(state=State.DEAD, reason=DeadReason.EXPIRED, attempt_back=True)
        case Unknown(is_final=True):
            return Transition(state=State.DEAD, reason=DeadReason.UNKNOWN_TASK, attempt_back=True)
        case Unknown(retry_in=wait):
            return Transition(state=State.SCHEDULED, run_after=now + timedelta(seconds=wait), attempt_back=True)
        case NotYet(run_after=run_after):
            return Transition(state=State.SCHEDULED, run_after=run_after, attempt_back=True)
        case Skipped(reason=reason):
            return Transition(state=State.SUCCEEDED, note=f"skipped: {reason}"[:300])
        case Snoozed() if facts.cancel_requested:
            return Transition(state=State.CANCELLED)
        case Snoozed(delay=wait):
            return Transition(state=State.SCHEDULED, run_after=now + timedelta(seconds=wait), attempt_back=True)
        case Cancelled():
            return Transition(state=State.CANCELLED)
        case Interrupted(started=started):
            if facts.cancel_requested:
                return Transition(state=State.CANCELLED)
            record = AttemptEnd.INTERRUPTED if started else None
            if started and facts.ack == Ack.FIRST:
                return Transition(state=State.DEAD, reason=DeadReason.LOST, record=record)
            return Transition(state=State.READY, attempt_back=True, record=record)
    assert_never(outcome)


def succeeded(result: str | None) -> Transition:
    """Return what becomes of a running task that succeeded, which depends on nothing else."""
    return _SUCCEEDED if result is None else Transition(state=State.SUCCEEDED, result=result)


def _dead(reason: DeadReason, record: str, error: ErrorInfo) -> Transition:
    return Transition(state=State.DEAD, reason=reason, record=record, error=error)


def _again_or_dead(facts: Facts, error: ErrorInfo, wait: float | None, record: str, now: datetime) -> Transition:
    if facts.cancel_requested:
        return Transition(state=State.CANCELLED, record=record, error=error)
    if wait is None or facts.ack == Ack.FIRST or facts.attempt >= facts.max_attempts:
        return _dead(DeadReason.EXHAUSTED, record, error)
    run_after = now + timedelta(seconds=wait)
    if facts.deadline_at is not None and run_after >= facts.deadline_at:
        return _dead(DeadReason.BUDGET, record, error)
    if wait <= 0:
        return Transition(state=State.READY, run_after=now, record=record, error=error)
    return Transition(state=State.SCHEDULED, run_after=run_after, record=record, error=error)


_WORKER_LOST = error_class_path(WorkerLost)


def may_leave_step(outcome: Outcome, state: State) -> bool:
    """
    Return whether steps have to be looked at when an attempt ends so, the task going to ``state``.

    A step that fails or succeeds stores that itself. What remains are attempts that were
    ended from outside, and cancelled tasks, which leave nothing unfinished.
    """
    match outcome:
        case Lost() | TimedOut() | Interrupted(started=True):
            return True
        case BudgetOver(error=error) if error is not None:
            return True
        case _:
            return state == State.CANCELLED


def step_after(outcome: Outcome, state: State) -> StepState:
    """Return what becomes of a step that was still running when its attempt ended so."""
    if state == State.CANCELLED:
        return StepState.CANCELLED
    match outcome:
        case Snoozed():
            return StepState.PENDING
        case Failed(error=error) if error.class_path == _WORKER_LOST:
            # The process that ran the task died, and the worker lived on to tell.
            return StepState.INTERRUPTED
        case Failed() | TimedOut() | Crashed() | GaveUp() | Undecodable() | BudgetOver():
            return StepState.FAILED
        case _:
            return StepState.INTERRUPTED


def initial_state(run_after: datetime | None, *, now: datetime, predecessors: int = 0) -> State:
    """Return the state in which a task is stored."""
    if predecessors:
        return State.WAITING
    return State.SCHEDULED if run_after is not None and run_after > now else State.READY


def after_cancel(state: int) -> State | None:
    """
    Return the state a cancel leads to at once, None where the running task must be asked.

    Raise InvalidTransition for a task that has ended.
    """
    if state == State.RUNNING:
        return None
    if state in LIVE:
        return State.CANCELLED
    raise InvalidTransition(f"a {State(state).name.lower()} task cannot be cancelled; it has ended")


def check_requeue(state: int, ack: int, *, is_cancelled: bool) -> None:
    """
    Raise InvalidTransition for a task that cannot be stopped and sent back.

    Only one that runs can, that may run a second time, and that nobody asked to stop for good.
    """
    if state != State.RUNNING:
        raise InvalidTransition(
            f"only a running task can be stopped and sent back, this one is {State(state).name.lower()}; "
            "cancel it without requeue, or leave it alone"
        )
    if ack == Ack.FIRST:
        raise InvalidTransition('its ack is "first", so it may not run a second time; cancel it without requeue')
    if is_cancelled:
        raise InvalidTransition("it was cancelled before, and ends when it listens; replay it then")


def after_replay(state: int) -> State:
    """Return the state of a replayed task. Raise InvalidTransition unless it is dead or cancelled."""
    if state in (State.DEAD, State.CANCELLED):
        return State.READY
    raise InvalidTransition(
        f"a {State(state).name.lower()} task cannot be replayed; only dead and cancelled tasks can, "
        "enqueue the task again instead"
    )
