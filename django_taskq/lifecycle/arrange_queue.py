"""Say where a queue stands among the others: its position and its weight, for workers that name no queues."""

from __future__ import annotations

from django_taskq import clock
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle.databases import main_database
from django_taskq.store import queues
from django_taskq.store import tasks as store

__all__ = ["MOST", "arrange"]

MOST = 1_000_000


def arrange(
    queue: str,
    *,
    position: int | None = None,
    weight: int | None = None,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> bool:
    """
    Set the position of a queue, its weight, or both, audited; return False if it has them already.

    Workers that name no queues follow within a second. Raise InvalidOptions.
    """
    for field, value, least in (("position", position, -MOST), ("weight", weight, 1)):
        if value is not None and not least <= value <= MOST:
            raise InvalidOptions(f"{field} must be from {least} to {MOST}, got {value!r}", field=field, code="range")
    alias = alias or main_database()
    given = {"position": position, "weight": weight}
    wanted = {name: value for name, value in given.items() if value is not None}
    if not queues.arrange(alias, queue, wanted):
        return False
    store.audit(alias, actor=actor, action="arrange", now=clock.now(), reason=reason, target=queue, detail=wanted)
    return True
