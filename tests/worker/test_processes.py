"""The process executor: what runs in a child, and what becomes of a task whose child is ended or dies."""

import os
import signal
from datetime import timedelta

import pytest

from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Progress, Task
from tests.app.models import Effect
from tests.worker import tasks
from tests.worker.running import children_of, drain, eventually, make_worker, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.any_database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("quick"),
]


def test_a_task_runs_in_a_child_process_with_context_progress_and_result() -> None:
    result = tasks.tell.enqueue()

    drain(executor="processes", threads=1)

    value = result.get(1)
    assert value == {"attempt": 1, "id": result.id, "pid": value["pid"]}
    assert value["pid"] != os.getpid()
    assert Progress.objects.get(task_id=result.id).note == "half"


@pytest.mark.parametrize(
    ("task", "argument", "how"),
    [
        (tasks.die, int(signal.SIGKILL), "killed by SIGKILL"),
        (tasks.die, int(signal.SIGSEGV), "killed by SIGSEGV"),
        (tasks.leave_process, 7, "exit code 7"),
    ],
)
def test_a_child_that_dies_costs_its_task_one_attempt_and_the_slot_works_on(task, argument, how) -> None:
    result = task.enqueue(argument)
    after = tasks.leave.using(priority=-1).enqueue("after")

    drain(executor="processes", threads=1)

    attempt = Attempt.objects.get(task_id=result.id)
    assert attempt.outcome == "failed"
    assert attempt.error_class == "django_taskq.exceptions.WorkerLost"
    assert how in attempt.message
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt) == (State.SCHEDULED, 1)
    assert row.run_after is not None
    assert after.get(1) == "after"


def test_a_task_that_overruns_its_timeout_is_ended_and_can_clean_up() -> None:
    result = tasks.overrun.enqueue("cleaned up")

    drain(executor="processes", threads=1)

    row = FinishedTask.objects.get(pk=result.id)
    assert row.reason == "exhausted"
    assert row.error_class == "django_taskq.exceptions.TaskTimeout"
    assert Effect.objects.filter(key="cleaned up").exists()


def test_a_cancel_is_heard_in_the_child() -> None:
    result = tasks.listen.enqueue("it")
    with running(executor="processes", threads=1):
        eventually(lambda: Effect.objects.filter(key="it began").exists())

        result.cancel()

        eventually(lambda: FinishedTask.objects.filter(pk=result.id).exists())
    result.refresh()
    assert result.state == "cancelled"


def test_a_task_that_does_not_listen_to_its_cancel_is_ended() -> None:
    result = tasks.linger.enqueue("deaf", 60)
    with running(executor="processes", threads=1, kill_grace=timedelta(seconds=0.2)):
        eventually(lambda: Effect.objects.filter(key__startswith="deaf began").exists())

        result.cancel()

        eventually(lambda: FinishedTask.objects.filter(pk=result.id).exists())
    result.refresh()
    assert result.state == "cancelled"
    assert not Effect.objects.filter(key="deaf ended").exists()


def test_an_atomic_task_commits_its_effects_and_its_end_together_in_the_child() -> None:
    done = tasks.leave_atomic.enqueue("kept")
    died = tasks.leave_atomic.using(max_attempts=1).enqueue("lost", die=True)

    drain(executor="processes", threads=1)

    assert done.get(1) != os.getpid()
    assert FinishedTask.objects.get(pk=died.id).error_class == "django_taskq.exceptions.WorkerLost"
    assert set(Effect.objects.values_list("key", flat=True)) == {"kept"}


def test_a_hard_stop_ends_the_children_and_hands_their_tasks_back() -> None:
    result = tasks.linger.enqueue("long", 60)
    before = set(children_of(os.getpid()))
    worker = make_worker(executor="processes", threads=2)
    worker.start()
    eventually(lambda: Effect.objects.filter(key__startswith="long began").exists())

    worker.stop_now()

    assert worker.wait(20)
    assert set(children_of(os.getpid())) <= before
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt, row.lease) == (State.READY, 0, None)
    assert Attempt.objects.get(task_id=result.id).outcome == "interrupted"


def test_a_coroutine_runs_in_a_child_where_no_event_loop_is_wanted() -> None:
    result = tasks.await_nothing.enqueue()

    drain(executor="processes", threads=1, async_slots=0)

    assert result.get(1) != os.getpid()
