"""
Processes: each slot is a thread that drives one child process over a pipe.

The task function runs in the child, so that it can be ended from outside: at
its timeout, when it does not hear a cancel, and when the worker has to go. A
child that dies costs its task one attempt and nothing else; the slot gets another.
Its surprise: with ``ack="atomic"`` the child settles, too, since a transaction belongs to one
connection. If it dies right after that commit the parent's word, "failed", is refused by the lease.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import FrameType
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_taskq import clock, conf
from django_taskq.domain.outcomes import Cancelled, Interrupted, Outcome, Succeeded
from django_taskq.domain.states import Ack
from django_taskq.exceptions import WorkerLost
from django_taskq.lifecycle import execute
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended
from django_taskq.store.rows import Claim
from django_taskq.worker import children, console
from django_taskq.worker.executors.base import ALREADY, Caller, Host, is_written, run_atomic, run_one
from django_taskq.worker.executors.threads import ThreadExecutor
from django_taskq.worker.hygiene import tidy, tidy_if_idle

__all__ = ["ProcessExecutor", "serve"]

logger = logging.getLogger("django_taskq")

# What a child that is no longer wanted may take to leave by itself.
_LEAVE_SECONDS = 1.0
_BACKOFF_MOST = 10.0
_NO_OFFSET = timedelta(0)


class _Reply(NamedTuple):
    """
    What a child says of one attempt, or what is said of a child that died.

    ``is_written``: it has settled it, or found the lease lost. ``left_step``: see ``Ended``.
    """

    outcome: Outcome
    ended: float
    is_written: bool = False
    left_step: bool = False


class _Died(Exception):
    """The child is gone."""


class _Slot:
    """
    One child process at a time, driven by the thread of one slot.

    Only ``ask_to_stop`` and ``interrupt`` may be called by other threads.
    """

    def __init__(
        self, message: bytes, kill_seconds: float, is_stopping: Callable[[], bool], offset: Callable[[], timedelta]
    ) -> None:
        self.run: Run | None = None
        self._offset = offset
        self._message = message
        self._kill_seconds = kill_seconds
        self._is_stopping = is_stopping
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._sending = threading.Lock()
        self._alarm, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._end_at: float | None = None

    # By the slot's own thread

    def make_ready(self) -> None:
        """Have a child that waits for work; return without one only if the executor stops."""
        failures = 0
        while not self._is_stopping() and not self._has_child():
            try:
                self._spawn()
            except Exception:
                logger.exception("The system gives no process for tasks")
            if self._has_child():
                return
            failures += 1
            pause = min(0.25 * 2**failures, _BACKOFF_MOST)
            logger.error("A task process did not start; another is tried in %.1f s", pause)
            if select.select([self._alarm], [], [], pause)[0]:
                os.read(self._alarm, 4096)

    def _has_child(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def _spawn(self) -> None:
        self._drop(0)
        self._process, self._pipe = children.spawn(
            children.serve_slot,
            conf.settings_module(),
            self._message,
            name="taskq-slot",
            # A daemonic process could not have children, and tasks may want some.
            daemon=False,
        )
        with suppress(EOFError, OSError):
            # Its first word: Django is set up.
            while not self._is_stopping():
                if self._alarm in wait([self._pipe, self._process.sentinel, self._alarm]):
                    os.read(self._alarm, 4096)
                if self._pipe.poll():
                    self._pipe.recv()
                    return
                if not self._process.is_alive():
                    break
        self._drop(0)

    def call(self, run: Run) -> _Reply:
        """Run one attempt in the child and say how it ended, whatever happens to the child."""
        self.run, self._end_at = run, None
        try:
            # Asked after ``run`` was set: who interrupts it later rings.
            if run.interrupted or self._is_stopping() or not self._send_work(run):
                return _Reply(Interrupted(started=False), clock.timestamp())
            if run.cancelled:
                # Asked for before there was a child that could hear of it.
                self.ask_to_stop(run)
            return self._wait_for(run)
        except _Died as death:
            return _Reply(execute.outcome_of(run, WorkerLost(str(death))), clock.timestamp(), left_step=True)
        finally:
            self.run = None

    def _send_work(self, run: Run) -> bool:
        """Hand the attempt to a child; return False if the executor stops instead."""
        for last in (False, True):
            self.make_ready()
            if self._pipe is None:
                return False
            try:
                self._send(("run", run.claim, self._offset()))
            except OSError:
                # It died while it was idle, which is not this task's fault.
                self._drop(0)
                if last:
                    raise _Died("the process for the task died before the task began") from None
            else:
                return True
        return False

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            if self._pipe is None:
                raise OSError("no child")
            self._pipe.send(message)

    def _wait_for(self, run: Run) -> _Reply:
        while True:
            if run.interrupted:
                return self._end(Interrupted(), _LEAVE_SECONDS)
            if self._end_at is not None and time.monotonic() >= self._end_at:
                return self._end(Cancelled("cancel requested", was_asked=True), _LEAVE_SECONDS)
            if run.ends_at is not None and clock.elapsed() >= run.ends_at:
                return self._end(execute.timed_out(run), self._kill_seconds)
            reply = self._listen(self._patience(run))
            if reply is not None:
                return reply

    def _patience(self, run: Run) -> float | None:
        """Return the seconds until something must be done about the attempt."""
        spans = []
        if run.ends_at is not None:
            spans.append(max(run.ends_at - clock.elapsed(), 0.0))
        if self._end_at is not None:
            spans.append(max(self._end_at - time.monotonic(), 0.0))
        return min(spans, default=None)

    def _listen(self, timeout: float | None) -> _Reply | None:
        """Wait for the child's answer, for the alarm, or for ``timeout`` seconds. Raise _Died if the child is gone."""
        pipe, process = self._pipe, self._process
        assert pipe is not None
        assert process is not None
        ready = wait([pipe, process.sentinel, self._alarm], timeout)
        if self._alarm in ready:
            os.read(self._alarm, 4096)
        if not pipe.poll():
            if process.is_alive():
                return None
            raise self._death()
        try:
            reply: _Reply = pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        return reply

    def _death(self) -> _Died:
        process = self._process
        assert process is not None
        process.join(_LEAVE_SECONDS)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {_signal_name(-code)}"
        else:
            how = "closed its pipe" if code is None else f"left with exit code {code}"
        self._drop(0)
        return _Died(f"the process that ran the task {how}")

    def _end(self, outcome: Outcome, seconds: float) -> _Reply:
        """
        End the attempt and the child with it: by an exception inside the task, after ``seconds`` by SIGKILL.

        A success that comes at the last moment counts: its effects are there.
        """
        with suppress(OSError):
            self._send(("end",))
        reply: _Reply | None = None
        until = time.monotonic() + seconds
        with suppress(_Died):
            while reply is None and (left := until - time.monotonic()) > 0:
                reply = self._listen(left)
        self._drop(0)
        if reply is not None and (reply.is_written or isinstance(reply.outcome, Succeeded)):
            return reply
        return _Reply(outcome, clock.timestamp())

    def _drop(self, seconds: float) -> None:
        """Let go of the child; kill it if it has not left within ``seconds``."""
        process, pipe = self._process, self._pipe
        with self._sending:
            self._pipe = None
        if pipe is not None:
            # The end of the pipe tells it to leave.
            pipe.close()
        if process is not None:
            self._process = None
            if seconds:
                process.join(seconds)
            if process.is_alive():
                process.kill()
            process.join()
            process.close()

    def close(self) -> None:
        """Let the child leave, and give everything back."""
        with suppress(OSError):
            self._send(("leave",))
        self._drop(_LEAVE_SECONDS)
        with self._sending:
            os.close(self._alarm)
            os.close(self._ring)
            self._alarm = self._ring = -1

    # By others

    def ask_to_stop(self, run: Run) -> None:
        """Tell the child that a cancel was asked for, and end the attempt if it does not listen in time."""
        if self.run is run:
            with suppress(OSError):
                self._send(("cancel",))
            self._end_at = time.monotonic() + self._kill_seconds
            self.ring()

    def ring(self) -> None:
        """Make the slot's thread look again."""
        with self._sending:
            if self._ring >= 0:
                with suppress(BlockingIOError):
                    os.write(self._ring, b"x")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ProcessExecutor(ThreadExecutor):
    """
    Runs tasks in child processes, which can be ended.

    ``kill_seconds``: how long a child may take after it was asked to end. The exception of a
    failure stays in the child; what is kept of it (class, message, traceback) travels.
    """

    can_stop_tasks = True

    def __init__(self, host: Host, slots: int, *, kill_seconds: float = 5.0) -> None:
        super().__init__(host, slots)
        self._kill_seconds = kill_seconds
        self._driven: list[_Slot] = []
        try:
            self._message = pickle.dumps((host.options, host.alias, logger.level))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ImproperlyConfigured(
                "the executor 'processes' sends the settings to its children, so they must be picklable: "
                f"write a callable such as BACKOFF as its dotted path ({error})"
            ) from error

    def _runner(self) -> tuple[Callable[[Claim], None], Callable[[], None]]:
        host = self.host
        is_stopping, offset = lambda: self._stopping, lambda: getattr(host, "offset", _NO_OFFSET)
        slot = _Slot(self._message, self._kill_seconds, is_stopping, offset)
        self._driven.append(slot)
        slot.make_ready()

        def call(run: Run) -> tuple[Outcome, BaseException | None]:
            reply = slot.call(run)
            run.left_step = reply.left_step
            return reply.outcome, None

        def atomic(host: Host, run: Run, _: Caller) -> None:
            reply = slot.call(run)
            if reply.is_written:
                host.ended(Ended(run.claim, reply.outcome, None, reply.ended), settled=ALREADY)
            else:
                keep = run.behaviour.keep_result
                host.ended(Ended(run.claim, reply.outcome, run.started, reply.ended, keep, None, run.cancelled))

        def close() -> None:
            self._driven.remove(slot)
            slot.close()

        return lambda claim: run_one(host, claim, call, atomic=atomic), close

    def cancel(self, run: Run) -> None:
        for slot in list(self._driven):
            if run.interrupted and slot.run is run:
                slot.ring()
            else:
                slot.ask_to_stop(run)

    def abandon(self, run: Run) -> bool:
        """Return False: no attempt outlives its deadline here, so there is nothing to give up on."""
        return False

    def stop(self, timeout: float) -> list[Run]:
        super().stop(timeout)
        left: list[Run] = []
        for slot in list(self._driven):
            run = slot.run
            if run is not None:
                run.interrupted = True
                left.append(run)
            slot.ring()
        until = time.monotonic() + 3 * _LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        return left


# In the child


class _Ending(BaseException):
    """Raised inside a task that is ended from outside. Not an Exception, so that a task does not swallow it."""


class _Inside:
    """The child's side: a thread reads the pipe, the main thread runs the tasks. The Host of an atomic attempt."""

    def __init__(self, pipe: Connection, options: conf.Options, alias: str) -> None:
        self.options = options
        self.alias = alias
        self.offset = _NO_OFFSET
        self._pipe = pipe
        self._work: SimpleQueue[tuple[Claim, timedelta, threading.Event] | None] = SimpleQueue()
        self._is_ending = False
        self._cancel = threading.Event()
        self._told: tuple[Ended, bool] | None = None

    def serve(self) -> None:
        # Meant for the worker: a terminal or systemd sends them to all processes at once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_term)
        threading.Thread(target=self._read, name="taskq-pipe", daemon=True).start()
        try:
            self._pipe.send("ready")
            while (work := self._work.get()) is not None:
                self._pipe.send(self._run(*work))
        except (_Ending, OSError):
            # Ended between two tasks, or nobody listens any more.
            pass
        connections.close_all()

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            raise _Ending

    def _read(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                match message[0]:
                    case "run":
                        self._cancel = threading.Event()
                        self._work.put((message[1], message[2], self._cancel))
                    case "cancel":
                        self._cancel.set()
                    case "end":
                        self._is_ending = True
                        # Interrupts the main thread, also in a system call.
                        os.kill(os.getpid(), signal.SIGTERM)
                    case "leave":
                        self._work.put(None)
        except (EOFError, OSError):
            # The worker is gone, and with it the lease: whatever runs here has no right to go on.
            os._exit(1)

    def _run(self, claim: Claim, offset: timedelta, cancel: threading.Event) -> _Reply:
        # How far the database's clock is ahead, as the worker knows from its heartbeat.
        self.offset = offset
        found = execute.prepare(claim, self.options, self.alias, offset=offset)
        if not isinstance(found, Run):
            return _Reply(found, clock.timestamp())
        found.cancel_event = cancel
        tidy_if_idle(drop_transactions=True)
        if claim.ack == Ack.ATOMIC:
            self._told = None
            run_atomic(self, found, execute.call)
            assert self._told is not None
            ended, written = self._told  # type: ignore[unreachable]  # run_atomic has told by now
            return _Reply(ended.outcome, ended.ended, written)
        outcome, _ = execute.call(found)
        at = clock.timestamp()
        tidy(drop_transactions=True)
        return _Reply(outcome, at, left_step=found.left_step)

    # Host

    def may_start(self, claim: Claim) -> bool:
        return True

    def started(self, run: Run) -> bool:
        """Return True: the worker was asked before."""
        return True

    def taken(self) -> None:
        """The worker knows."""

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        self._told = (ended, is_written(settled))


def serve(message: bytes, pipe: Connection) -> None:
    """Run tasks that come over a pipe until told to leave, or until its other end is gone."""
    options, alias, level = pickle.loads(message)  # noqa: S301 - written by our own parent
    if level:
        console.install({logging.WARNING: 0, logging.INFO: 1}.get(level, 2))
    _Inside(pipe, options, alias).serve()
