"""
Acknowledgement: what a crash at each point means under late, now, first and atomic.

The points: before the run, between effect and settlement, in the commit whose answer
is lost, after the commit and before the events.
"""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_taskq import events, task
from django_taskq.domain import lease as leases
from django_taskq.domain.states import State
from django_taskq.lifecycle import settle
from django_taskq.lifecycle.rescue import rescue
from django_taskq.models import FinishedTask, Task, Worker
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.worker import loop
from tests import engine
from tests.app.models import Effect
from tests.capabilities import requires
from tests.engine import (
    SHORT,
    claim_one,
    db_now,
    drain,
    outcomes_of,
    row_of,
    run_burst,
    running_worker,
    state_of,
    totals,
    wait_for,
    worker_process,
)
from tests.guarantees.tasks import atomic_effect, fail, gates, note, pause_deaf, ran

pytestmark = pytest.mark.django_db(transaction=True)


@task
def look_at(task_id: str) -> str:
    """Return the state of another task, as committed by now."""
    found = state_of(task_id)
    ran.append(found)
    return found


@task(ack="atomic")
def effect_and_wait(key: str) -> None:
    """Leave an effect and wait, in the transaction that will settle."""
    Effect.objects.create(key=key)
    gates[f"{key} wrote"].set()
    gates[key].wait(20)


@task(ack="atomic", max_attempts=20)
def effect_and_die_once(key: str, path: str) -> None:
    """Leave an effect, and kill the process in the first attempt."""
    import os
    import signal
    from pathlib import Path

    Effect.objects.create(key=key)
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def lose_worker(claimed: Claim) -> None:
    """Let the lease of a claim run out, and rescue what it held."""
    silent_since = db_now() - timedelta(seconds=31)
    Worker.objects.filter(pk=leases.worker_of(claimed.lease)).update(beat_at=silent_since)
    assert rescue(engine.ALIAS, now=db_now()) == 1


@pytest.fixture
def blocked_settlements(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold up every write until the gate "settle" opens; before its transaction, which would lock SQLite."""

    def wait_and_settle(*args: Any, **options: Any) -> Any:
        gates["settling"].set()
        assert gates["settle"].wait(20)
        return settle.settle(*args, **options)

    monkeypatch.setattr(loop, "settle", wait_and_settle)
    yield
    gates["settle"].set()


@pytest.mark.parametrize("ack", ["late", "now", "atomic"])
def test_lost_before_the_run_it_runs_once_in_the_second_attempt(ack: str) -> None:
    """S0-39, S0-47: claimed, never begun."""
    found = note.using(ack=ack).enqueue("k")
    lose_worker(claim_one())

    drain()

    row = row_of(found)
    assert row is not None
    assert (state_of(found), row.attempt, ran) == ("succeeded", 2, ["k"])


def test_lost_before_the_run_a_first_task_never_runs() -> None:
    """S0-39: at most once means that it may be never."""
    found = note.using(ack="first").enqueue("k")
    lose_worker(claim_one())

    drain()

    assert (state_of(found), ran) == ("dead", [])


@pytest.mark.parametrize("ack", ["late", "now"])
def test_lost_between_effect_and_settlement_it_runs_twice(ack: str) -> None:
    """S0-40, S0-47, S0-48, non-guarantee: at least once; exactly once is not promised."""
    found = note.using(ack=ack).enqueue("k")
    claimed = claim_one()
    bench = engine.Bench()
    if ack == "late":
        engine.run_one(bench, claimed)
    else:
        # A task acknowledged at once would wait for the settlement that never comes.
        engine.run_one(bench, claimed._replace(ack=0))
    lose_worker(claimed)

    drain()

    assert (state_of(found), ran) == ("succeeded", ["k", "k"])
    assert totals()["succeeded"] == 1


def test_lost_between_effect_and_settlement_a_first_task_is_dead_and_not_repeated() -> None:
    """S0-39: the effect is there once; the operator learns of it."""
    found = note.using(ack="first").enqueue("k")
    claimed = claim_one()
    engine.run(claimed)
    lose_worker(claimed)

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.reason, ran) == ("lost", ["k"])


def test_a_failed_first_task_is_not_repeated_either() -> None:
    """S0-42: once begun it is never begun again."""
    found = fail.using(ack="first", max_attempts=5).enqueue("k")

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.reason, ran) == ("exhausted", ["k"])


def test_a_first_task_that_was_handed_back_unbegun_runs_elsewhere() -> None:
    """S0-73: what did not begin cannot be lost."""
    found = note.using(ack="first").enqueue("k")
    bench = engine.Bench()
    bench.is_leased = False
    engine.run_one(bench, claim_one())
    bench.write()

    drain()

    assert (state_of(found), ran) == ("succeeded", ["k"])


def test_a_task_acknowledged_now_is_settled_before_its_slot_begins_another(blocked_settlements: None) -> None:
    """S0-41: the smaller window."""
    first = note.using(ack="now", priority=1).enqueue("first")
    second = note.using(ack="now").enqueue("second")

    with running_worker(threads=1):
        assert gates["settling"].wait(10)
        in_between = list(ran)
        gates["settle"].set()
        wait_for(lambda: state_of(second) == "succeeded")

    assert in_between == ["first"]
    assert state_of(first) == "succeeded"


def test_a_task_acknowledged_late_lets_its_slot_go_on(blocked_settlements: None) -> None:
    """S0-41, non-guarantee: the next task may begin before the last one's end is written."""
    note.using(priority=1).enqueue("first")
    second = note.enqueue("second")

    with running_worker(threads=1):
        wait_for(lambda: ran == ["first", "second"])
        gates["settle"].set()
        wait_for(lambda: state_of(second) == "succeeded")


def test_an_atomic_task_that_fails_leaves_no_effect() -> None:
    """S0-47: its writes live and die with its success."""
    found = atomic_effect.using(max_attempts=3).enqueue("k", 2)

    drain()

    assert state_of(found) == "succeeded"
    assert ran == ["k"] * 3
    assert list(Effect.objects.values_list("key", flat=True)) == ["k 3"]
    assert outcomes_of(found) == ["failed", "failed"]
    assert {name: totals()[name] for name in ("succeeded", "failed")} == {"succeeded": 1, "failed": 2}


def test_an_atomic_task_whose_lease_was_lost_leaves_no_effect() -> None:
    """S0-47, S4-02: the settlement is refused inside the transaction, so the effect goes with it."""
    found = effect_and_wait.enqueue("k")
    refused: list[Any] = []
    events.subscribe(events.SettlementRefused, refused.append)
    claimed = claim_one()
    gates["k"].set()

    try:
        lose_worker(claimed)
        engine.run_and_settle(claimed)
        effects = Effect.objects.count()
        drain()
    finally:
        events.unsubscribe(events.SettlementRefused, refused.append)

    assert effects == 0
    assert [event.task_id for event in refused] == [found.id]
    assert (state_of(found), Effect.objects.count()) == ("succeeded", 1)
    assert totals()["succeeded"] == 1


@pytest.mark.parametrize("fault", ["before the commit", "in its answer"])
def test_an_atomic_task_has_its_effect_exactly_once_wherever_the_commit_breaks(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S0-47: the commit decides both, or neither; also when nobody hears what it decided."""
    found = atomic_effect.enqueue("k")
    commit = BaseDatabaseWrapper._commit
    broken: list[str] = []

    def commit_badly(self: Any) -> None:
        if broken or not gates["k wrote"].is_set():
            commit(self)
            return
        broken.append(fault)
        if fault == "in its answer":
            commit(self)
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit_badly)
    drain()
    monkeypatch.undo()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert broken == [fault]
    assert row.state == State.SUCCEEDED
    assert Effect.objects.count() == 1
    assert totals()["succeeded"] == 1
    assert len(ran) == (1 if fault == "in its answer" else 2)


@requires("local_idle_limit")
def test_an_atomic_task_that_is_suspended_before_its_commit_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-02: from where its outcome is written it has rows under lock that others need."""
    monkeypatch.setattr("django_taskq.store.vendors.postgresql._IDLE_SECONDS", 0.2)
    commit = BaseDatabaseWrapper._commit
    stands, was_changed = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def stand_still(self: Any) -> None:
        if threading.current_thread().name.startswith("taskq-slot") and not stands.is_set():
            stands.set()
            in_time.append(was_changed.wait(10))
        commit(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", stand_still)
    with running_worker(threads=1, duties=False):
        found = atomic_effect.enqueue("k")
        assert stands.wait(20)
        Task.objects.filter(pk=found.id).update(rank=1)
        was_changed.set()
        wait_for(lambda: state_of(found) == "succeeded")

    assert in_time == [True]
    assert Effect.objects.count() == 1


@pytest.mark.chaos
def test_an_atomic_task_whose_process_is_killed_after_its_effect_has_it_exactly_once(tmp_path: Any) -> None:
    """S0-47: a real kill -9 between the effect and the commit."""
    found = effect_and_die_once.enqueue("k", str(tmp_path / "died"))
    with worker_process(threads=1) as first:
        first.wait(20)
    before = Effect.objects.count()

    with worker_process(threads=1):
        wait_for(lambda: state_of(found) == "succeeded", 20)

    row = row_of(found)
    assert row is not None
    assert (before, Effect.objects.count(), row.attempt) == (0, 1, 2)


def test_a_broken_transaction_fails_an_atomic_task() -> None:
    """S0-42: an error that the task swallowed inside its transaction cannot be committed."""
    Effect.objects.create(key="taken")
    found = swallow_conflict.using(max_attempts=1).enqueue("taken")

    drain()

    assert state_of(found) == "dead"
    assert Effect.objects.count() == 1


@task(ack="atomic")
def swallow_conflict(key: str) -> None:
    """Run into a unique key, swallow the error, and leave the transaction marked as broken."""
    from django.db import IntegrityError

    try:
        with transaction.atomic(savepoint=False):
            Effect.objects.create(key=key)
    except IntegrityError:
        return


@requires("concurrent_writers")
def test_two_atomic_tasks_at_once_do_not_block_each_other() -> None:
    """S4-27: each has its own transaction, and nothing of the engine is locked while they run."""
    first, second = effect_and_wait.enqueue("first"), effect_and_wait.enqueue("second")

    with running_worker(threads=2):
        assert gates["first wrote"].wait(10)
        assert gates["second wrote"].wait(10)
        gates["first"].set()
        gates["second"].set()
        wait_for(lambda: state_of(first) == state_of(second) == "succeeded")

    assert Effect.objects.count() == 2


@requires("one_writer")
def test_an_atomic_task_holds_the_only_write_lock_while_it_runs() -> None:
    """S4-27, non-guarantee: where there is one writer, an atomic task must be short."""
    found = effect_and_wait.enqueue("k")
    with running_worker(threads=1):
        assert gates["k wrote"].wait(10)
        connection.ensure_connection()
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 100")
        with pytest.raises(OperationalError, match="locked"):
            note.enqueue("outside")
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 20000")
        gates["k"].set()
        wait_for(lambda: state_of(found) == "succeeded")


def test_the_answer_of_a_settlement_lost_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-47: written again, it finds no lease, and nothing is doubled."""
    from django_taskq.worker import loop

    written = settle.settle
    broken: list[int] = []

    def settle_and_lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        found = written(*args, **kwargs)
        if len(broken) < 3:
            broken.append(found.count)
            raise OperationalError("the connection is lost")
        return found

    monkeypatch.setattr(loop, "settle", settle_and_lose_the_answer)
    tasks = [note.enqueue(at) for at in range(20)]
    run_burst(threads=2)

    assert len(broken) == 3
    assert {state_of(found) for found in tasks} == {"succeeded"}
    assert sorted(ran) == list(range(20))
    assert totals()["succeeded"] == 20


def test_events_may_be_lost_in_a_crash_after_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-41, non-guarantee: events are told at most once; the books, not the events, are the truth."""
    told: list[Any] = []
    events.subscribe(events.TaskSucceeded, told.append)
    found = note.enqueue("k")

    def crash(*args: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(settle, "_emit", crash)
    try:
        with pytest.raises(SystemExit):
            engine.run_and_settle(claim_one())
        monkeypatch.undo()
        drain()
    finally:
        events.unsubscribe(events.TaskSucceeded, told.append)

    assert (state_of(found), told, ran) == ("succeeded", [], ["k"])
    assert totals()["succeeded"] == 1


@pytest.mark.slow
def test_the_answer_of_a_claim_lost_does_not_keep_the_task_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-13, S4-16: committed, never heard of: handed back by the worker that lives on, at no attempt's cost."""
    vendor = type(vendor_for(engine.ALIAS))
    claim = vendor.claim
    lost: list[Any] = []

    def claim_and_lose_the_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = claim(self, *args, **kwargs)
        if rows and not lost:
            lost.extend(rows)
            raise OperationalError("the connection is lost")
        return rows

    monkeypatch.setattr(vendor, "claim", claim_and_lose_the_answer)
    found = note.enqueue("k")
    with running_worker(threads=1, taskq=SHORT):
        wait_for(lambda: state_of(found) == "succeeded", 20)

    row = row_of(found)
    assert row is not None
    assert (len(lost), row.attempt, ran) == (1, 1, ["k"])


@pytest.mark.slow
def test_what_was_claimed_from_one_queue_is_not_lost_to_an_error_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-99: several claims make one batch."""
    vendor = type(vendor_for(engine.ALIAS))
    claim = vendor.claim
    broken: list[str] = []

    def claim_badly(self: Any, queue: str, *args: Any, **kwargs: Any) -> Any:
        if queue == "second" and not broken and state_of(found) == "running":
            broken.append(queue)
            raise OperationalError("the connection is lost")
        return claim(self, queue, *args, **kwargs)

    monkeypatch.setattr(vendor, "claim", claim_badly)
    found = note.using(queue_name="first").enqueue("k")
    with running_worker(threads=2, queues="first,second", taskq=SHORT):
        wait_for(lambda: state_of(found) == "succeeded", 20)

    assert (broken, ran) == (["second"], ["k"])


def test_a_standby_that_refuses_writes_costs_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-13: after a failover the old address may lead to a server that only reads; that is no fault of the tasks."""
    from django.db import InternalError

    vendor = type(vendor_for(engine.ALIAS))
    finish = vendor.finish
    refused: list[int] = []

    def refuse(self: Any, endings: Any) -> Any:
        if len(refused) < 3:
            refused.append(len(endings))
            raise InternalError("cannot execute DELETE in a read-only transaction")
        return finish(self, endings)

    monkeypatch.setattr(vendor, "finish", refuse)
    tasks = [note.enqueue(at) for at in range(5)]
    run_burst(threads=1)

    assert {state_of(found) for found in tasks} == {"succeeded"}
    assert sorted(ran) == list(range(5))


@pytest.mark.slow
def test_one_outcome_that_the_database_refuses_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-41: it is put aside, tried again, and never dropped."""
    from django.db import IntegrityError

    from django_taskq.worker import loop

    monkeypatch.setattr(loop, "_ASIDE_SECONDS", 0.2)
    monkeypatch.setattr(loop, "_REFUSALS", 0)
    vendor = type(vendor_for(engine.ALIAS))
    finish = vendor.finish

    def refuse(self: Any, endings: Any) -> Any:
        if not gates["mended"].is_set() and any('"bad"' in (ending.result or "") for ending in endings):
            raise IntegrityError("something else is in the way")
        return finish(self, endings)

    monkeypatch.setattr(vendor, "finish", refuse)
    bad = note.enqueue("bad")
    good = [note.enqueue(at) for at in range(20)]
    with running_worker(threads=2):
        wait_for(lambda: {state_of(found) for found in good} == {"succeeded"}, 20)
        before = state_of(bad)
        gates["mended"].set()
        wait_for(lambda: state_of(bad) == "succeeded", 20)

    assert before == "running"
    assert not Task.objects.exists()


def test_a_task_at_work_when_its_worker_stops_goes_back_and_is_not_told_twice() -> None:
    """S0-73, S4-29: interrupted at the end of the grace time; its late end is dropped."""
    found = pause_deaf.enqueue("k")
    with running_worker(threads=1, grace=timedelta(seconds=0.1)) as worker:
        assert gates["k runs"].wait(10)
        worker.stop()
        worker.wait(20)
    after = state_of(found)
    gates["k"].set()
    drain()

    assert after == "ready"
    assert outcomes_of(found) == ["interrupted"]
    assert (state_of(found), totals()["succeeded"]) == ("succeeded", 1)
