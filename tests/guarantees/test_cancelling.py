"""Cancelling: what waits ends at once, what runs is asked; no request is lost, and nothing comes back by itself."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from django_taskq import Fixed, api, chain, events
from django_taskq.domain.outcomes import Cancelled, ErrorInfo, Failed, Interrupted, Snoozed, Unknown
from django_taskq.domain.states import State
from django_taskq.exceptions import InvalidTransition, TaskNotFound
from django_taskq.lifecycle import control, rescue
from django_taskq.lifecycle.settle import Ended
from django_taskq.models import AuditEntry, FinishedTask, Task, Worker
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
    worker_process,
    write,
)
from tests.guarantees.tasks import (
    append,
    cancel_itself,
    fail_until,
    gates,
    note,
    note_attempt,
    pause,
    pause_async,
    pause_deaf,
    ran,
)

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


def test_the_cancel_of_a_workflow_wins_over_the_return_of_its_member() -> None:
    """A member that was asked to stop and come back is cancelled with the whole, and does not run again."""
    handle = chain(note.s("a"), note.s("b")).enqueue()
    claimed = claim_one()
    [member, _] = handle.tasks()
    api.cancel(member.id, requeue=True)

    handle.cancel()
    now = db_now().timestamp()
    write([Ended(claimed, Cancelled(was_asked=True), now, now, cancelled=True)])
    drain()

    assert (state_of(member), ran) == ("cancelled", [])
    assert handle.refresh().status == "cancelled"


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


# Ends, told once


@pytest.fixture
def ends() -> Iterator[Counter[str]]:
    """Count the events that tell a task's end, by its id."""
    found: Counter[str] = Counter()

    def hear(event: Any) -> None:
        found[event.task_id] += 1

    kinds = (events.TaskCancelled, events.TaskSucceeded, events.TaskDead)
    for kind in kinds:
        events.subscribe(kind, hear)
    yield found
    for kind in kinds:
        events.unsubscribe(kind, hear)


def test_eight_cancellers_beside_workers_and_a_rescuer_leave_each_task_one_end_told_once(ends: Counter[str]) -> None:
    """S4-17, S4-23, S4-90: a cancel races with successes, retries, hand-backs and rescues."""
    tasks = [
        *(str(ready_task(note).pk) for _ in range(30)),
        *(fail_until.using(max_attempts=3).enqueue(2, at).id for at in range(20)),
    ]
    workers = [announce(), announce()]

    def work(worker_id: int) -> None:
        while Task.objects.exclude(state=State.RUNNING).exists():
            for claimed in claim(worker_id, limit=3):
                if random.random() < 0.2:
                    write([Ended(claimed, Interrupted(started=False), None, db_now().timestamp())])
                else:
                    engine.run_and_settle(claimed)

    def rescue_now_and_then() -> None:
        for at in range(10):
            rescue.rescue_worker("default", workers[at % 2], now=db_now())

    def stop(seed: int) -> None:
        order = random.Random(seed).sample(tasks, len(tasks))
        for start in range(0, len(order), 5):
            control.cancel(order[start : start + 5], actor=f"op {seed}")

    in_threads(
        *[lambda worker_id=worker_id: work(worker_id) for worker_id in workers],
        rescue_now_and_then,
        *[lambda seed=seed: stop(seed) for seed in range(8)],
    )
    for worker_id in workers:
        rescue.rescue_worker("default", worker_id, now=db_now())
    drain()

    assert not Task.objects.exists()
    assert set(map(str, FinishedTask.objects.values_list("pk", flat=True))) == set(tasks)
    assert ends == dict.fromkeys(tasks, 1)


def test_a_cancel_that_comes_with_the_shutdown_ends_the_task_and_does_not_hand_it_back(ends: Counter[str]) -> None:
    """S4-24, S4-29: the worker is stopped before its next heartbeat."""
    with running_worker(taskq={"LEASE_SECONDS": 60, "HEARTBEAT_SECONDS": 20}, threads=1) as worker:
        task = pause_deaf.enqueue("job")
        assert gates["job runs"].wait(10)
        api.cancel(task.id)
        worker.stop_now()
        worker.wait(20)
    drain()

    assert (state_of(task), ran, ends[task.id]) == ("cancelled", ["job"], 1)


@pytest.mark.slow
def test_a_cancel_asked_of_a_worker_that_is_killed_ends_the_task(tmp_path: Path) -> None:
    """S4-23, S4-24: the request is in the row, and the rescuer reads it there."""
    path = tmp_path / "log"
    with worker_process(threads=1) as first:
        task = append.using(max_attempts=5).enqueue(str(path), "job", 60)
        wait_for(path.exists)
        api.cancel(task.id)
        first.kill()
        with worker_process(threads=1):
            wait_for(lambda: state_of(task) == "cancelled", 30)

    assert path.read_text().count("start") == 1
    assert engine.outcomes_of(task) == ["lost"]


@pytest.mark.slow
def test_a_zombie_cannot_make_a_success_of_a_task_that_was_cancelled_behind_its_back(tmp_path: Path) -> None:
    """S4-17, S4-23: suspended with the request pending, rescued by another, and woken up."""
    path = tmp_path / "log"
    with worker_process(threads=1) as zombie:
        task = append.enqueue(str(path), "job", 3)
        wait_for(path.exists)
        zombie.suspend()
        api.cancel(task.id)
        with worker_process(threads=1):
            wait_for(lambda: state_of(task) == "cancelled", 30)
            zombie.resume()
            # It finishes what ran, is refused, and goes on under a new id.
            wait_for(lambda: Worker.objects.filter(state=Worker.State.ALIVE).count() == 2, 20)
            wait_for(lambda: "end" in path.read_text(), 20)
            after = note.enqueue("after")
            wait_for(lambda: state_of(after) == "succeeded", 20)

    assert state_of(task) == "cancelled"
    assert FinishedTask.objects.filter(pk=task.id).count() == 1


@pytest.mark.slow
def test_the_process_executor_ends_a_task_that_does_not_listen_after_the_grace(tmp_path: Path) -> None:
    """S4-23: its child is killed; nothing of it goes on, and the slot takes the next."""
    path = tmp_path / "log"
    with running_worker(taskq=QUICK, threads=1, executor="processes", kill_grace=timedelta(seconds=0.3)):
        task = append.enqueue(str(path), "job", 30)
        wait_for(path.exists)
        api.cancel(task.id)
        wait_for(lambda: state_of(task) == "cancelled", 10)
        after = append.enqueue(str(path), "after")
        wait_for(lambda: state_of(after) == "succeeded", 10)

    assert "end" not in path.read_text()


# Stopped and sent back


def test_a_running_task_can_be_stopped_and_sent_back() -> None:
    """S4-24: only when asked for; ready again, with the attempt given back, and audited."""
    with running_worker(taskq=QUICK, threads=1):
        task = pause.enqueue("job")
        assert gates["job runs"].wait(10)
        gates["job runs"].clear()

        changed = api.cancel(task.id, requeue=True, actor="ana", reason="wrong node")
        assert gates["job runs"].wait(10)
        gates["job"].set()
        wait_for(lambda: state_of(task) == "succeeded", 10)

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert changed.asked == (task.id,)
    assert (row.attempt, ran, engine.outcomes_of(task)) == (1, ["job", "job"], ["interrupted"])
    assert "requeue" not in (row.options or "")
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason, entry.detail) == ("cancel", "ana", "wrong node", {"requeue": True})


def test_a_coroutine_can_be_stopped_and_sent_back() -> None:
    """S4-24: at its next await."""
    with running_worker(taskq=QUICK, threads=1, async_slots=2):
        task = pause_async.enqueue("job")
        assert gates["job runs"].wait(10)
        gates["job runs"].clear()

        assert task.cancel(requeue=True) is True
        assert gates["job stopped"].wait(10)
        assert gates["job runs"].wait(10)


@pytest.mark.slow
def test_a_process_that_does_not_listen_is_killed_and_its_task_sent_back(tmp_path: Path) -> None:
    """S4-24: as for a cancel, but for what becomes of the task."""
    path = tmp_path / "log"
    with running_worker(taskq=QUICK, threads=1, executor="processes", kill_grace=timedelta(seconds=0.3)):
        task = append.enqueue(str(path), "job", 30)
        wait_for(path.exists)
        api.cancel(task.id, requeue=True)
        wait_for(lambda: path.read_text().count("start") == 2, 10)

    assert engine.outcomes_of(task)[0] == "interrupted"


@pytest.mark.parametrize("state", [State.READY, State.SCHEDULED, State.WAITING, State.PARKED])
def test_what_waits_cannot_be_stopped_and_sent_back(state: State) -> None:
    """S4-24: there is nothing to stop; one id is an error, of many it is skipped."""
    task = ready_task(note, state=state, run_after=None if state == State.READY else db_now())

    with pytest.raises(InvalidTransition, match=f"this one is {state.name.lower()}"):
        api.cancel(str(task.pk), requeue=True)
    changed = api.cancel([str(task.pk)], requeue=True)

    assert (changed.count, len(changed.skipped)) == (0, 1)
    assert state_of(task) == state.name.lower()


def test_what_has_ended_may_not_run_twice_or_was_cancelled_cannot_be_sent_back() -> None:
    """S4-24, S4-17: no request is weakened, and no promise of ``ack="first"`` broken."""
    from django_taskq.domain.states import Ack

    ended = note.enqueue()
    drain()
    first = ready_task(note, ack=int(Ack.FIRST))
    claim_one()
    cancelled = ready_task(note)
    claim_one()
    api.cancel(str(cancelled.pk))

    for task, why in ((ended.id, "succeeded"), (str(first.pk), "second time"), (str(cancelled.pk), "cancelled before")):
        with pytest.raises(InvalidTransition, match=why):
            api.cancel(task, requeue=True)
    row = row_of(cancelled)
    assert isinstance(row, Task)
    assert row.cancel is True
    assert not store.wants_requeue(row)


def test_a_cancel_that_comes_after_it_wins() -> None:
    """S4-24: whether or not the worker has heard of the first request."""
    for heard in (True, False):
        task = ready_task(note)
        claimed = claim_one()
        api.cancel(str(task.pk), requeue=True)
        api.cancel(str(task.pk))

        write([Ended(claimed, Interrupted(started=False), None, db_now().timestamp(), cancelled=heard)])
        drain()

        assert (state_of(task), ran) == ("cancelled", [])


@pytest.mark.parametrize("outcome", [Failed(error=ERROR, retry_in=3600.0), Snoozed(3600.0), Interrupted(started=False)])
@pytest.mark.parametrize("heard", [True, False])
def test_what_ends_by_itself_while_it_is_asked_to_come_back_is_no_cancelled_task(outcome: Any, heard: bool) -> None:
    """S4-24: a failure counts and is retried, a snooze is kept; nothing ends as cancelled for it."""
    task = ready_task(note)
    claimed = claim_one()
    api.cancel(str(task.pk), requeue=True)

    write([Ended(claimed, outcome, None, db_now().timestamp(), cancelled=heard)])
    if not heard:
        # The request is still there; the next claim takes it off.
        engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, Task)
    assert (row.cancel, row.options) == (False, None)
    assert state_of(task) in {"ready", "scheduled"}
    Task.objects.update(state=State.READY, run_after=None)
    drain()
    assert (state_of(task), ran) == ("succeeded", [None])


@pytest.mark.parametrize(
    ("options", "started", "outcome"),
    [
        (None, False, Unknown(is_final=False, retry_in=3600.0, since=1.5)),
        ('{"unknown_since":1.5}', True, Failed(error=ERROR, retry_in=3600.0)),
    ],
)
def test_a_request_to_come_back_is_not_taken_for_a_cancel_where_options_change(
    options: str | None, started: bool, outcome: Any
) -> None:
    """Nobody heard of it, and how the attempt ends is written to the options, where it stands."""
    task = ready_task(note, options=options)
    claimed = claim_one()
    api.cancel(str(task.pk), requeue=True)

    now = db_now().timestamp()
    write([Ended(claimed, outcome, now if started else None, now)])
    Task.objects.update(state=State.READY, run_after=None)
    drain()

    assert (state_of(task), ran) == ("succeeded", [None])


def test_a_task_that_succeeds_meanwhile_has_succeeded() -> None:
    """S4-24: its effects are there."""
    task = ready_task(note)
    claimed = claim_one()
    api.cancel(str(task.pk), requeue=True)

    engine.run_and_settle(claimed)
    drain()

    assert (state_of(task), ran) == ("succeeded", [None])


def test_a_task_that_cancels_itself_meanwhile_is_cancelled() -> None:
    """S4-24: its own word counts."""
    task = cancel_itself.enqueue()
    claimed = claim_one()
    api.cancel(task.id, requeue=True)
    ended = engine.run(claimed)

    write([ended._replace(cancelled=True)])

    assert state_of(task) == "cancelled"


def test_one_that_was_asked_to_come_back_comes_back_from_a_lost_worker() -> None:
    """S4-24: a rescue counts as one attempt, as always."""
    task = ready_task(note_attempt)
    worker_id = announce(silent_for=60)
    claim_one(worker_id)
    api.cancel(str(task.pk), requeue=True)

    rescue.rescue("default", now=db_now())
    before = state_of(task)
    drain()

    assert (before, state_of(task), ran) == ("ready", "succeeded", [(None, 2)])


def test_a_member_that_was_sent_back_lets_its_chain_go_on() -> None:
    """S4-24: it has not ended, so nothing follows from it yet."""
    chain(note.s("first"), note.s("second")).enqueue()
    claimed = claim_one()
    api.cancel(str(claimed.key) if not isinstance(claimed.key, bytes) else claimed.key.hex(), requeue=True)
    write([Ended(claimed, Interrupted(), db_now().timestamp(), db_now().timestamp(), cancelled=True)])

    drain()

    assert ran == ["first", "second"]


def test_a_member_of_a_workflow_knows_the_deadline_of_the_whole() -> None:
    """S4-22: context.deadline and context.remaining."""
    from tests.guarantees.test_timeouts import note_deadline

    chain(note.s(), note_deadline.s()).deadline(30).enqueue()

    drain()

    left = FinishedTask.objects.get(name__endswith="note_deadline").result_value
    assert 20 < left <= 30
