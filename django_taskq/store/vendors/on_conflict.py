"""INSERT … ON CONFLICT, and what else PostgreSQL and SQLite share to the letter."""

from __future__ import annotations

from datetime import datetime

from django_taskq.models import Stat
from django_taskq.store.vendors.base import STAT_COUNTERS, Vendor

__all__ = ["FREED", "INSERT_UNIQUE", "add_stats_on_conflict"]

STAT = f'"{Stat._meta.db_table}"'
# Behind an INSERT of a task: nothing is stored while a live task holds its unique key.
INSERT_UNIQUE = " ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING"
# What a claim leaves of a unique key. No LIKE: its percent sign would be a placeholder to the driver.
FREED = "CASE WHEN substr(unique_key, 1, 1) = '~' THEN NULL ELSE unique_key END"


def add_stats_on_conflict(vendor: Vendor, sums: dict[tuple[datetime, str, str, int], list[int]]) -> None:
    """Add sums with ON CONFLICT, in key order, so that no two writers lock crosswise."""
    columns = ", ".join(STAT_COUNTERS)
    added = ", ".join(f"{name} = s.{name} + excluded.{name}" for name in STAT_COUNTERS)
    marks = "(" + ", ".join(["%s"] * (4 + len(STAT_COUNTERS))) + ")"
    adapt = vendor.connection.ops.adapt_datetimefield_value
    items = sorted(sums.items())
    with vendor.connection.cursor() as cursor:
        for start in range(0, len(items), 20):
            part = items[start : start + 20]
            cursor.execute(
                f"INSERT INTO {STAT} AS s (minute, queue, task, worker_id, {columns})"
                f" VALUES {', '.join([marks] * len(part))}"
                f" ON CONFLICT (minute, queue, task, worker_id) DO UPDATE SET {added}",
                [
                    value
                    for (minute, queue, task, worker_id), values in part
                    for value in (adapt(minute), queue, task, worker_id, *values)
                ],
            )
