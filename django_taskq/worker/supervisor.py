"""
Keeps several workers running, or one that begins anew when its code changes.

One worker alone is the business of ``single``, where signals are heard and what they mean stands.
Here each worker runs in a child, which is replaced when it ends, and told
over a pipe what to do. A child ignores SIGINT, and takes SIGTERM as a request
to finish: a terminal or systemd may send either to all processes at once, and that
must not count twice. A child whose parent dies reads the end of the pipe and finishes.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import InterfaceError, OperationalError
from django.utils import autoreload

from django_taskq import conf
from django_taskq.lifecycle.rescue import bury
from django_taskq.worker import console
from django_taskq.worker.console import Bar
from django_taskq.worker.loop import Plan, Worker, in_own_thread
from django_taskq.worker.single import (
    FAILED,
    FINE,
    TIMED_OUT,
    Signals,
    exit_code,
    obey,
    start_worker,
    status_of,
    tell_end,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["Supervisor", "is_reloaded", "run_many", "run_reloading"]

logger = logging.getLogger("django_taskq")

_BACKOFF_MOST = 30.0
# A child that lived shorter than this and did not end well is replaced a little later each time.
_SHORT_LIFE = 10.0
_BURST_FAILURES = 3
# What a child may take beyond the grace time before it is killed.
_LEAVE_SECONDS = 15.0
_STATUS_SECONDS = 1.0


def run_reloading(plan: Plan, watch: Callable[[Worker], None] | None = None) -> int:
    """
    Run one worker and begin anew whenever a source file changes.

    Django's autoreloader watches the files in a child process; this process starts
    the child again each time, and passes signals on. What runs when the code changes may
    finish within the grace time; then it is handed back.
    """
    if not is_reloaded():
        return _keep_reloading()
    worker = Worker(plan)
    if watch is not None:
        watch(worker)
    # Django's own handler raises SystemExit here, in the main thread, which ends the watching below.
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(FINE))

    def work() -> None:
        with Signals() as never:
            start_worker(worker, never)
        worker.wait()

    code = FINE
    try:
        autoreload.run_with_reloader(work)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else FINE
    with Signals() as signals:
        worker.stop("the code changed" if code else "asked to stop")
        threading.Thread(target=tell_end, args=(worker, signals), name="taskq-end", daemon=True).start()
        while not worker.wait(0):
            signals.wait(None)
            if signals.count:
                worker.stop_now()
    return code


def is_reloaded() -> bool:
    """Return whether this process was started by the one that starts it again on each change."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def _keep_reloading() -> int:
    import subprocess

    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    with Signals() as signals:
        while True:
            # A group of its own: a terminal's Ctrl-C would reach it a second time.
            process = subprocess.Popen(  # noqa: S603 - this very command line
                autoreload.get_child_arguments(), env=environment, process_group=0
            )
            passed = 0
            while process.poll() is None:
                signals.wait(0.1)
                while passed < min(signals.count, 2):
                    passed += 1
                    process.send_signal(signal.SIGTERM)
            if process.returncode != 3 or signals.count:
                return FINE if signals.count else process.returncode


# Several processes


@dataclass(slots=True)
class _Child:
    """One of several workers, and what is known of it."""

    number: int
    process: BaseProcess | None = None
    control: Connection | None = None
    born: float = 0.0
    failures: int = 0
    again_at: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)
    dead_worker: int = 0
    is_done: bool = False


class Supervisor:
    """Several workers in child processes. Used by one thread, but for ``status``."""

    def __init__(self, plan: Plan, verbosity: int, bar: Bar | None = None) -> None:
        self.plan = plan
        self._verbosity = verbosity
        self._bar = bar
        self._children = [_Child(number) for number in range(1, plan.worker.processes + 1)]
        self._finished = 0
        self._code = FINE
        self._kill_at: float | None = None
        self._told = 0

    def status(self) -> list[dict[str, Any]]:
        """Return what each child last said of itself; an empty dict for one that has said nothing yet."""
        return [dict(child.status) for child in self._children]

    def run(self) -> int:
        """Keep the children running until told to stop, or until a burst is done; return the exit code."""
        with Signals() as signals:
            try:
                while self._is_needed():
                    self._start_missing()
                    self._hear(signals)
                    self._pass_on(signals.count)
                    self._kill_late()
            finally:
                self._kill_all()
        return self._code

    def _is_needed(self) -> bool:
        if self._told:
            return any(child.process is not None for child in self._children)
        return not all(child.is_done for child in self._children)

    def _start_missing(self) -> None:
        if self._told:
            return
        for child in self._children:
            if child.process is None and not child.is_done and time.monotonic() >= child.again_at:
                child.born = time.monotonic()
                try:
                    self._start(child)
                except OSError as error:
                    # Short of processes or memory: no reason to give up the children that run.
                    self._put_off(child, f"could not be started: {error}")

    def _start(self, child: _Child) -> None:
        message = pickle.dumps((self.plan, child.number, self._verbosity, child.dead_worker))
        # Imported late: a worker without children does without multiprocessing, 150 KiB.
        from django_taskq.worker import children

        child.process, child.control = children.spawn(
            children.serve_worker,
            conf.settings_module(),
            message,
            name=f"taskq-worker-{child.number}",
            # Its own executor may have children too.
            daemon=False,
        )
        child.status, child.dead_worker = {}, 0

    def _hear(self, signals: Signals) -> None:
        """Wait for a signal, a word of a child, or its end."""
        from multiprocessing.connection import wait

        running = [child for child in self._children if child.process is not None]
        objects: list[Any] = [signals]
        objects += [child.process.sentinel for child in running if child.process is not None]
        objects += [child.control for child in running if child.control is not None]
        wait(objects, timeout=0.25)
        signals.clear()
        for child in running:
            self._listen(child)
            if child.process is not None and not child.process.is_alive():
                self._bury(child)

    def _listen(self, child: _Child) -> None:
        try:
            while child.control is not None and child.control.poll():
                status = child.control.recv()
                self._finished += status["finished"] - child.status.get("finished", 0)
                child.status = status
                if self._bar is not None:
                    self._bar.reach(self._finished)
        except (EOFError, OSError):
            if child.control is not None:
                child.control.close()
            child.control = None

    def _bury(self, child: _Child) -> None:
        """Note how a child ended, and when another takes its place."""
        process = child.process
        assert process is not None
        self._listen(child)
        process.join()
        code = process.exitcode
        process.close()
        if child.control is not None:
            child.control.close()
        child.process = child.control = None
        if self._told or (code == FINE and self.plan.burst):
            child.is_done = True
            if code == TIMED_OUT:
                self._code = TIMED_OUT
            elif code != FINE and self._code == FINE:
                self._code = FAILED
            return
        child.dead_worker = 0 if code == FINE else int(child.status.get("worker_id", 0))
        if code == FINE:
            logger.info("Worker process %s has ended and is replaced", child.number)
            return
        self._put_off(child, f"died ({ended_by(code)})")

    def _put_off(self, child: _Child, how: str) -> None:
        """Let another take the place of a child a little later each time that it did not live long."""
        lived = time.monotonic() - child.born
        child.failures = child.failures + 1 if lived < _SHORT_LIFE else 1
        pause = 0.0 if child.failures == 1 else min(0.25 * 2.0**child.failures, _BACKOFF_MOST)
        child.again_at = time.monotonic() + pause
        logger.error("Worker process %s %s; another takes its place in %.1f s", child.number, how, pause)
        if self.plan.burst and child.failures >= _BURST_FAILURES:
            child.is_done = True
            self._code = FAILED

    def _pass_on(self, count: int) -> None:
        """Tell the children what the signals ask for."""
        asked = min(count, 2)
        if asked <= self._told:
            return
        self._told = asked
        grace = self.plan.worker.grace.total_seconds() if asked == 1 else 0.0
        self._kill_at = time.monotonic() + grace + _LEAVE_SECONDS
        for child in self._children:
            if child.control is not None:
                with suppress(OSError):
                    child.control.send("stop" if asked == 1 else "now")

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        for child in self._children:
            if child.process is not None and child.process.is_alive():
                logger.error("Worker process %s did not leave in time and is killed", child.number)
                self._code = TIMED_OUT
                child.process.kill()

    def _kill_all(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.join()
            if child.control is not None:
                child.control.close()


def run_many(
    plan: Plan,
    *,
    verbosity: int = 1,
    bar: Bar | None = None,
    watch: Callable[[Supervisor], None] | None = None,
) -> int:
    """Run as many workers as the plan says, each in a process of its own; return the exit code."""
    supervisor = Supervisor(plan, verbosity, bar)
    if watch is not None:
        watch(supervisor)
    return supervisor.run()


def ended_by(code: int | None) -> str:
    """Return how a process ended, in words."""
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


def serve_child(message: bytes, control: Connection) -> None:
    """Run one worker for a supervisor, in a child process that has set up Django, and leave with its exit code."""
    plan, number, verbosity, dead_worker = pickle.loads(message)  # noqa: S301 - written by our own parent
    console.install(verbosity)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(plan)
    orders = _Orders()
    signal.signal(signal.SIGTERM, lambda received, frame: orders.note())
    threading.Thread(target=_take_orders, args=(control, orders), name="taskq-orders", daemon=True).start()
    if dead_worker:
        with suppress(OperationalError, InterfaceError):
            in_own_thread(lambda: bury(worker.alias, dead_worker, now=worker.now()))
    sys.exit(_serve(worker, number, control, orders))


class _Orders:
    """What the supervisor asked for, as one number: 0 nothing, 1 finish, 2 at once."""

    def __init__(self) -> None:
        self.count = 0
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def note(self, asked: int = 1) -> None:
        """Raise the order; safe in a signal handler."""
        self.count = max(self.count, asked)
        with suppress(OSError):
            os.write(self._write, b"x")

    def wait(self, timeout: float) -> None:
        """Sleep until an order comes, or for ``timeout`` seconds."""
        if select.select([self._read], [], [], timeout)[0]:
            os.read(self._read, 4096)


def _note_end(worker: Worker, orders: _Orders) -> None:
    worker.wait()
    orders.note(0)


def _take_orders(control: Connection, orders: _Orders) -> None:
    try:
        while True:
            orders.note(2 if control.recv() == "now" else 1)
    except (EOFError, OSError):
        # The supervisor is gone: nobody would replace this worker, or stop it.
        orders.note()


def _serve(worker: Worker, number: int, control: Connection, orders: _Orders) -> int:
    failures = 0
    while not orders.count and worker.state == "new":
        try:
            worker.start()
        except (OperationalError, InterfaceError) as error:
            if worker.plan.burst:
                logger.exception("The database is not ready")
                return FAILED
            failures += 1
            pause = min(0.25 * 2**failures, _BACKOFF_MOST)
            logger.warning("The database is not ready, again in %.1f s: %s", pause, error)
            orders.wait(pause)
    if worker.state == "new":
        return FINE
    threading.Thread(target=_note_end, args=(worker, orders), name="taskq-end", daemon=True).start()
    while True:
        with suppress(OSError):
            control.send({**status_of(worker), "process": number})
        if worker.wait(0):
            return exit_code(worker)
        obey(worker, orders.count)
        orders.wait(_STATUS_SECONDS)
