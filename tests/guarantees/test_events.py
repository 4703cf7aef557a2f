"""
S0-27, S0-100, S0-102, S0-103, S4-54, S4-60: events are a contract.

Each is sent after the commit that made it true, at most once for each
transition, and the events of one task come in the order of its transitions.
Between tasks no order is promised, so none is asserted.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from django_taskq import clock, conf, events, signals
from django_taskq.compat import primary
from django_taskq.exceptions import PayloadTooLarge
from django_taskq.lifecycle import control, rescue
from django_taskq.models import FinishedTask, Task, Worker
from django_taskq.worker import loop
from tests.by_hand import HandWorker
from tests.observability import tasks

pytestmark = pytest.mark.django_db(transaction=True)

PUBLIC = dict(events._SIGNALS)


@pytest.fixture
def heard() -> Generator[list[Any]]:
    """Every public event, in the order in which it was sent."""
    found: list[Any] = []

    def receive(sender: type, event: events.Event, **kwargs: object) -> None:
        found.append(event)

    for signal in PUBLIC.values():
        signal.connect(receive)
    yield found
    for signal in PUBLIC.values():
        signal.disconnect(receive)


@pytest.fixture
def silence() -> Generator[None]:
    """Nobody listens: no handler takes a log record, and no receiver is connected."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def sequence(heard: list[Any], task_id: str) -> list[str]:
    """Return the names of the events of one task."""
    return [type(event).__name__ for event in heard if getattr(event, "task_id", None) == task_id]


# Sequences


def test_a_success_is_told_as_enqueued_started_succeeded(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)

    HandWorker().work()

    assert sequence(heard, result.id) == ["TaskEnqueued", "TaskStarted", "TaskSucceeded"]
    succeeded = heard[-1]
    assert (succeeded.task, succeeded.queue, succeeded.attempt) == (tasks.add.module_path, "default", 1)
    assert succeeded.alias == "default"
    assert succeeded.run_seconds >= 0
    assert succeeded.wait_seconds >= 0


def test_each_attempt_that_fails_is_told_with_what_came_of_it(heard: list[Any]) -> None:
    result = tasks.fail_until.enqueue(3)

    HandWorker().work()

    assert sequence(heard, result.id) == [
        "TaskEnqueued",
        *("TaskStarted", "TaskFailed", "TaskRetried") * 2,
        "TaskStarted",
        "TaskSucceeded",
    ]
    failed = [event for event in heard if isinstance(event, events.TaskFailed)]
    assert [event.attempt for event in failed] == [1, 2]
    assert {event.outcome for event in failed} == {"failed"}
    assert failed[0].error.class_path == "builtins.ValueError"


def test_the_last_failure_is_told_as_failed_then_dead(heard: list[Any]) -> None:
    result = tasks.always_fail.enqueue()

    HandWorker().work()

    assert sequence(heard, result.id) == [
        "TaskEnqueued",
        *("TaskStarted", "TaskFailed", "TaskRetried"),
        *("TaskStarted", "TaskFailed", "TaskDead"),
    ]
    dead = heard[-1]
    assert dead.reason == "exhausted"
    assert isinstance(dead.exception, ZeroDivisionError)


def test_a_snooze_is_no_failure(heard: list[Any]) -> None:
    result = tasks.snooze_once.enqueue()

    HandWorker().work()

    assert sequence(heard, result.id) == [
        "TaskEnqueued",
        *("TaskStarted", "TaskSnoozed"),
        *("TaskStarted", "TaskSucceeded"),
    ]


def test_a_task_that_cancels_itself_is_told_once(heard: list[Any]) -> None:
    result = tasks.cancel_itself.enqueue()

    HandWorker().work()

    assert sequence(heard, result.id) == ["TaskEnqueued", "TaskStarted", "TaskCancelled"]


def test_a_waiting_task_that_an_operator_cancels_is_told_once_and_never_starts(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)

    control.cancel(result.id, actor="ana")
    control.cancel([result.id], actor="ana")
    HandWorker().work()

    assert sequence(heard, result.id) == ["TaskEnqueued", "TaskCancelled"]


def test_an_interrupted_task_is_told_as_such_and_starts_again(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)
    first = HandWorker()

    first.interrupt(first.claim())
    HandWorker().work()

    assert sequence(heard, result.id) == ["TaskEnqueued", "TaskInterrupted", "TaskStarted", "TaskSucceeded"]


def test_a_rescued_task_is_told_as_rescued_failed_retried(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)
    lost = HandWorker()
    lost.claim()
    lost.fall_silent()

    rescue.rescue("default", now=clock.now())
    HandWorker().work()

    assert sequence(heard, result.id) == [
        "TaskEnqueued",
        *("TaskRescued", "TaskFailed", "TaskRetried"),
        *("TaskStarted", "TaskSucceeded"),
    ]
    assert [event.worker_id for event in heard if isinstance(event, events.WorkerLost)] == [lost.id]


def test_an_end_that_comes_after_the_lease_was_lost_is_told_as_refused_and_as_nothing_else(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)
    late = HandWorker()
    ended = late.execute(late.claim())
    late.fall_silent()
    rescue.rescue("default", now=clock.now())
    heard.clear()

    late.settle(ended)

    assert sequence(heard, result.id) == ["SettlementRefused"]
    assert (heard[0].worker_id, heard[0].outcome) == (late.id, "Succeeded")


def test_a_replayed_task_starts_a_new_sequence_under_its_old_id(heard: list[Any]) -> None:
    result = tasks.cancel_itself.enqueue()
    HandWorker().work()
    heard.clear()

    control.replay(result.id, actor="ana")
    HandWorker().work()

    assert sequence(heard, result.id) == ["TaskReplayed", "TaskStarted", "TaskCancelled"]
    assert heard[0].actor == "ana"


def test_operators_verbs_are_told_with_their_actor(heard: list[Any]) -> None:
    result = tasks.add.enqueue(1, 2)

    control.kill(result.id, actor="ana", reason="poison")
    control.discard(result.id, actor="ana")
    control.pause("default", actor="ana", reason="incident")
    control.pause("default", actor="bob")
    control.resume("default", actor="bob")

    assert sequence(heard, result.id) == ["TaskEnqueued", "TaskDead", "TaskDiscarded"]
    switched = [event for event in heard if isinstance(event, events.QueuePaused | events.QueueResumed)]
    assert [(type(event).__name__, event.actor) for event in switched] == [
        ("QueuePaused", "ana"),
        ("QueueResumed", "bob"),
    ]


def test_deleted_tasks_are_told_as_a_count(heard: list[Any]) -> None:
    """S3-34: one event for each state, not one for each row."""
    from django_taskq.duties import prune

    for number in range(3):
        tasks.add.enqueue(number, 1)
    HandWorker().work()

    prune.run_once("default", conf.options(), clock.now() + timedelta(days=30))

    pruned = [event for event in heard if isinstance(event, events.TasksPruned)]
    assert [(event.state, event.count) for event in pruned] == [("succeeded", 3)]


def test_a_worker_tells_of_its_start_and_its_stop(heard: list[Any]) -> None:
    worker = loop.Worker(loop.Plan(worker=conf.WorkerOptions(threads=1), burst=True))

    worker.start()
    worker.join(60)

    told = [type(event).__name__ for event in heard if isinstance(event, events.WorkerEvent)]
    assert told == ["WorkerStarted", "WorkerStopped"]


# After the commit


def test_an_enqueue_that_is_rolled_back_is_not_told(heard: list[Any]) -> None:
    class Undo(Exception):
        pass

    def enqueue_and_undo() -> None:
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            raise Undo

    with pytest.raises(Undo):
        enqueue_and_undo()

    assert heard == []
    assert not Task.objects.exists()


def test_an_enqueue_is_told_after_the_outermost_commit(heard: list[Any]) -> None:
    with transaction.atomic():
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
        told_inside = list(heard)

    assert told_inside == []
    assert [type(event).__name__ for event in heard] == ["TaskEnqueued"]


def test_a_receiver_finds_what_the_event_says_in_the_database() -> None:
    seen: list[object] = []

    def look(sender: type, event: events.TaskSucceeded, **kwargs: object) -> None:
        seen.append(FinishedTask.objects.get(pk=event.task_id).state)

    signals.task_succeeded.connect(look)
    tasks.add.enqueue(1, 2)
    HandWorker().work()
    signals.task_succeeded.disconnect(look)

    assert seen == [3]


# Error paths


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("on_commit", [False, True])
def test_an_enqueue_that_the_database_refuses_is_told_once(
    heard: list[Any], monkeypatch: pytest.MonkeyPatch, on_commit: bool, in_transaction: bool
) -> None:
    from django.db import OperationalError

    from django_taskq.store.vendors import vendor_for

    def refuse(*args: object) -> None:
        raise OperationalError("no space left")

    monkeypatch.setattr(type(vendor_for("default")), "insert", refuse)

    with pytest.raises(OperationalError), transaction.atomic() if in_transaction else nullcontext():
        tasks.add.using(enqueue_on_commit=on_commit).enqueue(1, 2)

    assert [type(event).__name__ for event in heard] == ["EnqueueRejected"]
    assert isinstance(heard[0].error, OperationalError)


def test_arguments_that_are_refused_are_told(heard: list[Any], settings: Any) -> None:
    settings.TASKQ = {"MAX_PAYLOAD_BYTES": 64}

    with pytest.raises(PayloadTooLarge):
        tasks.always_fail.enqueue("x" * 100)

    (rejected,) = heard
    assert (rejected.task, rejected.queue) == (tasks.always_fail.module_path, "default")
    assert isinstance(rejected.error, PayloadTooLarge)


# Receivers


def test_a_receiver_that_fails_hurts_no_task_and_no_other_receiver(
    heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("receiver is broken")

    for signal in PUBLIC.values():
        signal.connect(fail)
    for kind in PUBLIC:
        events.subscribe(kind, fail)
    try:
        result = tasks.fail_until.enqueue(2)
        HandWorker().work()
    finally:
        for kind, signal in PUBLIC.items():
            signal.disconnect(fail)
            events.unsubscribe(kind, fail)

    assert FinishedTask.objects.get(pk=result.id).state == 3
    assert sequence(heard, result.id)[-1] == "TaskSucceeded"
    messages = [record.getMessage() for record in caplog.records if record.exc_info]
    assert "A listener to TaskSucceeded failed" in messages
    assert any("Signal.send_robust()" in message for message in messages)


def test_a_receiver_of_the_enqueue_that_fails_does_not_fail_the_enqueue() -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("receiver is broken")

    signals.task_enqueued.connect(fail)
    primary.signals.task_enqueued.connect(fail)
    try:
        result = tasks.add.enqueue(1, 2)
    finally:
        signals.task_enqueued.disconnect(fail)
        primary.signals.task_enqueued.disconnect(fail)

    assert Task.objects.filter(pk=result.id).exists()


def test_a_receiver_may_use_the_database_where_the_task_is_a_coroutine() -> None:
    """The event loop's own thread may not: Django refuses a query there."""
    found: list[int] = []
    missed: list[BaseException] = []

    def count(sender: type, event: events.TaskStarted, **kwargs: object) -> None:
        try:
            found.append(Task.objects.count())
        except BaseException as error:
            missed.append(error)

    signals.task_started.connect(count)
    result = tasks.echo.enqueue("hello")
    worker = loop.Worker(loop.Plan(worker=conf.WorkerOptions(executor="asyncio", async_slots=2), burst=True))
    worker.start()
    worker.join(60)
    signals.task_started.disconnect(count)

    assert missed == []
    assert found == [1]
    assert FinishedTask.objects.get(pk=result.id).state == 3


# Nobody listens


@pytest.mark.usefixtures("silence")
def test_no_event_is_made_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def watched(kind: type) -> Callable[..., None]:
        plain = kind.__init__

        def init(self: Any, **values: Any) -> None:
            made.append(kind.__name__)
            plain(self, **values)

        return init

    for kind in (*PUBLIC, events.TasksStored, events.TasksClaimed, events.AttemptsSettled):
        monkeypatch.setattr(kind, "__init__", watched(kind))

    for number in range(3):
        tasks.add.enqueue(number, 1)
    for task in (tasks.fail_until, tasks.always_fail, tasks.snooze_once, tasks.cancel_itself):
        task.enqueue(*([2] if task is tasks.fail_until else []))
    with pytest.raises(TypeError):
        tasks.add.enqueue(object(), 2)
    worker = HandWorker()
    worker.work()
    waiting = tasks.add.enqueue(1, 2)
    control.cancel(waiting.id)
    control.replay(waiting.id)
    control.kill(waiting.id)
    control.discard(waiting.id)
    control.pause("default")
    control.resume("default")
    tasks.add.enqueue(1, 2)
    ended = worker.execute(worker.claim())
    worker.fall_silent()
    rescue.rescue("default", now=clock.now())
    worker.settle(ended)

    assert made == []
    events.TasksPruned(state="dead", count=1)
    assert made == ["TasksPruned"], "the watch itself works"


@pytest.mark.usefixtures("silence")
def test_a_listener_that_does_not_care_now_costs_no_event() -> None:
    cares = threading.Event()
    found: list[Any] = []
    events.subscribe(events.TaskSucceeded, found.append, when=cares.is_set)
    try:
        before = events.wanted(events.TaskSucceeded)
        cares.set()
        after = events.wanted(events.TaskSucceeded)
    finally:
        events.unsubscribe(events.TaskSucceeded, found.append)

    assert (before, after) == (False, True)


def test_subscribing_twice_hears_once() -> None:
    found: list[Any] = []

    events.subscribe(events.TaskEnqueued, listener := found.append)
    events.subscribe(events.TaskEnqueued, listener)
    tasks.add.enqueue(1, 2)
    events.unsubscribe(events.TaskEnqueued, listener)

    assert len(found) == 1


# The shape


def test_every_public_event_has_a_signal_of_its_name() -> None:
    def snake(name: str) -> str:
        return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")

    assert {snake(kind.__name__): signal for kind, signal in PUBLIC.items()} == {
        name: getattr(signals, name) for name in signals.__all__
    }


def test_an_event_shows_no_arguments_and_no_results(heard: list[Any]) -> None:
    tasks.always_fail.enqueue(tasks.SECRET)
    tasks.echo.enqueue(tasks.SECRET)

    HandWorker().work()

    assert heard
    shown = [repr(event) for event in heard if not isinstance(event, events.TaskFailed | events.TaskDead)]
    assert not [text for text in shown if tasks.SECRET in text]


# The log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in {"django_taskq", "django_taskq.tasks"}]


def test_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """S1-40: a task's life as sentences, with keys that a formatter can rely on."""
    caplog.set_level(logging.DEBUG, "django_taskq")
    result = tasks.always_fail.enqueue()

    HandWorker().work()

    records = [record for record in caplog.records if record.name in {"django_taskq", "django_taskq.tasks"}]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        (level, f"Task {tasks.always_fail.module_path} ({result.id}) {text}")
        for level, text in (
            ("DEBUG", "enqueued on default"),
            ("DEBUG", "started, attempt 1"),
            ("WARNING", "failed in attempt 1: failed"),
            ("INFO", "will be tried again"),
            ("DEBUG", "started, attempt 2"),
            ("WARNING", "failed in attempt 2: failed"),
            ("ERROR", "is dead: exhausted"),
        )
    ]
    dead = records[-1]
    assert (dead.task_id, dead.task, dead.queue, dead.attempt) == (
        result.id,
        tasks.always_fail.module_path,
        "default",
        2,
    )
    assert dead.exc_info is not None
    assert dead.exc_info[0] is ZeroDivisionError


def test_the_log_never_holds_arguments_or_results(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    tasks.echo.enqueue(tasks.SECRET)
    HandWorker().work()
    with pytest.raises(TypeError):
        tasks.add.enqueue({tasks.SECRET: {tasks.SECRET}}, 2)
    with pytest.raises(ValueError, match="JSON"):
        tasks.add.enqueue(float("nan"), 2)

    assert len(lines(caplog)) >= 4
    everything = [f"{record.getMessage()} {record.args!r} {vars(record)!r}" for record in caplog.records]
    assert not [text for text in everything if tasks.SECRET in text]


def test_no_text_of_a_row_can_start_a_log_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "django_taskq")
    hostile = "a\nERROR forged\r\x1b[31m\u2028%s {0} %(task)s"
    stored = tasks.add.enqueue(1, 2)
    Task.objects.filter(pk=stored.id).update(name=hostile, queue="q\nforged")
    Worker.objects.create(name="w\nforged", started_at=clock.now(), beat_at=clock.now() - timedelta(hours=1))

    control.kill(stored.id, actor="ana\nforged", reason="because\nforged")
    control.discard(stored.id, actor="ana\nforged")
    control.pause("mail\nforged", actor="ana\nforged", reason="because\nforged")
    rescue.rescue("default", now=clock.now())

    told = lines(caplog)
    assert len([text for text in told if "forged" in text]) >= 4
    assert not [text for text in told if set(text) & set("\n\r\x1b\u2028")]
    keys = [value for record in caplog.records for value in vars(record).values() if isinstance(value, str)]
    assert not [text for text in keys if "\nforged" in text or "\nERROR" in text]


def test_custom_logger(caplog: pytest.LogCaptureFixture) -> None:
    """S4-54: the log is Python's own; a handler of your choice hears it."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    logger, handler = logging.getLogger("django_taskq"), Keep(level=logging.ERROR)
    logger.addHandler(handler)
    tasks.always_fail.enqueue()
    HandWorker().work()
    logger.removeHandler(handler)

    assert [record.levelname for record in found] == ["ERROR"]


def test_a_signal_receiver_may_be_a_coroutine_function() -> None:
    found: list[str] = []

    async def receive(sender: type, event: events.TaskSucceeded, **kwargs: object) -> None:
        await asyncio.sleep(0)
        found.append(event.task)

    signals.task_succeeded.connect(receive)
    tasks.add.enqueue(1, 2)
    HandWorker().work()
    signals.task_succeeded.disconnect(receive)

    assert found == [tasks.add.module_path]


def test_listeners_that_come_and_go_at_once_lose_nobody() -> None:
    """S4-60: each change of the listeners starts from the one before."""

    class Passing(events.Event):
        """An event that nobody else listens to."""

    lists: list[list[Any]] = [[] for _ in range(8)]
    barrier = threading.Barrier(len(lists))

    def come_and_go(found: list[Any]) -> None:
        barrier.wait(20)
        for _ in range(300):
            passing: list[Any] = []
            events.subscribe(Passing, passing.append)
            events.unsubscribe(Passing, passing.append)
        events.subscribe(Passing, found.append)

    threads = [threading.Thread(target=come_and_go, args=(found,)) for found in lists]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    events.emit(Passing())
    heard = [len(found) for found in lists]
    events._listeners.pop(Passing)

    assert heard == [1] * len(lists)
