"""
What a running task knows of itself, and what it carries over from the moment it was enqueued.

``current`` is set while a task function runs; an enqueue in there becomes a child of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone, translation

from django_taskq import clock, conf
from django_taskq.domain import payload
from django_taskq.exceptions import BudgetExceeded, InvalidOptions, TaskCancelled, TaskTimeout
from django_taskq.lifecycle.definitions import Behaviour
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for

__all__ = ["Run", "Verdict", "captured_metadata", "current", "restored"]

logger = logging.getLogger("django_taskq.task")

_PROGRESS_SECONDS = 1.0


class Verdict:
    """What may be decided of an exception while it passes on, unchanged, to what stands further outside."""

    UNDECODABLE = "undecodable"
    GIVE_UP = "give_up"
    RETRY = "retry"


class Run:
    """
    One attempt while it runs: the claim, its times, and whether somebody asked it to stop.

    Shared by the thread that runs the task and the heartbeat that hears of a
    cancel; each field is written by one of them only.
    """

    __slots__ = (
        "_progress_at",
        "_public_id",
        "alias",
        "arguments",
        "behaviour",
        "budget_at",
        "cancel_event",
        "claim",
        "deadline_at",
        "ends_at",
        "interrupted",
        "left_step",
        "metadata",
        "options",
        "started",
        "steps",
        "stop_heard",
        "task",
        "timeout",
        "verdict",
    )

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    """What the function gets. Set where something stands around the function."""
    verdict: tuple[BaseException, str, float | None]
    """What a middleware decided of an exception: one of ``Verdict``, and the wait. Not set before."""

    is_stored = True
    """Whether there is a row in the database that stands for this attempt."""

    def __init__(
        self,
        claim: Claim,
        task: Any,
        alias: str,
        *,
        behaviour: Behaviour,
        options: conf.Options,
        started: float,
        offset: timedelta = timedelta(0),
    ) -> None:
        self.claim = claim
        self.task = task
        self.alias = alias
        self.behaviour = behaviour
        self.options = options
        self.timeout = timeout = behaviour.timeout
        self.started = started
        self.cancel_event: threading.Event | None = None
        self.interrupted = False
        # Made by steps.py when the task uses the first one.
        self.steps: Any = None
        # Whether a step is stored as running although nobody runs it any more.
        self.left_step = False
        # Whether the task's row said that a cancel was asked for, which the heartbeat will say later.
        self.stop_heard = False
        self.metadata: dict[str, Any] = payload.decode_value(claim.metadata) or {} if claim.metadata else {}
        if not isinstance(self.metadata, dict):
            raise TypeError(f"metadata must be a dict, the row has {self.metadata!r}")
        self._public_id: str | None = None
        self._progress_at = 0.0
        # On this machine's clock, by which the task and its watchers measure what remains.
        self.budget_at = None if claim.deadline_at is None else claim.deadline_at - offset
        limit = None if timeout is None else clock.from_timestamp(started + timeout)
        if limit is None or (self.budget_at is not None and self.budget_at < limit):
            limit = self.budget_at
        self.deadline_at: datetime | None = limit
        # The same on a clock that never jumps, for those who end an attempt from outside.
        self.ends_at: float | None = None
        if limit is not None:
            self.ends_at = clock.elapsed() + (limit - clock.from_timestamp(started)).total_seconds()

    @property
    def public_id(self) -> str:
        """The id that users see."""
        if self._public_id is None:
            self._public_id = vendor_for(self.alias).public_id(self.claim.key)
        return self._public_id

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @property
    def remaining(self) -> timedelta | None:
        """The time left until the deadline, never negative; None without a deadline."""
        if self.deadline_at is None:
            return None
        return max(self.deadline_at - clock.now(), timedelta(0))

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this task to stop."""
        return self.claim.cancel or self.stop_heard or (self.cancel_event is not None and self.cancel_event.is_set())

    def raise_if_cancelled(self) -> None:
        """Raise TaskCancelled if asked to stop, BudgetExceeded or TaskTimeout if the time is over."""
        if self.cancelled or self.interrupted:
            raise TaskCancelled
        if self.deadline_at is None:
            return
        now = clock.now()
        if self.budget_at is not None and now >= self.budget_at:
            raise BudgetExceeded(f"the budget of task {self.public_id} ended at {self.budget_at.isoformat()}")
        if now >= self.deadline_at:
            raise TaskTimeout(
                f"attempt {self.attempt} of task {self.public_id} ran longer than {self.timeout:g} seconds"
            )

    def progress(self, done: float, total: float | None = None, note: str = "") -> bool:
        """Store how far the task is, at most once a second and at the end; return whether it was stored."""
        tick = time.monotonic()
        is_last = total is not None and done >= total
        if not is_last and tick - self._progress_at < _PROGRESS_SECONDS:
            return False
        self._progress_at = tick
        from django_taskq.store import tasks as store

        store.save_progress(self.alias, self.public_id, done=done, total=total, note=note, now=clock.now())
        return True


current: ContextVar[Run | None] = ContextVar("django_taskq_run", default=None)


class TaskLogger(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic in the stubs only
    """Adds ``task_id``, ``task`` and ``attempt`` to each record."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def logger_for(run: Run) -> TaskLogger:
    """Return a logger whose records say which task they belong to."""
    return TaskLogger(logger, {"task_id": run.public_id, "task": run.claim.name, "attempt": run.attempt})


def captured_metadata(capture: tuple[str, ...], user: Mapping[str, Any] | None, *, limit: int) -> str | None:
    """
    Return what a task carries along as JSON text: language and time zone if they are not the default, and ``user``.

    Raise InvalidOptions or InvalidPayload for metadata that is not a dict JSON can hold.
    """
    found: dict[str, Any] = {}
    if "language" in capture:
        language: str | None = _language()
        if language is not None and language != conf.language():
            found["language"] = language
    # Asking for the names first would cost more than all else here.
    if "timezone" in capture and timezone.get_current_timezone() is not timezone.get_default_timezone():
        zone = timezone.get_current_timezone_name()
        if zone != timezone.get_default_timezone_name():
            found["timezone"] = zone
    if user:
        if not isinstance(user, Mapping):
            raise InvalidOptions(f"metadata must be a dict, got {user!r}", field="metadata", code="type")
        found["user"] = dict(user)
    return payload.encode_value(found, limit=limit, where="the metadata") if found else None


def _language() -> str | None:
    # None after deactivate_all(), which the stubs do not know.
    return translation.get_language()


@contextmanager
def restored(metadata: Mapping[str, Any]) -> Iterator[None]:
    """Run a block with the language and time zone that a task was enqueued with."""
    language, zone = metadata.get("language"), metadata.get("timezone")
    before = _language()
    if language:
        translation.activate(language)
    try:
        with timezone.override(ZoneInfo(zone)) if zone else nullcontext():
            yield
    finally:
        if language:
            if before is None:
                translation.deactivate_all()
            else:
                translation.activate(before)
