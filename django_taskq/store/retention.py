"""Delete old rows that are not tasks: statistics, snapshots, dead workers, audit entries."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Model

from django_taskq.models import AuditEntry, Snapshot, Stat, Worker

__all__ = ["delete_old"]


def delete_old(
    alias: str,
    *,
    statistics: datetime | None,
    snapshots: datetime | None,
    workers: datetime | None,
    audit: datetime | None,
    limit: int,
) -> int:
    """Delete at most ``limit`` rows of each kind that are older than its moment; None keeps them for ever."""
    count = 0
    if statistics is not None:
        count += _delete(alias, Stat, limit, minute__lt=statistics)
    if snapshots is not None:
        count += _delete(alias, Snapshot, limit, at__lt=snapshots)
    if workers is not None:
        count += _delete(alias, Worker, limit, beat_at__lt=workers, state=Worker.State.DEAD)
    if audit is not None:
        count += _delete(alias, AuditEntry, limit, at__lt=audit)
    return count


def _delete(alias: str, model: type[Model], limit: int, **old: Any) -> int:
    # Ids first: not every database can delete with a limit.
    ids = list(model._default_manager.using(alias).filter(**old).values_list("pk", flat=True)[:limit])
    return model._default_manager.using(alias).filter(pk__in=ids).delete()[0] if ids else 0
