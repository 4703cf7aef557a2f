"""What executors promise at their worst moments: at the hand-over to a process, and when all had just ended."""

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from django_taskq import Cancel, api, task
from django_taskq.lifecycle.rescue import rescue
from django_taskq.signals import task_started
from django_taskq.store.vendors import vendor_for
from django_taskq.worker import children, loop
from django_taskq.worker.executors.aio import AsyncExecutor
from tests import engine
from tests.capabilities import requires
from tests.engine import (
    CALM,
    claim,
    declare_dead,
    outcomes_of,
    ready_task,
    row_of,
    run_burst,
    running_worker,
    state_of,
    wait_for,
)
from tests.guarantees.tasks import append, gates, note, pause, pause_deaf, ran, return_this

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def started_hook() -> Iterator[Callable[[Callable[[Any], None]], None]]:
    """Return what lets a function be called once, between the word that a task starts and its start."""
    receivers: list[Any] = []

    def call(work: Callable[[Any], None]) -> None:
        def once(sender: Any, event: Any, **given: Any) -> None:
            task_started.disconnect(once)
            work(event)

        receivers.append(once)
        task_started.connect(once, weak=False)

    yield call
    for receiver in receivers:
        task_started.disconnect(receiver)


@pytest.mark.slow
def test_a_cancel_that_comes_while_a_task_is_handed_to_its_process_is_heard_there(started_hook: Any) -> None:
    """S4-23: it is asked, and not killed."""

    def cancel(event: Any) -> None:
        api.cancel([event.task_id])
        wait_for(lambda: all(run.cancelled for run in list(worker._runs.values())))

    started_hook(cancel)
    with running_worker(
        taskq=CALM, threads=1, duties=False, executor="processes", kill_grace=timedelta(seconds=60)
    ) as worker:
        found = pause.enqueue("k", 60.0)
        wait_for(lambda: state_of(found) == "cancelled")


@pytest.mark.slow
def test_a_task_that_is_handed_to_its_process_when_its_worker_is_declared_dead_is_not_begun(
    started_hook: Any, tmp_path: Path
) -> None:
    """S4-02, S4-16."""
    path = str(tmp_path / "lines")

    def lose(event: Any) -> None:
        first_id = worker.id
        declare_dead(first_id)
        wait_for(lambda: worker.id != first_id)
        rescue(engine.ALIAS, now=engine.db_now())

    started_hook(lose)
    with running_worker(taskq=CALM, threads=1, duties=False, executor="processes") as worker:
        found = append.enqueue(path, seconds=1.0)
        wait_for(lambda: state_of(found) == "succeeded")

    assert [line.split()[0] for line in Path(path).read_text().splitlines()] == ["start", "end"]
    assert outcomes_of(found) == ["lost"]


@pytest.mark.slow
def test_a_slot_waits_for_a_system_that_gives_it_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3-17: the worker does not go on with a slot less."""
    spawn = children.spawn
    refused: list[OSError] = []

    def refuse(*args: Any, **given: Any) -> Any:
        if not refused:
            refused.append(BlockingIOError(errno.EAGAIN, "no more processes"))
            raise refused[0]
        return spawn(*args, **given)

    monkeypatch.setattr(children, "spawn", refuse)
    found = return_this.enqueue(1)
    with running_worker(threads=1, duties=False, executor="processes"):
        wait_for(lambda: state_of(found) == "succeeded")

    assert len(refused) == 1


@pytest.mark.slow
@requires("server_clock")
def test_a_process_judges_its_task_by_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-94: its machine's clock is an hour behind; the task is due, and not sent back again and again."""
    monkeypatch.setattr(loop.Worker, "offset", timedelta(hours=1))
    found = ready_task(return_this, 1, run_after=engine.db_now() + timedelta(minutes=30))

    with running_worker(threads=1, duties=False, executor="processes"):
        wait_for(lambda: state_of(found) == "succeeded")

    row = row_of(found)
    assert row is not None
    assert row.attempt == 1


def test_a_plain_function_on_asyncio_keeps_its_slot_when_it_does_not_hear_a_cancel() -> None:
    """S4-23: nothing ends it, and no more run at once than there are slots."""
    first = pause_deaf.enqueue("first")
    with running_worker(taskq=CALM, async_slots=1, duties=False, executor="asyncio") as worker:
        assert gates["first runs"].wait(30)
        api.cancel([first.id])
        wait_for(lambda: all(run.cancelled for run in list(worker._runs.values())))
        second = note.enqueue("second")
        time.sleep(0.5)
        before = (state_of(second), list(ran))
        gates["first"].set()
        wait_for(lambda: state_of(second) == "succeeded")

    assert before == ("ready", ["first"])
    assert ran == ["first", "second"]


def test_a_plain_function_on_asyncio_that_overruns_its_time_loses_its_slot() -> None:
    """S2-13: it is settled without it a lease later; what it comes back with is dropped."""
    quick = {"LEASE_SECONDS": 2, "HEARTBEAT_SECONDS": 0.2}
    with running_worker(taskq=quick, async_slots=1, duties=False, executor="asyncio") as worker:
        found = pause_deaf.using(timeout=0.3, max_attempts=1).enqueue("k")
        after = note.enqueue("after")
        wait_for(lambda: state_of(after) == "succeeded")
        before = (state_of(found), outcomes_of(found))
        gates["k"].set()
        last = note.enqueue("last")
        wait_for(lambda: state_of(last) == "succeeded" and not worker.in_flight)

    assert before == ("dead", ["timed_out"])
    assert (state_of(found), ran) == ("dead", ["k", "after", "last"])


class Mute(Cancel):
    """An exception that cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("no words")


@task(max_attempts=1)
def raise_mute() -> None:
    raise Mute


@task(max_attempts=1)
async def araise_mute() -> None:
    raise Mute


@pytest.mark.parametrize("executor", ["threads", "asyncio"])
@pytest.mark.parametrize("function", [raise_mute, araise_mute])
def test_an_attempt_ends_also_where_its_own_end_cannot_be_told(function: Any, executor: str) -> None:
    """S0-56: it does not run in the books for ever."""
    found = function.enqueue()

    run_burst(threads=1, executor=executor, duties=False)

    assert (state_of(found), outcomes_of(found)) == ("dead", ["failed"])


@task
async def note_async(key: str) -> None:
    ran.append(key)


@task
async def clean_up_slowly(key: str) -> None:
    """Wait; when it is cancelled, clean up for a moment."""
    gates[f"{key} runs"].set()
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0.2)
        gates[f"{key} is clean"].set()


def test_a_coroutine_that_came_when_all_others_had_just_ended_may_clean_up_when_its_worker_stops() -> None:
    """S4-29: its executor does not take itself for idle."""
    first, second = note_async.enqueue("first"), clean_up_slowly.enqueue("k")
    bench = engine.Bench()
    executor = AsyncExecutor(bench, 1)
    claims = claim(limit=2)
    assert [found.key for found in claims] == [vendor_for(engine.ALIAS).key_of(one.id) for one in (first, second)]

    class Idle(threading.Event):
        def set(self) -> None:
            # The last moment before the word that nothing is left.
            if not gates["k submitted"].is_set():
                gates["k submitted"].set()
                executor.submit(claims[1:])
            super().set()

    executor.start()
    executor._idle = Idle()
    executor.submit(claims[:1])
    assert gates["k runs"].wait(30)
    executor.stop(0.05)

    assert gates["k is clean"].is_set()
