"""Claiming: no two workers get the same task, nobody waits for anybody, each claim counts."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_taskq import api
from django_taskq.domain import lease as leases
from django_taskq.domain.outcomes import Succeeded
from django_taskq.domain.states import State
from django_taskq.lifecycle import claim as claims
from django_taskq.lifecycle.claim import Claimer, parse_queues
from django_taskq.lifecycle.settle import Ended
from django_taskq.models import FinishedTask, Task
from django_taskq.store import workers as worker_store
from tests import engine
from tests.capabilities import requires
from tests.engine import announce, claim, claim_one, db_now, in_threads, ready_task, row_of, state_of, write
from tests.guarantees.tasks import note

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_claim_takes_the_task_counts_the_attempt_and_names_its_holder() -> None:
    """S1-26, S0-50: taking a task and counting its attempt are one step."""
    task = ready_task(attempt=1)
    worker_id = announce()

    claimed = claim_one(worker_id)

    row = row_of(task)
    assert isinstance(row, Task)
    assert (row.state, row.attempt, row.worker_id) == (State.RUNNING, 2, worker_id)
    assert row.lease == claimed.lease
    assert claimed.attempt == 2
    assert row.started_at is not None


def test_ten_workers_on_one_row_give_it_to_one() -> None:
    """S1-17, S2-07, S2-26, S2-46: the others of a race leave with empty hands."""
    task = ready_task()
    workers = [announce() for _ in range(10)]

    found = in_threads(*(lambda worker_id=worker_id: claim(worker_id) for worker_id in workers))

    assert sorted(len(rows) for rows in found) == [0] * 9 + [1]
    row = row_of(task)
    assert row is not None
    assert row.attempt == 1


def test_racing_workers_share_the_tasks_without_overlap_and_leave_none() -> None:
    """S1-31, S4-16, S0-156: each task goes to exactly one of them."""
    tasks = {str(ready_task().pk) for _ in range(60)}
    workers = [announce() for _ in range(4)]

    def take(worker_id: int) -> list[str]:
        claimer = Claimer(engine.ALIAS, worker_id, [("default", None)])
        taken: list[str] = []
        while True:
            rows = claimer.claim(7, now=db_now())
            taken += [engine.vendor_for(engine.ALIAS).public_id(row.key) for row in rows]
            if not rows and not Task.objects.filter(state=State.READY).exists():
                return taken

    found = in_threads(*(lambda worker_id=worker_id: take(worker_id) for worker_id in workers))

    everything = [task_id for taken in found for task_id in taken]
    assert len(everything) == 60
    assert set(everything) == tasks


@requires("skip_locked")
def test_a_claim_passes_over_rows_that_somebody_else_has_locked() -> None:
    """S1-17: a claimer never waits for another."""
    locked, free = ready_task(), ready_task()
    worker_id = announce()

    with transaction.atomic():
        list(Task.objects.select_for_update().filter(pk=locked.pk))
        [found] = in_threads(lambda: claim(worker_id, limit=2))

    assert [engine.vendor_for(engine.ALIAS).public_id(row.key) for row in found] == [str(free.pk)]
    assert state_of(locked) == "ready"


@requires("skip_locked")
def test_the_claim_says_skip_locked() -> None:
    """S1-17: the statement itself."""
    ready_task()
    worker_id = announce()

    with CaptureQueriesContext(
        connection,
    ) as queries:
        claim(worker_id)

    assert any("SKIP LOCKED" in query["sql"] for query in queries)


def test_a_queue_that_is_not_asked_for_is_left_alone() -> None:
    """S4-99: named queues are separate."""
    here, there = ready_task(queue="default"), ready_task(queue="other")

    found = claim(queues="default", limit=10)

    assert len(found) == 1
    assert (state_of(here), state_of(there)) == ("running", "ready")


def test_only_ready_tasks_are_claimed() -> None:
    """S4-02: nothing that waits, is scheduled, parked or running is taken."""
    holder = announce()
    for state in (State.WAITING, State.SCHEDULED, State.PARKED):
        ready_task(state=state, run_after=db_now() + timedelta(hours=1))
    ready_task(state=State.RUNNING, lease=leases.make_lease(holder, 1))

    assert claim(limit=10) == []


def test_a_scheduled_task_cannot_be_claimed_before_it_is_promoted_and_not_promoted_before_it_is_due() -> None:
    """S0-52, S2-35: no early start, not by one second."""
    now = db_now()
    ready_task(state=State.SCHEDULED, run_after=now + timedelta(seconds=1))
    vendor = engine.vendor_for(engine.ALIAS)

    early = vendor.promote(now + timedelta(milliseconds=999), 10)
    nothing = claim(limit=10)
    due = vendor.promote(now + timedelta(seconds=1), 10)
    found = claim(limit=10)

    assert (early, nothing) == ([], [])
    assert due == ["default"]
    assert len(found) == 1


def test_a_task_that_was_stored_as_ready_too_early_by_a_wrong_clock_still_waits_for_its_time() -> None:
    """S0-52: the clock of the machine that enqueued was an hour ahead; the database's decides."""
    task = ready_task(note, "early", run_after=db_now() + timedelta(minutes=30))

    engine.run_and_settle(claim_one())

    row = row_of(task)
    assert row is not None
    assert (state_of(task), row.attempt) == ("scheduled", 0)
    assert row.run_after == task.run_after


def test_a_paused_queue_is_not_claimed_from_and_a_resumed_one_is() -> None:
    """S4-99: a pause stops claims, not enqueues."""
    ready_task()
    api.pause_queue("default")

    paused = claim(limit=10)
    api.resume_queue("default")
    resumed = claim(limit=10)

    assert (len(paused), len(resumed)) == (0, 1)


def test_a_worker_without_a_list_of_queues_finds_tasks_of_a_queue_nobody_registered() -> None:
    """S4-99: unknown queue names are allowed."""
    ready_task(queue="brand-new")

    found = Claimer(engine.ALIAS, announce(), []).claim(5, now=db_now())

    assert len(found) == 1


def test_a_full_batch_is_followed_by_the_rest_and_a_more_urgent_latecomer_within_a_quarter_second() -> None:
    """S1-22, S0-65: the resumed scan hides nothing for longer than that."""
    for _ in range(6):
        ready_task(rank=0)
    claimer = Claimer(engine.ALIAS, announce(), [("default", None)])

    first = claimer.claim(3, now=db_now())
    urgent = ready_task(rank=-50)
    vendor = engine.vendor_for(engine.ALIAS)
    found = engine.wait_for(
        lambda: next(
            (row for row in claimer.claim(1, now=db_now()) if vendor.public_id(row.key) == str(urgent.pk)), None
        ),
        5,
    )

    assert len(first) == 3
    assert found.rank == -50


@contextmanager
def old_transaction() -> Iterator[None]:
    """Hold a snapshot for a block, as a long report does: nothing deleted since may be cleaned away."""
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT 1")
                begun.set()
                over.wait(120)
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(20)
        yield
    finally:
        over.set()
        thread.join(20)


class PageCounter:
    """Counts the pages that claims read to find their tasks: each is explained first, and undone, then run."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SKIP LOCKED" in sql and not sql.startswith("EXPLAIN"):
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
                self.pages.append(self._of_index(cursor.fetchone()[0][0]["Plan"]))
                transaction.set_rollback(True)
        return execute(sql, params, many, context)

    def _of_index(self, plan: dict[str, Any]) -> int:
        if plan.get("Index Name") in {"taskq_task_claim", "taskq_task_fair"}:
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        return sum(self._of_index(child) for child in plan.get("Plans", ()))


@pytest.mark.stress
@requires("page_counts")
def test_a_resumed_claim_passes_by_the_dead_rows_that_an_old_transaction_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 tasks done under a long report: a claim from the edge walks over all of them, the next ones do not."""
    monkeypatch.setattr(claims, "_RESUME_SECONDS", 3600.0)
    note.enqueue_many([(at,) for at in range(21_000)])
    counter = PageCounter()
    with old_transaction():
        first = Claimer(engine.ALIAS, announce(), [("default", None)])
        for _ in range(40):
            now = time.time()
            write([Ended(row, Succeeded(), now, now) for row in first.claim(500, now=db_now())])

        with connection.execute_wrapper(counter):
            second = Claimer(engine.ALIAS, announce(), [("default", None)])
            taken = [len(second.claim(100, now=db_now())) for _ in range(10)]

    edge, *resumed = counter.pages
    assert FinishedTask.objects.count() == 20_000
    assert taken == [100] * 10
    assert edge > 200
    assert max(resumed) < 20


def test_claim_numbers_never_repeat_so_a_lease_belongs_to_one_claim() -> None:
    """S4-02: the fence of a task claimed twice by one worker differs."""
    task = ready_task()
    worker_id = announce()
    claimer = Claimer(engine.ALIAS, worker_id, [("default", None)])

    [first] = claimer.claim(1, now=db_now())
    Task.objects.filter(pk=task.pk).update(state=State.READY, lease=None)
    [second] = claimer.claim(1, now=db_now())

    assert second.lease > first.lease
    assert leases.worker_of(first.lease) == leases.worker_of(second.lease) == worker_id


def test_worker_ids_are_never_used_twice() -> None:
    """S4-02: the upper half of the fence; a forgotten worker's id does not come back."""
    first = announce()
    worker_store.forget(engine.ALIAS, first)
    second = announce()

    assert second > first


def test_weights_need_no_number_everywhere() -> None:
    """S4-100: "email:3,default" means three to one."""
    assert parse_queues("email:3,default") == [("email", 3), ("default", 1)]
    assert parse_queues("email,default") == [("email", None), ("default", None)]
    with pytest.raises(ValueError, match="above 0"):
        parse_queues("email:0")


def test_an_enqueue_inside_a_transaction_is_seen_only_after_its_commit() -> None:
    """S0-41, S0-08: the task exists if and only if its transaction commits."""
    worker_id = announce()

    with transaction.atomic():
        result = note.enqueue("inside")
        before = [] if connection.vendor == "sqlite" else in_threads(lambda: claim(worker_id))[0]
    after = claim(worker_id)

    assert before == []
    assert [engine.vendor_for(engine.ALIAS).public_id(row.key) for row in after] == [result.id]


def test_a_rolled_back_enqueue_leaves_nothing() -> None:
    """S0-08: nor does it run."""
    with transaction.atomic():
        note.enqueue("never")
        transaction.set_rollback(True)

    assert Task.objects.count() == FinishedTask.objects.count() == 0


@pytest.mark.parametrize("count", [2, 19, 25, 700])
def test_enqueue_many_stores_all_or_none(count: int) -> None:
    """S0-81: a failure of the last statement leaves nothing of the first, also outside of a transaction."""
    calls = [(at,) for at in range(count)]
    inserts: list[str] = []
    last = 0

    def fail_at_the_last(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "INSERT INTO" in sql and Task._meta.db_table in sql:
            inserts.append(sql)
            if len(inserts) == last:
                raise OperationalError("cut")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail_at_the_last):
        note.enqueue_many(calls)
        last = len(inserts)
        Task.objects.all().delete()
        inserts.clear()
        # COPY, which PostgreSQL takes for many, is one statement and no INSERT.
        failing = pytest.raises(OperationalError, match="cut") if last else nullcontext()
        with failing:
            note.enqueue_many(calls)

    assert Task.objects.count() == (0 if last else count)
