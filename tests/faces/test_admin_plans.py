"""Each list reads from an index and stops: with 200,000 rows behind it no page looks at more than it may."""

from __future__ import annotations

import re
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task
from django_taskq.ops import search
from django_taskq.ops.search import TaskFilter
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for
from tests.faces.rows import id_at

pytestmark = [pytest.mark.stress, pytest.mark.django_db]

ROWS = 200_000
_OF_ONE_MOMENT = re.compile(r"^SEARCH .*\b(finished_at|run_after|lease)=\?")
START = datetime(2026, 3, 1, tzinfo=UTC)
READY, SCHEDULED, DEAD = (frozenset({state}) for state in (State.READY, State.SCHEDULED, State.DEAD))

SEARCHES = {
    "live, newest": (search.live, TaskFilter()),
    "live, by the beginning of an id": (search.live, TaskFilter(id=str(id_at(START))[:13])),
    "live, of a day": (search.live, TaskFilter(created_since=START, created_until=START + timedelta(days=1))),
    "ready of one queue": (search.live, TaskFilter(states=READY, queues=frozenset({"default"}))),
    "scheduled": (search.live, TaskFilter(states=SCHEDULED)),
    "running": (search.live, TaskFilter(states=frozenset({State.RUNNING}))),
    "finished, last ended": (search.finished, TaskFilter()),
    "finished, of a day": (search.finished, TaskFilter(finished_since=START)),
    "open dead letters": (search.finished, TaskFilter(states=DEAD, discarded=False)),
    "all dead letters": (search.finished, TaskFilter(states=DEAD)),
    "same error": (search.finished, TaskFilter(fingerprint="f" * 16)),
    "a task's name, without an index": (search.finished, TaskFilter(names=frozenset({"nobody"}))),
    "a queue, without an index": (search.live, TaskFilter(queues=frozenset({"nobody"}))),
}


@pytest.fixture(scope="module")
def many_rows(django_db_setup, django_db_blocker):
    """Store the rows once for all searches of this file, and take them away again."""
    with django_db_blocker.unblock():
        _store()
        yield
        for model in (Task, FinishedTask):
            model.objects.all()._raw_delete("default")


def _store() -> None:
    names = (
        "id",
        "queue",
        "rank",
        "max_attempts",
        "ack",
        "created_at",
        "name",
        "args",
        "run_after",
        "replays",
        "attempt",
    )
    ids = [id_at(START + timedelta(seconds=number), number) for number in range(ROWS)]
    vendor = vendor_for("default")
    for first in range(0, ROWS, 5000):
        vendor.insert([_new(ids[number], number) for number in range(first, first + 5000)])
    with connection.cursor() as cursor:
        live, ended = (connection.ops.quote_name(model._meta.db_table) for model in (Task, FinishedTask))
        columns = ", ".join(connection.ops.quote_name(name) for name in names)
        cursor.execute(
            f"INSERT INTO {ended} ({columns}, state, finished_at) "
            f"SELECT {columns}, {int(State.SUCCEEDED)}, created_at FROM {live}"
        )
        # Few run; one in twenty of what ended is dead, and all but a hundred of those were discarded.
        Task.objects.filter(pk__in=ids[::5000]).update(state=State.RUNNING, lease=1 << 32)
        for first in range(0, ROWS, 10_000):
            dead = FinishedTask.objects.filter(pk__in=ids[first : first + 10_000 : 20])
            dead.update(state=State.DEAD, fingerprint="f" * 16, resolved_at=START)
        FinishedTask.objects.filter(pk__in=ids[::2000]).update(resolved_at=None)
        for table in (live, ended):
            cursor.execute(f"{'ANALYZE TABLE' if connection.vendor == 'mysql' else 'ANALYZE'} {table}")


def _new(key: uuid.UUID, number: int) -> NewTask:
    moment = START + timedelta(seconds=number)
    return NewTask(
        id=key.int, queue="default", rank=0, state=State.READY if number % 2 else State.SCHEDULED, max_attempts=3,
        ack=0, run_after=moment, created_at=moment, deadline_at=None, expires_at=None, name="shop.mail", options=None,
        metadata=None, parent_id=None, args='{"args":[],"kwargs":{}}',
    )  # fmt: skip


def _rows_read(sql: str) -> int:
    """Run a statement and return how many rows or index entries the database looked at for it."""
    with connection.cursor() as cursor:
        match connection.vendor:
            case "postgresql":
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
                return _scanned(cursor.fetchone()[0][0]["Plan"])
            case "mysql":
                cursor.execute("FLUSH STATUS")
                cursor.execute(sql)
                cursor.fetchall()
                cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
                return sum(int(count) for _name, count in cursor.fetchall())
            case _sqlite:
                return _walked(cursor, sql)


def _scanned(node: dict) -> int:
    """Sum what the scans of a plan of PostgreSQL looked at."""
    below = sum(_scanned(child) for child in node.get("Plans", ()))
    if "Scan" not in node["Node Type"] or below:
        return below
    return (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]


def _walked(cursor, sql: str) -> int:
    # SQLite counts nothing, but tells its plan: a walk along an index stops at the limit, one that sorts does not.
    cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
    plan = [row[3] for row in cursor.fetchall()]
    # Rows of one moment may be sorted: there are few, and the index finds them.
    may_sort = any(_OF_ONE_MOMENT.search(line) for line in plan)
    is_bounded = all(
        "USING" in line if line.startswith(("SCAN", "SEARCH")) else may_sort or line != "USE TEMP B-TREE FOR ORDER BY"
        for line in plan
    )
    return 0 if is_bounded else ROWS


def test_a_statement_that_reads_the_whole_table_is_recognised(many_rows) -> None:
    table = connection.ops.quote_name(FinishedTask._meta.db_table)

    assert _rows_read(f"SELECT * FROM {table} WHERE name = 'x'") >= ROWS


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_reads_from_an_index_and_stops(name: str, many_rows) -> None:
    find, wanted = SEARCHES[name]

    with CaptureQueriesContext(connection) as queries:
        page = find("default", wanted, limit=50)
        if page.older:
            second = find("default", wanted, limit=50, after=page.older)
            assert second.newer
            find("default", wanted, limit=50, before=second.newer)

    statements = [query["sql"] for query in queries if query["sql"].upper().startswith("SELECT")]
    read = {sql: _rows_read(sql) for sql in statements}
    most = max(search.COUNT_CAP, 0 if page.examined is None else search.WINDOW)
    assert statements
    assert not {sql: count for sql, count in read.items() if count > most + 100}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_takes_no_longer_at_the_far_end(name: str, many_rows) -> None:
    find, wanted = SEARCHES[name]
    page = find("default", wanted, limit=200)
    for _ in range(5):
        if page.older is None:
            break
        page = find("default", wanted, limit=200, after=page.older)

    def took() -> float:
        began = time.perf_counter()
        find("default", wanted, limit=50, after=page.older)
        return time.perf_counter() - began

    # The best of three, and generous for a busy machine; without its index a page reads all rows each time.
    seconds = min(took() for _ in range(3))
    assert seconds < 1.0, f"{name} took {seconds:.3f} s"
