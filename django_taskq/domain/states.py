"""The states of a task and of its steps, and what they mean to others. The numbers are stored; they never change."""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = ["FINAL", "LIVE", "Ack", "DeadReason", "State", "StepState", "status_name"]


class State(IntEnum):
    """Where a task stands. Live states are rows of ``Task``, final ones rows of ``FinishedTask``."""

    SCHEDULED = 0
    READY = 1
    RUNNING = 2
    SUCCEEDED = 3
    DEAD = 4
    PARKED = 5
    WAITING = 6
    CANCELLED = 7

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED})
LIVE = frozenset(State) - FINAL


class StepState(IntEnum):
    """Where a step of a task stands. Only a running task has a running step."""

    PENDING = 0  # planned, or put off by a snooze: nothing of it has been done
    RUNNING = 1
    SUCCEEDED = 2  # its result is kept, and it is not run again
    FAILED = 3
    CANCELLED = 4
    INTERRUPTED = 5  # its worker went, or its process did: nobody knows how far it came


class Ack(IntEnum):
    """When a task's end is written, and so what a crash means for it."""

    LATE = 0  # with others, soon after the end: at least once
    NOW = 1  # before its slot starts another task: at least once, smaller window
    FIRST = 2  # a lost attempt is never repeated: at most once
    ATOMIC = 3  # in one transaction with the task's own writes


class DeadReason(StrEnum):
    """Why a task is dead, or was cancelled without being asked. Stored as text."""

    EXHAUSTED = "exhausted"
    CRASHED = "crashed"
    BUDGET = "budget_expired"
    EXPIRED = "expired"
    GAVE_UP = "gave_up"
    UNKNOWN_TASK = "unknown_task"
    UNDECODABLE = "undecodable"
    LOST = "lost"
    MOVED = "moved"
    # Not dead but cancelled: what it waited for did not succeed.
    UPSTREAM = "upstream"


_STATUS = {
    State.WAITING: "READY",
    State.SCHEDULED: "READY",
    State.READY: "READY",
    State.PARKED: "READY",
    State.RUNNING: "RUNNING",
    State.SUCCEEDED: "SUCCESSFUL",
    State.DEAD: "FAILED",
    State.CANCELLED: "FAILED",
}


def status_name(state: int) -> str:
    """Return the name of the ``django.tasks`` status that shows this state."""
    return _STATUS[State(state)]
