"""
The rows as they travel between the rooms: plain tuples, no model instances.

A model instance per task would double what a no-op task costs (5 to 12 µs
of 8). Keys stay in the form the database gives them; ``Vendor.public_id``
turns one into the id that users see. Without postponed annotations: for each that is text,
NamedTuple keeps compiled code, half a KiB a column.
"""

from datetime import datetime
from typing import Any, NamedTuple

__all__ = ["Again", "AttemptRow", "Claim", "Ending", "NewTask"]


class NewTask(NamedTuple):
    """A task to store. ``id``, ``parent_id`` and ``workflow_id`` are the UUIDs' integers."""

    id: int
    queue: str
    rank: int
    state: int
    max_attempts: int
    ack: int
    run_after: datetime | None
    created_at: datetime
    deadline_at: datetime | None
    expires_at: datetime | None
    name: str
    options: str | None
    metadata: str | None
    parent_id: int | None
    args: str
    workflow_id: int | None = None
    role: int | None = None
    waits_for: int | None = None
    limits: str | None = None
    fair_key: str | None = None
    unique_key: str | None = None


class Claim(NamedTuple):
    """
    A task a worker holds. ``key`` is the id in the database's own form.

    ``slots``: the keys of the limits that it counts in, one in a line; None where it has none.
    """

    key: Any
    queue: str
    rank: int
    attempt: int
    max_attempts: int
    ack: int
    name: str
    args: str
    options: str | None
    metadata: str | None
    run_after: datetime | None
    created_at: datetime
    deadline_at: datetime | None
    expires_at: datetime | None
    cancel: bool
    workflow_id: Any
    role: int | None
    slots: str | None
    lease: int


class Ending(NamedTuple):
    """A claimed task that ends. Times are seconds since 1970; ``keep`` 0 deletes, None is the state's retention."""

    key: Any
    lease: int
    state: int
    attempt_back: int
    started: float | None
    finished: float
    result: str | None
    reason: str | None
    error_class: str | None
    error_line: str | None
    fingerprint: str | None
    keep: float | None


class Again(NamedTuple):
    """A claimed task that goes back to a live state. ``run_after`` in seconds since 1970, None leaves it."""

    key: Any
    lease: int
    state: int
    attempt_back: int
    run_after: float | None
    options: str | None


class AttemptRow(NamedTuple):
    """An attempt to record. Times are seconds since 1970."""

    key: Any
    number: int
    worker_id: int
    outcome: str
    started: float | None
    ended: float
    error_class: str
    message: str
    traceback: str
