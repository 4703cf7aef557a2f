"""Find idempotency keys and keys that are held for a time, a page at a time."""

from __future__ import annotations

from django.utils.translation import gettext_lazy

from django_taskq.models import IdempotencyKey
from django_taskq.ops.search import Order, Page, paged

__all__ = ["BY_KEY", "listed"]

BY_KEY = Order(name="key", label=gettext_lazy("by key"), columns=("key",))


def listed(
    alias: str, prefix: str = "", *, limit: int = 50, after: str | None = None, before: str | None = None
) -> Page:
    """
    Return a page of the keys that begin so, in their own order; those whose time is over stay until they are pruned.

    Raise InvalidCursor.
    """
    rows = IdempotencyKey.objects.using(alias).all()
    if prefix:
        rows = rows.filter(key__startswith=prefix)
    return paged(rows, BY_KEY, limit=limit, after=after, before=before)
