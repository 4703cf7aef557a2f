"""Settling: written once, by the holder of the lease, together with all that follows from it."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection

from django_taskq import api, events
from django_taskq.domain.outcomes import ErrorInfo, Failed, Interrupted, Snoozed, Succeeded, Unknown
from django_taskq.domain.states import State
from django_taskq.domain.transitions import after_replay
from django_taskq.exceptions import InvalidTransition
from django_taskq.lifecycle.rescue import rescue_worker
from django_taskq.lifecycle.settle import LATE_SECONDS, Ended
from django_taskq.models import Attempt, FinishedTask, Progress, Stat, Task
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.engine import (
    announce,
    claim,
    claim_one,
    db_now,
    in_threads,
    outcomes_of,
    ready_task,
    row_of,
    state_of,
    totals,
    write,
)
from tests.guarantees.tasks import fail, fail_until, note

pytestmark = pytest.mark.django_db(transaction=True)

ERROR = ErrorInfo(class_path="builtins.ValueError", message="no", traceback="Traceback …", fingerprint="0" * 16)


def ended(claimed: Any, outcome: Any = None, **changes: Any) -> Ended:
    now = db_now().timestamp()
    return Ended(claimed, outcome or Succeeded(), now - 0.1, now, **changes)


def test_a_success_is_one_move_with_its_end_and_its_count() -> None:
    """S0-41, S2-24: state, end and statistics in one transaction."""
    task = ready_task()

    settled = write([ended(claim_one(), Succeeded('"done"'))])

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert settled.count == 1
    assert (row.state, row.result_value, row.attempt) == (State.SUCCEEDED, "done", 1)
    assert row.finished_at is not None
    assert not Task.objects.exists()
    assert totals()["succeeded"] == 1


def test_every_ending_has_its_end_time() -> None:
    """S2-24: on every path, budget expiry included."""
    past = db_now().replace(year=2020)
    ready_task(note)
    ready_task(fail, max_attempts=1)
    ready_task(note, deadline_at=past)
    ready_task(note, expires_at=past)
    ready_task(note, args="{")
    api.cancel([str(ready_task(queue="other").pk)])

    engine.drain()

    rows = FinishedTask.objects.all()
    assert sorted(row.reason or State(row.state).name for row in rows) == [
        "CANCELLED", "SUCCEEDED", "budget_expired", "exhausted", "expired", "undecodable",
    ]  # fmt: skip
    assert not rows.filter(finished_at__isnull=True).exists()


def test_an_end_is_dated_no_more_than_a_second_before_its_writing() -> None:
    """S4-34: what a worker kept through an outage, or dated by a wrong clock, does not lie where readers have been."""
    ready_task(note)
    claimed = claim_one()
    before = db_now()

    write([Ended(claimed, Succeeded(), None, time.time() - 3600)])

    assert FinishedTask.objects.get().finished_at >= before - timedelta(seconds=LATE_SECONDS)


def test_an_end_that_waits_for_the_database_is_dated_by_its_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite lets one writer in at a time, and conflicts are tried again: both count from when they are over."""
    ready_task(note)
    claimed = claim_one()
    before = db_now()
    monkeypatch.setattr("django_taskq.clock.elapsed", iter([0.0, *[100.0] * 9]).__next__)

    write([Ended(claimed, Succeeded(), None, time.time())])

    assert FinishedTask.objects.get().finished_at >= before + timedelta(seconds=100 - LATE_SECONDS)


def test_a_rescued_task_cannot_be_settled_by_its_first_worker() -> None:
    """S4-02, S0-47: whoever lost the lease writes nothing."""
    task = ready_task()
    first_worker, second_worker = announce(), announce()
    first = claim_one(first_worker)
    rescue_worker(engine.ALIAS, first_worker, now=db_now())
    second = claim_one(second_worker)

    late = write([ended(first, Succeeded('"first"'))])
    good = write([ended(second, Succeeded('"second"'))])

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (late.count, len(late.refused)) == (0, 1)
    assert (good.count, row.result_value) == (1, "second")
    assert totals()["succeeded"] == 1


def test_a_late_failure_does_not_touch_the_second_attempt() -> None:
    """S4-02: put back is fenced like the ending."""
    task = ready_task()
    first_worker = announce()
    first = claim_one(first_worker)
    rescue_worker(engine.ALIAS, first_worker, now=db_now())
    claim_one()

    late = write([ended(first, Failed(error=ERROR, retry_in=0.0))])

    assert late.count == 0
    assert state_of(task) == "running"
    assert outcomes_of(task) == ["lost"]


@pytest.mark.parametrize("old_first", [True, False])
def test_one_batch_may_hold_a_task_under_its_old_and_its_new_lease(old_first: bool) -> None:
    """S4-02: a worker that started anew may claim its own lost task again; only the new lease counts."""
    task = ready_task()
    worker = announce()
    old = claim_one(worker)
    rescue_worker(engine.ALIAS, worker, now=db_now())
    new = claim_one()
    batch = [ended(old, Failed(error=ERROR, retry_in=0.0)), ended(new, Succeeded('"new"'))]

    settled = write(batch if old_first else batch[::-1])

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert row.result_value == "new"
    assert (settled.count, [refused.claim.lease for refused in settled.refused]) == (1, [old.lease])
    assert outcomes_of(task) == ["lost"]
    assert {name: totals().get(name) for name in ("succeeded", "failed")} == {"succeeded": 1, "failed": 1}


def test_one_attempt_told_twice_in_one_batch_counts_once() -> None:
    """S0-41: a task interrupted at the end of the grace time may end in the same moment."""
    task = ready_task()
    claimed = claim_one()

    settled = write([ended(claimed), ended(claimed, Interrupted())])

    assert state_of(task) == "succeeded"
    assert (settled.count, len(settled.refused)) == (1, 1)
    assert outcomes_of(task) == []
    assert totals()["succeeded"] == 1


def test_a_settlement_written_again_changes_nothing() -> None:
    """S0-47, S2-26: the answer of a commit may be lost, so the same batch may come twice."""
    tasks = [ready_task(note), ready_task(fail)]
    batch = [
        ended(claimed, Succeeded() if at == 0 else Failed(error=ERROR, retry_in=60.0))
        for at, claimed in enumerate(claim(limit=2))
    ]

    first = write(batch)
    counted = totals()
    second = write(batch)

    assert (first.count, second.count) == (2, 0)
    assert totals() == counted
    assert [state_of(task) for task in tasks] == ["succeeded", "scheduled"]
    assert Attempt.objects.count() == 1


def test_nothing_is_written_when_a_part_of_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """S1-26: rows, attempts and statistics stand or fall together."""
    done, failed = ready_task(note), ready_task(fail)
    batch = [
        ended(claimed, Succeeded() if at == 0 else Failed(error=ERROR, retry_in=60.0))
        for at, claimed in enumerate(claim(limit=2))
    ]
    vendor = vendor_for(engine.ALIAS)

    def refuse(*args: Any) -> None:
        raise OperationalError("cut")

    monkeypatch.setattr(type(vendor), "add_stats", refuse)
    with pytest.raises(DatabaseError):
        write(batch)
    monkeypatch.undo()

    assert [state_of(task) for task in (done, failed)] == ["running", "running"]
    assert not Attempt.objects.exists()
    assert not Stat.objects.exists()
    assert write(batch).count == 2


def test_two_settlements_of_the_same_attempt_at_once_count_once() -> None:
    """S4-18: whichever comes first."""
    task = ready_task()
    claimed = claim_one()

    counts = in_threads(*(lambda: write([ended(claimed)]).count for _ in range(4)))

    assert sorted(counts) == [0, 0, 0, 1]
    assert state_of(task) == "succeeded"
    assert totals()["succeeded"] == 1


def test_a_final_state_does_not_change_by_itself() -> None:
    """S4-17: no outcome, rescue or cancel moves a task that has ended."""
    task = ready_task()
    worker = announce()
    claimed = claim_one(worker)
    write([ended(claimed)])

    write([ended(claimed, Failed(error=ERROR, retry_in=0.0))])
    rescued = rescue_worker(engine.ALIAS, worker, now=db_now())
    changed = api.cancel([str(task.pk)])

    assert state_of(task) == "succeeded"
    assert (rescued, changed.count) == (0, 0)
    with pytest.raises(InvalidTransition):
        after_replay(State.SUCCEEDED)


def test_statistics_are_exact_under_concurrent_settlements() -> None:
    """S0-156: what the dashboards show is what happened, to the task."""
    for _ in range(40):
        ready_task(note)
    for _ in range(20):
        ready_task(fail, max_attempts=2)
    workers = [announce() for _ in range(4)]

    def work(worker_id: int) -> None:
        while Task.objects.exists():
            for claimed in claim(worker_id, limit=5):
                engine.run_and_settle(claimed)

    in_threads(*(lambda worker_id=worker_id: work(worker_id) for worker_id in workers))

    found = totals()
    assert {name: found[name] for name in ("succeeded", "failed", "retried", "dead")} == {
        "succeeded": 40, "failed": 40, "retried": 20, "dead": 20,
    }  # fmt: skip
    runs = sum(found.get(f"run_{at}", 0) for at in range(11))
    assert runs == 80


def test_a_failure_to_settle_sends_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-41: "succeeded" is told after the commit, or not at all."""
    told: list[Any] = []
    listener = told.append
    events.subscribe(events.TaskSucceeded, listener)
    ready_task()
    claimed = claim_one()
    vendor = vendor_for(engine.ALIAS)

    def refuse(*args: Any) -> None:
        raise OperationalError("cut")

    monkeypatch.setattr(type(vendor), "finish", refuse)
    with pytest.raises(DatabaseError):
        write([ended(claimed)])
    monkeypatch.undo()
    before = list(told)
    write([ended(claimed)])
    events.unsubscribe(events.TaskSucceeded, listener)

    assert before == []
    assert len(told) == 1


def test_a_task_that_keeps_no_result_leaves_nothing_behind() -> None:
    """S4-33: neither the row nor its attempts and progress, which nobody would ever prune."""
    task = ready_task(fail_until.task_name or fail_until.module_path, 2, max_attempts=3)
    write([ended(claim_one(), Failed(error=ERROR, retry_in=0.0))])
    Progress.objects.create(task_id=task.pk, done=1, at=db_now())

    write([ended(claim_one(), keep=0)])

    assert state_of(task) == "gone"
    assert Attempt.objects.count() == Progress.objects.count() == 0


def test_the_time_to_keep_a_result_is_written_with_it() -> None:
    """S4-33: per task."""
    task = ready_task()

    write([ended(claim_one(), keep=3600)])

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert row.delete_at is not None
    assert round((row.delete_at - row.finished_at).total_seconds()) == 3600


@pytest.mark.parametrize("outcome", [Snoozed(5.0), Unknown(is_final=False, retry_in=5.0, since=1.0), Interrupted()])
def test_what_is_no_attempt_is_given_back(outcome: Any) -> None:
    """S0-73: snooze, unknown name and interruption cost no attempt."""
    task = ready_task(attempt=1)

    write([ended(claim_one(), outcome)])

    row = row_of(task)
    assert isinstance(row, Task)
    assert row.attempt == 1
    assert row.lease is None


def test_text_outside_ascii_arrives_as_it_was() -> None:
    """S0-107: results and errors, whole plane and beyond."""
    text = 'naïve 東京 🚀\\ " \n end'
    good, bad = ready_task(), ready_task()
    first, second = claim(limit=2)
    error = ErrorInfo(class_path="x.Ü", message=text, traceback=text, fingerprint="f" * 16)

    write([ended(first, Succeeded(engine.json.dumps(text))), ended(second, Failed(error=error, retry_in=None))])

    done, dead = row_of(good), row_of(bad)
    assert isinstance(done, FinishedTask)
    assert isinstance(dead, FinishedTask)
    assert done.result_value == text
    assert dead.error_line == error.line
    assert dead.error_class == "x.Ü"
    assert Attempt.objects.get().traceback == text


def test_the_database_itself_refuses_a_running_task_without_a_lease() -> None:
    """S2-24, S4-17: the rules stand in the schema too."""
    task = ready_task()

    with pytest.raises(DatabaseError):
        Task.objects.filter(pk=task.pk).update(state=State.RUNNING)
    with pytest.raises(DatabaseError):
        Task.objects.filter(pk=task.pk).update(state=State.SUCCEEDED)

    assert connection.is_usable()
    assert state_of(task) == "ready"
