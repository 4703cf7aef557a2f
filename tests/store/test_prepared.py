"""An INSERT that is prepared stores what the ordinary one stores, and gives way to it wherever it cannot work."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.ids import task_ids
from django_taskq.models import Task
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for
from tests.capabilities import requires

pytestmark = [pytest.mark.django_db(transaction=True), requires("prepared_insert")]

MANY = 12


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    connection.close()
    yield
    connection.close()


def row(**changes: Any) -> NewTask:
    values: dict[str, Any] = {
        **dict.fromkeys(NewTask._fields),
        "id": task_ids.one(),
        "queue": "q",
        "rank": -5,
        "state": int(State.READY),
        "max_attempts": 4,
        "ack": 1,
        "created_at": clock.now(),
        "name": "some.task",
        "args": '{"args":[1,"\\u00e9 \\\\ %s $1 \'"],"kwargs":{}}',
        **changes,
    }
    return NewTask(**values)


def insert(*rows: NewTask) -> None:
    for one in rows:
        vendor_for("default").insert([one])


def ask(statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def uses() -> int:
    """Return how often this session has run prepared inserts."""
    [(count,)] = ask("SELECT coalesce(sum(generic_plans + custom_plans), 0)::int FROM pg_prepared_statements")
    return int(count)


def prepared() -> int:
    [(count,)] = ask("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'django_taskq_%'")
    return int(count)


def warm(count: int = MANY) -> None:
    insert(*[row() for _ in range(count)])


def contents() -> list[tuple[Any, ...]]:
    columns = [field.attname for field in Task._meta.concrete_fields if field.attname not in ("id", "created_at")]
    return list(Task.objects.order_by("id").values_list(*columns))


def test_what_is_stored_by_the_prepared_insert_is_what_the_ordinary_one_stores() -> None:
    rows = [row() for _ in range(MANY)]

    insert(*rows)

    assert uses() > 0
    assert len(contents()) == MANY
    assert len(set(contents())) == 1
    assert [key.int for key in Task.objects.order_by("id").values_list("id", flat=True)] == [one.id for one in rows]
    assert list(Task.objects.order_by("id").values_list("created_at", flat=True)) == [one.created_at for one in rows]


@pytest.mark.parametrize("name", ["it's", 'a "quote"', "100%", "%s", "$1", "back\\slash", "größe"])
def test_any_name_and_queue_is_stored_as_it_is(name: str) -> None:
    insert(*[row(name=name, queue=name) for _ in range(MANY)])

    assert set(Task.objects.values_list("name", "queue")) == {(name, name)}
    assert Task.objects.count() == MANY


def test_a_connection_for_a_few_inserts_prepares_nothing() -> None:
    warm(5)

    assert prepared() == 0


def test_a_session_holds_a_bounded_number_of_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_taskq.store.vendors.prepared._MOST", 2)

    for number in range(4):
        insert(*[row(name=f"some.task{number}") for _ in range(MANY)])

    assert prepared() == 2
    assert Task.objects.count() == 4 * MANY


@pytest.mark.parametrize("lost_by", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_a_statement_that_was_discarded_costs_no_task_and_doubles_none(lost_by: str) -> None:
    warm()
    ask(lost_by)

    warm()

    assert Task.objects.count() == 2 * MANY


def test_a_statement_that_was_discarded_does_not_cost_the_callers_transaction() -> None:
    warm()

    with transaction.atomic():
        ask("DEALLOCATE ALL")
        warm()

    assert Task.objects.count() == 2 * MANY


def test_inside_a_transaction_nothing_is_prepared_and_all_is_rolled_back() -> None:
    with transaction.atomic():
        warm()
        transaction.set_rollback(True)

    assert prepared() == 0
    assert Task.objects.count() == 0


def test_a_transaction_opened_by_hand_is_seen() -> None:
    warm()
    before = uses()
    ask("BEGIN")
    warm(1)
    assert uses() == before
    ask("ROLLBACK")

    assert Task.objects.count() == MANY


def test_a_pipeline_of_the_driver_is_seen() -> None:
    warm()
    with connection.connection.pipeline():
        warm(2)

    assert Task.objects.count() == MANY + 2


def test_a_column_that_is_added_does_not_disturb() -> None:
    warm()
    ask(f'ALTER TABLE "{Task._meta.db_table}" ADD COLUMN extra integer')
    try:
        warm()
    finally:
        ask(f'ALTER TABLE "{Task._meta.db_table}" DROP COLUMN extra')

    warm()
    assert Task.objects.count() == 3 * MANY


def test_what_the_database_refuses_raises_what_django_raises() -> None:
    warm()
    twice = row()

    insert(twice)
    with pytest.raises(IntegrityError) as caught:
        insert(twice)

    assert caught.value.__cause__.sqlstate == "23505"
    assert Task.objects.count() == MANY + 1
    insert(row())


def test_a_lost_connection_raises_what_django_raises_and_the_next_one_begins_anew() -> None:
    warm()
    pid = connection.connection.info.backend_pid
    thread = threading.Thread(target=_terminate, args=[pid])
    thread.start()
    thread.join()

    with pytest.raises(OperationalError):
        insert(row())
    connection.close()
    warm()

    assert Task.objects.count() == 2 * MANY


def _terminate(pid: int) -> None:
    ask(f"SELECT pg_terminate_backend({pid}, 10000)")
    connections.close_all()


# Who watches


def test_execute_wrappers_see_the_insert_and_may_refuse_it() -> None:
    warm()
    seen: list[str] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        result = execute(sql, params, many, context)
        assert context["cursor"].rowcount == 1
        return result

    def refuse(execute: Callable[..., Any], *rest: Any) -> Any:
        raise RuntimeError("no queries here")

    with connection.execute_wrapper(watch):
        insert(row())
    with connection.execute_wrapper(refuse), pytest.raises(RuntimeError, match="no queries"):
        insert(row())

    assert [sql.split(" (")[0] for sql in seen] == [f'INSERT INTO "{Task._meta.db_table}"']
    assert Task.objects.count() == MANY + 1


def test_a_wrapper_that_changes_the_statement_gets_what_it_wrote() -> None:
    warm()

    def rename(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("some.task", "other.task"), params, many, context)

    with connection.execute_wrapper(rename):
        insert(row())

    assert Task.objects.filter(name="other.task").count() == 1


def test_captured_queries_show_the_insert_with_its_values() -> None:
    warm()

    with CaptureQueriesContext(connection) as captured:
        one = row()
        insert(one)

    [query] = captured.captured_queries
    assert query["sql"].startswith("INSERT INTO")
    assert f"{one.id:032x}" in query["sql"].replace("-", "")


# Poolers


@contextmanager
def pooler() -> Iterator[int]:
    """Stand between client and server as a pooler does, with process numbers of its own; yields the port."""
    settings = connection.settings_dict
    host, port = settings["HOST"] or "127.0.0.1", int(settings["PORT"] or 5432)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, to: socket.socket, change: Callable[[bytes], bytes]) -> None:
        try:
            while data := source.recv(65536):
                to.sendall(change(data))
        except OSError:
            pass
        finally:
            to.close()

    def renumber(data: bytes) -> bytes:
        # BackendKeyData: "K", length 12, process number, secret.
        return re.sub(rb"K\x00\x00\x00\x0c.{4}", lambda _: b"K\x00\x00\x00\x0c\x7f\xff\xff\xff", data, flags=re.DOTALL)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if host.startswith("/"):
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{host}/.s.PGSQL.{port}")
            else:
                server = socket.create_connection((host, port))
            threading.Thread(target=pump, args=[client, server, lambda data: data], daemon=True).start()
            threading.Thread(target=pump, args=[server, client, renumber], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def test_behind_a_pooler_nothing_is_prepared() -> None:
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("HOST", "PORT", "OPTIONS")}
    with pooler() as port:
        settings.update(HOST="127.0.0.1", PORT=str(port), OPTIONS={**settings["OPTIONS"], "sslmode": "disable"})
        try:
            warm()
            number, found = connection.connection.info.backend_pid, prepared()
        finally:
            connection.close()
            settings.update(before)

    assert number == 0x7FFFFFFF
    assert found == 0
    assert Task.objects.count() == MANY
