"""Rescuing: what a silent worker held goes on with others; a live one is left alone."""

import threading
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, InterfaceError, connection, transaction

from django_taskq import Fixed, api, conf
from django_taskq.domain import lease as leases
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import Ack, State
from django_taskq.duties import rescue as duty
from django_taskq.exceptions import WorkerLost
from django_taskq.lifecycle.rescue import rescue
from django_taskq.models import FinishedTask, IdempotencyKey, Limit, Lock, Task, Worker
from django_taskq.store import limits as limit_store
from django_taskq.store import locks as lock_store
from django_taskq.store import pauses as pause_store
from django_taskq.store import queues as queue_store
from django_taskq.store import retention as retention_store
from django_taskq.store import tasks as task_store
from django_taskq.store import workers as worker_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.capabilities import requires
from tests.engine import (
    announce,
    claim,
    claim_one,
    db_now,
    in_threads,
    outcomes_of,
    ready_task,
    row_of,
    run_and_settle,
    running_worker,
    state_of,
    totals,
    wait_for,
)
from tests.guarantees.tasks import gates, note, pause, ran

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_a_silent_worker_held_is_ready_again_with_a_recorded_attempt() -> None:
    """S0-13, S0-39, S3-36: the lease is over, the task goes on."""
    task = ready_task()
    claim_one(announce(silent_for=31))

    count = rescue(engine.ALIAS, now=db_now())

    row = row_of(task)
    assert isinstance(row, Task)
    assert (count, row.state, row.attempt, row.lease) == (1, State.READY, 1, None)
    assert outcomes_of(task) == ["lost"]
    assert totals()["rescued"] == 1


def test_a_worker_within_its_lease_is_left_alone() -> None:
    """S4-07, S4-16: inside a valid lease no second worker starts the task."""
    task = ready_task()
    claim_one(announce(silent_for=29))

    assert rescue(engine.ALIAS, now=db_now()) == 0
    assert state_of(task) == "running"


def test_a_worker_that_comes_at_any_moment_of_a_rescue_keeps_what_it_claims() -> None:
    """S4-07, S4-16: its lease never looks like that of a worker that is gone, whichever question comes before it."""
    ready_task()
    claim_one()
    came: list[Claim] = []
    asked = [0]

    def ask(execute: Any, *question: Any) -> Any:
        asked[0] += 1
        if asked[0] == moment:
            came.append(claim_one())
        return execute(*question)

    for moment in range(1, 10):
        task = ready_task()
        asked[0] = 0
        with connection.execute_wrapper(ask):
            assert rescue(engine.ALIAS, now=db_now()) == 0
        if len(came) < moment:
            break
        assert state_of(task) == "running"
        run_and_settle(came[-1])

    # For the workers, for the leases of two of them, and for the workers once more.
    assert len(came) >= 4


def test_each_worker_is_judged_by_its_own_lease() -> None:
    """S4-94: two releases with different settings get along."""
    short, long = ready_task(), ready_task(queue="other")
    claim_one(announce(silent_for=20, lease_seconds=10))
    claim_one(announce(silent_for=20, lease_seconds=60), queues="other")

    rescue(engine.ALIAS, now=db_now())

    assert (state_of(short), state_of(long)) == ("ready", "running")


def test_a_task_that_kills_its_workers_ends_as_a_dead_letter() -> None:
    """S2-14, S0-43: a crash loop is bounded, since the attempt was counted when it was claimed."""
    task = ready_task(max_attempts=3)

    for _ in range(3):
        claim_one(announce(silent_for=31))
        rescue(engine.ALIAS, now=db_now())

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (row.state, row.reason, row.attempt) == (State.DEAD, "exhausted", 3)
    assert row.error_class == f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"
    assert outcomes_of(task) == ["lost"] * 3


def test_a_rescue_waits_for_no_backoff() -> None:
    """S0-13: the worker died, which says little about the task."""
    task = ready_task(note)
    claim_one(announce(silent_for=31))

    rescue(engine.ALIAS, now=db_now())

    assert claim_one().attempt == 2
    assert state_of(task) == "running"


def test_a_task_acknowledged_first_is_not_repeated_after_its_worker_was_lost() -> None:
    """S0-39: at most once, where the task asks for it."""
    task = ready_task(ack=int(Ack.FIRST))
    claim_one(announce(silent_for=31))

    rescue(engine.ALIAS, now=db_now())

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (row.state, row.reason) == (State.DEAD, "lost")


def test_a_cancel_asked_of_a_lost_worker_is_kept() -> None:
    """S4-23, S4-24: the rescued task does not come back."""
    task = ready_task()
    claim_one(announce(silent_for=31))
    api.cancel([str(task.pk)])

    rescue(engine.ALIAS, now=db_now())

    assert state_of(task) == "cancelled"


def test_two_rescuers_at_once_rescue_each_task_once() -> None:
    """S4-18: attempts and statistics are written once."""
    tasks = [ready_task() for _ in range(20)]
    claim(announce(silent_for=31), limit=20)

    counts = in_threads(*(lambda: rescue(engine.ALIAS, now=db_now()) for _ in range(3)))

    assert sum(counts) == 20
    assert [outcomes_of(task) for task in tasks] == [["lost"]] * 20
    assert totals()["rescued"] == 20


def test_the_work_of_a_rescuer_that_died_half_way_is_finished_by_the_next() -> None:
    """S3-36: a worker that is dead already, or whose row is gone, holds nothing for ever."""
    marked, forgotten = ready_task(), ready_task(queue="other")
    dead, gone = announce(), announce()
    claim_one(dead)
    claim_one(gone, queues="other")
    Worker.objects.filter(pk=dead).update(state=Worker.State.DEAD)
    worker_store.forget(engine.ALIAS, gone)

    rescue(engine.ALIAS, now=db_now())

    assert (state_of(marked), state_of(forgotten)) == ("ready", "ready")


def test_many_tasks_of_one_worker_are_all_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-13: in chunks, to the end."""
    monkeypatch.setattr("django_taskq.lifecycle.rescue.CHUNK", 50)
    holder = announce(silent_for=31)
    Task.objects.bulk_create(
        Task(
            name="tests.guarantees.tasks.note",
            queue="default",
            state=State.RUNNING,
            attempt=1,
            lease=leases.make_lease(holder, at + 1),
            created_at=db_now(),
        )
        for at in range(123)
    )

    assert rescue(engine.ALIAS, now=db_now()) == 123
    assert Task.objects.filter(state=State.READY).count() == 123


def test_one_task_that_the_database_refuses_keeps_no_other_from_being_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-41, S0-13: neither those of its worker nor those of others; it is tried again."""
    bad, *good = [ready_task() for _ in range(5)]
    other = ready_task(queue="other")
    claim(announce(silent_for=32), limit=5)
    claim_one(announce(silent_for=31), queues="other")
    vendor = type(vendor_for(engine.ALIAS))
    put_back = vendor.put_back

    def refuse(self: Any, rows: Any) -> Any:
        if any(self.public_id(row.key) == str(bad.pk) for row in rows):
            raise IntegrityError("something else is in the way")
        return put_back(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(vendor, "put_back", refuse)
        count = rescue(engine.ALIAS, now=db_now())
    before = [state_of(task) for task in (bad, *good, other)]
    again = rescue(engine.ALIAS, now=db_now())

    assert (count, before) == (5, ["running", *["ready"] * 5])
    assert (again, state_of(bad), outcomes_of(bad)) == (1, "ready", ["lost"])


def test_a_worker_declared_dead_cannot_beat_again() -> None:
    """S4-02: its right ended when the rescue began."""
    worker_id = announce(silent_for=31)
    rescue(engine.ALIAS, now=db_now())

    assert worker_store.beat(engine.ALIAS, worker_id, now=db_now(), running=0) is False


def test_a_beat_in_the_last_moment_wins_over_the_verdict() -> None:
    """S4-94: a worker that just beat is not declared dead by an older look."""
    worker_id = announce(silent_for=31)
    [late] = worker_store.silent(engine.ALIAS, now=db_now())

    worker_store.beat(engine.ALIAS, worker_id, now=db_now(), running=0)

    assert worker_store.declare_dead(engine.ALIAS, late) is False
    assert Worker.objects.get().state == Worker.State.ALIVE


@pytest.mark.slow
def test_a_heartbeat_keeps_a_long_task_from_being_delivered_again() -> None:
    """S4-94, S4-07: three leases long, and started once."""
    with running_worker(taskq={"LEASE_SECONDS": 2, "HEARTBEAT_SECONDS": 0.4}, threads=1) as worker:
        task = pause.enqueue("long")
        assert gates["long runs"].wait(10)
        started = db_now()
        wait_for(lambda: db_now() - started > timedelta(seconds=6), 20)
        gates["long"].set()
        wait_for(lambda: state_of(task) == "succeeded")

    row = row_of(task)
    assert row is not None
    assert (ran, row.attempt) == (["long"], 1)
    assert worker.id == row.worker_id


def test_a_worker_that_was_declared_dead_starts_anew_under_another_id_and_its_outcome_is_refused() -> None:
    """S4-02, S4-17: what it ran is somebody else's by now; what it will run counts."""
    with running_worker(taskq={"LEASE_SECONDS": 30, "HEARTBEAT_SECONDS": 0.3}, threads=1, duties=False) as worker:
        first_id = worker.id
        lost = pause.enqueue("lost")
        assert gates["lost runs"].wait(10)
        api.pause_queue("default")
        # Both at once: a beat in between would let the worker hand its task back while that still carries its lease.
        with transaction.atomic():
            worker_store.declare_dead(engine.ALIAS, Worker.objects.get(pk=first_id)) or worker_store.declare_dead(
                engine.ALIAS, Worker.objects.get(pk=first_id)
            )
            rescue(engine.ALIAS, now=db_now())
        wait_for(lambda: worker.id != first_id)
        gates["lost"].set()
        api.resume_queue("default")
        wait_for(lambda: state_of(lost) == "succeeded")
        after = note.enqueue("after")
        wait_for(lambda: state_of(after) == "succeeded")

    row = row_of(lost)
    assert row is not None
    assert row.worker_id == worker.id != first_id
    assert outcomes_of(lost) == ["lost"]
    assert totals()["succeeded"] == 2


def test_a_worker_that_was_declared_dead_claims_nothing_until_it_has_its_new_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S4-02, S4-16: what it took under the old id would be rescued while it runs."""
    asked, may_answer = threading.Event(), threading.Event()
    announce_worker = worker_store.announce

    def answer_late(*args: Any, **given: Any) -> int:
        if worker.id:
            asked.set()
            assert may_answer.wait(30)
        return announce_worker(*args, **given)

    with running_worker(taskq={"LEASE_SECONDS": 30, "HEARTBEAT_SECONDS": 0.3}, threads=1, duties=False) as worker:
        first_id = worker.id
        monkeypatch.setattr(worker_store, "announce", answer_late)
        # A beat may come in between; the verdict is only taken against the last one.
        wait_for(lambda: worker_store.declare_dead(engine.ALIAS, Worker.objects.get(pk=first_id)))
        assert asked.wait(10)
        early = note.enqueue("early")
        turn, turns = worker._turn, threading.Semaphore(0)
        monkeypatch.setattr(worker, "_turn", lambda wakeup: (turn(wakeup), turns.release()))
        # The first may have begun before; the second would have claimed it, and the third comes after that.
        assert all(turns.acquire(timeout=10) for _ in range(3))
        before = (state_of(early), list(ran), worker.is_healthy)
        may_answer.set()
        wait_for(lambda: state_of(early) == "succeeded")

    row = row_of(early)
    assert row is not None
    assert before == ("ready", [], False)
    assert row.worker_id == worker.id != first_id
    assert outcomes_of(early) == []


def test_a_worker_starts_nothing_once_its_lease_may_be_over() -> None:
    """S4-16: it judges itself before others do, on a clock that a suspended machine does not stop."""
    ready_task(note, "late")
    bench = engine.Bench()
    bench.is_leased = False

    engine.run_one(bench, claim_one())
    bench.write()

    assert ran == []
    assert Task.objects.get().attempt == 0


def test_the_first_worker_that_comes_back_after_an_outage_does_not_judge_the_others() -> None:
    """S0-13: while the database was away nobody could beat; the others get the time to."""
    task = ready_task()
    claim_one(announce(silent_for=300))
    options = conf.options("default")
    watch = duty.Watch(options.heartbeat_seconds)

    first_look = duty.run_once(engine.ALIAS, options, db_now(), watch=watch, tick=1000.0)
    too_soon = duty.run_once(engine.ALIAS, options, db_now(), watch=watch, tick=1004.0)
    before = state_of(task)
    looks = [duty.run_once(engine.ALIAS, options, db_now(), watch=watch, tick=1004.0 + at * 2) for at in range(1, 6)]

    assert (first_look, too_soon, before) == (0, 0, "running")
    assert sum(looks) == 1
    assert state_of(task) == "ready"


def test_a_jump_of_the_clock_is_no_silence() -> None:
    """S4-94: the database's clock jumps an hour ahead; a worker that goes on beating keeps its tasks."""
    task = ready_task()
    worker_id = announce()
    claim_one(worker_id)
    options = conf.options("default")
    watch = duty.Watch(options.heartbeat_seconds)
    jumped = db_now() + timedelta(hours=1)

    duty.run_once(engine.ALIAS, options, db_now(), watch=watch, tick=0.0)
    for at in range(1, 21):
        if at % 2:
            worker_store.beat(engine.ALIAS, worker_id, now=jumped + timedelta(seconds=2.5 * at), running=1)
        duty.run_once(engine.ALIAS, options, jumped + timedelta(seconds=2.5 * at), watch=watch, tick=2.5 * at)

    assert state_of(task) == "running"


def test_backoff_of_a_failed_attempt_is_not_lost_in_a_rescue() -> None:
    """S0-60: attempt numbers go on, in order."""
    task = ready_task(note, max_attempts=5)
    assert Fixed(1).delay(1, 0) == 1
    numbers = []
    for _ in range(3):
        numbers.append(claim_one(announce(silent_for=31)).attempt)
        rescue(engine.ALIAS, now=db_now())

    assert numbers == [1, 2, 3]
    assert state_of(task) == "ready"


@requires("idle_limit")
@pytest.mark.parametrize("has_written", [True, False])
def test_a_transaction_that_stands_still_is_ended_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, has_written: bool
) -> None:
    """S4-02: a process that was suspended between two statements keeps its connection, but not its locks."""
    monkeypatch.setattr("django_taskq.store.vendors.postgresql._IDLE_SECONDS", 0.2)
    monkeypatch.setattr("django_taskq.store.vendors.mysql._IDLE_SECONDS", 1)
    found = ready_task()
    vendor = vendor_for(engine.ALIAS)
    locked, was_refused = threading.Event(), threading.Event()

    def stand_still() -> None:
        # On MariaDB only the sessions of the worker's own threads are limited.
        threading.current_thread().name = "taskq-flusher"
        with vendor.atomic():
            if has_written:
                Task.objects.filter(pk=found.pk).update(rank=1)
            else:
                Task.objects.select_for_update().get(pk=found.pk)
            locked.set()
            was_refused.wait(20)
            Task.objects.filter(pk=found.pk).update(rank=2)

    def go_on() -> None:
        assert locked.wait(20)
        Task.objects.filter(pk=found.pk).update(rank=3)
        was_refused.set()

    with pytest.raises(DatabaseError) as refused:
        in_threads(stand_still, go_on)

    assert vendor.is_lost_connection(refused.value)
    found.refresh_from_db()
    assert found.rank == 3
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            assert cursor.fetchone()[0] == "0"


STALLED_WRITES = {
    "names its queues": lambda: queue_store.remember(engine.ALIAS, ["new"]),
    "leaves": lambda: worker_store.forget(engine.ALIAS, Worker.objects.values_list("pk", flat=True).first() or 0),
    "tidies a pause away": lambda: pause_store.lift(engine.ALIAS, PauseScope.QUEUE, "default"),
    "tells its progress": lambda: task_store.save_progress(
        engine.ALIAS, str(uuid.UUID(int=1)), done=1.0, total=None, note="", now=db_now()
    ),
    "looks how deep a queue is": lambda: vendor_for(engine.ALIAS).save_snapshot({"queue": "default", "at": EPOCH}),
    "lets go of a lock": lambda: lock_store.release(engine.ALIAS, "key", task_id=uuid.UUID(int=1), lease=1),
    "sweeps locks": lambda: lock_store.sweep(engine.ALIAS, before=db_now(), limit=10),
    "deletes old keys": lambda: retention_store.delete_old(engine.ALIAS, **KEPT, limit=10),
    "deletes limits": lambda: limit_store.prune(engine.ALIAS, now=db_now(), before=db_now(), limit=10),
}
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
KEPT = {
    **dict.fromkeys(("statistics", "snapshots", "workers", "audit", "ticks")),
    "keys": datetime(2100, 1, 1, tzinfo=UTC),
}


@requires("idle_limit")
@pytest.mark.parametrize("write", STALLED_WRITES)
def test_a_worker_that_is_suspended_while_it_writes_holds_nobody_up_who_writes_the_same(
    monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """S4-02: not only claims and settlements; who waited for its upkeep would lose its own lease, or its lead."""
    monkeypatch.setattr("django_taskq.store.vendors.postgresql._IDLE_SECONDS", 0.2)
    monkeypatch.setattr("django_taskq.store.vendors.mysql._IDLE_SECONDS", 1)
    announce()
    pause_store.put(engine.ALIAS, PauseScope.QUEUE, "default", actor="", reason="", now=EPOCH)
    Lock.objects.create(key="key", task_id=uuid.UUID(int=1), lease=1, taken_at=EPOCH)
    Limit.objects.create(key="2:c:old", used_at=EPOCH)
    IdempotencyKey.objects.create(
        key="key", task_id=uuid.UUID(int=1), fingerprint="", created_at=EPOCH, expires_at=EPOCH
    )
    has_written, was_written = threading.Event(), threading.Event()

    def stop_behind_the_write(execute: Any, sql: str, params: Any, many: bool, given: Any) -> Any:
        found = execute(sql, params, many, given)
        if not has_written.is_set() and sql.startswith(("INSERT", "UPDATE", "DELETE")):
            has_written.set()
            was_written.wait(20)
        return found

    def stand_still() -> None:
        threading.current_thread().name = "taskq-duties"
        with connection.execute_wrapper(stop_behind_the_write), suppress(DatabaseError, InterfaceError):
            STALLED_WRITES[write]()

    def write_the_same() -> bool:
        assert has_written.wait(20)
        STALLED_WRITES[write]()
        is_in_time = not was_written.is_set()
        was_written.set()
        return is_in_time

    def give_up() -> None:
        was_written.wait(10)
        was_written.set()

    assert in_threads(write_the_same, stand_still, give_up)[0]
