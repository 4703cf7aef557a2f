"""What the result of a task promises: waiting, values, cancelling, and clear errors before there is anything."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections

from django_taskq import ResultNotReady, TaskNotFound, WaitTimeout, cancel, exceptions, find_task
from django_taskq.models import Task
from tests.by_hand import HandWorker
from tests.faces import backend_tasks
from tests.guarantees import enqueueing_tasks as tasks

pytestmark = pytest.mark.django_db(transaction=True)


def worked_off_elsewhere() -> threading.Thread:
    def work() -> None:
        try:
            HandWorker().work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_value_can_be_waited_for() -> None:
    result = tasks.note.enqueue("a")
    thread = worked_off_elsewhere()

    value = result.get(timeout=30)
    thread.join()

    assert (value, result.state, result.wait(timeout=0)) == ("a", "succeeded", result)


def test_a_coroutine_can_wait_for_a_value_too() -> None:
    result = tasks.anote.enqueue("a")
    thread = worked_off_elsewhere()

    async def wait() -> tuple[str, Any]:
        return await result.aget(timeout=timedelta(seconds=30)), await result.await_(timeout=1)

    value, same = async_to_sync(wait)()
    thread.join()

    assert (value, same) == ("a", result)


@pytest.mark.parametrize("timeout", [0, 0.05, timedelta(milliseconds=50)])
def test_a_wait_that_is_too_short_is_a_timeout(timeout: Any) -> None:
    result = tasks.note.enqueue("a")

    started = time.monotonic()
    for wait in (result.wait, result.get, async_to_sync(result.await_), async_to_sync(result.aget)):
        with pytest.raises(WaitTimeout, match="had not ended"):
            wait(timeout)

    assert issubclass(WaitTimeout, TimeoutError)
    assert time.monotonic() - started < 20


def test_a_task_that_failed_has_no_value_and_says_why() -> None:
    """S4-89."""
    failed, cancelled = backend_tasks.fail.enqueue("boom"), tasks.note.enqueue("a")
    cancelled.cancel()
    HandWorker().work()

    with pytest.raises(ResultNotReady, match=r"is dead: builtins\.ValueError"):
        failed.get(timeout=1)
    with pytest.raises(ResultNotReady, match=r"is cancelled: django_taskq\.exceptions\.TaskCancelled"):
        cancelled.get(timeout=1)


def test_nothing_crashes_while_there_is_no_result_yet() -> None:
    """S4-89: each part of a result can be read at any time; only the value needs an end."""
    result = tasks.note.enqueue("a")
    worker = HandWorker()

    for step in (lambda: None, worker.claim):
        step()
        result.refresh()
        assert repr(result)
        assert (result.errors, result.finished_at, result.is_finished) == ([], None, False)
        with pytest.raises(ValueError, match="Task has not finished yet"):
            _ = result.return_value


def test_a_result_cancels_its_task_once() -> None:
    result = tasks.note.enqueue("a")

    first, second = result.cancel(reason="changed my mind"), async_to_sync(result.acancel)()
    result.refresh()

    assert (first, second, result.state) == (True, False, "cancelled")
    assert Task.objects.count() == 0


def test_a_running_task_is_asked_to_stop() -> None:
    result = tasks.note.enqueue("a")
    HandWorker().claim()

    asked = result.cancel()

    assert asked
    assert Task.objects.get(pk=result.id).cancel


@pytest.mark.parametrize("task_id", ["01a2012d-d377-7d1d-b4d6-7995d983742c", "no id", ""])
def test_an_unknown_or_malformed_id_is_not_found(task_id: str) -> None:
    """S4-36."""
    for look in (find_task, cancel, tasks.note.get_result):
        with pytest.raises(TaskNotFound):
            look(task_id)


def test_a_result_that_was_deleted_is_not_found_any_more() -> None:
    result = tasks.note.using(keep_result=0).enqueue("a")
    HandWorker().work()

    with pytest.raises(TaskNotFound):
        result.refresh()


def test_reading_a_result_takes_it_from_nobody() -> None:
    """S4-31, S4-34: any number of readers get the same result, as often as they ask."""
    result = tasks.note.enqueue("a")
    HandWorker().work()

    values = [tasks.note.get_result(result.id).return_value for _ in range(3)]

    assert values == ["a"] * 3


def test_no_value_is_still_a_value() -> None:
    result = tasks.careful.enqueue()
    HandWorker().work()

    assert result.get(timeout=1) is None


def test_results_errors_are_importable_from_where_the_docs_say() -> None:
    for name in ("ResultNotReady", "WaitTimeout", "TaskNotFound"):
        assert issubclass(getattr(exceptions, name), exceptions.TaskqError)
