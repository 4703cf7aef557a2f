"""
Connections of the threads that run tasks: none is handed from one task to the next in a state a task left it in.

``django.db.close_old_connections`` asks every configured database each time,
6 µs of a no-op task's 30. Here a thread remembers which connections it opened.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

__all__ = ["close_idle", "forget_inherited_pools", "tidy", "tidy_if_idle"]

# A connection that lay idle this long is looked at before it is used again.
_IDLE_SECONDS = 1.0


class _Opened(threading.local):
    def __init__(self) -> None:
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.tidied_at = 0.0


_opened = _Opened()


def _note(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _opened.connections[connection.alias] = connection


connection_created.connect(_note, dispatch_uid="django_taskq.hygiene")


# Never closed: closing them would end the parent's sessions.
_inherited: list[Any] = []


def forget_inherited_pools() -> None:
    """
    Let a forked child begin with pools of its own.

    A pool's threads do not live on in a child, and its connections are the parent's. Connections
    outside of a pool need nothing: each belongs to one thread, and a worker's threads are new.
    """
    backend = sys.modules.get("django.db.backends.postgresql.base")
    pools = getattr(getattr(backend, "DatabaseWrapper", None), "_connection_pools", None)
    if pools:
        _inherited.append(dict(pools))
        pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_inherited_pools)


def tidy(*, drop_transactions: bool) -> None:
    """
    Close connections of this thread that are broken, too old, or left with autocommit off.

    ``drop_transactions``: a transaction that a task began and did not end is rolled back, too.
    """
    if not _opened.connections:
        return
    _opened.tidied_at = time.monotonic()
    for connection in _opened.connections.values():
        if connection.in_atomic_block:
            if drop_transactions:
                _drop(connection)
        else:
            connection.close_if_unusable_or_obsolete()


def tidy_if_idle(*, drop_transactions: bool) -> None:
    """Do what ``tidy`` does if this thread's connections were idle for a while: the server may have closed them."""
    if _opened.connections and time.monotonic() - _opened.tidied_at > _IDLE_SECONDS:
        tidy(drop_transactions=drop_transactions)


def close_idle() -> None:
    """Close connections of this thread, but for those in a transaction."""
    for connection in _opened.connections.values():
        if not connection.in_atomic_block:
            connection.close()


def _drop(connection: BaseDatabaseWrapper) -> None:
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    connection.needs_rollback = False
    connection.run_on_commit = []
    connection.close()
