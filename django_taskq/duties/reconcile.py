"""Find and mend workflows that are at odds with their tasks, a hundred at a time, round and round."""

from __future__ import annotations

import logging
import uuid
from datetime import datetime

from django_taskq import conf
from django_taskq.lifecycle import reconcile

__all__ = ["Round", "run_once"]

logger = logging.getLogger("django_taskq")


class Round:
    """Where one leader is in its round. A new leader begins anew, which costs nothing but time."""

    def __init__(self) -> None:
        self.after: uuid.UUID | None = None


def run_once(alias: str, options: conf.Options, now: datetime, *, place: Round | None = None) -> int:
    """Look at the next workflows; return how many were mended. Without a ``place`` all of them, once."""
    if place is not None:
        count, place.after = reconcile.reconcile(alias, now=now, after=place.after)
    else:
        count, after = reconcile.reconcile(alias, now=now)
        while after is not None:
            more, after = reconcile.reconcile(alias, now=now, after=after)
            count += more
    if count:
        logger.warning("%d workflows were at odds with their tasks and were mended", count)
    return count
