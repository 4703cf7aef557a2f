"""The registry of queues: remember, pause, resume."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django_taskq.models import Queue

__all__ = ["in_order", "pause", "paused", "remember", "resume"]


def remember(alias: str, names: Iterable[str]) -> None:
    """Make sure each queue has a row; those that have one are left alone."""
    Queue.objects.using(alias).bulk_create([Queue(name=name) for name in names], ignore_conflicts=True)


def in_order(alias: str) -> list[str]:
    """Return all registered queues, in the order a worker without a list serves them."""
    return list(Queue.objects.using(alias).order_by("position", "name").values_list("name", flat=True))


def paused(alias: str) -> set[str]:
    """Return the queues that nobody may claim from."""
    return set(Queue.objects.using(alias).filter(paused=True).values_list("name", flat=True))


def pause(alias: str, name: str, *, actor: str, reason: str, now: datetime) -> bool:
    """Pause a queue; return False if it was paused already."""
    remember(alias, [name])
    running = Queue.objects.using(alias).filter(name=name, paused=False)
    return running.update(paused=True, paused_at=now, paused_by=actor[:150], pause_reason=reason[:200]) == 1


def resume(alias: str, name: str) -> bool:
    """Resume a queue; return False if it was not paused."""
    stopped = Queue.objects.using(alias).filter(name=name, paused=True)
    return stopped.update(paused=False, paused_at=None, paused_by="", pause_reason="") == 1
