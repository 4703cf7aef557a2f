"""Retrying: counted, bounded, never early, never blocking anybody."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from django_taskq import Exponential, Fixed, Steps, api, conf
from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Task
from tests import engine
from tests.engine import (
    announce,
    claim,
    claim_one,
    db_now,
    drain,
    outcomes_of,
    ready_task,
    row_of,
    run_burst,
    running_worker,
    state_of,
    totals,
    wait_for,
)
from tests.guarantees.tasks import append, effect_once, fail, fail_slowly, fail_until, give_up, note, ran, retry_in

pytestmark = pytest.mark.django_db(transaction=True)


def test_each_delivery_counts_once() -> None:
    """S0-50: one number, one Attempt row each."""
    task = fail_until.using(max_attempts=5).enqueue(3, "k")

    drain()

    assert ran == [("k", 1), ("k", 2), ("k", 3)]
    assert list(Attempt.objects.order_by("id").values_list("number", flat=True)) == [1, 2]
    row = row_of(task)
    assert row is not None
    assert (state_of(task), row.attempt) == ("succeeded", 3)


def test_a_poisonous_task_stops_at_its_maximum_and_the_others_go_on() -> None:
    """S0-43, S0-51, S2-39: dead with its reason, listed as a dead letter."""
    poison = fail.using(max_attempts=3, priority=10).enqueue("poison")
    healthy = [note.enqueue(at) for at in range(5)]

    drain()

    row = row_of(poison)
    assert isinstance(row, FinishedTask)
    assert (row.state, row.reason, row.attempt) == (State.DEAD, "exhausted", 3)
    assert row.error_class == "builtins.ValueError"
    assert row.error_line == "no luck with poison"
    assert row.fingerprint
    assert {state_of(task) for task in healthy} == {"succeeded"}
    assert totals()["dead"] == 1


def test_one_attempt_means_no_retry() -> None:
    """S4-25: zero retries are allowed."""
    task = fail.using(max_attempts=1).enqueue()

    drain()

    assert (state_of(task), ran) == ("dead", [None])


def test_a_retry_waits_at_least_its_backoff_by_the_databases_clock() -> None:
    """S0-52, S0-53, S0-57: early is a bug, late only a matter of capacity."""
    task = fail_until.using(backoff=Fixed(1.5)).enqueue(2, "k")

    with running_worker(threads=1):
        wait_for(lambda: state_of(task) == "scheduled")
        planned = row_of(task)
        wait_for(lambda: state_of(task) == "succeeded")

    [failed] = Attempt.objects.all()
    row = row_of(task)
    assert planned is not None
    assert planned.run_after is not None
    assert row is not None
    assert row.started_at is not None
    assert row.started_at >= planned.run_after
    assert timedelta(seconds=1.5) <= row.started_at - failed.ended_at < timedelta(seconds=6)


def test_no_wait_means_ready_at_once() -> None:
    """S2-35: no fudge in either direction."""
    task = fail.enqueue()

    engine.run_and_settle(claim_one())

    assert state_of(task) == "ready"


def test_a_task_waiting_for_its_retry_blocks_no_slot() -> None:
    """S4-26: backoff is a time in the row, not a sleeping thread."""
    slow = fail_slowly.using(backoff=Fixed(60), priority=10).enqueue("slow")
    others = [note.enqueue(at) for at in range(10)]

    run_burst(threads=1)

    assert state_of(slow) == "scheduled"
    assert {state_of(task) for task in others} == {"succeeded"}


def test_a_retried_task_may_be_overtaken() -> None:
    """S0-67, non-guarantee: retries reorder."""
    fail_until.enqueue(2, "first")
    note.enqueue("second")

    drain()

    assert ran[0] == ("first", 1)
    assert ran.index("second") < ran.index(("first", 2))


def test_attempts_of_one_task_never_overlap_and_go_up() -> None:
    """S0-60: also with several workers and a storm of retries."""
    tasks = [fail_until.using(max_attempts=6).enqueue(6, at) for at in range(8)]

    with running_worker(threads=4), running_worker(threads=4):
        wait_for(lambda: FinishedTask.objects.count() == 8, 60)

    assert {state_of(task) for task in tasks} == {"succeeded"}
    for at, task in enumerate(tasks):
        assert [number for key, number in ran if key == at] == [1, 2, 3, 4, 5, 6]
        rows = list(Attempt.objects.filter(task_id=task.id).order_by("number"))
        ends = [(row.started_at, row.ended_at) for row in rows]
        assert all(ends[at][1] <= ends[at + 1][0] for at in range(len(ends) - 1))


@pytest.mark.slow
def test_a_storm_of_retries_makes_progress() -> None:
    """S4-27: nobody deadlocks, nobody starves."""
    for at in range(100):
        fail_until.using(max_attempts=3).enqueue(3, at)

    with running_worker(threads=4), running_worker(threads=4):
        wait_for(lambda: FinishedTask.objects.filter(state=State.SUCCEEDED).count() == 100, 60)

    assert totals()["retried"] == 200


def test_retry_may_be_asked_for_with_its_own_wait() -> None:
    """S0-42: Retry counts, and waits what it says."""
    task = retry_in.enqueue(60)

    engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, Task)
    assert row.run_after is not None
    assert 55 < (row.run_after - db_now()).total_seconds() <= 60
    assert outcomes_of(task) == ["failed"]


def test_giving_up_ends_the_task_whatever_attempts_are_left() -> None:
    """S0-42: GiveUp is dead at once, with its own reason."""
    task = give_up.using(max_attempts=9).enqueue()

    drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (row.reason, row.attempt) == ("gave_up", 1)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "MemoryError", "RecursionError", "GeneratorExit"])
def test_a_crash_is_terminal(kind: str) -> None:
    """S2-02: a retry would do harm."""
    from tests.guarantees.hostile import raise_this

    task = raise_this.using(max_attempts=5).enqueue(kind)

    drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (row.reason, row.attempt) == ("crashed", 1)
    assert row.error_class == f"builtins.{kind}"


def test_a_listed_exception_is_a_crash_too() -> None:
    """S2-02: TASKQ["CRASH_EXCEPTIONS"]."""
    task = fail.using(max_attempts=5).enqueue()

    with override_settings(TASKQ={"CRASH_EXCEPTIONS": ["builtins.ArithmeticError", "builtins.ValueError"]}):
        drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert row.reason == "crashed"


def test_the_defaults_of_retrying() -> None:
    """S2-04, S0-114: three attempts; 5, 10, 20 seconds, at most ten minutes, up to a quarter longer."""
    options = conf.Options()

    assert options.max_attempts == 3
    assert [options.backoff.delay(attempt, 0.0) for attempt in (1, 2, 3, 50)] == [5.0, 10.0, 20.0, 600.0]
    assert options.backoff.delay(1, 1.0) == 6.25


def test_steps_wait_what_they_say() -> None:
    """S2-05, S1-37: the last step goes on."""
    curve = Steps(0, 30, 300)

    assert [curve.delay(attempt, 0.5) for attempt in (1, 2, 3, 4)] == [0, 30, 300, 300]


@given(
    base=st.floats(0.1, 100), factor=st.floats(1, 5), cap=st.floats(1, 1000), jitter=st.floats(0, 1),
    attempt=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_jitter_only_adds(base: float, factor: float, cap: float, jitter: float, attempt: int, draw: float) -> None:
    """S0-62: asserted as a range; a wait is never shorter than the curve says."""
    curve = Exponential(base=base, factor=factor, cap=cap, jitter=jitter)
    exact = Exponential(base=base, factor=factor, cap=cap, jitter=0).delay(attempt, 0)

    assert exact <= curve.delay(attempt, draw) <= exact * (1 + jitter) * (1 + 1e-12)
    assert exact <= cap


def test_a_replay_goes_on_counting_and_has_as_many_attempts_again() -> None:
    """S4-17: same id, attempt numbers never repeat."""
    task = fail.using(max_attempts=2).enqueue("k")
    drain()

    api.replay(task.id)
    drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (row.attempt, row.max_attempts, row.replays) == (4, 4, 1)
    assert list(Attempt.objects.order_by("id").values_list("number", flat=True)) == [1, 2, 3, 4]


def test_a_second_replay_gives_what_the_task_was_worth_not_what_replays_added() -> None:
    """S4-17: three times two attempts, not two, four, eight."""
    task = fail.using(max_attempts=2).enqueue("k")
    drain()
    for _ in range(2):
        api.replay(task.id)
        drain()

    row = row_of(task)
    assert row is not None
    assert row.attempt == 6


def test_an_attempt_that_ran_before_a_lost_settlement_runs_again_and_its_effect_stays_one() -> None:
    """S0-44, S0-47, S0-48: the effect is committed, the acknowledgement is lost, the key makes it harmless."""
    from django_taskq.lifecycle.rescue import rescue
    from tests.app.models import Effect

    task = effect_once.enqueue("payment 17")
    worker_id = announce(silent_for=31)
    engine.run(claim_one(worker_id))
    rescue(engine.ALIAS, now=db_now())

    drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert ran == ["payment 17", "payment 17"]
    assert Effect.objects.count() == 1
    assert (state_of(task), row.attempt, row.result_value) == ("succeeded", 2, False)
    assert totals()["succeeded"] == 1


def test_a_delay_survives_all_workers(tmp_path: Any) -> None:
    """S0-49, S0-54: it is a column, and nobody has to remember it."""
    path = str(tmp_path / "log")
    task = append.using(delay=1.0).enqueue(path)
    with running_worker(threads=1):
        pass
    assert state_of(task) == "scheduled"

    with running_worker(threads=1):
        wait_for(lambda: state_of(task) == "succeeded")

    row = row_of(task)
    assert row is not None
    assert row.started_at is not None
    assert row.run_after is not None
    assert row.started_at >= row.run_after


def test_claims_of_a_failing_task_keep_its_history_in_the_result() -> None:
    """S0-51: every attempt with its traceback."""
    task = fail_until.using(max_attempts=2).enqueue(9, "k")

    drain()
    task.refresh()

    assert [error.exception_class_path for error in task.errors] == ["builtins.ValueError"] * 2
    assert "attempt 2 of k" in task.errors[-1].traceback
    assert claim(limit=5) == []
    assert ready_task().attempt == 0
