"""Budget and expiry: the whole time of a task, and the time until which it may begin."""

from datetime import timedelta

import pytest

from django_taskq import Fixed, api
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import claim_one, db_now, drain, outcomes_of, ready_task, row_of, run_burst, state_of
from tests.guarantees.tasks import fail, note, pause, ran

pytestmark = pytest.mark.django_db(transaction=True)


def reason_of(task: object) -> str | None:
    row = row_of(task)
    return row.reason if isinstance(row, FinishedTask) else None


def test_a_budget_that_ended_before_the_start_ends_the_task_without_running_it() -> None:
    """S2-33, S2-24: found right after the claim, at no attempt's cost."""
    task = ready_task(note, deadline_at=db_now() - timedelta(milliseconds=1))

    drain()

    row = row_of(task)
    assert row is not None
    assert (reason_of(task), row.attempt, ran) == ("budget_expired", 0, [])


def test_a_task_that_listens_is_told_when_its_budget_ends() -> None:
    """S2-34: terminal, whatever attempts are left."""
    task = pause.using(max_time=1.5, max_attempts=5).enqueue("job")

    run_burst(threads=1)

    row = row_of(task)
    assert row is not None
    assert (reason_of(task), row.attempt) == ("budget_expired", 1)
    assert outcomes_of(task) == ["budget_expired"]


def test_no_retry_is_planned_beyond_the_budget() -> None:
    """S2-03: the task is dead now and not after a wait that leads nowhere."""
    task = fail.using(max_time=10, backoff=Fixed(20)).enqueue()

    drain()

    assert (reason_of(task), len(ran)) == ("budget_expired", 1)


def test_the_budget_counts_from_the_moment_the_task_could_run() -> None:
    """S2-03: a delay uses none of it."""
    task = note.using(max_time=5, delay=3600).enqueue()

    row = row_of(task)
    assert isinstance(row, Task)
    assert row.deadline_at is not None
    assert row.run_after is not None
    assert row.deadline_at - row.run_after == timedelta(seconds=5)


def test_a_replay_has_a_fresh_budget_of_the_same_length() -> None:
    """S4-17, S2-03: or it would only die again."""
    task = note.using(max_time=100).enqueue()
    Task.objects.update(deadline_at=db_now() - timedelta(hours=1))
    drain()
    first = reason_of(task)

    api.replay(task.id)
    row = row_of(task)
    drain()

    assert first == "budget_expired"
    assert isinstance(row, Task)
    assert row.deadline_at is not None
    assert 95 < (row.deadline_at - db_now()).total_seconds() <= 100
    assert state_of(task) == "succeeded"


def test_a_task_that_did_not_begin_in_time_expires() -> None:
    """S2-33: nobody wants yesterday's reminder."""
    task = note.using(expires=60).enqueue()
    Task.objects.update(expires_at=db_now() - timedelta(seconds=1))

    drain()

    assert (reason_of(task), ran) == ("expired", [])


def test_a_task_that_began_in_time_may_be_retried_after_its_expiry() -> None:
    """S2-33: expiry is about the first start."""
    task = fail.using(expires=60, max_attempts=2).enqueue()
    engine.run_and_settle(claim_one())
    Task.objects.update(expires_at=db_now() - timedelta(seconds=1))

    drain()

    assert (reason_of(task), len(ran)) == ("exhausted", 2)


def test_an_expiry_is_lifted_by_a_replay() -> None:
    """S4-17: the operator wants it now."""
    task = note.using(expires=60).enqueue()
    Task.objects.update(expires_at=db_now() - timedelta(seconds=1))
    drain()

    api.replay(task.id)
    drain()

    assert state_of(task) == "succeeded"


def test_a_crash_loop_ends_with_its_budget() -> None:
    """S2-14: attempts and budget both bound it."""
    task = ready_task(note, max_attempts=1000, attempt=7, deadline_at=db_now() - timedelta(seconds=1))

    drain()

    row = row_of(task)
    assert row is not None
    assert (State(row.state), reason_of(task), row.attempt) == (State.DEAD, "budget_expired", 7)
