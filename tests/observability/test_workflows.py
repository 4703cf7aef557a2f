"""What is counted and logged of chains, batches and workflows."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest
from prometheus_client import CollectorRegistry

from django_taskq import batch, chain, events, replay
from django_taskq.models import FinishedTask
from django_taskq.observability import prometheus
from tests.by_hand import HandWorker
from tests.observability import tasks
from tests.observability.test_metrics import value

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def registry() -> Generator[CollectorRegistry]:
    registry = CollectorRegistry()
    counters = prometheus.Counters(registry)
    counters.subscribe()
    yield registry
    counters.unsubscribe()


def test_the_ends_of_workflows_and_their_callbacks_are_counted(registry: CollectorRegistry) -> None:
    chain(tasks.add.s(1, 2), batch(tasks.add.s(3, 4))).then(tasks.add.s(5, 6)).enqueue()
    failing = chain(tasks.always_fail.s(), tasks.add.s(1, 2)).catch(tasks.always_fail.s()).enqueue()
    chain(tasks.add.s(1, 2)).enqueue().cancel()

    HandWorker().work()
    failing.replay()

    found = {
        (kind, event): value(registry, "workflow_events_total", kind=kind, event=event)
        for kind in ("chain", "batch")
        for event in ("started", "completed", "failed", "cancelled", "replayed")
    }
    assert {pair: count for pair, count in found.items() if count} == {
        ("chain", "started"): 3,
        ("chain", "completed"): 1,
        ("chain", "failed"): 1,
        ("chain", "cancelled"): 1,
        ("chain", "replayed"): 1,
        ("batch", "started"): 1,
        ("batch", "completed"): 1,
    }
    assert value(registry, "workflow_callbacks_total", callback="then", event="enqueued") == 1
    assert value(registry, "workflow_callbacks_total", callback="catch", event="enqueued") == 1
    assert value(registry, "workflow_callbacks_total", callback="catch", event="dead") == 1


def test_no_event_of_a_workflow_is_made_where_nobody_counts_or_writes() -> None:
    logging.getLogger("django_taskq.tasks").setLevel(logging.CRITICAL)
    try:
        for kind in prometheus._WORKFLOW_EVENTS:
            assert not events.wanted(kind)
    finally:
        logging.getLogger("django_taskq.tasks").setLevel(logging.NOTSET)


def test_the_log_tells_how_a_workflow_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "django_taskq")

    handle = chain(tasks.always_fail.s(), tasks.add.s(1, 2)).name("month\nend").catch(tasks.always_fail.s()).enqueue()
    HandWorker().work()
    replay(FinishedTask.objects.get(workflow_id=handle.id, role=1, reason="exhausted").pk, actor="ana")

    told = {record.getMessage(): record for record in caplog.records}
    name = f"Chain month\\nend ({handle.id})"
    assert f"{name} started with 2 members" in told
    failed = told[f"{name} failed: 1 of 2 members are dead"]
    assert (failed.levelname, failed.workflow_id, failed.kind) == ("WARNING", handle.id, "chain")
    assert any(text.startswith(f"{name} called catch, and task ") for text in told)
    assert f"{name} was replayed by ana: 2 tasks" in told
