"""The tables are what the migrations say, on each database, forwards and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import IntegrityError, connection, migrations, models, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState
from django.db.utils import DatabaseError

from django_taskq import clock
from django_taskq.domain.states import FINAL, LIVE, State
from django_taskq.ids import uuid7
from django_taskq.models import FinishedTask, Task, Worker
from django_taskq.schema import LiveIndex, NameField, TaskIdField
from tests.capabilities import has

APP = "django_taskq"

# Index: columns and condition where an index can be partial, columns where not.
EXPECTED = {
    "taskq_task_claim": (["queue", "rank", "id"], "state", ["queue", "state", "rank", "id"]),
    "taskq_task_due": (["run_after"], "state", ["state", "run_after"]),
    "taskq_task_lease": (["lease"], "lease", ["lease"]),
    "taskq_finished_dead": (["id"], "state", ["state", "id"]),
    "taskq_finished_delete_at": (["delete_at"], "delete_at", ["delete_at"]),
    "taskq_finished_fingerprint": (["fingerprint", "id"], "fingerprint", ["fingerprint", "id"]),
    "taskq_finished_at": (["finished_at"], None, ["finished_at"]),
}


def constraints(table: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        return connection.introspection.get_constraints(cursor, table)


def conditions() -> dict[str, str]:
    """Return the text by which the database knows each partial index."""
    queries = {
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'taskq%'",
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND name LIKE 'taskq%'",
    }
    with connection.cursor() as cursor:
        cursor.execute(queries[connection.vendor])
        return dict(cursor.fetchall())


def check_indexes() -> None:
    found = {**constraints(Task._meta.db_table), **constraints(FinishedTask._meta.db_table)}
    partial = has("partial_indexes")
    texts = conditions() if partial else {}
    for name, (narrow, condition, plain) in EXPECTED.items():
        assert name in found, f"{name} does not exist"
        assert found[name]["index"]
        assert found[name]["columns"] == (narrow if partial else plain), name
        if partial and condition is not None:
            where = texts[name].partition(" WHERE ")[2]
            assert condition in where, texts[name]


@pytest.mark.django_db
def test_every_hot_index_exists_in_the_form_this_database_can_have() -> None:
    check_indexes()


@pytest.mark.django_db
def test_every_index_a_model_names_exists() -> None:
    for model in apps.get_app_config(APP).get_models():
        if model._meta.proxy:
            continue
        found = constraints(model._meta.db_table)
        for index in model._meta.indexes:
            assert index.name in found, f"{index.name} of {model.__name__}"
            assert index.fields, f"{index.name} has expressions, which MariaDB silently leaves out"


@pytest.mark.django_db
def test_the_check_constraints_name_every_state_once() -> None:
    live, final = Task._meta.constraints[0], FinishedTask._meta.constraints[0]

    for state in State:
        assert live.condition.check({"state": int(state)}) == (state in LIVE)
        assert final.condition.check({"state": int(state)}) == (state in FINAL)


@pytest.mark.django_db
def test_django_can_read_the_tables_back() -> None:
    call_command("inspectdb", Task._meta.db_table, FinishedTask._meta.db_table, stdout=(told := io.StringIO()))

    assert "class DjangoTaskqTask(" in told.getvalue()
    assert "Unable to inspect" not in told.getvalue()


@pytest.mark.django_db
def test_ids_have_the_type_chosen_for_this_database() -> None:
    with connection.cursor() as cursor:
        columns = {
            column.name: column
            for column in connection.introspection.get_table_description(cursor, Task._meta.db_table)
        }
        if connection.vendor == "mysql":
            cursor.execute(f"SHOW COLUMNS FROM {Task._meta.db_table} LIKE 'id'")
            kind = cursor.fetchone()[1]
            assert kind == "binary(16)"
        else:
            kind = connection.introspection.get_field_type(columns["id"].type_code, columns["id"])
            assert kind == {"postgresql": "UUIDField", "sqlite": "CharField"}[connection.vendor]


@pytest.mark.django_db
def test_live_and_finished_tasks_hold_no_foreign_keys() -> None:
    for model in (Task, FinishedTask):
        assert not [name for name, facts in constraints(model._meta.db_table).items() if facts["foreign_key"]]


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="PostgreSQL alone has storage parameters")
@pytest.mark.django_db
def test_postgresql_knows_how_the_tables_live() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relname LIKE 'django_taskq%'"
        )
        found = {table: set(options) for table, options in cursor.fetchall()}

    assert {
        "autovacuum_vacuum_scale_factor=0",
        "autovacuum_vacuum_threshold=20000",
        "autovacuum_analyze_scale_factor=0",
        "autovacuum_analyze_threshold=50000",
    } <= found[Task._meta.db_table]
    assert "fillfactor=50" in found[Worker._meta.db_table]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong",
    [
        {"state": State.SUCCEEDED},
        {"state": State.RUNNING, "lease": None},
        {"state": State.READY, "lease": 1 << 32},
        {"attempt": -1},
        {"max_attempts": 0},
    ],
    ids=lambda wrong: next(iter(wrong)) + str(next(iter(wrong.values()))),
)
def test_the_database_refuses_a_live_task_that_cannot_be(wrong: dict[str, Any]) -> None:
    values = {"queue": "q", "name": "n", "created_at": clock.now(), "state": State.READY}
    Task.objects.create(**values)

    with pytest.raises((IntegrityError, DatabaseError)), transaction.atomic():
        Task.objects.create(**{**values, **wrong})

    assert Task.objects.count() == 1


@pytest.mark.django_db
def test_the_database_refuses_a_finished_task_in_a_live_state() -> None:
    now = clock.now()

    with pytest.raises((IntegrityError, DatabaseError)), transaction.atomic():
        FinishedTask.objects.create(queue="q", name="n", created_at=now, finished_at=now, state=State.READY)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", APP, check=True, dry_run=True, verbosity=1)


@pytest.fixture
def migrated_back() -> Iterator[MigrationExecutor]:
    """Take every table of the app away, and bring all back afterwards whatever happened."""
    executor = MigrationExecutor(connection)
    executor.migrate([(APP, None)])
    try:
        yield MigrationExecutor(connection)
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes(APP))


@pytest.mark.django_db(transaction=True)
def test_the_migrations_go_back_to_nothing_and_forward_again(migrated_back: MigrationExecutor) -> None:
    tables = connection.introspection.table_names()
    assert not [table for table in tables if table.startswith("django_taskq_")]

    migrated_back.migrate(migrated_back.loader.graph.leaf_nodes(APP))

    assert Task._meta.db_table in connection.introspection.table_names()
    check_indexes()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_each_migration_can_be_undone_on_its_own(migrated_back: MigrationExecutor) -> None:
    graph = migrated_back.loader.graph
    nodes = graph.forwards_plan(graph.leaf_nodes(APP)[0])
    steps = [node for node in nodes if node[0] == APP]

    for at, node in enumerate(steps):
        MigrationExecutor(connection).migrate([node])
        MigrationExecutor(connection).migrate([steps[at - 1] if at else (APP, None)])
        MigrationExecutor(connection).migrate([node])

    check_indexes()


@pytest.mark.django_db(transaction=True)
def test_a_changed_column_leaves_the_indexes_and_their_conditions() -> None:
    """SQLite makes the table anew to change a column; an index that is not part of the model would be lost."""
    before = constraints(Task._meta.db_table).keys()
    state = MigrationExecutor(connection).loader.project_state()
    wider = migrations.AlterField("task", "options", models.TextField(default="", blank=True))
    back = migrations.AlterField("task", "options", models.TextField(null=True, blank=True))

    def apply(operation: Any, old: ProjectState) -> ProjectState:
        new = old.clone()
        operation.state_forwards(APP, new)
        with connection.schema_editor() as editor:
            operation.database_forwards(APP, editor, old, new)
        return new

    changed = apply(wider, state)
    try:
        check_indexes()
        assert constraints(Task._meta.db_table).keys() == before
        with pytest.raises((IntegrityError, DatabaseError)):
            Task.objects.create(queue="q", name="n", created_at=clock.now(), state=State.SUCCEEDED, options="")
    finally:
        apply(back, changed)
    check_indexes()


def test_the_kinds_of_column_and_index_are_written_into_migrations_as_they_are() -> None:
    index = LiveIndex(name="x", fields=["a", "b"], partial=["b"], where=models.Q(a=1))
    path, args, kwargs = index.deconstruct()

    assert path == "django_taskq.schema.LiveIndex"
    assert LiveIndex(*args, **kwargs) == index
    assert TaskIdField(primary_key=True, default=uuid7).deconstruct()[1] == "django_taskq.schema.TaskIdField"
    assert NameField(max_length=9).deconstruct()[1] == "django_taskq.schema.NameField"


@pytest.mark.django_db(transaction=True)
def test_pauses_of_queues_move_into_their_own_table_and_back(migrated_back: MigrationExecutor) -> None:
    """An upgrade, or the way back, resumes nothing."""
    before, after = (APP, "0007_controls"), (APP, "0008_pauses")
    migrated_back.migrate([before])
    queues = migrated_back.loader.project_state([before]).apps.get_model(APP, "Queue").objects
    since = clock.now().replace(microsecond=0)
    queues.create(name="mail", paused=True, paused_at=since, paused_by="ana", pause_reason="outage")
    queues.create(name="by hand", paused=True)
    queues.create(name="runs")

    executor = MigrationExecutor(connection)
    executor.migrate([after])
    pauses = executor.loader.project_state([after]).apps.get_model(APP, "Pause").objects
    found = {pause.name: pause for pause in pauses.all()}
    pauses.create(scope=1, name="over", paused_at=since, until=since)
    pauses.create(scope=1, name="new", paused_at=since, paused_by="ben")
    pauses.create(scope=0, name="", paused_at=since)
    executor = MigrationExecutor(connection)
    executor.migrate([before])

    assert set(found) == {"mail", "by hand"}
    mail = found["mail"]
    assert (mail.scope, mail.paused_at, mail.paused_by, mail.reason, mail.until) == (1, since, "ana", "outage", None)
    # They were made when a pause refused nothing.
    assert mail.rejects is False
    back = {queue.name: queue for queue in queues.all()}
    assert {name for name, queue in back.items() if queue.paused} == {"mail", "by hand", "new"}
    assert (back["mail"].paused_at, back["mail"].paused_by, back["mail"].pause_reason) == (since, "ana", "outage")
    assert back["new"].paused_by == "ben"
    assert back["runs"].paused is False
