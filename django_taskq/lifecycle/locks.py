"""
Locks of tasks that must not overlap, taken and released for a running attempt.

Model: a row per key, held by an attempt as long as that holds its lease. So nothing
needs to be renewed, and what a killed worker held is free when its tasks are rescued.
A release is a courtesy to whoever waits: without it the lock ends with the attempt.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError

from django_taskq.domain.keys import bound_key, check_key, fitted
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle.context import Run
from django_taskq.store import locks as store

__all__ = ["KEY_LENGTH", "key_of", "release", "take"]

logger = logging.getLogger("django_taskq")

KEY_LENGTH = 200


def key_of(context: Any, wanted: str | Callable[[Any], str] | None) -> str:
    """
    Return the key of a running task; a template is filled as those of limits are.

    Raise InvalidOptions for a template that the arguments cannot fill, and for what is no text.
    """
    task = context.run.task
    if wanted is None:
        key = context.run.claim.name
    elif isinstance(wanted, str):
        check_key(task.func, task.takes_context, wanted)
        key = bound_key(task.func, task.takes_context, wanted, context.args, context.kwargs)
    else:
        key = wanted(context)
    if not isinstance(key, str) or not key:
        raise InvalidOptions(f"the key of a lock must be a text, got {key!r}", field="key", code="type")
    return fitted(key, KEY_LENGTH)


def take(run: Run, key: str, *, ttl: timedelta | None) -> bool:
    """Lock a key for an attempt; return False if another one has it. Raise LeaseLost if this one lost its task."""
    return store.take(run.alias, key, task_id=uuid.UUID(run.public_id), lease=run.claim.lease, ttl=ttl)


def release(run: Run, key: str) -> None:
    """Let go of a key. A database that refuses costs the task nothing: the lock ends with the attempt's lease."""
    try:
        store.release(run.alias, key, task_id=uuid.UUID(run.public_id), lease=run.claim.lease)
    except (DatabaseError, InterfaceError):
        logger.info("The lock %s was not released; it is free once the attempt is settled", key, exc_info=True)
