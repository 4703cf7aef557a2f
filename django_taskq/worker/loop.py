"""
The worker: claims tasks, hands them to executors, settles what comes back.

Four threads beside the slots: the claimer keeps a short line in front of the
slots; the flusher writes whatever ended while its previous write was on its way;
the heartbeat keeps the leases alive and hears of cancels; the duties do upkeep.
Its surprise: a worker can lose its identity. Declared dead by another, it hands back
what it has not begun and goes on under a new id; what it still runs can no longer be settled.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from django_taskq import clock, conf, events
from django_taskq.domain.outcomes import Interrupted, Succeeded, Undecodable
from django_taskq.domain.values import lean
from django_taskq.exceptions import ShutdownTimeout
from django_taskq.lifecycle import definitions, execute, wake
from django_taskq.lifecycle.claim import Claimer, parse_queues
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.databases import database_for
from django_taskq.lifecycle.settle import Ended, settle
from django_taskq.store import duties as duty_store
from django_taskq.store import queues as queue_store
from django_taskq.store import workers as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.task import QUEUE_LENGTH
from django_taskq.worker.executors import Executor, make_executor
from django_taskq.worker.executors.base import is_written
from django_taskq.worker.memory import give_back, resident_megabytes
from django_taskq.worker.wakeup import Wakeup

__all__ = ["Plan", "Worker", "workers_here"]

logger = logging.getLogger("django_taskq")

FLUSH_MOST = 500
# Results and tracebacks of one write: MariaDB and MySQL take 16 MiB in a statement by default.
FLUSH_BYTES = 2 * 1024 * 1024
# How often the database may refuse a batch for no reason of the connection before its outcomes are tried one by one.
_REFUSALS = 5
# How long an outcome that the database refuses by itself is put aside.
_ASIDE_SECONDS = 5.0
BACK_PRESSURE = 2000
# How far ahead of the slots tasks are claimed, in seconds of work.
PREFETCH_SECONDS = 0.05
# How long a claimed task may wait in line behind slow ones before it is handed back.
STALE_SECONDS = 0.5
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 5.0
# How long a worker has had nothing to do when it returns unused memory to the system.
_REST_SECONDS = 1.0
# What leaving may take beyond the grace time: for each word to the database, and for writing what ended.
_GOODBYE_SECONDS = 2.0
_WRITE_SECONDS = 5.0
# How long the database may take to tell the time, for its answer to be good enough; and how often it is asked.
_CLOCK_SECONDS = 0.2
_CLOCK_TRIES = 3
_NOT_BEGUN = Interrupted(started=False)
_here: weakref.WeakSet[Worker] = weakref.WeakSet()


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one worker process is to do."""

    alias: str = "default"
    worker: conf.WorkerOptions = field(default_factory=conf.WorkerOptions)
    name: str = ""
    burst: bool = False
    executor_options: dict[str, Any] = field(default_factory=dict)


class Worker:
    """
    One worker process's engine. ``start`` and ``stop`` may be repeated and raced.

    Usable inside any program: ``worker = Worker(); worker.start(); …; worker.stop(); worker.join()``.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan(worker=conf.options().worker)
        self.options = conf.options(self.plan.alias)
        self.alias = database_for(self.options)
        self.queues = parse_queues(self.plan.worker.queues)
        self.id = 0
        self.finished = 0
        self.failed = 0
        self.stop_reason = ""
        self.has_failed = False
        self._lock = threading.Lock()
        self._state = "new"
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._hard = threading.Event()
        # Set when the heartbeat may end: all that this worker held is written, or given up on.
        self._leaving = threading.Event()
        # Guards the books: who has told what, and how much of it is written.
        self._books = threading.Lock()
        self._closed = False
        self._ended: SimpleQueue[tuple[Ended, threading.Event | None] | None] = SimpleQueue()
        self._runs: dict[int, Run] = {}
        # What was claimed and has not been told yet how it ended, by the claim's identity.
        self._untold: dict[int, Claim] = {}
        self._mean_seconds = 0.0
        self._async_share = 0.0
        self._taken_at = time.monotonic()
        self._lease_until = 0.0
        # The database's clock at one moment of ours that never jumps.
        self._db_moment = clock.now()
        self._db_moment_at = clock.elapsed()
        # What this worker holds, by key and lease, to be compared with what the books say.
        self._held: set[tuple[Any, int]] = set()
        self._claiming = threading.Lock()
        self._search_at = 0.0
        self._aside: list[Ended] = []
        self._aside_at = 0.0
        self._written = 0
        self._started_total = 0
        self._unbegun = 0
        self._beat_at = time.monotonic()
        self._threads: dict[str, threading.Thread] = {}
        self._wakeup: Wakeup | None = None
        self._claimer: Claimer | None = None
        self._sync: Executor | None = None
        self._async: Executor | None = None
        self._left: list[Run] = []
        self._refused = 0
        self._listeners: list[Callable[[int], None]] = []
        self._tells_start = True
        self._is_pooled = bool(connections[self.alias].settings_dict.get("OPTIONS", {}).get("pool"))
        self._refill_at = 0
        self._born = time.monotonic()
        self._rested_after = -1

    # Life

    @property
    def state(self) -> str:
        """One of "new", "running", "stopping", "stopped"."""
        return self._state

    @property
    def name(self) -> str:
        """What operators see: host, process, and the name given."""
        own = f"{socket.gethostname()}:{os.getpid()}"
        return f"{self.plan.name}@{own}" if self.plan.name else own

    def start(self) -> str:
        """Announce the worker and start its threads; a second call changes nothing. Return the state."""
        with self._lock:
            if self._state != "new":
                return self._state
            # In a thread of its own, whose connection is new: the caller's may be inside a
            # transaction, or one that a forked process shares with its parent.
            in_own_thread(self._announce)
            try:
                self._make_executors()
            except BaseException:
                for executor in self._executors():
                    executor.stop(0)
                self._best_effort(lambda: store.forget(self.alias, self.id))
                raise
            self._wakeup = Wakeup(self.alias, self.plan.worker.poll.total_seconds())
            wake.join(self.alias, self._wakeup.poke)
            loops = {"claimer": self._claim_loop, "flusher": self._flush_loop, "heartbeat": self._beat_loop}
            if self.plan.worker.duties:
                loops["duties"] = self._duty_loop
            # "running" first: a loop that fails at once must be able to stop the worker.
            self._state = "running"
            _here.add(self)
            for name, target in loops.items():
                # Daemon: a database that never answers must not keep a stopped worker's process alive.
                thread = threading.Thread(target=self._guarded(target), name=f"taskq-{name}", daemon=True)
                self._threads[name] = thread
                thread.start()
        return self._state

    def stop(self, reason: str = "") -> str:
        """
        Claim no more, finish what runs; return at once. A second call changes nothing.

        Not for signal handlers: ``start`` may hold the lock in the very thread that the handler interrupts.
        """
        with self._lock:
            if self._state == "new":
                self._state = "stopped"
                self._stopped.set()
            elif self._state == "running":
                self._state = "stopping"
                self.stop_reason = reason
                self._stopping.set()
                if self._wakeup is not None:
                    self._wakeup.poke()
                threading.Thread(target=self._shut_down, name="taskq-shutdown", daemon=True).start()
            return self._state

    def stop_now(self) -> str:
        """Hand everything back without waiting for running tasks; return at once."""
        self._hard.set()
        return self.stop("stopped at once")

    def join(self, timeout: float | None = None) -> None:
        """
        Wait until the worker has stopped and cleaned up.

        Raise ShutdownTimeout if tasks were still running when the grace time
        was over, or if ``timeout`` seconds were not enough.
        """
        if not self._stopped.wait(timeout):
            raise ShutdownTimeout(f"worker {self.name} had not stopped after {timeout} seconds")
        if self._left:
            names = ", ".join(sorted({run.claim.name for run in self._left}))
            raise ShutdownTimeout(f"{len(self._left)} tasks were still running when the grace time was over: {names}")

    def on_progress(self, listener: Callable[[int], None]) -> None:
        """Call ``listener(count)`` after each write, with how many tasks it settled."""
        self._listeners.append(listener)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the worker has stopped and cleaned up; return whether it has. Never raises."""
        return self._stopped.wait(timeout)

    @property
    def running(self) -> int:
        """How many tasks run just now."""
        return len(self._runs)

    @property
    def in_flight(self) -> int:
        """How many claimed tasks this worker holds that are not settled: in line, running, or waiting to be written."""
        return self._unwritten()

    def running_by_queue(self) -> dict[str, int]:
        """Return how many tasks of each queue run just now."""
        return dict(Counter(run.claim.queue for run in list(self._runs.values())))

    @property
    def beat_age(self) -> float:
        """Seconds since the last heartbeat that the database took."""
        return time.monotonic() - self._beat_at

    @property
    def is_healthy(self) -> bool:
        """Whether the worker runs and its last heartbeat is younger than its lease."""
        return self._state == "running" and clock.elapsed() < self._lease_until

    def _announce(self) -> None:
        began = clock.elapsed()
        now = self._db_now()
        worker_id = store.announce(
            self.alias,
            now=now,
            name=self.name[:200],
            host=socket.gethostname()[:200],
            pid=os.getpid(),
            queues=self.plan.worker.queues[:500],
            slots=self.plan.worker.threads,
            executor=self.plan.worker.executor[:100],
            lease_seconds=self.options.lease_seconds,
        )
        self._claimer = Claimer(self.alias, worker_id, self.queues, self.options)
        self.id = worker_id
        self._lease_until = began + self.options.lease_seconds * 0.9
        self._beat_at = time.monotonic()
        if events.wanted(events.WorkerStarted):
            events.emit(events.WorkerStarted(worker_id=self.id, name=self.name, alias=self.alias))

    def _db_now(self) -> datetime:
        """Return the database's clock, and remember at which moment of ours that was."""
        tries = _CLOCK_TRIES
        while True:
            before = clock.elapsed()
            moment = vendor_for(self.alias).now()
            after = clock.elapsed()
            tries -= 1
            if after - before < _CLOCK_SECONDS or not tries:
                break
            # It may be as old as that; perhaps we were suspended meanwhile.
        # The latest moment that it can be of: we are late by no more than the answer took, and never early.
        self._db_moment_at = after
        self._db_moment = moment
        return moment

    @property
    def offset(self) -> timedelta:
        """How far the database's clock is ahead of this machine's, which may have been set anew a moment ago."""
        return self.now() - clock.now()

    def now(self) -> datetime:
        """
        Return the present moment on the database's clock, as of the last heartbeat.

        Never ahead of it, since nothing may start early; behind it by what the answer took on its way.
        """
        return self._db_moment + timedelta(seconds=clock.elapsed() - self._db_moment_at)

    def _make_executors(self) -> None:
        worker = self.plan.worker
        if worker.executor == "asyncio":
            slots = worker.async_slots or worker.threads
            self._sync = make_executor("asyncio", self, slots)
        else:
            given = dict(self.plan.executor_options)
            if worker.executor == "processes":
                given.setdefault("kill_seconds", worker.kill_grace.total_seconds())
            self._sync = make_executor(worker.executor, self, worker.threads, **given)
        self._sync.start()

    def _executors(self) -> list[Executor]:
        return [executor for executor in (self._sync, self._async) if executor is not None]

    def _guarded(self, loop: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                loop()
            except BaseException:
                logger.exception("The worker's thread %s failed; the worker stops", threading.current_thread().name)
                self.has_failed = True
                self.stop("failed")
            finally:
                connections.close_all()

        return run

    # Claim

    def _claim_loop(self) -> None:
        wakeup = self._wakeup
        assert wakeup is not None
        failures = 0
        connected = False
        while not self._stopping.is_set():
            try:
                if not connected:
                    wakeup.connect()
                    connected = True
                if failures:
                    # Here, where no other claim is on its way, and before a burst may find nothing left to do.
                    self._return_forgotten()
                self._turn(wakeup)
                failures = 0
            except (DatabaseError, InterfaceError, OSError) as error:
                failures += 1
                connected = False
                # The claim may have been committed although its answer was lost, or may be still.
                self._search_soon()
                self._survive("claim", error, failures, until=self._stopping)
        if failures:
            with suppress(DatabaseError, InterfaceError, OSError):
                self._return_forgotten()

    def _turn(self, wakeup: Wakeup) -> None:
        """Claim once, or sleep."""
        self._hand_back_stale()
        want = self._demand()
        if want <= 0:
            wakeup.wait(0.05)
            return
        claimer = self._claimer
        assert claimer is not None
        # Asked before the claim: what is settled between an empty claim and this question may be ready again.
        is_quiet = self.plan.burst and self._is_quiet()
        if is_quiet:
            claimer.refresh()
            # Before the claim, too: another thread may promote what is due between an empty claim and this look.
            self._promote_due()
        with self._claiming:
            if clock.elapsed() >= self._lease_until or claimer is not self._claimer:
                # Declared dead since it was asked how many to claim.
                return
            rows = claimer.claim(want, now=self.now())
            self._held.update([(row.key, row.lease) for row in rows])
        if rows:
            wakeup.worked()
            self._dispatch(rows)
        elif is_quiet and not claimer.has_more:
            self.stop("burst done")
        elif not self._in_hand():
            self._rest()
            wakeup.wait(claimer.looks_in(self.now()))
        else:
            wakeup.wait(0.02 if self.plan.burst else claimer.looks_in(self.now()))

    def _rest(self) -> None:
        """Return unused memory to the system, once after each time of work."""
        if self._rested_after != self._written and time.monotonic() - self._taken_at > _REST_SECONDS:
            self._rested_after = self._written
            give_back()

    def _is_quiet(self) -> bool:
        return not self._in_hand() and not self._unwritten()

    def _promote_due(self) -> None:
        """Make everything ready that is due, and what is parked and may start."""
        from django_taskq.duties import promote, release

        promote.run_once(self.alias, self.options, self.now())
        release.run_once(self.alias, self.options, self.now())

    def _in_hand(self) -> int:
        return sum(executor.in_hand() for executor in self._executors())

    def _unwritten(self) -> int:
        return self._started_total - self._written

    def _demand(self) -> int:
        """Return how many tasks to claim now: free slots, and what they will have run within the next 50 ms."""
        sync = self._sync
        assert sync is not None
        if self._stopping.is_set() or self._unwritten() > BACK_PRESSURE:
            return 0
        if clock.elapsed() >= self._lease_until:
            return 0
        batch = self.plan.worker.batch
        left = self.plan.worker.max_tasks
        room = batch if left is None else left - self._started_total + self._unbegun
        mean = self._mean_seconds
        if not mean:
            ahead = 0
        else:
            ahead = min(int(sync.slots * PREFETCH_SECONDS / mean), 2 * batch)
        in_hand = sync.in_hand()
        self._refill_at = ahead // 2
        # Half of the line is enough: refill in large batches, not row by row.
        if ahead and in_hand > sync.slots + ahead // 2:
            want = 0
        else:
            want = sync.slots + ahead - in_hand
        if self._async is not None and self._async_share:
            free = self._async.slots - self._async.in_hand()
            want = max(want, int(free * self._async_share) if free > 0 else 0) if want > 0 else 0
        return max(0, min(want, batch, room))

    def _enter(self, rows: Sequence[Claim]) -> None:
        """Take claims into the books: each is told once how it ended."""
        with self._books:
            self._started_total += len(rows)
            self._untold.update([(id(row), row) for row in rows])

    def _dispatch(self, rows: Sequence[Claim]) -> None:
        self._enter(rows)
        if self._stopping.is_set():
            # The worker was stopped while the database answered.
            self._return(rows)
            return
        if events.wanted(events.TasksClaimed):
            events.emit(events.TasksClaimed(claims=rows, worker_id=self.id, alias=self.alias))
        self._tells_start = events.wanted(events.TaskStarted)
        self._taken_at = max(self._taken_at, time.monotonic())
        sync = self._sync
        assert sync is not None
        beside = self._executor_beside()
        if beside is None:
            sync.submit(rows)
            return
        coroutines = [row for row in rows if self._is_coroutine(row.name)]
        self._async_share += (len(coroutines) / len(rows) - self._async_share) * 0.3
        if coroutines:
            free = max(beside.slots - beside.in_hand(), 0)
            beside.start()
            beside.submit(coroutines[:free])
            chosen = set(map(id, coroutines[:free]))
            rows = [row for row in rows if id(row) not in chosen]
        sync.submit(rows)

    def _executor_beside(self) -> Executor | None:
        """Return what runs coroutines beside the slots; None while no coroutine is known, or where there is no such."""
        worker = self.plan.worker
        if self._async is None and worker.async_slots and worker.executor not in ("asyncio", "inline"):
            if not definitions.any_coroutines():
                return None
            self._async = make_executor("asyncio", self, worker.async_slots)
        return self._async

    def _is_coroutine(self, name: str) -> bool:
        try:
            task = definitions.find(name)
        except BaseException:
            # Told by the attempt itself, in a slot.
            return False
        return task is not None and definitions.is_coroutine(task)

    def _hand_back_stale(self) -> None:
        """Give tasks back that wait behind slow ones, so that another worker can have them."""
        sync = self._sync
        assert sync is not None
        if time.monotonic() - self._taken_at < STALE_SECONDS or not sync.in_hand():
            return
        self._taken_at = time.monotonic()
        self._mean_seconds = max(self._mean_seconds, STALE_SECONDS)
        self._return(sync.take_back())

    def _return(self, claims: Sequence[Claim]) -> None:
        ended = clock.timestamp()
        for claim in claims:
            self.ended(Ended(claim, _NOT_BEGUN, None, ended))

    # What executors ask and tell (the Host of executors/base.py)

    def may_start(self, claim: Claim) -> bool:
        return clock.elapsed() < self._lease_until and claim.lease >> 32 == self.id and not self._stopping.is_set()

    def started(self, run: Run) -> bool:
        run.cancel_event = None
        with self._books:
            # Once more, since to prepare a task may take long: its module is imported. From here on it is
            # among those that are interrupted when the worker is declared dead, or has to go.
            if not self.may_start(run.claim):
                return False
            self._runs[id(run.claim)] = run
        if self._tells_start:
            claim = run.claim
            eligible = (claim.run_after or claim.created_at).timestamp()
            events.emit(
                events.TaskStarted(
                    task_id=run.public_id,
                    task=claim.name,
                    queue=claim.queue,
                    attempt=claim.attempt,
                    alias=self.alias,
                    worker_id=self.id,
                    wait_seconds=max(run.started - eligible, 0.0),
                    claim=run,
                )
            )
        return True

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        with self._books:
            self._runs.pop(id(ended.claim), None)
            is_told = self._untold.pop(id(ended.claim), None) is not None and not self._closed
            if is_told and not is_written(settled):
                self._ended.put((ended, settled))
        if not is_told:
            self._forget_late(ended, settled)
            return
        if ended.started is not None:
            # The wall clock may have been set back meanwhile.
            spent = max(ended.ended - ended.started, 0.0)
            mean = self._mean_seconds
            # Never 0, which means "not known yet".
            self._mean_seconds = mean + (spent - mean) * 0.2 + 1e-7 if mean else spent + 1e-7
        if is_written(settled):
            self._count([ended], 1)

    def _forget_late(self, ended: Ended, settled: threading.Event | None) -> None:
        """Drop the outcome of an attempt that was settled without it: it overran its time, or the worker has gone."""
        logger.warning("Task %s came back after its attempt was settled; its outcome is not written", ended.claim.name)
        if settled is not None:
            settled.set()

    def taken(self) -> None:
        self._taken_at = time.monotonic()
        wakeup = self._wakeup
        sync = self._sync
        if wakeup is not None and sync is not None and sync.waiting() <= self._refill_at:
            wakeup.poke()

    # Settle

    def _flush_loop(self) -> None:
        # A call for each batch: while the flusher waits it keeps nothing of what it has written.
        while self._flush_next():
            pass

    def _flush_next(self) -> bool:
        """Wait for what ended, and write it together with what ended meanwhile; return whether there may be more."""
        try:
            first = self._ended.get(timeout=max(self._aside_at - time.monotonic(), 0.0) if self._aside else None)
        except Empty:
            self._write_aside()
            return True
        if first is None:
            self._write_aside()
            return False
        batch = [first]
        is_last = False
        weight = weight_of(first[0])
        while len(batch) < FLUSH_MOST and weight < FLUSH_BYTES:
            try:
                item = self._ended.get_nowait()
            except Empty:
                break
            if item is None:
                is_last = True
                break
            batch.append(item)
            weight += weight_of(item[0])
        self._flush(batch)
        if is_last or time.monotonic() >= self._aside_at:
            self._write_aside()
        return not is_last

    def _flush(self, batch: list[tuple[Ended, threading.Event | None]]) -> None:
        self._write([ended for ended, _ in batch])
        for _, settled in batch:
            if settled is not None:
                settled.set()
        if self._wakeup is not None and self._demand() > 0:
            self._wakeup.poke()

    def _write(self, batch: list[Ended], *, refusals: int = _REFUSALS) -> None:
        """
        Settle a batch, for as long as it takes: what ended is never forgotten while this process lives.

        ``refusals``: how often to take an error that is not the connection's for one of the database as a
        whole (a standby, a disk that is full, a table that is being changed), which passes.
        """
        vendor = vendor_for(self.alias)
        failures = 0
        while True:
            try:
                settled = settle(batch, alias=self.alias, worker_id=self.id, now=self.now())
            except Exception as error:
                failures += 1
                if self._is_its_own_fault(batch, error, failures, refusals):
                    self._isolate(batch, error)
                    return
                if self._leaving.is_set():
                    logger.error("%d outcomes could not be written; their tasks will be rescued", len(batch))
                    return
                self._survive("settle", error, failures, until=self._leaving)
                if vendor.is_lost_connection(error):
                    self._search_soon()
                continue
            self._let_go()
            self._count(batch, settled.count)
            if settled.refused:
                self._refused += len(settled.refused)
                logger.warning("%d settlements were refused: their leases were lost", len(settled.refused))
            if settled.ready_again and self._wakeup is not None:
                self._wakeup.poke()
            return

    def _is_its_own_fault(self, batch: Sequence[Ended], error: Exception, failures: int, refusals: int) -> bool:
        """Return whether an error is one of the outcomes' and not of the database."""
        vendor = vendor_for(self.alias)
        if vendor.refuses_value(error):
            return True
        if not vendor.is_lost_connection(error):
            return failures > refusals
        weight = sum(map(weight_of, batch))
        if failures < 2 or weight <= FLUSH_BYTES:
            return False
        # A statement that is too large looks like a lost connection.
        try:
            return not vendor.takes(weight)
        except (DatabaseError, InterfaceError):
            return False

    def _isolate(self, batch: list[Ended], error: Exception) -> None:
        """Find the outcome that the database does not take, so that it does not hold up the others."""
        connections[self.alias].close_if_unusable_or_obsolete()
        if len(batch) > 1:
            middle = len(batch) // 2
            self._write(batch[:middle], refusals=0)
            self._write(batch[middle:], refusals=0)
            return
        ended = batch[0]
        name = ended.claim.name
        is_value = vendor_for(self.alias).refuses_value(error) or vendor_for(self.alias).is_lost_connection(error)
        if is_value and not isinstance(ended.outcome, Undecodable):
            logger.error("The outcome of task %s cannot be stored; the task is dead", name, exc_info=error)
            self._write([ended._replace(outcome=Undecodable(error=execute.describe(error)))], refusals=0)
            return
        logger.critical("Task %s cannot be settled just now; it is tried again", name, exc_info=error)
        self._aside.append(ended)
        self._aside_at = time.monotonic() + _ASIDE_SECONDS

    def _write_aside(self) -> None:
        """Try once more what the database refused."""
        aside, self._aside = self._aside, []
        for ended in aside:
            self._write([ended], refusals=0)

    def _count(self, batch: Sequence[Ended], count: int) -> None:
        left = self.plan.worker.max_tasks
        self._held.difference_update([(ended.claim.key, ended.claim.lease) for ended in batch])
        with self._books:
            self._written += len(batch)
            self.finished += count
            if left is not None:
                self._unbegun += sum(ended.outcome == _NOT_BEGUN for ended in batch)
            used = self._written - self._unbegun
        for listener in self._listeners:
            listener(count)
        if left is not None and used >= left:
            self.stop(f"{left} tasks done")

    # Heartbeat

    def _register_queues(self) -> None:
        """Let operators pause, arrange and limit the queues that this worker names before anybody enqueues to them."""
        names = [name for name, _ in self.queues if len(name) <= QUEUE_LENGTH]
        if names:
            queue_store.remember(self.alias, names)

    def _beat_loop(self) -> None:
        failures = 0
        is_known = False
        while not self._leaving.is_set():
            try:
                # First: the lease must not depend on anything that the database may refuse each time.
                self._beat()
                if not is_known:
                    known = {name: task.queue_name for name, task in definitions.known().items()}
                    store.announce_task_types(self.alias, known, now=self.now())
                    self._register_queues()
                    is_known = True
                self._search_forgotten()
                self._let_go()
                failures = 0
            except (DatabaseError, InterfaceError) as error:
                failures += 1
                self._survive("heartbeat", error, failures, until=self._leaving)
            self._look_after_runs()
            self._look_after_myself()
            if not failures:
                self._leaving.wait(self.options.heartbeat_seconds)

    def _beat(self) -> None:
        sent = clock.elapsed()
        now = self._db_now()
        if store.beat(self.alias, self.id, now=now, running=len(self._runs)):
            self._lease_until = sent + self.options.lease_seconds * 0.9
            self._beat_at = time.monotonic()
        elif not self._stopping.is_set():
            self._start_anew()
            return
        if self._runs:
            asked = set(store.cancel_requests(self.alias, self.id))
            for run in list(self._runs.values()):
                if run.public_id in asked and not run.cancelled:
                    run.cancel_event = threading.Event()
                    run.cancel_event.set()
                    self._executor_of(run).cancel(run)

    def _search_soon(self) -> None:
        """Let the heartbeat look for what was committed after its connection was lost, once it must have been."""
        self._search_at = min(self._search_at, clock.elapsed() + 2 * self.options.heartbeat_seconds)

    def _search_forgotten(self) -> None:
        """
        Hand back what the books say this worker holds and it does not, where nobody asked after an error.

        A claim whose answer was lost on the way is committed; the heartbeat would keep
        its tasks from everybody for as long as this worker lives. Looked for soon after
        an error of the database, else once in a lease.
        """
        if clock.elapsed() < self._search_at or not self._claiming.acquire(blocking=False):
            return
        self._claiming.release()
        self._search_at = clock.elapsed() + self.options.lease_seconds
        # A claim on its way has told nobody yet what it got.
        if not self._return_forgotten(before=self.now() - timedelta(seconds=self.options.heartbeat_seconds)):
            self._search_at = 0.0

    def _return_forgotten(self, *, before: datetime | None = None) -> bool:
        """Hand back what was claimed before a moment and this worker knows nothing of; return False if it cannot."""
        # What is settled while the database answers is no longer held, and not forgotten.
        known = set(self._held)
        found = store.held_since(self.alias, self.id, before=before)
        if not found:
            return True
        if not self._claiming.acquire(timeout=0.1):
            return False
        try:
            known |= self._held
            forgotten = [row for row in found if (row.key, row.lease) not in known]
            self._held.update([(row.key, row.lease) for row in forgotten])
        finally:
            self._claiming.release()
        if forgotten:
            logger.warning("%d claimed tasks had never reached this worker; they are handed back", len(forgotten))
            self._enter(forgotten)
            self._return(forgotten)
        return True

    def _executor_of(self, run: Run) -> Executor:
        if self._async is not None and definitions.is_coroutine(run.task):
            return self._async
        assert self._sync is not None
        return self._sync

    def _start_anew(self) -> None:
        """Hand back what this worker has not begun under an id that was declared dead, and go on under a new one."""
        logger.warning("Worker %s was declared dead; it starts anew", self.id)
        # Until it has its new id it claims and starts nothing: what a dead worker holds is rescued at any moment.
        self._lease_until = 0.0
        # What is on its way may still come under the old id; nothing follows it.
        if self._claiming.acquire(timeout=_GOODBYE_SECONDS):
            self._claiming.release()
        for executor in self._executors():
            # What nobody has rescued yet goes on without having used an attempt; the rest is refused by its lease.
            self._return(executor.take_back())
        with self._books:
            running = list(self._runs.values())
        for run in running:
            run.interrupted = True
            self._executor_of(run).cancel(run)
        self._announce()

    def _look_after_runs(self) -> None:
        """Settle what overran its time and does not come back, so that it does not run for ever in the books."""
        now, patience = clock.elapsed(), self.options.lease_seconds
        for run in list(self._runs.values()):
            if run.ends_at is None or now < run.ends_at + patience:
                continue
            executor = self._executor_of(run)
            if executor.abandon(run):
                logger.error(
                    "Task %s (%s) overran its time and does not come back; its slot was replaced",
                    run.claim.name,
                    run.public_id,
                )
                # Told here, in place of its thread; what that still hands over is dropped.
                self.ended(Ended(run.claim, execute.timed_out(run), run.started, clock.timestamp()))

    def _look_after_myself(self) -> None:
        worker = self.plan.worker
        if worker.max_age is not None and time.monotonic() - self._born >= worker.max_age.total_seconds():
            self.stop("max age reached")
        if worker.max_memory is not None:
            used = resident_megabytes()
            if used is not None and used > worker.max_memory:
                self.stop(f"{used} MB of memory in use")

    # Upkeep

    def _duty_loop(self) -> None:
        from django_taskq.duties.runner import DutyRunner

        runner = DutyRunner(self.alias, lambda: self.id, self.options, self.now)
        failures = 0
        while not self._stopping.is_set():
            try:
                promoted = runner.run_due()
                if promoted and self._wakeup is not None:
                    self._wakeup.poke()
                pause = runner.pause()
                self._let_go()
                failures = 0
            except (DatabaseError, InterfaceError) as error:
                failures += 1
                self._survive("duties", error, failures, until=self._stopping)
                continue
            self._stopping.wait(pause)

    # Surviving and leaving

    def _let_go(self) -> None:
        """Return this thread's connection to the pool, where there is one: pools are smaller than we have threads."""
        if self._is_pooled:
            connections[self.alias].close()

    def _survive(self, where: str, error: BaseException, failures: int, *, until: threading.Event) -> None:
        """Log a database error, let go of the connection, and wait a little longer each time, or for an event."""
        wait = min(_BACKOFF_FIRST * 2 ** min(failures, 10), _BACKOFF_MOST)
        level = logging.WARNING if failures < 5 else logging.ERROR
        logger.log(level, "The database refused (%s), again in %.1f s: %s", where, wait, error)
        try:
            connection = connections[self.alias]
            if not connection.in_atomic_block:
                connection.close()
        except Exception:
            logger.debug("Closing the connection failed", exc_info=True)
        until.wait(wait)

    def _shut_down(self) -> None:
        """Hand back what has not started, wait for the rest, write everything, leave. Clean-up always happens."""
        until = time.monotonic() + self.plan.worker.grace.total_seconds()
        try:
            self._best_effort(lambda: store.mark_stopping(self.alias, self.id))
            # What it is claiming just now it hands back itself.
            self._join("claimer", _GOODBYE_SECONDS)
            for executor in self._executors():
                self._return(executor.take_back())
            # A claim that is answered late is handed back, too.
            while (self._unwritten() > 0 or self._is_alive("claimer")) and time.monotonic() < until:
                if self._hard.wait(0.01):
                    break
            self._let_go_of_runs()
            self._join("flusher", _WRITE_SECONDS)
            self._leaving.set()
            self._join("flusher", 1.0)
            # Before the last words: an id that is announced now, or a lead that is taken, would outlive the worker.
            self._join("heartbeat", 1.0)
            self._join("duties", 1.0)
            if self._unwritten() <= 0:
                self._best_effort(lambda: store.forget(self.alias, self.id))
            self._best_effort(lambda: duty_store.give_up(self.alias, self.id))
        except Exception:
            self.has_failed = True
            logger.exception("The shutdown of the worker failed")
        finally:
            self._clean_up()

    def _let_go_of_runs(self) -> None:
        """Interrupt what still runs, and close the books: nothing is told after this."""
        running = list(self._runs.values())
        for executor in self._executors():
            executor.stop(0.05)
            self._return(executor.take_back())
        at = clock.timestamp()
        with self._books:
            for key, claim in self._untold.items():
                # None: a slot has it that has not begun, and now never will.
                run = self._runs.get(key)
                ended = Ended(claim, _NOT_BEGUN, None, at)
                if run is not None:
                    run.interrupted = True
                    ended = Ended(claim, Interrupted(), run.started, at, cancelled=run.cancelled)
                self._ended.put((ended, None))
            self._untold.clear()
            self._runs.clear()
            self._closed = True
            self._ended.put(None)
        self._left = [run for run in running if run.interrupted]

    def _clean_up(self) -> None:
        self._leaving.set()
        if self._wakeup is not None:
            wake.leave(self.alias, self._wakeup.poke)
        for name in self._threads:
            self._join(name, 1.0)
        if self._wakeup is not None and not self._is_alive("claimer"):
            self._wakeup.close()
        if events.wanted(events.WorkerStopped):
            events.emit(events.WorkerStopped(worker_id=self.id, name=self.name, alias=self.alias))
        connections.close_all()
        self._state = "stopped"
        self._stopped.set()

    def _is_alive(self, name: str) -> bool:
        thread = self._threads.get(name)
        return thread is not None and thread.is_alive()

    def _join(self, name: str, timeout: float) -> None:
        thread = self._threads.get(name)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _best_effort(self, work: Callable[[], None]) -> None:
        """Try something with the database for a limited time."""
        try:
            in_own_thread(work, timeout=_GOODBYE_SECONDS)
        except (DatabaseError, InterfaceError, TimeoutError):
            logger.warning("A step of the shutdown failed", exc_info=True)


def weight_of(ended: Ended) -> int:
    """Return about how many bytes an outcome takes when it is written."""
    outcome = ended.outcome
    if type(outcome) is Succeeded:
        return 0 if outcome.result is None else len(outcome.result)
    error = getattr(outcome, "error", None)
    return 0 if error is None else len(error.traceback) + len(error.message)


def in_own_thread(work: Callable[[], object], *, timeout: float | None = None) -> None:
    """
    Run ``work`` in a thread with connections of its own, and close them; what it raises passes through.

    Raise TimeoutError if it takes longer than ``timeout`` seconds; it then goes on by itself.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name="taskq-errand", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError(f"no answer from the database within {timeout:g} seconds")
    if raised:
        raise raised[0]


def workers_here() -> list[Worker]:
    """Return the workers of this process that were started and have not stopped."""
    return [worker for worker in list(_here) if worker.state not in {"new", "stopped"}]
