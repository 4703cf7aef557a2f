"""What the lists and pages of workflows read, with many workflows and tasks behind them."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq.domain.workflows import Kind, WorkflowState
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from django_taskq.ops import search, workflows
from django_taskq.ops.workflows import WorkflowFilter
from tests.faces.rows import id_at
from tests.faces.test_admin_plans import ROWS, START, _rows_read, many_rows  # noqa: F401 - a fixture

pytestmark = [pytest.mark.stress, pytest.mark.django_db]

FLOWS = 20_000
BIG = id_at(START - timedelta(days=1))
MEMBERS = 40_000

LISTS = {
    "newest": WorkflowFilter(),
    "of one state": WorkflowFilter(states=frozenset({WorkflowState.RUNNING})),
    "of a day": WorkflowFilter(created_since=START),
    "of a kind, without an index": WorkflowFilter(kinds=frozenset({Kind.CHAIN})),
    "of a name, without an index": WorkflowFilter(name="nobody"),
}


@pytest.fixture(scope="module")
def many_flows(many_rows, django_db_blocker):  # noqa: F811
    with django_db_blocker.unblock():
        _store()
        yield
        for model in (Workflow, Dependency):
            model.objects.all().delete()


def _store() -> None:
    ids = [id_at(START + timedelta(seconds=number), number) for number in range(0, ROWS, ROWS // FLOWS)]
    rows = [_flow(key, number) for number, key in enumerate(ids)]
    Workflow.objects.bulk_create([_flow(BIG, 1), *rows], batch_size=1000)
    for model, part in ((Task, "second"), (FinishedTask, "first")):
        keys = list(model.objects.order_by("pk").values_list("pk", flat=True)[: 2 * MEMBERS])
        chosen = keys[MEMBERS:] if part == "second" else keys[:MEMBERS]
        for at in range(0, MEMBERS, 500):
            model.objects.filter(pk__in=chosen[at : at + 500]).update(workflow_id=BIG, role=1)
        # Some that are inside others, so that the columns are no longer empty but for one.
        for number, key in enumerate(keys[:5000] if part == "second" else keys[-5000:]):
            if number % 25 == 0:
                model.objects.filter(pk=key).update(workflow_id=ids[number // 25], role=1)
    Dependency.objects.bulk_create(
        [Dependency(workflow_id=BIG, node_id=ids[number], predecessor_id=BIG) for number in range(5000)],
        batch_size=1000,
    )
    with connection.cursor() as cursor:
        for model in (Workflow, Dependency, Task, FinishedTask):
            table = connection.ops.quote_name(model._meta.db_table)
            cursor.execute(f"{'ANALYZE TABLE' if connection.vendor == 'mysql' else 'ANALYZE'} {table}")


def _flow(key: uuid.UUID, number: int) -> Workflow:
    return Workflow(
        id=key,
        kind=Kind.CHAIN if number % 50 == 0 else Kind.BATCH,
        state=WorkflowState.RUNNING if number % 100 == 0 else WorkflowState.COMPLETED,
        total=10,
        open=5,
        parent_id=BIG if number % 20 == 0 else None,
        created_at=START + timedelta(seconds=number),
    )


def read_by(look) -> dict[str, int]:
    with CaptureQueriesContext(connection) as queries:
        look()
    statements = [query["sql"] for query in queries if query["sql"].upper().startswith("SELECT")]
    assert statements
    return {sql: _rows_read(sql) for sql in statements}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_reads_from_an_index_and_stops(name: str, many_flows) -> None:
    def look() -> None:
        page = workflows.listed("default", LISTS[name], limit=50)
        if page.older:
            workflows.listed("default", LISTS[name], limit=50, after=page.older)

    most = search.WINDOW if "without" in name else search.COUNT_CAP
    assert not {sql: count for sql, count in read_by(look).items() if count > most + 100}


def test_members_are_read_from_an_index_a_page_at_a_time(many_flows) -> None:
    row = Workflow.objects.get(pk=BIG)

    def look() -> None:
        page = workflows.members("default", row)
        assert page.more is not None
        workflows.members("default", row, after=page.more)

    assert not {sql: count for sql, count in read_by(look).items() if count > 5000}


def test_a_tree_reads_what_belongs_to_it(many_flows) -> None:
    row = Workflow.objects.get(pk=BIG)
    root = workflows.tree("default", row, limit=300)
    assert len(root) > 100

    # Of many small ones at once: some of what is inside them, and nothing of the table.
    keys = list(Workflow.objects.order_by("pk").values_list("pk", flat=True)[1:200])
    read = read_by(lambda: workflows._nodes("default", keys, limit=300))

    assert not {sql: count for sql, count in read.items() if count > 2000}


def test_callbacks_and_blockers_are_bounded(many_flows) -> None:
    node = Dependency.objects.values_list("node_id", flat=True)[0]

    assert not {
        sql: count for sql, count in read_by(lambda: workflows.callbacks("default", BIG)).items() if count > 2100
    }
    assert not {
        sql: count for sql, count in read_by(lambda: workflows.blockers("default", node)).items() if count > 100
    }
