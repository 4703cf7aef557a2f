"""Timeouts: what a deadline does to a coroutine, to a thread that listens, and to one that does not."""

import asyncio
from typing import Any

import pytest

from django_taskq import Fixed, task
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import db_now, drain, outcomes_of, row_of, run_burst, running_worker, state_of, wait_for
from tests.guarantees.tasks import gates, note, pause, pause_async, pause_deaf, ran

pytestmark = pytest.mark.django_db(transaction=True)


@task(takes_context=True, timeout=60)
def note_deadline(context: Any) -> float:
    """Return the seconds that are left."""
    return context.remaining.total_seconds()


@task(takes_context=True, max_time=30)
def note_budget(context: Any) -> float:
    """Return the seconds that are left."""
    return context.remaining.total_seconds()


@task(timeout=0.2, max_attempts=1)
async def catch_and_go_on() -> str:
    """Swallow its own timeout."""
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        ran.append("swallowed")
    return "late"


@task(max_attempts=1)
async def own_timeout() -> None:
    """Time out by its own doing, which is an error like any other."""
    async with asyncio.timeout(0.01):
        await asyncio.sleep(5)


def test_a_task_knows_its_deadline() -> None:
    """S4-22: timeout and budget, whichever is earlier."""
    with_timeout, with_budget = note_deadline.enqueue(), note_budget.enqueue()

    drain()

    assert 50 < row_of(with_timeout).result_value <= 60
    assert 20 < row_of(with_budget).result_value <= 30


def test_a_coroutine_is_cancelled_at_its_timeout_and_retried() -> None:
    """S0-61, S4-22: an attempt's timeout is a failure that may be retried."""
    found = pause_async.using(timeout=0.3, max_attempts=2, backoff=Fixed(0)).enqueue("job")

    run_burst(threads=1, async_slots=2)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.reason, row.attempt) == ("exhausted", 2)
    assert outcomes_of(found) == ["timed_out", "timed_out"]
    assert ran == ["job", "job"]


def test_a_coroutine_that_runs_in_a_thread_is_cancelled_at_its_timeout_too() -> None:
    """S0-61: where the worker has no room in its event loop, or none at all."""
    found = pause_async.using(timeout=0.3, max_attempts=1).enqueue("job")

    run_burst(threads=1, async_slots=0)

    assert outcomes_of(found) == ["timed_out"]


def test_a_thread_that_listens_is_told_at_its_timeout() -> None:
    """S0-61, S4-22: raise_if_cancelled knows the deadline."""
    found = pause.using(timeout=0.3, max_attempts=1).enqueue("job")

    run_burst(threads=1)

    assert outcomes_of(found) == ["timed_out"]


def test_a_thread_that_does_not_listen_is_settled_without_it_and_its_slot_replaced() -> None:
    """S0-61: cooperative deadline plus lease: the books do not wait for ever, and neither do the others."""
    with running_worker(taskq={"LEASE_SECONDS": 2, "HEARTBEAT_SECONDS": 0.3}, threads=1):
        stuck = pause_deaf.using(timeout=0.2, max_attempts=1).enqueue("stuck")
        after = note.enqueue("after")

        wait_for(lambda: state_of(stuck) == "dead", 15)
        wait_for(lambda: state_of(after) == "succeeded", 10)
        gates["stuck"].set()

    assert outcomes_of(stuck) == ["timed_out"]
    assert engine.totals()["succeeded"] == 1


def test_a_thread_that_does_not_listen_may_overrun_its_timeout_and_succeed() -> None:
    """S0-61, non-guarantee: within a lease after its deadline a thread's success still counts."""
    with running_worker(threads=1):
        found = pause_deaf.using(timeout=0.1).enqueue("slow")
        assert gates["slow runs"].wait(10)
        started = db_now()
        wait_for(lambda: (db_now() - started).total_seconds() > 0.3)
        gates["slow"].set()
        wait_for(lambda: state_of(found) == "succeeded", 10)


def test_the_budget_ends_the_task_where_a_timeout_only_ends_the_attempt() -> None:
    """S0-61, S2-34: the coroutine is stopped at the earlier of both; only the budget is final."""
    found = pause_async.using(max_time=1.5, max_attempts=5).enqueue("job")

    run_burst(threads=1, async_slots=2)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.reason, row.attempt) == ("budget_expired", 1)


def test_a_timeout_of_the_tasks_own_doing_is_an_ordinary_failure() -> None:
    """S0-61: not mistaken for the engine's."""
    found = own_timeout.enqueue()

    run_burst(threads=1, async_slots=2)

    assert outcomes_of(found) == ["failed"]


def test_a_coroutine_that_swallows_its_timeout_has_timed_out_all_the_same() -> None:
    """S0-61: asyncio.timeout() says so afterwards, or the value counts; never both."""
    found = catch_and_go_on.enqueue()

    run_burst(threads=1, async_slots=2)

    assert ran == ["swallowed"]
    assert state_of(found) in {"dead", "succeeded"}
    assert not Task.objects.exists()


def test_a_timed_out_attempt_frees_its_slot_for_the_next() -> None:
    """S4-27: a storm of timeouts makes progress."""
    for at in range(20):
        pause_async.using(timeout=0.05, max_attempts=1).enqueue(f"job {at}")
    after = note.enqueue("after")

    run_burst(threads=1, async_slots=4)

    assert state_of(after) == "succeeded"
    assert FinishedTask.objects.filter(reason="exhausted").count() == 20
    assert claim_one_or_none() is None


def claim_one_or_none() -> Any:
    found = engine.claim()
    return found[0] if found else None
