"""At least once, end to end: what is accepted ends, under load, restarts, odd settings and odd time zones."""

import zoneinfo
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_taskq import Fixed
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task
from tests.engine import db_now, drain, in_threads, row_of, running_worker, state_of, totals, wait_for
from tests.guarantees.tasks import append, effect_once, fail_until, note, note_attempt, ran

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_burst_of_mixed_tasks_from_many_threads_all_end() -> None:
    """S0-56, S0-81, S0-104: immediate, delayed, failing, urgent; four producers, two workers."""

    def produce(base: int) -> None:
        for at in range(base, base + 60):
            match at % 4:
                case 0:
                    note.enqueue(at)
                case 1:
                    note.using(delay=0.3).enqueue(at)
                case 2:
                    fail_until.enqueue(2, at)
                case _:
                    note.using(priority=at % 100).enqueue(at)

    with running_worker(threads=3), running_worker(threads=3):
        in_threads(*(lambda base=base: produce(base) for base in (0, 60, 120, 180)))
        wait_for(lambda: FinishedTask.objects.count() == 240, 60)

    assert set(FinishedTask.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert totals()["succeeded"] == 240
    assert not Task.objects.exists()


def test_traffic_goes_on_normally_after_a_saturation() -> None:
    """S0-104, S0-109: a probe is quick again once the pile is gone."""
    note.enqueue_many([(at,) for at in range(1500)])

    with running_worker(threads=2):
        urgent = note.using(priority=100).enqueue("urgent")
        wait_for(lambda: state_of(urgent) == "succeeded", 20)
        wait_for(lambda: not Task.objects.exists(), 60)
        probe = note.enqueue("probe")
        wait_for(lambda: state_of(probe) == "succeeded", 5)

    assert totals()["succeeded"] == 1502


def test_a_worker_that_comes_and_goes_leaves_nothing_behind() -> None:
    """S0-13, S0-75: churn in one process; each task once."""
    note.enqueue_many([(at,) for at in range(300)])

    for _ in range(5):
        with running_worker(threads=2):
            count = len(ran)
            wait_for(lambda count=count: len(ran) > count or not Task.objects.exists())
    with running_worker(threads=2):
        wait_for(lambda: FinishedTask.objects.count() == 300, 30)

    assert sorted(ran) == list(range(300))
    assert set(FinishedTask.objects.values_list("attempt", flat=True)) == {1}


def test_a_task_can_see_that_it_was_delivered_before() -> None:
    """S0-40: context.attempt and context.redelivered, for those who must act on it."""
    found = note_attempt.enqueue("k")

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.result_value == 1


def test_the_id_of_a_task_is_a_key_for_its_effects() -> None:
    """S0-44: the same in each attempt, another for each task."""
    first, second = effect_once.enqueue("a"), effect_once.enqueue("a")

    drain()

    values = [row.result_value for task in (first, second) if isinstance(row := row_of(task), FinishedTask)]
    assert sorted(values) == [False, True]


@override_settings(TIME_ZONE="Europe/Rome", USE_TZ=True)
def test_a_time_zone_of_the_project_moves_no_task() -> None:
    """S0-52: moments are stored in UTC; a local hour that comes twice is no trouble."""
    rome = zoneinfo.ZoneInfo("Europe/Rome")
    soon = datetime.now(rome) + timedelta(seconds=1)
    twice = datetime(2030, 10, 27, 2, 30, fold=1, tzinfo=rome)
    due = note.using(run_after=soon).enqueue("due")
    later = note.using(run_after=twice).enqueue("later")

    with running_worker(threads=1):
        wait_for(lambda: state_of(due) == "succeeded", 10)

    row, waiting = row_of(due), row_of(later)
    assert row is not None
    assert row.started_at is not None
    assert row.started_at >= soon
    assert waiting is not None
    assert waiting.run_after == twice.astimezone(zoneinfo.ZoneInfo("UTC"))
    assert state_of(later) == "scheduled"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "delay": st.floats(0, 0.05),
            "timeout": st.floats(1, 100),
            "max_time": st.floats(100, 1000),
            "max_attempts": st.integers(1, 5),
            "priority": st.integers(-100, 100),
            "backoff": st.builds(Fixed, st.floats(0, 0.01)),
            "expires": st.floats(50, 1000),
            "keep_result": st.floats(1, 1000),
            "ack": st.sampled_from(["late", "now", "first", "atomic"]),
            "metadata": st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
        },
    ),
    failures=st.integers(0, 6),
)
def test_any_mixture_of_options_comes_to_an_end(options: dict[str, Any], failures: int) -> None:
    """S0-55: enqueue and process all; success exactly if the attempts were enough."""
    ran.clear()
    found = fail_until.using(**options).enqueue(failures + 1, "k")

    wait_for(lambda: drain() >= 0 and not Task.objects.exists(), 10)

    allowed = 1 if options.get("ack") == "first" else options.get("max_attempts", 3)
    if "backoff" not in options and failures and allowed > 1:
        assert len(ran) == min(failures + 1, allowed)
    assert state_of(found) == ("succeeded" if failures < allowed else "dead")
    assert len(ran) == min(failures + 1, allowed)


def test_an_enqueue_in_a_task_that_fails_stays_unless_it_was_atomic() -> None:
    """S0-08, non-guarantee: a plain task's enqueues are its own commits; at least once holds for them too."""
    with transaction.atomic():
        note.enqueue("outer")
    found = append.using(run_after=db_now() + timedelta(hours=1)).enqueue("nowhere")

    drain()

    assert state_of(found) == "scheduled"
    assert ran == ["outer"]
