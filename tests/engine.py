"""
What the guarantee tests need of the engine: rows in a wanted state, single steps, workers in this process and others.

Rows and steps are for one fact at a time; a worker in this process for what its
threads do together; a worker process for what only a real ``kill`` can prove.
"""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.db.models import Sum
from django.test import override_settings

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.exceptions import ShutdownTimeout
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.settle import Ended, Settled, settle
from django_taskq.models import Attempt, FinishedTask, Stat, Task, Worker
from django_taskq.store import workers as worker_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import STAT_COUNTERS
from django_taskq.worker.executors.base import is_written, run_one
from django_taskq.worker.loop import Plan
from django_taskq.worker.loop import Worker as Engine
from tests import databases

T = TypeVar("T")

ALIAS = "default"
ROOT = Path(__file__).parents[1]
#: Short enough for a test, long enough for a machine that is busy with others.
SHORT = {"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.5}
#: Quick to hear of what others did, and never declared dead for being slow.
CALM = {"LEASE_SECONDS": 30, "HEARTBEAT_SECONDS": 0.3}


# Waiting


def wait_for(predicate: Callable[[], T], seconds: float = 60.0, *, what: str = "") -> T:
    """Ask until the answer is true and return it; fail when the time is over."""
    until = time.monotonic() + seconds
    while True:
        found = predicate()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} seconds: {what or predicate}")
        time.sleep(0.01)


def db_now() -> datetime:
    """Return the database's clock."""
    return vendor_for(ALIAS).now()


# Rows


def ready_task(
    task: Any = "tests.guarantees.tasks.note",
    *args: Any,
    attempt: int = 0,
    max_attempts: int = 3,
    state: State = State.READY,
    lease: int | None = None,
    **columns: Any,
) -> Task:
    """Store a row just so, past all the rules of enqueue: ``ready_task(attempt=3)``."""
    name = task if isinstance(task, str) else task.task_name or task.module_path
    columns.setdefault("args", json.dumps({"args": args, "kwargs": {}}))
    columns.setdefault("created_at", db_now())
    columns.setdefault("queue", "default")
    columns.setdefault("rank", 0)
    return Task.objects.create(
        name=name, attempt=attempt, max_attempts=max_attempts, state=int(state), lease=lease, **columns
    )


def row_of(task: Any) -> Task | FinishedTask | None:
    """Return the row of a task, a result or an id, wherever it is now."""
    key = getattr(task, "pk", None) or getattr(task, "id", None) or task
    for model in (Task, FinishedTask, Task):
        if found := model.objects.filter(pk=key).first():
            return found
    return None


def state_of(task: Any) -> str:
    """Return the name of a task's state, "gone" where there is no row."""
    row = row_of(task)
    return "gone" if row is None else State(row.state).name.lower()


def outcomes_of(task: Any) -> list[str]:
    """Return how the recorded attempts of a task ended, in the order in which they were recorded."""
    key = getattr(task, "pk", None) or getattr(task, "id", None) or task
    return list(Attempt.objects.filter(task_id=key).order_by("id").values_list("outcome", flat=True))


def totals() -> dict[str, int]:
    """Return the sums of all statistics, without the zeros."""
    sums = Stat.objects.aggregate(**{f"sum_{name}": Sum(name) for name in STAT_COUNTERS})
    return {name: int(sums[f"sum_{name}"]) for name in STAT_COUNTERS if sums[f"sum_{name}"]}


# Single steps


def announce(*, silent_for: float = 0.0, lease_seconds: int = 30) -> int:
    """Add a worker that last beat ``silent_for`` seconds ago; return its id."""
    now = db_now() - timedelta(seconds=silent_for)
    return worker_store.announce(ALIAS, now=now, name="test", lease_seconds=lease_seconds)


def declare_dead(worker_id: int) -> None:
    """Declare a worker dead that goes on beating."""
    wait_for(lambda: worker_store.declare_dead(ALIAS, Worker.objects.get(pk=worker_id)))


def claim(worker_id: int | None = None, *, queues: str = "default", limit: int = 1) -> list[Claim]:
    """Claim as a worker does; a worker is announced where none is given."""
    wanted: list[tuple[str, int | None]] = [(name, None) for name in queues.split(",")]
    return Claimer(ALIAS, worker_id or announce(), wanted).claim(limit, now=db_now())


def claim_one(worker_id: int | None = None, *, queues: str = "default") -> Claim:
    """Claim exactly one task."""
    [found] = claim(worker_id, queues=queues)
    return found


class Bench:
    """The least host an executor can have: it collects outcomes, and writes them when told to."""

    def __init__(self) -> None:
        self.alias = ALIAS
        self.options = conf.options("default")
        self.id = 0
        self.pending: list[Ended] = []
        self.is_leased = True

    def may_start(self, claim: Claim) -> bool:
        return self.is_leased

    def now(self) -> datetime:
        return db_now()

    def started(self, run: Any) -> bool:
        return True

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        if is_written(settled):
            return
        self.pending.append(ended)
        if settled is not None:
            self.write()
            settled.set()

    def taken(self) -> None:
        """No line to refill."""

    def write(self) -> Settled:
        """Settle what gathered."""
        batch, self.pending = self.pending, []
        return write(batch)


def write(batch: Iterable[Ended]) -> Settled:
    """Settle outcomes as the flusher does."""
    found = list(batch)
    return settle(found, alias=ALIAS, worker_id=found[0].claim.lease >> 32, now=db_now())


def run(claimed: Claim, **changes: Any) -> Ended:
    """Run one claim in this thread, without writing how it ended."""
    bench = Bench()
    run_one(bench, claimed._replace(**changes))
    [ended] = bench.pending
    return ended


def run_and_settle(claimed: Claim) -> Settled | None:
    """Run one claim in this thread and write how it ended; None where the attempt wrote that itself."""
    bench = Bench()
    run_one(bench, claimed)
    return bench.write() if bench.pending else None


def drain(limit: int = 1000, *, queues: str = "default") -> int:
    """Run everything that is ready or becomes so, in this thread; return how many attempts that were."""
    worker_id = announce()
    vendor = vendor_for(ALIAS)
    count = 0
    while count < limit:
        vendor.promote(db_now(), 1000)
        found = claim(worker_id, queues=queues, limit=50)
        if not found:
            worker_store.forget(ALIAS, worker_id)
            return count
        for claimed in found:
            run_and_settle(claimed)
        count += len(found)
    raise AssertionError(f"more than {limit} attempts")


# Workers in this process


@contextmanager
def running_worker(
    *, burst: bool = False, taskq: dict[str, Any] | None = None, name: str = "", **options: Any
) -> Iterator[Engine]:
    """Run a worker in this process for a block; ``options`` are those of ``WorkerOptions``."""
    options.setdefault("queues", "default")
    options.setdefault("threads", 2)
    options.setdefault("grace", timedelta(seconds=10))
    with ExitStack() as stack:
        if taskq is not None:
            stack.enter_context(override_settings(TASKQ=taskq))
        worker = Engine(Plan(worker=conf.WorkerOptions(**options), burst=burst, name=name))
        stack.callback(_leave, worker)
        worker.start()
        yield worker


def _leave(worker: Engine) -> None:
    worker.stop_now()
    try:
        worker.join(30)
    except ShutdownTimeout:
        # Some tests leave tasks that never return; their threads are daemons.
        assert worker.state == "stopped"


def run_burst(*, seconds: float = 60.0, **options: Any) -> Engine:
    """Run a worker until nothing is left to do."""
    with running_worker(burst=True, **options) as worker:
        worker.join(seconds)
    return worker


# Worker processes


@contextmanager
def _nobody_writes_to_the_file() -> Iterator[None]:
    """Keep all others from writing to the SQLite file for a block; elsewhere do nothing."""
    if connection.vendor != "sqlite":
        yield
        return
    own = sqlite3.connect(str(connection.settings_dict["NAME"]), timeout=30, isolation_level=None)
    try:
        own.execute("BEGIN IMMEDIATE")
        yield
    finally:
        own.close()


class WorkerProcess:
    """A worker in a process of its own, to be killed, stopped and continued."""

    def __init__(
        self,
        *,
        taskq: dict[str, Any] | None = None,
        prepare: str = "",
        prepare_with: Any = None,
        database: dict[str, Any] | None = None,
        burst: bool = False,
        **options: Any,
    ) -> None:
        options.setdefault("queues", "default")
        order = {
            "taskq": SHORT if taskq is None else taskq,
            "worker": options,
            "burst": burst,
            "prepare": prepare,
            "prepare_with": prepare_with,
            "database": database or {},
        }
        variables = {
            **os.environ,
            databases.NAME_VARIABLE: str(connection.settings_dict["NAME"]),
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker_process", json.dumps(order)],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_ready(self) -> int:
        """Wait until the worker has announced itself; return its id."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                return int(line.split()[1])
        raise AssertionError(f"the worker process ended with {self.process.wait()}")

    def kill(self) -> None:
        """Kill it as the kernel's memory killer does."""
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """
        Stop the whole process where it stands; on SQLite not while it writes.

        There its lock on the file would keep every other writer out: what nobody can do anything about,
        and what docs/guarantees.md says is not promised.
        """
        with _nobody_writes_to_the_file():
            os.kill(self.pid, signal.SIGSTOP)
            # Its threads stop one after the other: it is the last that counts.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a suspended process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self, seconds: float = 30.0) -> int:
        """Ask it to stop, and return its exit status."""
        self.process.terminate()
        return self.process.wait(seconds)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait until it ends by itself; return its exit status."""
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def worker_process(**order: Any) -> Iterator[WorkerProcess]:
    """Run a worker process for a block; it is ready when the block begins."""
    found = WorkerProcess(**order)
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.close()


@contextmanager
def worker_processes(count: int, **order: Any) -> Iterator[list[WorkerProcess]]:
    """Run several worker processes for a block; all are ready when it begins."""
    found = [WorkerProcess(**order) for _ in range(count)]
    try:
        for process in found:
            process.wait_until_ready()
        yield found
    finally:
        for process in found:
            process.close()


# Threads of a test


def in_threads(*works: Callable[[], T]) -> list[T]:
    """Run each in a thread of its own, let go at the same moment; return what they return, or raise the first error."""
    barrier = threading.Barrier(len(works))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def body(at: int) -> None:
        try:
            connection.ensure_connection()
            barrier.wait(20)
            results[at] = works[at]()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=body, args=(at,)) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return [results[at] for at in range(len(works))]


def with_another_before(moment: int, work: Callable[[], object], other: Callable[[], object]) -> bool:
    """
    Do ``work`` in this thread, and ``other`` in a second one that begins before the statement of that number.

    The first waits a little for the second: for its end, or until it most likely waits for what the first
    has under lock. Return whether there was such a statement; the second has ended by then, and its error is raised.
    """
    asked = 0
    beside: list[threading.Thread] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            other()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    def ask(execute: Callable[..., Any], *question: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == moment:
            beside.append(threading.Thread(target=body))
            beside[0].start()
            beside[0].join(0.05)
        return execute(*question)

    try:
        with connection.execute_wrapper(ask):
            work()
    finally:
        for thread in beside:
            thread.join(60)
    if errors:
        raise errors[0]
    return bool(beside)


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, and close what it opened in the thread of the ORM's async methods, which stays."""

    async def body() -> T:
        try:
            return await work
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(body())


def alive_workers() -> int:
    """Return how many workers have a heartbeat row that says "alive"."""
    return Worker.objects.filter(state=Worker.State.ALIVE).count()
