"""
Threads: each slot takes the next claim off one line, runs it, hands over its outcome.

A thread cannot be stopped from outside. A task that overruns its time is told
by ``context`` if it listens; if it never comes back its slot is replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue

from django.db import connections

from django_taskq.lifecycle.context import Run
from django_taskq.store.rows import Claim
from django_taskq.worker.executors.base import Executor, Host, run_guarded, run_one

__all__ = ["ThreadExecutor"]


def _nothing() -> None:
    """A thread has nothing of its own but connections."""


class ThreadExecutor(Executor):
    """Runs tasks in threads of the worker process."""

    def __init__(self, host: Host, slots: int) -> None:
        super().__init__(host, slots)
        self._line: SimpleQueue[Claim | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy: dict[int, Claim] = {}
        self._abandoned: set[int] = set()
        self._stopping = False

    def start(self) -> None:
        for _ in range(self.slots):
            self._add_slot()

    def _add_slot(self) -> None:
        # Daemon: a task that never returns must not keep a stopped worker alive.
        thread = threading.Thread(target=self._work, name=f"taskq-slot-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _runner(self) -> tuple[Callable[[Claim], None], Callable[[], None]]:
        """Return what runs one claim in the calling slot, and what is called when the slot ends."""
        return partial(run_one, self.host), _nothing

    def _work(self) -> None:
        me = threading.get_ident()
        line, busy, host = self._line, self._busy, self.host
        run, close = self._runner()
        try:
            while (claim := line.get()) is not None:
                busy[me] = claim
                host.taken()
                run_guarded(run, host, claim)
                busy.pop(me, None)
                # Else a slot that waits would keep the arguments of its last task.
                claim = None
                if me in self._abandoned:
                    break
        finally:
            close()
            connections.close_all()
            # The system gives this number to another thread some day.
            self._abandoned.discard(me)

    def submit(self, claims: Sequence[Claim]) -> None:
        put = self._line.put
        for claim in claims:
            put(claim)

    def in_hand(self) -> int:
        running = len(self._busy)
        if self._abandoned:
            running -= len(self._abandoned & self._busy.keys())
        return self._line.qsize() + running

    def waiting(self) -> int:
        return self._line.qsize()

    def take_back(self) -> list[Claim]:
        taken: list[Claim] = []
        while True:
            try:
                claim = self._line.get_nowait()
            except Empty:
                return taken
            if claim is None:
                self._line.put(None)
                return taken
            taken.append(claim)

    def cancel(self, run: Run) -> None:
        """Nothing more than the request, which the task sees in its context."""

    def abandon(self, run: Run) -> bool:
        for ident, claim in list(self._busy.items()):
            if claim is run.claim and ident not in self._abandoned:
                self._abandoned.add(ident)
                if not self._stopping:
                    self._add_slot()
                return True
        return False

    def stop(self, timeout: float) -> list[Run]:
        if not self._stopping:
            self._stopping = True
            for _ in self._threads:
                self._line.put(None)
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident not in self._abandoned:
                thread.join(max(until - time.monotonic(), 0))
        return []
