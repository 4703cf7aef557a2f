"""
How an idle worker sleeps: until it is notified, until a slot is free, or until it is time to look again.

PostgreSQL: LISTEN on the claimer's own connection. If a test message does not
come back (a pooler in transaction mode lends another connection to each
statement) it polls like the others. SQLite: ``PRAGMA data_version`` changes with each commit
of anybody else. MySQL and MariaDB: polling, quick after work, slower while idle.
"""

from __future__ import annotations

import os
import select
import threading
import time
import uuid
from contextlib import suppress

from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Listener

__all__ = ["Wakeup"]

# How long after the last task polling stays quick, and by what it then slows down.
_QUICK_SECONDS = 5.0
_SLOWER = 1.5


class Wakeup:
    """The claimer's alarm clock. ``poke`` may be called by any thread, the rest by the claimer only."""

    def __init__(self, alias: str, poll_seconds: float) -> None:
        self._vendor = vendor_for(alias)
        self._poll = poll_seconds
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._poked = False
        self._closing = threading.Lock()
        self._listener: Listener | None = None
        self._mark: int | None = None
        self._pause = self._vendor.poll_seconds
        self._worked_at = time.monotonic()

    @property
    def hears(self) -> bool:
        """Whether the database wakes this worker, so that polling is only a net."""
        return self._listener is not None

    def connect(self) -> None:
        """Start to listen, on the calling thread's connection; again after it was lost."""
        self._listener = self._vendor.listen()
        if self._listener is not None and not self._echo(self._listener):
            self._listener = None
        self._mark = self._vendor.change_mark()

    def _echo(self, listener: Listener) -> bool:
        token = f"echo-{uuid.uuid4().hex}"
        self._vendor.notify([token])
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            if token in listener.heard():
                return True
            select.select([listener.fileno()], [], [], 0.05)
        return False

    def poke(self) -> None:
        """End the claimer's sleep now."""
        if self._poked:
            return
        with self._closing:
            # Closed: the number may belong to somebody else's file by now.
            if self._write < 0:
                return
            self._poked = True
            # Full: the claimer will wake anyway.
            with suppress(BlockingIOError):
                os.write(self._write, b"x")

    def worked(self) -> None:
        """Note that there was work, so that the next looks come quickly."""
        self._worked_at = time.monotonic()
        self._pause = self._vendor.poll_seconds

    def wait(self, timeout: float | None = None) -> None:
        """
        Sleep until poked or notified, at most until the next poll is due or ``timeout`` seconds.

        Raise the database's error if the listening connection is lost.
        """
        limit = self._poll if timeout is None else min(timeout, self._poll)
        if self._listener is not None:
            # A notification within 20 ms of another is not sent: the task it was for is found by the next look.
            recent = time.monotonic() - self._worked_at < 0.1
            self._select(min(limit, 0.02) if recent else limit, self._listener)
        elif self._mark is not None:
            self._watch(limit)
        else:
            self._select(min(self._next_pause(), limit), None)

    def _next_pause(self) -> float:
        if time.monotonic() - self._worked_at > _QUICK_SECONDS:
            self._pause = min(self._pause * _SLOWER, self._poll)
        return self._pause

    def _select(self, seconds: float, listener: Listener | None) -> bool:
        files = [self._read] if listener is None else [self._read, listener.fileno()]
        readable, _, _ = select.select(files, [], [], max(seconds, 0))
        if self._read in readable:
            with suppress(BlockingIOError):
                os.read(self._read, 4096)
            # After the read: a poke that comes in between is answered by this very awakening.
            # The other way round its byte would be read here, and no later poke would write one.
            self._poked = False
        if listener is not None and listener.fileno() in readable and listener.heard():
            self._worked_at = time.monotonic()
        return bool(readable)

    def _watch(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._select(min(self._vendor.poll_seconds, left), None):
                return
            mark = self._vendor.change_mark()
            if mark != self._mark:
                self._mark = mark
                return

    def close(self) -> None:
        """Give the pipe back. A later ``poke`` does nothing."""
        with self._closing:
            if self._write < 0:
                return
            os.close(self._read)
            os.close(self._write)
            self._read = self._write = -1
