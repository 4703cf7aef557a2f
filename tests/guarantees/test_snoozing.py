"""Snoozing: again later, on the task's own wish, at no attempt's cost."""

import pytest

from django_taskq import api
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import claim_one, db_now, drain, outcomes_of, row_of, running_worker, state_of, totals, wait_for
from tests.guarantees.tasks import ran, snooze

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_snooze_gives_its_attempt_back_and_records_none() -> None:
    """S0-42: as if it had not run."""
    task = snooze.using(max_attempts=1).enqueue(60)

    engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, Task)
    assert (state_of(task), row.attempt, outcomes_of(task), totals()) == ("scheduled", 0, [], {})
    assert row.run_after is not None
    assert 55 < (row.run_after - db_now()).total_seconds() <= 60


def test_a_snoozed_task_does_not_start_before_its_time() -> None:
    """S0-52: not before, by the database's clock."""
    task = snooze.enqueue(0.5)
    with running_worker(threads=1):
        wait_for(lambda: state_of(task) == "scheduled")
        planned = row_of(task)
        wait_for(lambda: len(ran) >= 2)
        api.cancel(task.id)
        wait_for(lambda: state_of(task) == "cancelled")

    assert planned is not None
    assert planned.run_after is not None
    assert (planned.run_after - planned.created_at).total_seconds() >= 0.5


def test_a_task_may_snooze_more_often_than_it_may_fail() -> None:
    """S0-42: its maximum counts failures."""
    task = snooze.using(max_attempts=1).enqueue(0)
    for _ in range(5):
        engine.vendor_for(engine.ALIAS).promote(db_now(), 10)
        engine.run_and_settle(claim_one())

    row = row_of(task)
    assert row is not None
    assert (row.attempt, len(ran)) == (0, 5)


def test_only_a_budget_ends_a_task_that_snoozes_for_ever() -> None:
    """S2-03: the whole time of a task is bounded, where it was given one."""
    task = snooze.using(max_time=0.3).enqueue(0)

    drain()
    wait_for(lambda: drain() >= 0 and state_of(task) == "dead")

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert row.reason == "budget_expired"
