"""Cancelling: what waits ends at once, what runs is asked; no request is lost, and nothing comes back by itself."""

from typing import Any

import pytest

from django_taskq import Fixed, api
from django_taskq.domain.outcomes import ErrorInfo, Failed, Interrupted, Snoozed
from django_taskq.domain.states import State
from django_taskq.exceptions import TaskNotFound
from django_taskq.lifecycle import control
from django_taskq.lifecycle.settle import Ended
from django_taskq.models import AuditEntry, FinishedTask, Task
from django_taskq.store import tasks as store
from tests import engine
from tests.engine import (
    announce,
    claim,
    claim_one,
    db_now,
    drain,
    in_threads,
    ready_task,
    row_of,
    running_worker,
    state_of,
    totals,
    wait_for,
    write,
)
from tests.guarantees.tasks import cancel_itself, fail_until, gates, note, pause, pause_async, pause_deaf, ran

pytestmark = pytest.mark.django_db(transaction=True)

ERROR = ErrorInfo(class_path="builtins.ValueError", message="no", traceback="", fingerprint="0" * 16)
QUICK = {"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.2}


@pytest.mark.parametrize("state", [State.READY, State.SCHEDULED, State.WAITING, State.PARKED])
def test_a_task_that_waits_is_cancelled_at_once_and_never_runs(state: State) -> None:
    """S4-23, S4-90, S3-30: cancelled tasks do not execute."""
    task = ready_task(note, state=state, run_after=None if state == State.READY else db_now())

    changed = api.cancel(str(task.pk), actor="ann", reason="wrong customer")
    drain()

    assert changed.ids == (str(task.pk),)
    assert (state_of(task), ran) == ("cancelled", [])
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.action, entry.reason, entry.task_id) == ("ann", "cancel", "wrong customer", task.pk)


def test_a_cancelled_task_does_not_come_back() -> None:
    """S4-24: no requeue unless an operator replays it."""
    task = note.enqueue()
    api.cancel(task.id)

    drain()
    before = state_of(task)
    api.replay(task.id)
    drain()

    assert before == "cancelled"
    assert state_of(task) == "succeeded"


def test_a_running_task_hears_of_it_within_a_heartbeat_and_stops() -> None:
    """S4-23, S3-31, S2-38: cooperative, by context.raise_if_cancelled()."""
    with running_worker(taskq=QUICK, threads=1):
        task = pause.enqueue("job")
        assert gates["job runs"].wait(10)

        changed = api.cancel(task.id)
        wait_for(lambda: state_of(task) == "cancelled", 5)

    assert changed.asked == (task.id,)
    assert totals() == totals() | {"cancelled": 1}


def test_a_running_coroutine_is_stopped_at_its_next_await() -> None:
    """S4-23: it need not ask."""
    with running_worker(taskq=QUICK, threads=1, async_slots=2):
        task = pause_async.enqueue("job")
        assert gates["job runs"].wait(10)

        api.cancel(task.id)
        wait_for(lambda: state_of(task) == "cancelled", 5)

    assert gates["job stopped"].is_set()


def test_a_task_that_does_not_listen_ends_as_it_likes() -> None:
    """S4-23, non-guarantee: a thread cannot be stopped from outside."""
    with running_worker(taskq=QUICK, threads=1):
        task = pause_deaf.enqueue("job")
        assert gates["job runs"].wait(10)
        api.cancel(task.id)
        wait_for(lambda: row_of(task).cancel)
        gates["job"].set()
        wait_for(lambda: state_of(task) == "succeeded", 5)


def test_a_failed_attempt_of_a_task_that_was_asked_to_stop_is_not_retried() -> None:
    """S4-24: the wish outlives the attempt."""
    task = ready_task(note, max_attempts=5)
    claimed = claim_one()
    api.cancel(str(task.pk))

    write([Ended(claimed, Failed(error=ERROR, retry_in=3600.0), None, db_now().timestamp(), cancelled=True)])

    assert state_of(task) == "cancelled"


@pytest.mark.parametrize("outcome", [Failed(error=ERROR, retry_in=3600.0), Snoozed(3600.0), Interrupted(started=False)])
def test_a_request_the_worker_had_not_heard_of_yet_is_heard_at_the_next_claim_and_not_hours_later(
    outcome: Any,
) -> None:
    """S4-23: a cancel that races with a retry, a snooze or a hand-back is kept."""
    task = ready_task(note)
    claimed = claim_one()
    api.cancel(str(task.pk))

    write([Ended(claimed, outcome, None, db_now().timestamp())])
    drain()

    assert (state_of(task), ran) == ("cancelled", [])


def test_a_request_is_not_lost_to_a_retry_that_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-23, S4-18: the row changes between the operator's look and their write."""
    task = ready_task(note)
    claimed = claim_one()
    look = store.find_many

    def look_and_be_overtaken(*args: Any) -> Any:
        found = look(*args)
        monkeypatch.setattr(store, "find_many", look)
        write([Ended(claimed, Failed(error=ERROR, retry_in=0.0), None, db_now().timestamp())])
        return found

    monkeypatch.setattr(store, "find_many", look_and_be_overtaken)
    changed = api.cancel(str(task.pk))

    assert changed.ids == (str(task.pk),)
    assert state_of(task) == "cancelled"


def test_a_request_is_not_lost_to_a_claim_that_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-23, S4-18: it waited when the operator looked, and runs when they write."""
    task = ready_task(note)
    look = store.find_many
    claims: list[Any] = []

    def look_and_be_overtaken(*args: Any) -> Any:
        found = look(*args)
        monkeypatch.setattr(store, "find_many", look)
        claims.append(claim_one())
        return found

    monkeypatch.setattr(store, "find_many", look_and_be_overtaken)
    changed = api.cancel(str(task.pk))

    row = row_of(task)
    assert isinstance(row, Task)
    assert changed.asked == (str(task.pk),)
    assert row.cancel is True


def test_cancels_claims_and_settlements_at_once_leave_each_task_with_one_end() -> None:
    """S4-17, S4-18: whoever wins, exactly one final row and no live one."""
    tasks = [str(ready_task(note).pk) for _ in range(40)]
    worker_id = announce()

    def work() -> None:
        while Task.objects.exclude(state=State.RUNNING).exists():
            for claimed in claim(worker_id, limit=3):
                engine.run_and_settle(claimed)

    def stop() -> None:
        for start in range(0, 40, 5):
            control.cancel(tasks[start : start + 5], actor="op")

    in_threads(work, work, stop)
    drain()

    assert not Task.objects.exists()
    states = list(FinishedTask.objects.values_list("state", flat=True))
    assert len(states) == 40
    assert set(states) <= {State.SUCCEEDED, State.CANCELLED}
    assert len(ran) == states.count(State.SUCCEEDED) == totals().get("succeeded", 0)


def test_a_task_may_cancel_itself() -> None:
    """S0-42: Cancel is an end, not an error."""
    task = cancel_itself.enqueue()

    drain()

    assert state_of(task) == "cancelled"


def test_what_has_ended_cannot_be_cancelled() -> None:
    """S4-17: and the caller is told."""
    task = note.enqueue()
    drain()

    changed = api.cancel([task.id])

    assert changed.count == 0
    assert "succeeded" in changed.skipped[0][1]
    assert task.cancel() is False


def test_an_id_that_does_not_exist_is_told() -> None:
    """S3-30: one unknown id is an error, one of many is skipped."""
    with pytest.raises(TaskNotFound):
        api.cancel("01a20130-1b00-73f3-ac87-59517fb58d4b")
    assert api.cancel(["01a20130-1b00-73f3-ac87-59517fb58d4b", "no id"]).count == 0


def test_a_replayed_task_does_not_remember_its_cancel() -> None:
    """S4-24: a fresh start."""
    task = ready_task(note)
    worker = announce()
    claimed = claim_one(worker)
    api.cancel(str(task.pk))
    write([Ended(claimed, Failed(error=ERROR, retry_in=0.0), None, db_now().timestamp(), cancelled=True)])

    api.replay(str(task.pk))
    drain()

    assert state_of(task) == "succeeded"


def test_cancelling_between_attempts_keeps_the_history() -> None:
    """S4-23: what was tried stays to be seen."""
    task = fail_until.using(backoff=Fixed(60)).enqueue(5, "k")
    engine.run_and_settle(claim_one())

    api.cancel(task.id)

    assert state_of(task) == "cancelled"
    assert engine.outcomes_of(task) == ["failed"]
