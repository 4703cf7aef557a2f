"""The contract of ``django.tasks``, point by point, on the database under test."""

from __future__ import annotations

import inspect
import math
import pickle
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import django
import pytest
from django.test import override_settings

from django_taskq import TaskResult, clock, exceptions, task
from django_taskq.backend import DatabaseBackend
from django_taskq.compat import primary
from django_taskq.domain.states import DeadReason, State
from django_taskq.models import FinishedTask
from django_taskq.models import Task as TaskModel
from tests.by_hand import HandWorker
from tests.faces import backend_tasks as tasks

pytestmark = pytest.mark.django_db(transaction=True)

Status = primary.base.TaskResultStatus
InvalidTask = primary.error("InvalidTask")
InvalidTaskBackend = primary.error("InvalidTaskBackend")
TaskResultDoesNotExist = primary.error("TaskResultDoesNotExist")
TaskResultMismatch = primary.error("TaskResultMismatch")
OURS = "django_taskq.backend.DatabaseBackend"


def backend() -> Any:
    return primary.handler["default"]


# Backends


def test_each_thread_has_a_backend_of_its_own_and_they_share_no_state() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(backend()))

    thread.start()
    thread.join()

    assert found[0] is not backend()
    assert vars(found[0]) == {"alias": "default", "queues": set(), "options": {}} == vars(backend())


def test_a_task_stored_by_one_threads_backend_is_read_by_anothers() -> None:
    result = tasks.add.enqueue(1)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(_read_and_hang_up(result.id)))

    thread.start()
    thread.join()

    assert found == [result]


def _read_and_hang_up(result_id: str) -> Any:
    from django.db import connections

    try:
        return tasks.add.get_result(result_id)
    finally:
        connections.close_all()


def test_the_database_backend_supports_everything_the_contract_has_a_flag_for() -> None:
    flags = ("supports_defer", "supports_async_task", "supports_get_result", "supports_priority")

    assert [getattr(DatabaseBackend, flag) for flag in flags] == [True] * 4
    for capability in ("defer", "get_result", "priority", "async", "pause", "stats", "admin"):
        backend().require(capability)
    with pytest.raises(exceptions.UnsupportedCapability) as caught:
        backend().require("flight")
    assert (caught.value.capability, caught.value.backend) == ("flight", "DatabaseBackend")


# Definitions


def test_both_decorators_make_our_task_with_the_contracts_fields() -> None:
    from django_taskq import Task

    for made in (tasks.add, tasks.add_plainly):
        assert isinstance(made, Task)
        assert isinstance(made, primary.base.Task)
        assert (made.priority, made.queue_name, made.backend, made.run_after, made.takes_context) == (
            0,
            "default",
            "default",
            None,
            False,
        )
    assert tasks.add.name == "add"
    assert tasks.add.module_path == "tests.faces.backend_tasks.add"
    assert not callable(tasks.add)
    assert tasks.add.call(1, b=2) == 3
    assert {tasks.add: 1}[tasks.add.using()] == 1


def _measured(a: int) -> int:
    return a


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django's own @task passes options on since 6.1")
def test_djangos_own_decorator_takes_our_options() -> None:
    made = primary.base.task(max_attempts=7, timeout=3, task_name="tests.measured", backoff=lambda error, result: 0)(
        _measured
    )

    result = made.enqueue(1)
    row = TaskModel.objects.get(pk=result.id)
    HandWorker().work()

    assert (row.max_attempts, row.name) == (7, "tests.measured")
    assert made.get_result(result.id).return_value == 1


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django's own @task passes options on since 6.1")
def test_djangos_own_decorator_refuses_an_option_nobody_knows() -> None:
    with pytest.raises(TypeError, match="max_atempts"):
        primary.base.task(max_atempts=7)(_measured)


def test_our_decorator_refuses_an_unknown_option_and_says_which_was_meant() -> None:
    with pytest.raises(TypeError, match="'max_atempts'; did you mean 'max_attempts'"):
        task(max_atempts=7)(_measured)  # type: ignore[call-overload]


def test_a_time_to_run_cannot_be_given_to_the_decorator() -> None:
    with pytest.raises(TypeError, match="run_after cannot be defined statically"):
        task(run_after=clock.now())(_measured)  # type: ignore[call-overload]


@pytest.mark.parametrize("whole", [True, 3.0, -7])
def test_a_whole_priority_is_stored_as_an_int(whole: Any) -> None:
    made = tasks.add.using(priority=whole)

    result = made.enqueue(1)

    assert type(made.priority) is int
    assert TaskModel.objects.get(pk=result.id).rank == -int(whole)


@pytest.mark.parametrize("given", [101, -101, 3.1, math.nan, math.inf, "high", [], object()])
def test_any_other_priority_is_refused(given: Any) -> None:
    with pytest.raises((InvalidTask, exceptions.InvalidOptions), match="priority must be a whole number"):
        tasks.add.using(priority=given)


@pytest.mark.parametrize("given", [True, 3, b"email", "", " ", "x" * 65, "a\0b", " email", "\ud800"])
def test_a_queue_name_that_is_no_clean_short_string_is_refused(given: Any) -> None:
    with pytest.raises(exceptions.InvalidOptions) as caught:
        tasks.add.using(queue_name=given)

    assert caught.value.field == "queue_name"


def test_a_timedelta_for_run_after_counts_from_now() -> None:
    before = clock.now()

    made = tasks.add.using(run_after=timedelta(minutes=5))

    assert made.run_after is not None
    assert before + timedelta(minutes=5) <= made.run_after <= clock.now() + timedelta(minutes=5)
    assert tasks.add.using(run_after=timedelta(0)).enqueue(1).state == "ready"


def test_a_naive_run_after_is_refused() -> None:
    with pytest.raises(InvalidTask, match="aware datetime"):
        tasks.add.using(run_after=datetime(2030, 1, 1))


def test_none_leaves_an_option_as_it_is() -> None:
    made = tasks.add.using(priority=5, run_after=timedelta(hours=1), timeout=3)

    again = made.using(priority=None, run_after=None, timeout=None)

    assert again == made
    assert again is not made


def test_only_functions_that_a_worker_can_import_become_tasks() -> None:
    def closure() -> None:
        """Do nothing."""

    for function in (closure, lambda: None, print, [].append, "text"):
        with pytest.raises(InvalidTask, match="Task function must"):
            task(function)  # type: ignore[call-overload]


nameless = lambda: None  # noqa: E731 - what the test is about


def test_a_lambda_at_module_level_is_refused() -> None:
    with pytest.raises(InvalidTask, match="must have a name"):
        task(nameless)


def test_a_context_must_be_the_first_parameter() -> None:
    with pytest.raises(InvalidTask, match="first argument of 'context'"):
        task(takes_context=True)(_measured)  # type: ignore[arg-type]


def test_two_tasks_cannot_share_a_name() -> None:
    with pytest.raises(exceptions.InvalidOptions, match="two tasks are called") as caught:
        task(name="tests.faces.backend_tasks.add")(_measured)

    assert (caught.value.field, caught.value.code) == ("name", "taken")


# Validation


def test_a_queue_outside_the_list_is_refused_and_an_empty_list_checks_nothing() -> None:
    settings = {
        "default": {"BACKEND": OURS, "QUEUES": ["default", "email"]},
        "open": {"BACKEND": OURS, "QUEUES": []},
        "usual": {"BACKEND": OURS},
    }
    with override_settings(TASKS=settings):
        assert tasks.add.using(queue_name="email").queue_name == "email"
        with pytest.raises(InvalidTask, match="Queue 'other' is not valid for backend"):
            tasks.add.using(queue_name="other")
        assert tasks.add.using(queue_name="other", backend="open").enqueue(1).status == Status.READY
        with pytest.raises(InvalidTask, match="Queue 'other' is not valid for backend"):
            tasks.add.using(queue_name="other", backend="usual")


def test_enqueue_validates_what_was_valid_when_it_was_made() -> None:
    made = tasks.add.using(queue_name="email")

    with override_settings(TASKS={"default": {"BACKEND": OURS, "QUEUES": ["default"]}}):
        for enqueue in (lambda: made.enqueue(1), lambda: made.enqueue_many([(1,)])):
            with pytest.raises(InvalidTask, match="Queue 'email' is not valid"):
                enqueue()

    assert TaskModel.objects.count() == 0


def test_an_unknown_or_broken_backend_is_told_in_the_contracts_words() -> None:
    with override_settings(TASKS={"default": {"BACKEND": OURS}, "broken": {"BACKEND": "does.not.Exist"}}):
        with pytest.raises(InvalidTaskBackend, match="The connection 'unknown' doesn't exist") as caught:
            tasks.add.using(backend="unknown")
        assert isinstance(caught.value, exceptions.InvalidOptions)
        assert caught.value.field == "backend"
        with pytest.raises(InvalidTaskBackend, match=r"Could not find backend 'does\.not\.Exist'"):
            tasks.add.using(backend="broken")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priority": math.nan}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"run_after": "tomorrow"}, "run_after"),
        ({"queue_name": None}, "queue_name"),
        ({"queue_name": "x" * 65}, "queue_name"),
    ],
)
def test_a_plain_task_with_a_damaged_value_is_refused_before_the_database_is_asked(
    options: dict[str, Any], says: str
) -> None:
    plain = primary.base.Task.__new__(primary.base.Task)
    values = {"priority": 0, "queue_name": "default", "backend": "default", "run_after": None, "takes_context": False}
    for name, value in {**values, **options, "func": tasks.add_foreign.func}.items():
        object.__setattr__(plain, name, value)

    with pytest.raises(InvalidTask, match=says):
        backend().enqueue(plain, (1,), {})

    assert TaskModel.objects.count() == 0


# Enqueue and results


def test_an_enqueued_task_shows_as_ready_with_json_arguments() -> None:
    result = tasks.add.enqueue((1, 2), b=3)

    assert isinstance(result, primary.base.TaskResult)
    assert isinstance(result, TaskResult)
    assert result.status == Status.READY
    assert result.enqueued_at is not None
    assert (result.started_at, result.finished_at, result.last_attempted_at) == (None, None, None)
    assert (result.args, result.kwargs, result.backend) == ([[1, 2]], {"b": 3}, "default")
    assert (result.errors, result.worker_ids, result.attempts, result.is_finished) == ([], [], 0, False)
    assert 0 < len(result.id) < 64
    with pytest.raises(ValueError, match="Task has not finished yet"):
        _ = result.return_value
    assert tasks.add.get_result(result.id) == result


async def _aenqueue_and_get() -> tuple[Any, Any]:
    result = await tasks.add_later.aenqueue(1, b=2)
    return result, await tasks.add_later.aget_result(result.id)


def test_the_async_twins_do_the_same() -> None:
    from asgiref.sync import async_to_sync

    result, found = async_to_sync(_aenqueue_and_get)()

    assert result == found
    assert result.status == Status.READY
    HandWorker().work()
    assert tasks.add_later.get_result(result.id).return_value == 3


@pytest.mark.parametrize("result_id", ["123", "", "x" * 500, "\0", "01a2012d-d377-7d1d-b4d6-7995d983742c"])
def test_an_unknown_or_malformed_id_does_not_exist(result_id: str) -> None:
    for get in (tasks.add.get_result, backend().get_result):
        with pytest.raises(TaskResultDoesNotExist) as caught:
            get(result_id)
        assert isinstance(caught.value, exceptions.TaskNotFound)


def test_a_result_of_another_function_is_a_mismatch() -> None:
    result = tasks.add.enqueue(1)

    with pytest.raises(TaskResultMismatch, match=r"tests\.faces\.backend_tasks\.add"):
        tasks.fail.get_result(result.id)


def test_a_stored_result_remembers_the_options_of_its_call() -> None:
    later = clock.now() + timedelta(hours=1)
    result = tasks.add.using(priority=9, queue_name="email", run_after=later).enqueue(1)

    found = tasks.add.get_result(result.id)

    assert (found.task.priority, found.task.queue_name, found.task.run_after) == (9, "email", later)


def test_a_result_whose_queue_was_taken_off_the_list_can_still_be_read() -> None:
    result = tasks.add.using(queue_name="email").enqueue(1)

    with override_settings(TASKS={"default": {"BACKEND": OURS, "QUEUES": ["default"]}}):
        assert tasks.add.get_result(result.id).id == result.id


def test_refresh_copies_what_the_contract_says_and_the_state() -> None:
    result = tasks.add.enqueue(1, b=2)
    HandWorker().work()

    before = (result.status, result.state)
    result.refresh()

    assert before == (Status.READY, "ready")
    assert (result.status, result.state, result.return_value) == (Status.SUCCESSFUL, "succeeded", 3)
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert (result.attempts, len(result.worker_ids)) == (1, 1)
    assert result == tasks.add.get_result(result.id)


def test_arefresh_does_what_refresh_does() -> None:
    from asgiref.sync import async_to_sync

    result = tasks.add.enqueue(1, b=2)
    HandWorker().work()

    async_to_sync(result.arefresh)()

    assert (result.return_value, result.is_finished) == (3, True)


def test_each_failed_attempt_leaves_an_error_and_a_worker() -> None:
    worker = HandWorker()
    result = tasks.fail_until.enqueue(3)

    seen = []
    for _ in range(3):
        batch = worker.execute(worker.claim())
        worker.settle(batch)
        result.refresh()
        seen.append((result.status, len(result.errors), len(result.worker_ids)))

    assert seen == [(Status.READY, 1, 1), (Status.READY, 2, 2), (Status.SUCCESSFUL, 2, 3)]
    assert [error.exception_class for error in result.errors] == [LookupError, LookupError]
    assert "attempt 2" in result.errors[1].traceback
    assert result.worker_ids == [str(worker.id)] * 3
    assert all(0 < len(worker_id) <= 64 for worker_id in result.worker_ids)
    assert result.started_at is not None
    assert result.last_attempted_at is not None
    assert result.started_at <= result.last_attempted_at


def test_a_running_attempt_counts_and_the_worker_is_named() -> None:
    worker = HandWorker()
    result = tasks.tell_attempt.enqueue()
    claims = worker.claim()

    running = tasks.tell_attempt.get_result(result.id)
    worker.settle(worker.execute(claims))
    result.refresh()

    assert (running.status, running.attempts, running.worker_ids) == (Status.RUNNING, 1, [str(worker.id)])
    assert result.return_value == {"attempt": 1, "id": result.id, "result_id": result.id, "extra": 0}


def test_an_exit_of_the_process_is_a_failure_like_any_other() -> None:
    result = tasks.leave.enqueue()

    HandWorker().work()
    result.refresh()

    assert (result.status, result.state) == (Status.FAILED, "dead")
    assert result.errors[-1].exception_class is SystemExit
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


def test_a_result_that_is_not_json_is_a_failure_of_the_task() -> None:
    result = tasks.return_a_set.enqueue()

    HandWorker().work()
    result.refresh()

    assert (result.status, result.errors[-1].exception_class) == (Status.FAILED, exceptions.InvalidPayload)
    assert issubclass(exceptions.InvalidPayload, TypeError)


# Statuses


def test_each_live_state_shows_as_ready_or_running() -> None:
    result = tasks.add.enqueue(1)
    statuses = {}

    for state in (State.WAITING, State.SCHEDULED, State.READY, State.PARKED):
        TaskModel.objects.filter(pk=result.id).update(state=state)
        result.refresh()
        statuses[result.state] = result.status
    TaskModel.objects.filter(pk=result.id).update(state=State.RUNNING, lease=1 << 32 | 1, attempt=1)
    result.refresh()
    statuses[result.state] = result.status

    ready = dict.fromkeys(("waiting", "scheduled", "ready", "parked"), Status.READY)
    assert statuses == {**ready, "running": Status.RUNNING}


@pytest.mark.parametrize("state", [State.DEAD, State.CANCELLED])
@pytest.mark.parametrize("reason", [None, *DeadReason])
def test_each_end_without_success_shows_as_failed_with_an_importable_error(
    state: State, reason: DeadReason | None
) -> None:
    result = tasks.add.enqueue(1)
    TaskModel.objects.all().delete()
    FinishedTask.objects.create(
        id=result.id,
        queue="default",
        name=tasks.add.module_path,
        state=state,
        created_at=clock.now(),
        finished_at=clock.now(),
        reason=None if reason is None else reason.value,
    )

    result.refresh()

    assert (result.status, result.is_finished) == (Status.FAILED, True)
    assert issubclass(result.errors[-1].exception_class, Exception)
    if state == State.CANCELLED:
        assert result.errors[-1].exception_class is exceptions.TaskCancelled


def test_the_ways_to_end_show_as_themselves() -> None:
    worker = HandWorker()
    cancelled, gone, snoozed = tasks.cancel_itself.enqueue(), tasks.give_up.enqueue(), tasks.snooze.enqueue()
    dropped = tasks.add.enqueue(1)
    dropped.cancel()

    worker.work()

    shown = {}
    for result in (cancelled, gone, snoozed, dropped):
        result.refresh()
        error = result.errors[-1].exception_class if result.errors else None
        shown[result.task.name] = (result.status, result.state, error)
    assert shown == {
        "cancel_itself": (Status.FAILED, "cancelled", exceptions.TaskCancelled),
        "give_up": (Status.FAILED, "dead", exceptions.GiveUp),
        "snooze": (Status.READY, "scheduled", None),
        "add": (Status.FAILED, "cancelled", exceptions.TaskCancelled),
    }


# Signals


@pytest.fixture
def told() -> Iterator[list[tuple[str, Any, Any, Any]]]:
    """What the contract's signals said: name, status, class of the exception being handled, sender."""
    found: list[tuple[str, Any, Any, Any]] = []

    def receiver(name: str) -> Any:
        def hear(sender: Any, task_result: Any, **kwargs: Any) -> None:
            found.append((name, task_result.status, sys.exc_info()[0], sender))

        return hear

    receivers = {name: receiver(name) for name in ("task_enqueued", "task_started", "task_finished")}
    for name, hear in receivers.items():
        getattr(primary.signals, name).connect(hear)
    yield found
    for name, hear in receivers.items():
        getattr(primary.signals, name).disconnect(hear)


def test_the_signals_of_a_success_come_in_order(told: list[Any]) -> None:
    tasks.add.enqueue(1)
    HandWorker().work()

    assert told == [
        ("task_enqueued", Status.READY, None, DatabaseBackend),
        ("task_started", Status.RUNNING, None, DatabaseBackend),
        ("task_finished", Status.SUCCESSFUL, None, DatabaseBackend),
    ]


def test_task_finished_of_a_failure_is_sent_while_the_exception_is_handled(told: list[Any]) -> None:
    tasks.fail.enqueue()
    HandWorker().work()

    assert told[-1] == ("task_finished", Status.FAILED, ValueError, DatabaseBackend)


def test_a_retry_is_not_a_finish(told: list[Any]) -> None:
    tasks.fail_until.enqueue(2)
    HandWorker().work()

    assert [name for name, *_ in told] == ["task_enqueued", "task_started", "task_started", "task_finished"]


def test_a_signal_waits_for_the_commit_and_a_rollback_keeps_it_from_being_sent(told: list[Any]) -> None:
    from django.db import transaction

    class Undo(Exception):
        pass

    def undone() -> None:
        with transaction.atomic():
            tasks.add.enqueue(1)
            raise Undo

    with pytest.raises(Undo):
        undone()
    with transaction.atomic():
        tasks.add.enqueue(1)
        inside = len(told)

    assert inside == 0
    assert [name for name, *_ in told] == ["task_enqueued"]


# Plain tasks


def test_a_plain_task_of_a_third_party_is_stored_and_run() -> None:
    result = tasks.add_foreign.enqueue(1, b=2)

    HandWorker().work()
    found = tasks.add_foreign.get_result(result.id)

    assert type(tasks.add_foreign) is primary.base.Task
    assert found.return_value == 3
    assert found.task is tasks.add_foreign


def test_a_plain_task_declared_for_another_backend_can_be_moved_here() -> None:
    dummy = f"{primary.name}.backends.dummy.DummyBackend"
    with override_settings(TASKS={"default": {"BACKEND": dummy}, "ours": {"BACKEND": OURS, "QUEUES": []}}):
        moved = tasks.add_foreign.using(backend="ours", priority=3)

        result = moved.enqueue(1, b=2)
        row = TaskModel.objects.get(pk=result.id)
        HandWorker("default").work()
        found = moved.get_result(result.id)

    assert (row.priority, row.name) == (3, "tests.faces.backend_tasks.add_foreign")
    assert (found.return_value, found.backend, found.task.backend) == (3, "ours", "ours")


def test_one_of_our_tasks_can_be_moved_to_another_backend() -> None:
    dummy = f"{primary.name}.backends.dummy.DummyBackend"
    with override_settings(TASKS={"default": {"BACKEND": OURS}, "dummy": {"BACKEND": dummy}}):
        primary.handler["dummy"].clear()

        result = tasks.add.using(backend="dummy").enqueue(1)

        assert primary.handler["dummy"].results == [result]
    assert TaskModel.objects.count() == 0


# Pickling


def test_our_tasks_travel_as_the_path_of_their_function() -> None:
    made = tasks.add.using(
        priority=3,
        metadata={"a": [1]},
        run_after=timedelta(hours=1),
        timeout=timedelta(seconds=3),
        cancel=threading.Event(),
    )

    again = pickle.loads(pickle.dumps(made))

    assert again == made
    assert again.func is tasks.add.func
    assert again.cancel is None


def test_a_pickled_path_that_leads_to_no_task_is_a_value_error() -> None:
    shape = tasks.add.__reduce__()

    for path in ("does.not.exist", "builtins.any"):
        with pytest.raises(ValueError, match=f"Expected '{path}' to point to a Task instance"):
            shape[0](shape[1][0], {**shape[1][1], "func": path})


def test_results_can_be_pickled_at_every_stage() -> None:
    results = [tasks.add.enqueue(1), tasks.fail.enqueue()]

    fresh = [pickle.loads(pickle.dumps(result)) for result in results]
    HandWorker().work()
    for result in results:
        result.refresh()
    ended = [pickle.loads(pickle.dumps(result)) for result in results]

    assert ended == results
    assert [result.state for result in fresh] == ["ready", "ready"]
    assert ended[0].return_value == 1
    assert ended[1].errors[0].exception_class is ValueError


@pytest.mark.parametrize(
    "error",
    [
        exceptions.InvalidOptions("no", field="a", code="b"),
        exceptions.UnsupportedCapability("pause", "NullBackend"),
        exceptions.EnqueueTimeout("late"),
    ],
)
def test_our_errors_can_be_pickled(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# Contract of the members


def test_the_members_a_caller_uses_by_keyword_have_the_contracts_parameter_names() -> None:
    for name in ("enqueue", "aenqueue", "get_result", "aget_result", "validate_task"):
        theirs = inspect.signature(getattr(primary.backends.BaseTaskBackend, name))
        assert list(inspect.signature(getattr(DatabaseBackend, name)).parameters) == list(theirs.parameters)


def test_check_gives_messages_and_no_error_for_a_sound_backend() -> None:
    assert list(backend().check()) == []


def test_moments_are_aware_and_in_utc() -> None:
    result = tasks.add.enqueue(1)

    result.refresh()

    assert result.enqueued_at is not None
    assert result.enqueued_at.utcoffset() == timedelta(0)
    assert abs(result.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)
