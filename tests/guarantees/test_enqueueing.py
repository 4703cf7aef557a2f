"""What an enqueue promises: inside the caller's transaction, all or nothing, bounded and revocable."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, connection, connections, transaction
from django.test import override_settings
from django.utils import timezone, translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_taskq import (
    EnqueueCancelled,
    EnqueueTimeout,
    Exponential,
    Fixed,
    InvalidOptions,
    Signature,
    Steps,
    clock,
    enqueue_many,
    events,
)
from django_taskq.compat import primary
from django_taskq.domain.states import State
from django_taskq.models import Task
from tests.by_hand import HandWorker
from tests.guarantees import enqueueing_tasks as tasks

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = Task._meta.db_table


class Undo(Exception):
    """Rolls a block back."""


def undone(work: Callable[[], Any]) -> Any:
    """Do it in a transaction that is rolled back; return what it returned."""
    found = None
    with pytest.raises(Undo), transaction.atomic():  # noqa: PT012
        found = work()
        raise Undo
    return found


def stored() -> int:
    return Task.objects.count()


@contextmanager
def locked() -> Iterator[Callable[[], None]]:
    """Let another connection keep every INSERT into the table of tasks waiting; yields what lets go early."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with connections["default"].cursor() as cursor:
                match connection.vendor:
                    case "postgresql":
                        with transaction.atomic():
                            cursor.execute(f'LOCK TABLE "{TABLE}" IN EXCLUSIVE MODE')
                            _wait()
                    case "mysql":
                        cursor.execute(f"LOCK TABLES `{TABLE}` WRITE")
                        _wait()
                        cursor.execute("UNLOCK TABLES")
                    case _:
                        cursor.execute("BEGIN IMMEDIATE")
                        _wait()
                        cursor.execute("ROLLBACK")
        finally:
            taken.set()
            connections.close_all()

    def _wait() -> None:
        taken.set()
        assert release.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert taken.wait(30)
        try:
            yield release.set
        finally:
            release.set()
            holding.result(30)


def session_limits() -> Any:
    """Return what limits the statements of this session."""
    with connection.cursor() as cursor:
        match connection.vendor:
            case "postgresql":
                cursor.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
            case "mysql":
                cursor.execute(
                    "SELECT @@SESSION.max_statement_time, @@SESSION.innodb_lock_wait_timeout,"
                    " @@SESSION.lock_wait_timeout"
                )
            case _:
                cursor.execute("PRAGMA busy_timeout")
        return cursor.fetchone()


# The caller's transaction


def test_an_enqueue_rolls_back_with_its_caller() -> None:
    """S4-92: the task exists if and only if the caller's transaction commits."""
    undone(lambda: [tasks.note.enqueue("a"), tasks.note.enqueue_many([("b",), ("c",)])])

    assert stored() == 0


def test_an_enqueue_in_a_savepoint_rolls_back_with_the_savepoint_alone() -> None:
    with transaction.atomic():
        tasks.note.enqueue("outer")
        undone(lambda: tasks.note.enqueue("inner"))

    assert [row.arguments[0] for row in Task.objects.all()] == [["outer"]]


def test_the_id_inside_the_transaction_is_the_id_of_the_row() -> None:
    with transaction.atomic():
        result = tasks.note.enqueue("a")
        inside = tasks.note.get_result(result.id)

    assert inside == result == tasks.note.get_result(result.id)


def test_no_worker_sees_a_task_before_its_commit() -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(stored())
        connections.close_all()

    with transaction.atomic():
        tasks.note.enqueue("a")
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    assert seen == [0]
    assert stored() == 1


def test_enqueue_on_commit_stores_nothing_before_and_nothing_without_the_commit() -> None:
    made = tasks.note.using(enqueue_on_commit=True)

    with transaction.atomic():
        result = made.enqueue("a")
        inside = stored()
    undone(lambda: made.enqueue("b"))

    assert inside == 0
    assert [str(row.pk) for row in Task.objects.all()] == [result.id]


@override_settings(TASKQ={"ENQUEUE_ON_COMMIT": True})
def test_enqueue_on_commit_can_be_the_rule_and_a_call_the_exception() -> None:
    with transaction.atomic():
        tasks.note.enqueue("later")
        first = stored()
        tasks.note.using(enqueue_on_commit=False).enqueue("now")
        second = stored()

    assert (first, second, stored()) == (0, 1, 2)


class ToReplica:
    """A router that sends the tables of django_taskq to another database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "elsewhere" if model._meta.app_label == "django_taskq" else None

    db_for_read = db_for_write


@override_settings(DATABASE_ROUTERS=["tests.guarantees.test_enqueueing.ToReplica"])
def test_a_router_decides_where_tasks_go() -> None:
    from django_taskq import conf
    from django_taskq.lifecycle.databases import database_for

    assert database_for(conf.options()) == "elsewhere"


@override_settings(DATABASE_ROUTERS=["tests.guarantees.test_enqueueing.ToReplica"], TASKQ={"DATABASE": "default"})
def test_the_database_option_wins_over_the_router_and_the_row_goes_there() -> None:
    tasks.note.enqueue("a")

    assert Task.objects.using("default").count() == 1


@override_settings(TASKQ={"DATABASE": "other"})
def test_a_check_warns_where_tasks_leave_the_database_of_the_callers_transaction() -> None:
    from django_taskq.checks import check_database

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connections.settings, "other", connections.settings["default"])
        found = {message.id for message in check_database()}
    unknown = {message.id for message in check_database()}

    assert "taskq.W003" in found
    assert unknown == {"taskq.E003"}


# Options


def test_an_enqueue_has_no_deadline_of_its_own() -> None:
    """S0-77: a plain enqueue neither sets nor changes a limit of the session."""
    before = session_limits()

    result = tasks.note.enqueue("a")

    assert (tasks.note.enqueue_timeout, session_limits()) == (None, before)
    row = Task.objects.get(pk=result.id)
    assert (row.deadline_at, row.expires_at, row.run_after) == (None, None, None)


def test_the_call_wins_over_the_decorator_the_decorator_over_the_queue_the_queue_over_the_settings() -> None:
    """S0-84: precedence."""
    queues = {"slow": {"MAX_ATTEMPTS": 8, "MAX_TIME": 100}, "quick": {"MAX_ATTEMPTS": 9}}
    with override_settings(TASKQ={"MAX_ATTEMPTS": 7, "QUEUES": queues}):
        found = {
            "call": tasks.careful.using(max_attempts=2).enqueue(),
            "decorator": tasks.careful.enqueue(),
            "queue": tasks.note.using(queue_name="quick").enqueue("a"),
            "settings": tasks.note.enqueue("a"),
        }

    rows = {name: Task.objects.get(pk=result.id) for name, result in found.items()}
    assert {name: row.max_attempts for name, row in rows.items()} == {
        "call": 2,
        "decorator": 4,
        "queue": 9,
        "settings": 7,
    }
    assert rows["decorator"].deadline_at is not None
    assert rows["settings"].deadline_at is None


def test_options_of_a_call_are_stored_with_the_task() -> None:
    now = clock.now()
    made = tasks.note.using(
        priority=5,
        queue_name="email",
        delay=60,
        expires=timedelta(hours=1),
        max_time=600,
        timeout=3,
        keep_result=0,
        backoff=Exponential(base=2),
        ack="now",
    )

    row = Task.objects.get(pk=made.enqueue("a").id)

    assert (row.queue, row.priority, row.state) == ("email", 5, State.SCHEDULED)
    assert row.run_after is not None
    assert timedelta(seconds=59) < row.run_after - now < timedelta(seconds=90)
    assert row.expires_at == row.run_after + timedelta(hours=1)
    assert row.deadline_at == row.run_after + timedelta(seconds=600)
    assert row.option_values == {
        "timeout": 3,
        "keep_result": 0,
        "max_time": 600.0,
        "ack": "now",
        "backoff": ["exponential", 2.0, 2.0, 600.0, 0.25],
    }


def test_a_backoff_that_cannot_be_stored_is_refused_at_the_call() -> None:
    with pytest.raises(InvalidOptions, match="callable can only be given to @task") as caught:
        tasks.note.using(backoff=lambda error, result: 1.0).enqueue("a")

    assert (caught.value.field, stored()) == ("backoff", 0)


BAD = [
    ("delay", "range", {"delay": -1}),
    ("delay", "conflict", {"delay": 1, "run_after": timedelta(1)}),
    ("run_after", "range", {"run_after": timedelta(days=-1)}),
    ("run_after", "type", {"run_after": "tomorrow"}),
    ("run_after", "range", {"run_after": datetime.max.replace(tzinfo=ZoneInfo("America/New_York"))}),
    ("timeout", "range", {"timeout": 0}),
    ("timeout", "range", {"timeout": True}),
    ("timeout", "range", {"timeout": float("nan")}),
    ("timeout", "conflict", {"timeout": 61, "max_time": timedelta(minutes=1)}),
    ("max_time", "range", {"max_time": -1}),
    ("expires", "naive", {"expires": datetime(2030, 1, 1)}),
    ("expires", "range", {"expires": 0}),
    (
        "expires",
        "conflict",
        {"expires": datetime(2030, 1, 1, tzinfo=UTC), "run_after": datetime(2031, 1, 1, tzinfo=UTC)},
    ),
    ("keep_result", "range", {"keep_result": -1}),
    ("enqueue_timeout", "range", {"enqueue_timeout": 0}),
    ("max_attempts", "range", {"max_attempts": 0}),
    ("max_attempts", "range", {"max_attempts": True}),
    ("max_attempts", "range", {"max_attempts": 2**40}),
    ("max_attempts", "range", {"max_attempts": 2.5}),
    ("backoff", "type", {"backoff": "slowly"}),
    ("ack", "unknown", {"ack": "never"}),
    ("enqueue_on_commit", "type", {"enqueue_on_commit": "yes"}),
    ("metadata", "type", {"metadata": ["a"]}),
    ("cancel", "type", {"cancel": True}),
    ("queue_name", "length", {"queue_name": ""}),
    ("queue_name", "characters", {"queue_name": "a\nb"}),
    ("priority", "type", {"priority": "high"}),
    ("backend", "type", {"backend": 3}),
    ("backend", "unknown", {"backend": "unknown"}),
]


@pytest.mark.parametrize(("field", "code", "options"), BAD, ids=lambda item: item if isinstance(item, str) else "")
def test_a_bad_option_is_an_error_that_names_the_field_and_the_rule(
    field: str, code: str, options: dict[str, Any]
) -> None:
    """S0-112."""
    with pytest.raises(InvalidOptions) as caught:
        tasks.note.using(**options)

    assert (caught.value.field, caught.value.code) == (field, code)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="prioritty"):
        tasks.note.using(prioritty=3)  # type: ignore[call-arg]


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=80),
    st.binary(max_size=8),
    st.timedeltas(),
    st.datetimes(timezones=st.one_of(st.none(), st.just(UTC), st.just(ZoneInfo("Asia/Kathmandu")))),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(object()),
    st.sampled_from([Fixed(1), Steps(1, 2), Exponential(), "late", "atomic", "default"]),
)
NAMES = list(inspect.signature(tasks.note.using).parameters)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(options=st.dictionaries(st.sampled_from(NAMES), anything, max_size=4))
def test_any_options_give_a_valid_task_or_a_documented_error(options: dict[str, Any]) -> None:
    """S0-55, S0-143: never another exception, and a valid task is one the database takes."""
    try:
        made = tasks.note.using(**options)
    except (InvalidOptions, primary.error("InvalidTask")):
        return

    made.get_backend().validate_task(made)
    with transaction.atomic():
        made.using(enqueue_on_commit=False, backoff=Fixed(1), metadata={"a": 1}).enqueue("a")
        transaction.set_rollback(True)


# Call forms


def test_enqueue_many_takes_tuples_dicts_and_signatures_in_order() -> None:
    many = tasks.note.enqueue_many([("a",), {"key": "b"}, tasks.note.s("c"), ["d"]])

    assert [result.id for result in many] == many.ids
    assert [row.arguments for row in Task.objects.order_by("id")] == [
        (["a"], {}),
        ([], {"key": "b"}),
        (["c"], {}),
        (["d"], {}),
    ]
    assert [result.args for result in many[1:3]] == [[], ["c"]]
    assert len(enqueue_many(tasks.note, (("e",) for _ in range(3)))) == 3
    assert len(tasks.note.enqueue_many([])) == 0


def test_enqueue_many_stores_all_or_none() -> None:
    for calls in ([("a",), (object(),)], [("a",), "b"], [("a",), tasks.careful.s()]):
        with pytest.raises((InvalidOptions, TypeError)):
            tasks.note.enqueue_many(calls)  # type: ignore[arg-type]

    assert stored() == 0


def test_the_async_forms_store_too() -> None:
    async def work() -> list[str]:
        one = await tasks.anote.aenqueue("a")
        many = await tasks.anote.aenqueue_many([("b",)])
        signed = await tasks.anote.s("c").aenqueue()
        return [one.id, *many.ids, signed.id]

    ids = async_to_sync(work)()

    assert [str(row.pk) for row in Task.objects.order_by("id")] == ids


def test_a_signature_is_the_call_kept_for_later() -> None:
    signature: Signature[str] = tasks.note.s("a").using(priority=7)

    result = signature.enqueue()

    assert (result.args, Task.objects.get(pk=result.id).priority) == (["a"], 7)
    assert stored() == 1


def test_an_enqueue_inside_a_task_is_its_child() -> None:
    worker = HandWorker()
    mother = tasks.parent.enqueue()
    worker.settle(worker.execute(worker.claim()))
    mother.refresh()

    children = Task.objects.order_by("id")

    assert [str(row.pk) for row in children] == mother.return_value
    assert {str(row.parent_id) for row in children} == {mother.id}


@pytest.mark.parametrize("made", [tasks.surroundings, tasks.asurroundings], ids=["function", "coroutine"])
def test_language_time_zone_and_metadata_travel_with_the_task(made: Any) -> None:
    with translation.override("it"), timezone.override("Asia/Tokyo"):
        result = made.using(metadata={"tenant": 7}).enqueue()
    before = (translation.get_language(), timezone.get_current_timezone_name())

    HandWorker().work()
    result.refresh()

    assert result.return_value == ["it", "Asia/Tokyo", {"tenant": 7}]
    assert (translation.get_language(), timezone.get_current_timezone_name()) == before


# One way in


def test_every_new_row_comes_through_the_one_insert(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-42: enqueue, bulk, context and signature use one insert; nothing else makes a task."""
    from django_taskq.store.vendors import vendor_for

    inserted: list[int] = []
    kind = type(vendor_for("default"))
    insert = kind.insert
    monkeypatch.setattr(
        kind, "insert", lambda self, rows: (inserted.extend(row.id for row in rows), insert(self, rows))[1]
    )

    tasks.note.enqueue("a")
    tasks.note.enqueue_many([("b",), ("c",)])
    tasks.note.s("d").enqueue()
    tasks.note.using(delay=60).enqueue("e")
    async_to_sync(tasks.note.aenqueue)("f")
    tasks.note.using(enqueue_timeout=5).enqueue("g")

    assert sorted(inserted) == sorted(row.pk.int for row in Task.objects.all())
    assert len(inserted) == 7


def test_the_tasks_of_installed_apps_are_known_without_being_imported_by_hand() -> None:
    """S1-36."""
    from django_taskq.lifecycle import definitions

    assert "tests.app.tasks.leave_effect" in definitions.known()


def test_a_burst_of_enqueues_from_many_threads_is_stored_and_run() -> None:
    """S0-81."""
    start = threading.Barrier(8)

    def burst(number: int) -> list[str]:
        try:
            start.wait(30)
            made = [tasks.note, tasks.note.using(priority=number), tasks.note.using(queue_name=f"queue-{number}")]
            ids = [made[at % 3].enqueue(f"{number}-{at}").id for at in range(24)]
            return ids + tasks.note.enqueue_many([(f"{number}-many",)]).ids
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        ids = [task_id for found in pool.map(burst, range(8)) for task_id in found]

    assert len(set(ids)) == 200 == stored()
    assert HandWorker().work(rounds=50) == 200
    assert stored() == 0


# Giving up


def test_an_enqueue_that_was_given_up_before_it_began_stores_nothing() -> None:
    """S0-79, S0-80: pre-cancelled, then a healthy one."""
    given_up = threading.Event()
    made = tasks.note.using(cancel=given_up)
    given_up.set()

    with pytest.raises(EnqueueCancelled):
        made.enqueue("a")
    with pytest.raises(EnqueueCancelled):
        made.enqueue_many([("a",)])

    assert stored() == 0
    given_up.clear()
    made.enqueue("healthy")
    assert stored() == 1


def test_an_aenqueue_cancelled_before_it_began_stores_nothing() -> None:
    async def work() -> None:
        enqueueing = asyncio.ensure_future(tasks.note.aenqueue("a"))
        enqueueing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await enqueueing
        await tasks.note.aenqueue("healthy")

    async_to_sync(work)()

    assert [row.arguments[0] for row in Task.objects.all()] == [["healthy"]]


def test_an_aenqueue_whose_deadline_passes_while_it_waits_for_a_lock_leaves_no_row() -> None:
    """S0-78, S0-82: the wait ends with the deadline, not with the lock."""

    async def work() -> float:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await tasks.note.aenqueue("a")
        return time.monotonic() - started

    with locked():
        waited = async_to_sync(work)()
    async_to_sync(tasks.note.aenqueue)("healthy")

    assert 0.3 <= waited < 10
    assert [row.arguments[0] for row in Task.objects.all()] == [["healthy"]]


def test_an_aenqueue_cancelled_while_it_waits_for_a_lock_leaves_no_row() -> None:
    """S0-82: mid-flight."""
    begun = threading.Event()

    async def work() -> None:
        enqueueing = asyncio.ensure_future(tasks.note.aenqueue("a"))
        await asyncio.to_thread(begun.wait, 30)
        enqueueing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await enqueueing

    with locked(), _telling_when_begun(begun):
        async_to_sync(work)()

    assert stored() == 0
    tasks.note.enqueue("healthy")
    assert stored() == 1


@contextmanager
def _telling_when_begun(begun: threading.Event) -> Iterator[None]:
    from django_taskq.lifecycle.enqueue import Withdrawal

    begin = Withdrawal.begin

    def telling(self: Any, *args: Any) -> None:
        begin(self, *args)
        begun.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Withdrawal, "begin", telling)
        yield


def test_giving_up_between_the_insert_and_the_commit_rolls_the_row_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_taskq.store.vendors import vendor_for

    given_up = threading.Event()
    kind = type(vendor_for("default"))
    insert = kind.insert

    def insert_then_give_up(self: Any, rows: Any) -> None:
        insert(self, rows)
        given_up.set()

    monkeypatch.setattr(kind, "insert", insert_then_give_up)

    with pytest.raises(EnqueueCancelled):
        tasks.note.using(cancel=given_up).enqueue("a")

    assert stored() == 0


def test_an_enqueue_that_was_accepted_stays_whatever_is_cancelled_later() -> None:
    given_up = threading.Event()
    tasks.note.using(cancel=given_up).enqueue("a")

    given_up.set()

    assert stored() == 1


# Deadlines


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_an_enqueue_that_waits_too_long_raises_the_same_error_on_every_database(many: bool) -> None:
    """S0-83, S0-136: EnqueueTimeout, its cause the database's error; no row; the session as before."""
    before = session_limits()
    made = tasks.note.using(enqueue_timeout=timedelta(seconds=0.4))
    started = time.monotonic()

    with locked(), pytest.raises(EnqueueTimeout, match=r"had not accepted the task after 0\.4 seconds") as caught:
        made.enqueue_many([("a",)] * 30) if many else made.enqueue("a")
    waited = time.monotonic() - started

    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, DatabaseError)
    assert 0.3 <= waited < 10
    assert (stored(), session_limits()) == (0, before)
    made.enqueue("healthy")
    assert (stored(), session_limits()) == (1, before)


def test_a_timed_out_enqueue_leaves_the_callers_transaction_usable() -> None:
    before = session_limits()
    if connection.vendor == "sqlite":
        # Its transaction has the only lock there is: nothing can keep the enqueue waiting.
        with transaction.atomic():
            tasks.note.using(enqueue_timeout=0.4).enqueue("a")
            inside = session_limits()
        assert (inside, session_limits(), stored()) == (before, before, 1)
        return

    with transaction.atomic():
        with locked(), pytest.raises(EnqueueTimeout):
            tasks.note.using(enqueue_timeout=0.4).enqueue("a")
        inside = session_limits()
        tasks.note.enqueue("b")

    assert (inside, session_limits()) == (before, before)
    assert [row.arguments[0] for row in Task.objects.all()] == [["b"]]


def test_a_refused_enqueue_is_told_as_an_event() -> None:
    told: list[Any] = []
    events.subscribe(events.EnqueueRejected, told.append)
    try:
        with locked(), pytest.raises(EnqueueTimeout):
            tasks.note.using(enqueue_timeout=0.2).enqueue("a")
    finally:
        events.unsubscribe(events.EnqueueRejected, told.append)

    assert [(event.task, event.queue, type(event.error)) for event in told] == [
        (tasks.note.module_path, "default", EnqueueTimeout)
    ]
