"""Find and mend workflows that are at odds with their tasks, a hundred at a time, round and round."""

from __future__ import annotations

import logging
import uuid
from datetime import datetime

from django.db.models import Q

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.models import Limit, Task, Workflow

__all__ = ["Round", "run_once"]

logger = logging.getLogger("django_taskq")


class Round:
    """Where one leader is in its round. A new leader begins anew, which costs nothing but time."""

    def __init__(self) -> None:
        self.after: uuid.UUID | None = None


def run_once(alias: str, options: conf.Options, now: datetime, *, place: Round | None = None) -> int:
    """Look at the next workflows; return how many were mended. Without a ``place`` all of them, once."""
    mended = _mend_limits(alias, now)
    if not _has_work(alias):
        return mended
    # Loaded by those who have workflows.
    from django_taskq.lifecycle import reconcile

    if place is not None:
        count, place.after = reconcile.reconcile(alias, now=now, after=place.after)
    else:
        count, after = reconcile.reconcile(alias, now=now)
        while after is not None:
            more, after = reconcile.reconcile(alias, now=now, after=after)
            count += more
    if count:
        logger.warning("%d workflows were at odds with their tasks and were mended", count)
    return count + mended


def _mend_limits(alias: str, now: datetime) -> int:
    counted = Limit.objects.using(alias).filter(Q(held__gt=0) | Q(waits=True) | Q(promised__gt=0))
    if not counted.exists() and not Task.objects.using(alias).filter(parked_on__isnull=False).exists():
        return 0
    # Loaded by those who have limits.
    from django_taskq.lifecycle import limits

    count = limits.reconcile(alias, now=now)
    if count:
        logger.warning("%d limits were at odds with their tasks and were mended", count)
    return count


def _has_work(alias: str) -> bool:
    """Return whether a workflow runs, or a task waits for others."""
    if Workflow.objects.using(alias).filter(state=WorkflowState.RUNNING).exists():
        return True
    # The workflow of a waiting task may be gone, or have ended.
    return Task.objects.using(alias).filter(workflow_id__isnull=False, state=State.WAITING).exists()
