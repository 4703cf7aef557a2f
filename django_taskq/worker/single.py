"""
One worker in this process, from its start to its exit code, and the operating system's signals.

First SIGTERM or SIGINT: finish what runs, within the grace time. Second: hand it
back at once. A third changes nothing. Apart from ``supervisor``, which only several
processes need, so that one worker alone does not keep that in memory.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from django.db import InterfaceError, OperationalError

from django_taskq.exceptions import ShutdownTimeout
from django_taskq.worker.console import Bar
from django_taskq.worker.loop import Plan, Worker

__all__ = [
    "FAILED",
    "FINE",
    "TIMED_OUT",
    "Signals",
    "exit_code",
    "obey",
    "run_here",
    "start_worker",
    "status_of",
    "tell_end",
]

logger = logging.getLogger("django_taskq")

# Exit codes, part of the documented interface.
FINE = 0
FAILED = 1
TIMED_OUT = 3

# The longest wait for a database that is away at the start.
_BACKOFF_MOST = 30.0


class Signals:
    """
    SIGTERM and SIGINT as a count, and something to wait for.

    The handler only counts and writes to a pipe: it may interrupt any line of
    the main thread, so it must not take a lock.
    """

    def __init__(self) -> None:
        self.count = 0
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before: dict[int, Any] = {}
        self._poking = threading.Lock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with self._poking:
            os.close(self._read)
            os.close(self._write)
            self._write = -1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        with suppress(OSError):
            os.write(self._write, b"x")

    def fileno(self) -> int:
        """Return what becomes readable after a signal or a poke."""
        return self._read

    def poke(self) -> None:
        """End a wait from another thread."""
        with self._poking:
            if self._write >= 0:
                with suppress(BlockingIOError):
                    os.write(self._write, b"x")

    def wait(self, timeout: float | None) -> None:
        """Sleep until a signal, a poke, or for ``timeout`` seconds."""
        select.select([self._read], [], [], timeout)
        self.clear()

    def clear(self) -> None:
        """Forget pokes."""
        with suppress(BlockingIOError):
            os.read(self._read, 4096)


# One process


def run_here(
    plan: Plan,
    *,
    bar: Bar | None = None,
    watch: Callable[[Worker], None] | None = None,
    control: Callable[[Worker, Signals], None] | None = None,
) -> int:
    """
    Run one worker in this process until it has stopped; return the exit code.

    A database that is away at the start is waited for, except for a burst. ``watch`` is given the
    worker before it starts, ``control`` afterwards.
    """
    worker = Worker(plan)
    if bar is not None:
        worker.on_progress(bar.advance)
    if watch is not None:
        watch(worker)
    with Signals() as signals:
        if not start_worker(worker, signals):
            return FAILED if plan.burst else FINE
        if control is not None:
            control(worker, signals)
        threading.Thread(target=tell_end, args=(worker, signals), name="taskq-end", daemon=True).start()
        while not worker.wait(0):
            signals.wait(None)
            obey(worker, signals.count)
        return exit_code(worker)


def tell_end(worker: Worker, signals: Signals) -> None:
    worker.wait()
    signals.poke()


def obey(worker: Worker, count: int) -> None:
    if count == 1:
        worker.stop("asked to stop")
    elif count > 1:
        worker.stop_now()


def start_worker(worker: Worker, signals: Signals) -> bool:
    """Start a worker, waiting for the database; return False if it was told to stop before."""
    failures = 0
    while not signals.count:
        try:
            worker.start()
        except (OperationalError, InterfaceError) as error:
            if worker.plan.burst:
                logger.exception("The database is not ready")
                return False
            failures += 1
            pause = min(0.25 * 2**failures, _BACKOFF_MOST)
            logger.warning("The database is not ready, again in %.1f s: %s", pause, error)
            signals.wait(pause)
        else:
            return True
    return False


def exit_code(worker: Worker) -> int:
    """Return the exit code of a worker that has stopped, and log why it stopped."""
    try:
        worker.join(0)
    except ShutdownTimeout as error:
        logger.error("%s", error)
        return TIMED_OUT
    if worker.has_failed:
        return FAILED
    logger.info("Worker %s has stopped: %s", worker.name, worker.stop_reason or "asked to stop")
    return FINE


# Development: begin anew when the code changes


def status_of(worker: Worker) -> dict[str, Any]:
    """Return what health checks and supervisors are told of a worker."""
    return {
        "worker_id": worker.id,
        "name": worker.name,
        "state": worker.state,
        "running": worker.running,
        "finished": worker.finished,
        "heartbeat_age": round(worker.beat_age, 3),
        "is_ready": worker.is_healthy,
    }
