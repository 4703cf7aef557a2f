"""
Task ids: UUID version 7, made by the client.

48 bits of milliseconds, then 12 bits of the clock below the millisecond that
double as a counter (an id is never below its predecessor in this process),
then 62 random bits. So ids sort by time of creation, between processes of one
machine too, to 244 ns. They show that time; they do not replace a permission check.
"""

from __future__ import annotations

import os
import struct
import threading
import uuid

from django_taskq import clock

__all__ = ["TaskIds", "task_ids", "uuid7"]

_VERSION = 7 << 76
_VARIANT = 2 << 62
_RANDOM = (1 << 62) - 1


class TaskIds:
    """Makes ids; one per process, safe between threads and after a fork."""

    _POOL = 64  # random words fetched with one system call

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._words: list[int] = []
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # A child must not repeat its parent's random words, nor find its lock held.
        self._lock = threading.Lock()
        self._words = []

    def one(self) -> int:
        """Return the next id as an integer."""
        with self._lock:
            tick = max((clock.now_ns() << 12) // 1_000_000, self._last + 1)
            self._last = tick
            if not self._words:
                self._words = list(struct.unpack(f"{self._POOL}Q", os.urandom(8 * self._POOL)))
            word = self._words.pop()
        return (tick >> 12) << 80 | _VERSION | (tick & 4095) << 64 | _VARIANT | word & _RANDOM

    def many(self, count: int) -> list[int]:
        """Return ``count`` ascending ids with one look at the clock and one system call."""
        words = struct.unpack(f"{count}Q", os.urandom(8 * count))
        with self._lock:
            first = max((clock.now_ns() << 12) // 1_000_000, self._last + 1)
            self._last = first + count - 1
        return [
            (tick >> 12) << 80 | _VERSION | (tick & 4095) << 64 | _VARIANT | word & _RANDOM
            for tick, word in enumerate(words, first)
        ]


task_ids = TaskIds()


def uuid7() -> uuid.UUID:
    """Return the next task id as a UUID."""
    return uuid.UUID(int=task_ids.one())
