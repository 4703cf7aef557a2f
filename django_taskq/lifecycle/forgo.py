"""
End or change tasks that nobody runs, so that no limit keeps room for one that was released and now needs it no more.

Limits are locked after the caller's commit, in a transaction of their own: they stop workers, and who knows how long
the caller's transaction lasts. If the process dies in between, the promise lapses.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

from django.db import transaction

from django_taskq import clock, conf
from django_taskq.domain.states import DeadReason, State
from django_taskq.lifecycle import wake
from django_taskq.models import FinishedTask
from django_taskq.store import tasks as store

__all__ = ["after_commit", "end_waiting"]


def after_commit(alias: str, promised: Mapping[str, int]) -> None:
    """Once the current transaction commits, give so many promises of each limit back, and wake who can use them."""
    if promised:
        transaction.on_commit(partial(_forgo, alias, promised), using=alias, robust=True)


def _forgo(alias: str, promised: Mapping[str, int]) -> None:
    # Loaded by those who have limits.
    from django_taskq.lifecycle import limits

    for queue in limits.forgo(alias, promised, now=clock.now()):
        wake.after_commit(alias, queue, ready=True, notify=conf.options().notify)


def end_waiting(
    alias: str,
    keys: Sequence[uuid.UUID],
    *,
    state: State,
    now: datetime,
    reason: DeadReason | None = None,
    error_line: str | None = None,
) -> list[FinishedTask]:
    """End tasks that nobody runs, as the store does; the promises that they had are given back."""
    rows, promised = store.end_waiting(alias, keys, state=state, now=now, reason=reason, error_line=error_line)
    after_commit(alias, promised)
    return rows
