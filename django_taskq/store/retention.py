"""Delete old rows that are not single tasks: workflows, statistics, snapshots, dead workers, audit entries, ticks."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from django.db.models import Exists, Model, OuterRef, Q

from django_taskq.domain.states import State
from django_taskq.models import (
    AuditEntry,
    Dependency,
    FinishedTask,
    IdempotencyKey,
    ScheduleTick,
    Snapshot,
    Stat,
    Task,
    Worker,
    Workflow,
)
from django_taskq.store.vendors import vendor_for

__all__ = ["delete_old", "delete_workflow", "old_workflows"]


def delete_old(
    alias: str,
    *,
    statistics: datetime | None,
    snapshots: datetime | None,
    workers: datetime | None,
    audit: datetime | None,
    keys: datetime,
    ticks: datetime | None,
    limit: int,
) -> int:
    """
    Delete at most ``limit`` rows of each kind that are older than its moment; None keeps them for ever.

    ``keys``: those whose time was over then.
    """
    count = _delete(alias, IdempotencyKey, limit, expires_at__lte=keys)
    if statistics is not None:
        count += _delete(alias, Stat, limit, minute__lt=statistics)
    if snapshots is not None:
        count += _delete(alias, Snapshot, limit, at__lt=snapshots)
    if workers is not None:
        count += _delete(alias, Worker, limit, beat_at__lt=workers, state=Worker.State.DEAD)
    if audit is not None:
        count += _delete(alias, AuditEntry, limit, at__lt=audit)
    if ticks is not None:
        count += _delete(alias, ScheduleTick, limit, made_at__lt=ticks)
    return count


def _delete(alias: str, model: type[Model], limit: int, **old: Any) -> int:
    # Ids first: not every database can delete with a limit.
    rows = model._default_manager.using(alias).filter(**old)
    ids = list(rows.values_list("pk", flat=True)[:limit])
    # Asked again by the statement that deletes: a key whose time is over may have been taken meanwhile.
    return vendor_for(alias).delete(rows.filter(pk__in=ids)) if ids else 0


def old_workflows(alias: str, *, state: int, before: datetime, limit: int) -> list[uuid.UUID]:
    """Return workflows that are inside no other, ended in a state before a moment, and have nothing live left."""
    live = Task.objects.using(alias).filter(workflow_id=OuterRef("pk"))
    found = Workflow.objects.using(alias).filter(parent_id__isnull=True, state=state, finished_at__lt=before)
    return list(found.filter(~Exists(live)).order_by("finished_at").values_list("pk", flat=True)[:limit])


def delete_workflow(alias: str, key: uuid.UUID, *, limit: int, dead_before: datetime | None) -> tuple[int, bool]:
    """
    Delete up to ``limit`` tasks of a workflow and of those inside it, and the workflow once none is left.

    Return how many rows that were, and whether that was all: the workflow itself is gone,
    or stays since something in it lives. Dead letters younger than ``dead_before`` stay, without their
    workflow; None keeps them all.
    """
    from django_taskq.store import workflows

    vendor = vendor_for(alias)
    tree = [key]
    for at in tree:
        tree += Workflow.objects.using(alias).filter(parent_id=at).values_list("pk", flat=True)
    kept = Q(state=State.DEAD) if dead_before is None else Q(state=State.DEAD, finished_at__gte=dead_before)
    ended = FinishedTask.objects.using(alias).filter(workflow_id__in=tree).exclude(kept)
    with vendor.atomic():
        rows = workflows.lock(alias, tree)
        if not all(row.has_ended for row in rows) or Task.objects.using(alias).filter(workflow_id__in=tree).exists():
            # Replayed meanwhile, or a callback of one inside still runs.
            return 0, True
        keys = list(ended.values_list("pk", flat=True)[:limit])
        if keys:
            vendor.forget([vendor.key_of(found) for found in keys])
            FinishedTask.objects.using(alias).filter(pk__in=keys).delete()
        if len(keys) < limit:
            Dependency.objects.using(alias).filter(workflow_id__in=tree).delete()
            Workflow.objects.using(alias).filter(pk__in=tree).delete()
            return len(keys) + len(tree), True
    return len(keys), False
