"""
Delete finished tasks whose time is over, a chunk at a time.

Each chunk is its own transaction, followed by a pause as long as it took, so that pruning
never takes more than half of what the database has to give.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from django_taskq import conf, events
from django_taskq.domain.states import State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.models import Limit, Lock, Workflow
from django_taskq.store import retention
from django_taskq.store.vendors import vendor_for

__all__ = ["prune", "run_once"]

CHUNK = 5000
# One round of the duty stops here, so that the other duties have their turn.
MOST = 100_000
_LOCKS_KEPT = timedelta(hours=1)
_LIMITS_KEPT = timedelta(days=1)


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Delete what retention no longer wants; return how many tasks that were."""
    kept = options.retention
    count = prune(alias, lambda limit: vendor_for(alias).prune_marked(now, limit), "own")
    for state, span in (
        (State.SUCCEEDED, kept.succeeded),
        (State.CANCELLED, kept.cancelled),
        (State.DEAD, kept.dead),
    ):
        if span is not None:
            before = now - span

            def chunk(limit: int, state: State = state, before: datetime = before) -> int:
                return vendor_for(alias).prune(state, before=before, limit=limit)

            count += prune(alias, chunk, state.name.lower())
    count += _prune_workflows(alias, options, now)
    _sweep_locks(alias, now)
    _prune_limits(alias, now)
    retention.delete_old(
        alias,
        statistics=None if kept.statistics is None else now - kept.statistics,
        snapshots=None if kept.snapshots is None else now - kept.snapshots,
        workers=None if kept.workers is None else now - kept.workers,
        audit=None if kept.audit is None else now - kept.audit,
        keys=now,
        ticks=None if kept.ticks is None else now - kept.ticks,
        limit=CHUNK,
    )
    return count


def _sweep_locks(alias: str, now: datetime) -> None:
    """Delete the locks that killed workers left behind, which nobody has taken since."""
    before = now - _LOCKS_KEPT
    if not Lock.objects.using(alias).filter(taken_at__lt=before).exists():
        return
    # Loaded by those who have locks.
    from django_taskq.store import locks

    locks.sweep(alias, before=before, limit=CHUNK)


def _prune_limits(alias: str, now: datetime) -> None:
    """Delete limits that nobody used for a day: keys made of arguments would else be kept for ever."""
    before = now - _LIMITS_KEPT
    if Limit.objects.using(alias).filter(used_at__lt=before).exists():
        # Loaded by those who have limits.
        from django_taskq.store import limits

        limits.prune(alias, now=now, before=before, limit=CHUNK)


def _prune_workflows(alias: str, options: conf.Options, now: datetime) -> int:
    """Delete workflows with all that belongs to them, by the retention of what their ends are like."""
    if not Workflow.objects.using(alias).filter(finished_at__isnull=False).exists():
        return 0
    # Loaded by those who have workflows.
    from django_taskq.lifecycle.prune_workflows import prune_workflows

    kept = options.retention
    dead_before = None if kept.dead is None else now - kept.dead
    count = 0
    for state, span in (
        (WorkflowState.COMPLETED, kept.succeeded),
        (WorkflowState.CANCELLED, kept.cancelled),
        (WorkflowState.FAILED, kept.dead),
    ):
        if span is not None and count < MOST:
            count += prune_workflows(alias, state, before=now - span, dead_before=dead_before, most=MOST - count)
    return count


def prune(alias: str, chunk: Callable[[int], int], state: str) -> int:
    """Delete chunk by chunk until one comes back short; tell how many tasks that were."""
    vendor = vendor_for(alias)
    count = 0
    while count < MOST:
        began = time.monotonic()
        deleted = vendor.retrying(lambda: chunk(CHUNK))
        count += deleted
        if deleted < CHUNK:
            break
        time.sleep(min(time.monotonic() - began, 1.0))
    if count and events.wanted(events.TasksPruned):
        events.emit(events.TasksPruned(state=state, count=count))
    return count
