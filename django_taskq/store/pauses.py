"""Pauses: put them down, find them, lift them. One that is over does not count, whether or not its row is there."""

from __future__ import annotations

from datetime import datetime

from django_taskq.domain.pauses import PauseScope
from django_taskq.models import Pause
from django_taskq.store.vendors import vendor_for

__all__ = ["every", "find", "in_force", "lift", "paused_types", "put", "refusing"]


def every(alias: str) -> list[Pause]:
    """Return all pauses, those that are over and not yet tidied away among them. There are few."""
    return list(Pause.objects.using(alias).order_by("scope", "name"))


def refusing(alias: str) -> list[Pause]:
    """Return the pauses that refuse new tasks, or leave it to the settings; those that are over among them."""
    found = Pause.objects.using(alias).exclude(rejects=False)
    return list(found.order_by("scope", "name"))


def in_force(alias: str, now: datetime) -> list[Pause]:
    """Return the pauses that hold at ``now``, the widest first."""
    return [pause for pause in every(alias) if not pause.is_over(now)]


def find(alias: str, scope: PauseScope, name: str, *, now: datetime) -> Pause | None:
    """Return the pause of exactly this, None where none holds."""
    found = Pause.objects.using(alias).filter(scope=int(scope), name=name).first()
    return None if found is None or found.is_over(now) else found


def paused_types(alias: str, now: datetime) -> set[str]:
    """Return the names of the task types that are paused each for itself."""
    return {pause.name for pause in in_force(alias, now) if pause.scope == PauseScope.TASK}


def put(
    alias: str,
    scope: PauseScope,
    name: str,
    *,
    actor: str,
    reason: str,
    now: datetime,
    until: datetime | None = None,
    rejects: bool | None = None,
    replace: bool = False,
) -> bool:
    """
    Put a pause down; return False if one held already and was left as it is.

    Of two that do it at once, one does. ``replace``: it takes the place of one that holds.
    """
    values = {
        "paused_at": now,
        "paused_by": actor[:150],
        "reason": reason[:200],
        "until": until,
        "rejects": rejects,
    }
    same = Pause.objects.using(alias).filter(scope=int(scope), name=name)
    if (same if replace else same.filter(until__lte=now)).update(**values):
        return True
    with vendor_for(alias).atomic():
        _, created = Pause.objects.using(alias).get_or_create(scope=int(scope), name=name, defaults=values)
    return created


def lift(alias: str, scope: PauseScope, name: str, *, over_at: datetime | None = None) -> bool:
    """
    Lift a pause; return False if there was none, or somebody else was faster.

    ``over_at``: only if its time is over by then.
    """
    same = Pause.objects.using(alias).filter(scope=int(scope), name=name)
    if over_at is not None:
        same = same.filter(until__lte=over_at)
    return vendor_for(alias).delete(same) == 1
