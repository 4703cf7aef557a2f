"""Tasks that misbehave: each ends with a sentence, and costs neither the worker nor the next task anything."""

import os
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from django.utils import translation

from django_taskq.models import Attempt, FinishedTask
from tests.app.models import Effect
from tests.engine import drain, row_of, run_burst, state_of
from tests.guarantees import hostile
from tests.guarantees.tasks import note, ran

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("task", "args", "reason", "error"),
    [
        (hostile.raise_surrogate, (), "exhausted", "ValueError"),
        (hostile.raise_text, ("x", 10_000_000), "exhausted", "ValueError"),
        (hostile.raise_text, ("\n" * 1000,), "exhausted", "ValueError"),
        (hostile.raise_text, ("",), "exhausted", "ValueError"),
        (hostile.raise_hostile, ("mute",), "exhausted", "Mute"),
        (hostile.raise_hostile, ("deadly",), "exhausted", "Deadly"),
        (hostile.raise_hostile, ("strange",), "exhausted", "Strange"),
        (hostile.raise_group, (), "exhausted", "ExceptionGroup"),
        (hostile.recurse, (), "crashed", "RecursionError"),
        (hostile.return_object, (), "undecodable", "InvalidPayload"),
        (hostile.return_nan, (), "undecodable", "InvalidPayload"),
        (hostile.generate, (), "undecodable", "InvalidPayload"),
    ],
)
def test_it_ends_as_a_dead_letter_with_its_error(task: Any, args: tuple[Any, ...], reason: str, error: str) -> None:
    """S2-02, S0-42, S4-37: whatever is raised or returned, in a thread."""
    found = task.enqueue(*args)
    other = note.using(priority=-1).enqueue("other")

    run_burst(threads=1)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.reason == reason
    assert (row.error_class or "").endswith(error)
    [attempt] = Attempt.objects.all()
    assert len(attempt.message) <= 10_000
    assert len(attempt.traceback) <= 64_000
    assert state_of(other) == "succeeded"


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "MemoryError", "GeneratorExit"])
@pytest.mark.parametrize("executor", ["threads", "asyncio", "inline"])
def test_an_exit_inside_a_task_ends_the_task_and_not_the_worker(kind: str, executor: str) -> None:
    """S2-02: in every executor of this process."""
    found = hostile.raise_this.enqueue(kind)
    other = note.using(priority=-1).enqueue("other")

    worker = run_burst(threads=1, executor=executor)

    assert row_of(found).reason == "crashed"
    assert state_of(other) == "succeeded"
    assert worker.stop_reason == "burst done"


def test_a_closed_connection_is_only_the_tasks_own_loss() -> None:
    """S2-41: the next task finds a good one."""
    first, second = hostile.close_connection.enqueue(), hostile.leave_effect.enqueue("after")

    run_burst(threads=1)

    assert (state_of(first), state_of(second)) == ("succeeded", "succeeded")
    assert Effect.objects.filter(key="after").exists()


@pytest.mark.parametrize("task", [hostile.leave_transaction, hostile.leave_autocommit_off])
def test_a_transaction_left_open_is_rolled_back_and_not_handed_to_the_next_task(task: Any) -> None:
    """S2-41: the next task's effects are committed; those of the careless one are not."""
    first = task.enqueue("lost")
    second = hostile.leave_effect.using(priority=-1).enqueue("kept")

    run_burst(threads=1)

    assert (state_of(first), state_of(second)) == ("succeeded", "succeeded")
    assert list(Effect.objects.values_list("key", flat=True)) == ["kept"]


@override_settings(LANGUAGE_CODE="en", TIME_ZONE="Europe/Rome", USE_I18N=True)
def test_language_and_time_zone_of_one_task_are_not_the_next_ones() -> None:
    """S4-37: tasks of one slot share nothing that Django keeps per context."""
    hostile.change_surroundings.enqueue()
    hostile.note_surroundings.using(priority=-1).enqueue()

    run_burst(threads=1)

    [[language, zone]] = ran
    assert language in {None, "en"}
    assert zone == "Europe/Rome"


def test_language_and_time_zone_travel_with_the_task() -> None:
    """S4-22: captured when it was enqueued."""
    with translation.override("it"):
        hostile.note_surroundings.enqueue()

    run_burst(threads=1)

    assert ran[0][0] == "it"


def test_the_current_folder_belongs_to_the_process(tmp_path: Path) -> None:
    """S4-37, non-guarantee: threads share it; a task that needs its own runs in the process executor."""
    before = Path.cwd()
    hostile.change_folder.enqueue(str(tmp_path))
    try:
        run_burst(threads=1)
        now = Path.cwd()
    finally:
        os.chdir(before)

    assert now == tmp_path


def test_a_thread_that_outlives_its_task_does_not_keep_the_worker() -> None:
    """S4-38: it is not ours to wait for."""
    found = hostile.leave_thread.enqueue()

    run_burst(threads=1)

    assert state_of(found) == "succeeded"


def test_a_swallowed_exit_is_a_success() -> None:
    """S2-02: what does not leave the function did not happen."""
    found = hostile.swallow_everything.enqueue()

    drain()

    assert row_of(found).result_value == "still here"
