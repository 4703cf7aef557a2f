"""
What an executor is, and the steps of one attempt that all of them share.

``ExecutorContract`` in ``django_taskq.testing`` holds every executor to what the docstrings here say.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextvars import copy_context
from datetime import timedelta
from typing import Any, Protocol

from django.db import transaction

from django_taskq import clock, conf
from django_taskq.domain.outcomes import Failed, Interrupted, Outcome, Succeeded
from django_taskq.domain.states import Ack
from django_taskq.lifecycle import execute, settle
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.worker.hygiene import tidy, tidy_if_idle

__all__ = ["ALREADY", "Caller", "Executor", "Host", "is_written", "run_atomic", "run_guarded", "run_one"]

logger = logging.getLogger("django_taskq")

_NO_OFFSET = timedelta(0)

_FAULT_RETRY_SECONDS = 5.0

Caller = Callable[[Run], tuple[Outcome, BaseException | None]]


class Host(Protocol):
    """What an executor needs of the worker it belongs to."""

    alias: str
    options: conf.Options

    @property
    def offset(self) -> timedelta:
        """How far the database's clock is ahead of this machine's."""

    def may_start(self, claim: Claim) -> bool:
        """Return whether the lease of a claim still holds, so that it may be started."""

    def started(self, run: Run) -> bool:
        """Tell that a task function is about to be called; return False if it must not be any more."""

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        """Hand over how an attempt ended; ``settled`` is set once that is written, or refused."""

    def taken(self) -> None:
        """Tell that a slot took a claim off the waiting line."""


class Executor(ABC):
    """Runs claims in a number of slots."""

    runs_sync = True
    """Whether it can run plain functions."""
    can_stop_tasks = False
    """Whether it can end a task that does not listen."""

    def __init__(self, host: Host, slots: int) -> None:
        self.host = host
        self.slots = slots

    @abstractmethod
    def start(self) -> None:
        """Make the slots ready to work."""

    @abstractmethod
    def submit(self, claims: Sequence[Claim]) -> None:
        """Put claims in line. Does not wait. Each ends in exactly one ``host.ended``, or in ``take_back``."""

    @abstractmethod
    def in_hand(self) -> int:
        """Return how many claims wait in line or run."""

    def waiting(self) -> int:
        """Return how many claims wait in line."""
        return self.in_hand()

    @abstractmethod
    def take_back(self) -> list[Claim]:
        """Take the claims out of the line that no slot has begun, and return them."""

    @abstractmethod
    def cancel(self, run: Run) -> None:
        """Ask a running task to stop; end it where the executor can."""

    @abstractmethod
    def stop(self, timeout: float) -> list[Run]:
        """
        Let running tasks finish for ``timeout`` seconds, then let go; return those it knows to run still.

        A thread that does not come back is not among them: the worker keeps its own list of what runs.
        May be called again. An outcome that comes after it is refused by the lease.
        """

    def abandon(self, run: Run) -> bool:
        """Give up on a task that does not come back, and put a fresh slot in its place; return whether it can."""
        return False


def run_guarded(run: Callable[[Claim], None], host: Host, claim: Claim) -> None:
    """Run one claim; nothing is raised, and the claim ends whatever happens."""
    try:
        run(claim)
    except BaseException as error:
        # Nothing of a task gets here; this is our own fault, and must cost neither the slot nor the task.
        logger.exception("A slot failed outside of its task")
        failed = Failed(error=execute.describe(error), retry_in=_FAULT_RETRY_SECONDS)
        host.ended(Ended(claim, failed, None, clock.timestamp()))


def run_one(
    host: Host,
    claim: Claim,
    call: Caller = execute.call,
    *,
    own_thread: bool = True,
    atomic: Callable[[Host, Run, Caller], None] | None = None,
) -> None:
    """
    Run one claim in this thread from the lease check to the hand-over of its outcome.

    ``own_thread``: the thread runs nothing but tasks, so a transaction that a task leaves open is dropped.
    ``atomic`` runs and settles an attempt that does both in one transaction, where that is not this thread's business.
    """
    if not host.may_start(claim):
        # Rescued by now, or about to be: starting it could run it twice.
        host.ended(Ended(claim, Interrupted(started=False), None, clock.timestamp()))
        return
    found = execute.prepare(claim, host.options, host.alias, offset=getattr(host, "offset", _NO_OFFSET))
    if not isinstance(found, Run):
        host.ended(Ended(claim, found, None, clock.timestamp()))
        return
    tidy_if_idle(drop_transactions=own_thread)
    if not host.started(found):
        host.ended(Ended(claim, Interrupted(started=False), None, clock.timestamp()))
        return
    if claim.ack == Ack.ATOMIC:
        (atomic or run_atomic)(host, found, call)
    else:
        outcome, error = _isolated(found, call)
        ended = clock.timestamp()
        _tidy_up(drop_transactions=own_thread)
        _hand_over(host, found, outcome, error, ended)


def _tidy_up(*, drop_transactions: bool) -> None:
    try:
        tidy(drop_transactions=drop_transactions)
    except Exception:
        logger.exception("The connections of a slot could not be tidied up")


def _isolated(run: Run, call: Caller) -> tuple[Outcome, BaseException | None]:
    """
    Call the task in a context of its own, and return an outcome whatever happens.

    The language, time zone and other context variables that a task leaves changed are not the next one's.
    """
    try:
        return copy_context().run(call, run)
    except BaseException as error:
        # Nothing a task does gets past ``call``; should something, the task must not run in the books for ever.
        logger.exception("Running task %s failed outside of its function", run.claim.name)
        return execute.outcome_of(run, error), error


def _hand_over(host: Host, run: Run, outcome: Outcome, error: BaseException | None, ended: float) -> None:
    keep = run.behaviour.keep_result
    result = Ended(run.claim, outcome, run.started, ended, keep, error, run.cancelled, run.left_step)
    if run.claim.ack != Ack.NOW:
        host.ended(result)
        return
    settled = threading.Event()
    host.ended(result, settled=settled)
    settled.wait()


class _NotSettled(Exception):
    """The task's own writes must not stay: it failed, or its lease was lost."""


def run_atomic(host: Host, run: Run, call: Caller) -> None:
    """Run the task and write its success in one transaction, on this thread's connection."""
    outcome: Outcome
    error: BaseException | None = None
    ended = 0.0
    refused = False
    try:
        with transaction.atomic(using=host.alias):
            outcome, error = _isolated(run, call)
            ended = clock.timestamp()
            if not isinstance(outcome, Succeeded):
                raise _NotSettled
            mine = Ended(run.claim, outcome, run.started, ended, run.behaviour.keep_result, None, run.cancelled)
            now = clock.from_timestamp(ended) + getattr(host, "offset", _NO_OFFSET)
            # From here on it has rows under lock that others need.
            vendor_for(host.alias).limit_idle()
            written = settle.settle([mine], alias=host.alias, worker_id=run.claim.lease >> 32, now=now)
            if written.refused:
                refused = True
                raise _NotSettled
    except _NotSettled:
        pass
    except Exception as failure:
        # The commit failed, or the task left the transaction broken: nothing of it stayed.
        ended, outcome, error = clock.timestamp(), execute.outcome_of(run, failure), failure
    else:
        host.ended(Ended(run.claim, outcome, None, ended), settled=ALREADY)
        return
    finally:
        _tidy_up(drop_transactions=False)
    if refused:
        # With the transaction went the word of it.
        settle.tell_refused([Ended(run.claim, outcome, run.started, ended)], alias=host.alias)
        host.ended(Ended(run.claim, outcome, None, ended), settled=ALREADY)
        return
    _hand_over(host, run, outcome, error, ended)


# Marks an outcome that is in the database already: the worker only frees the slot.
ALREADY = threading.Event()
ALREADY.set()


def is_written(settled: threading.Event | None) -> bool:
    """Return whether an outcome was written by the attempt itself."""
    return settled is ALREADY


def key_of(claim: Claim) -> Any:
    """Return what identifies one attempt of a task in this worker."""
    return claim.key, claim.lease
