"""Retention: what has ended is kept for a time, what lives is never touched."""

import itertools
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import override_settings

from django_taskq import api, conf, events
from django_taskq.domain.states import State, StepState
from django_taskq.duties import prune
from django_taskq.exceptions import TaskNotFound
from django_taskq.models import Attempt, FinishedTask, Progress, Step, Task
from tests import engine
from tests.engine import claim_one, db_now, drain, ready_task, state_of, with_another_before
from tests.guarantees.tasks import fail_until, note

pytestmark = pytest.mark.django_db(transaction=True)


def ended(state: State, *, days: float, **columns: Any) -> FinishedTask:
    at = db_now() - timedelta(days=days)
    reason = "exhausted" if state == State.DEAD else None
    return FinishedTask.objects.create(
        name="tests.guarantees.tasks.note", queue="default", state=state, created_at=at, finished_at=at, reason=reason,
        **columns,
    )  # fmt: skip


def run(now: datetime | None = None) -> int:
    return prune.run_once(engine.ALIAS, conf.options("default"), now or db_now())


def test_the_defaults_keep_successes_a_day_cancelled_a_week_and_dead_letters_for_ever() -> None:
    """S4-33, S0-114: each state has its own time."""
    young = [ended(State.SUCCEEDED, days=0.9), ended(State.CANCELLED, days=6.9), ended(State.DEAD, days=1000)]
    old = [ended(State.SUCCEEDED, days=1.1), ended(State.CANCELLED, days=7.1)]

    count = run()

    assert count == 2
    assert {task.pk for task in young} == set(FinishedTask.objects.values_list("pk", flat=True))
    assert all(state_of(task) == "gone" for task in old)


@override_settings(TASKQ={"RETENTION": {"SUCCEEDED": None, "DEAD": timedelta(days=30)}})
def test_the_times_are_settings() -> None:
    """S4-33: None keeps for ever."""
    kept, old = ended(State.SUCCEEDED, days=1000), ended(State.DEAD, days=31)

    run()

    assert (state_of(kept), state_of(old)) == ("succeeded", "gone")


@override_settings(TASKQ={"RETENTION": {"SUCCEEDED": 0, "CANCELLED": 0, "DEAD": 0}})
def test_no_live_task_is_ever_deleted_however_old_it_is() -> None:
    """S4-109: nor are its attempts."""
    ages_ago = db_now() - timedelta(days=4000)
    tasks = [
        ready_task(note, state=state, created_at=ages_ago, run_after=ages_ago)
        for state in (State.READY, State.SCHEDULED, State.WAITING, State.PARKED)
    ]
    retried = fail_until.using(max_attempts=5).enqueue(9)
    engine.run_and_settle(claim_one())
    engine.run_and_settle(claim_one())

    run()

    assert [state_of(task) for task in tasks[1:]] == ["scheduled", "waiting", "parked"]
    assert Task.objects.filter(pk=retried.id).exists()
    assert Attempt.objects.filter(task_id=retried.id).count() == 1


def test_everything_that_belongs_to_a_task_goes_with_it() -> None:
    """S4-33: attempts, steps and progress."""
    task = ended(State.SUCCEEDED, days=2)
    Step.objects.create(task_id=task.pk, name="save", position=0)
    Attempt.objects.create(task_id=task.pk, number=1, worker_id=1, outcome="failed", ended_at=db_now())
    Progress.objects.create(task_id=task.pk, done=1, at=db_now())

    run()

    assert FinishedTask.objects.count() == Attempt.objects.count() == 0
    assert Step.objects.count() == Progress.objects.count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("columns", [{}, {"delete_at": datetime(2020, 1, 1, tzinfo=UTC)}], ids=["of its state", "own"])
@override_settings(TASKQ={"RETENTION": {"DEAD": timedelta(days=1)}})
def test_what_is_replayed_while_its_time_ends_keeps_all_that_is_its_own(columns: dict[str, Any]) -> None:
    """S4-33, S4-109: at whichever moment; else its steps would be run twice."""
    replayed = 0
    for moment in itertools.count(1):
        task = ended(State.DEAD, days=2, **columns)
        Step.objects.create(task_id=task.pk, name="save", position=0, state=StepState.SUCCEEDED)
        Attempt.objects.create(task_id=task.pk, number=1, worker_id=1, outcome="failed", ended_at=db_now())

        def replay(key: str = str(task.pk)) -> None:
            # It may have gone before.
            with suppress(TaskNotFound):
                api.replay(key)

        if not with_another_before(moment, run, replay):
            break

        is_live = Task.objects.filter(pk=task.pk).exists()
        replayed += is_live
        left = [model.objects.filter(task_id=task.pk).count() for model in (Step, Attempt)]
        assert left == ([1, 1] if is_live else [0, 0]), moment
        assert is_live or state_of(task) == "gone"
        Task.objects.all().delete()

    assert 0 < replayed < moment - 1


def test_a_tasks_own_time_wins_over_its_states() -> None:
    """S4-33: keep_result, shorter or longer."""
    brief = note.using(keep_result=0.0).enqueue()
    short = note.using(keep_result=60).enqueue()
    long = note.using(keep_result=timedelta(days=30)).enqueue()
    drain()

    run(db_now() + timedelta(days=2))

    assert [state_of(task) for task in (brief, short, long)] == ["gone", "gone", "succeeded"]


def test_pruning_goes_on_chunk_by_chunk_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-33: batched deletes."""
    monkeypatch.setattr(prune, "CHUNK", 7)
    for _ in range(30):
        ended(State.SUCCEEDED, days=2)

    assert run() == 30


def test_deleting_is_told() -> None:
    """S3-34: one event per state, with its count."""
    ended(State.SUCCEEDED, days=2)
    told: list[Any] = []
    events.subscribe(events.TasksPruned, told.append)
    try:
        run()
    finally:
        events.unsubscribe(events.TasksPruned, told.append)

    assert [(event.state, event.count) for event in told] == [("succeeded", 1)]
