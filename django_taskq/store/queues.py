"""The registry of queues: remember them, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from django_taskq.models import Limit, Queue
from django_taskq.store.vendors import vendor_for

__all__ = ["arrange", "has_limits", "in_order", "remember"]


def remember(alias: str, names: Iterable[str]) -> None:
    """Make sure each queue has a row; those that have one are left alone."""
    with vendor_for(alias).atomic():
        Queue.objects.using(alias).bulk_create([Queue(name=name) for name in names], ignore_conflicts=True)


def in_order(alias: str) -> dict[str, int]:
    """Return all registered queues with their weights, in the order a worker without a list serves them."""
    return dict(Queue.objects.using(alias).order_by("position", "name").values_list("name", "weight"))


def arrange(alias: str, name: str, values: Mapping[str, int]) -> bool:
    """Set the position or weight of a queue; return False if it has these already."""
    remember(alias, [name])
    queue = Queue.objects.using(alias).filter(name=name)
    return not queue.filter(**values).exists() and queue.update(**values) == 1


def has_limits(alias: str) -> bool:
    """Return whether an operator set a limit for a queue, or for everything."""
    return Limit.objects.using(alias).filter(key__gte="0", key__lt="2", set_amount__isnull=False).exists()
