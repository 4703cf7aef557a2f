"""
Steps: what was done once is not done again; nobody without the lease writes; nothing is left contradictory.

The points at which a process is killed: before a step, between its effect and its record, after the record.
"""

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_taskq import Fixed, GiveUp, Snooze, api, events, signals, task
from django_taskq.domain import lease as leases
from django_taskq.domain.outcomes import (
    BudgetOver,
    Cancelled,
    Crashed,
    ErrorInfo,
    Failed,
    GaveUp,
    Interrupted,
    Lost,
    Snoozed,
    TimedOut,
)
from django_taskq.domain.states import State, StepState
from django_taskq.exceptions import InvalidStep, LeaseLost, TaskCancelled, TaskTimeout
from django_taskq.lifecycle.rescue import rescue
from django_taskq.lifecycle.settle import Ended
from django_taskq.models import Attempt, AuditEntry, FinishedTask, Step, Task, Worker
from django_taskq.store import steps as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.app.models import Effect
from tests.capabilities import requires
from tests.engine import (
    ALIAS,
    announce,
    claim_one,
    db_now,
    drain,
    outcomes_of,
    ready_task,
    row_of,
    run_burst,
    running_worker,
    state_of,
    wait_for,
    worker_process,
    write,
)
from tests.guarantees.tasks import gates, note, ran, write_line

pytestmark = pytest.mark.django_db(transaction=True)

ERROR = ErrorInfo(class_path="builtins.ValueError", message="no", traceback="", fingerprint="0" * 16)


def did(key: str) -> str:
    """Do the work of a step, and leave proof."""
    ran.append(key)
    return key


def steps_of(found: Any) -> dict[str, str]:
    """Return the states of a task's steps, in their order."""
    key = getattr(found, "pk", None) or getattr(found, "id", None) or found
    return {step.name: StepState(step.state).name.lower() for step in store.of_task(ALIAS, store.uuid.UUID(str(key)))}


@task(takes_context=True, backoff=Fixed(0), max_attempts=5)
def three_steps(context: Any, fail_until: int = 1) -> list[str]:
    """Parse, save and tell; saving fails until the attempt of this number."""
    context.plan("parse", "save", "tell")
    parsed = context.step("parse", did, "parse")
    saved = context.step("save", save, context.attempt, fail_until)
    return [parsed, saved, context.step("tell", did, "tell")]


def save(attempt: int, fail_until: int) -> str:
    ran.append(f"save {attempt}")
    if attempt < fail_until:
        raise ValueError(f"no room in attempt {attempt}")
    return "saved"


def lose_worker(claimed: Claim) -> None:
    """Let the lease of a claim run out, and rescue what it held."""
    silent_since = db_now() - timedelta(seconds=31)
    Worker.objects.filter(pk=leases.worker_of(claimed.lease)).update(beat_at=silent_since)
    assert rescue(ALIAS, now=db_now()) == 1


# What a retry does


def test_steps_run_in_order_and_keep_their_results() -> None:
    """S3-02: ordered, each with its own state, result and times."""
    found = three_steps.enqueue()

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.result_value == ["parse", "saved", "tell"]
    assert ran == ["parse", "save 1", "tell"]
    kept = store.of_task(ALIAS, row.pk)
    assert [(step.name, step.position, step.result_value) for step in kept] == [
        ("parse", 0, "parse"),
        ("save", 1, "saved"),
        ("tell", 2, "tell"),
    ]
    assert {(step.state, step.attempt, step.worker_id) for step in kept} == {(StepState.SUCCEEDED, 1, row.worker_id)}
    assert all(step.started_at and step.finished_at and step.finished_at >= step.started_at for step in kept)


def test_a_retry_goes_on_after_the_last_step_that_succeeded() -> None:
    """S3-24: what was done is not done again."""
    found = three_steps.enqueue(3)

    drain()

    assert state_of(found) == "succeeded"
    assert ran == ["parse", "save 1", "save 2", "save 3", "tell"]
    assert outcomes_of(found) == ["failed", "failed"]
    assert {step.name: step.attempt for step in Step.objects.all()} == {"parse": 1, "save": 3, "tell": 3}


def test_a_step_that_fails_is_stored_with_its_error_and_the_attempt_fails_with_it() -> None:
    """S3-02, S3-25: the failure says what; the step says where."""
    found = three_steps.using(max_attempts=1).enqueue(2)

    drain()

    row = row_of(found)
    step = Step.objects.get(name="save")
    assert isinstance(row, FinishedTask)
    assert (row.state, row.reason, row.error_line) == (State.DEAD, "exhausted", "no room in attempt 1")
    assert steps_of(found) == {"parse": "succeeded", "save": "failed", "tell": "pending"}
    assert (step.error_class, step.error_line) == ("builtins.ValueError", "no room in attempt 1")


def test_a_result_is_stored_before_the_next_step_begins() -> None:
    """S3-02: another process sees it."""
    seen: list[dict[str, str]] = []

    def look(sender: type, event: events.StepStarted, **kwargs: object) -> None:
        seen.append(steps_of(event.task_id))

    signals.step_started.connect(look)
    try:
        three_steps.enqueue()
        with running_worker(threads=1, burst=True) as worker:
            worker.join(30)
    finally:
        signals.step_started.disconnect(look)

    assert seen == [
        {"parse": "running", "save": "pending", "tell": "pending"},
        {"parse": "succeeded", "save": "running", "tell": "pending"},
        {"parse": "succeeded", "save": "succeeded", "tell": "running"},
    ]


@task(takes_context=True, backoff=Fixed(0))
def odd_result(context: Any, value: str) -> list[Any]:
    """Return what the first attempt and the second one see of a result that JSON changes."""
    found = context.step("odd", lambda: ({"a": (1, 2)}, None))
    ran.append(found)
    nothing = context.step("nothing", lambda: None)
    if context.attempt == 1:
        raise ValueError("again")
    return [found, nothing]


def test_the_first_attempt_sees_a_result_as_a_later_one_does() -> None:
    """S3-24: as JSON gives it back, each time; None is a result, too."""
    found = odd_result.enqueue("")

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert ran == [[{"a": [1, 2]}, None]] * 2
    assert row.result_value == [[{"a": [1, 2]}, None], None]


@task(takes_context=True, backoff=Fixed(0))
def bad_result(context: Any, size: int) -> None:
    """Return from a step what cannot be stored."""
    context.step("bad", lambda: ran.append("bad") or (object() if size < 0 else "x" * size))


@pytest.mark.parametrize(("size", "message"), [(-1, "Unsupported type object"), (2**21, "MAX_RESULT_BYTES")])
def test_a_result_that_cannot_be_stored_ends_the_task_at_once(size: int, message: str) -> None:
    """S3-02: the rules of a task's own result; the step would only have its effects again."""
    found = bad_result.enqueue(size)

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.state, row.reason, ran) == (State.DEAD, "undecodable", ["bad"])
    assert message in (row.error_line or "")
    assert "the result of step 'bad'" in (row.error_line or "")
    assert steps_of(found) == {"bad": "failed"}


@task(takes_context=True)
def snooze_once(context: Any) -> None:
    """Put itself off inside a step, once."""
    context.step("ask", ask)


def ask() -> str:
    ran.append("ask")
    if len(ran) == 1:
        raise Snooze(0)
    return "answer"


def test_a_step_that_snoozes_its_task_has_not_failed() -> None:
    """S3-02: it is ahead again."""
    found = snooze_once.enqueue()
    engine.run_and_settle(claim_one())
    before = steps_of(found)

    drain()

    assert before == {"ask": "pending"}
    assert (state_of(found), steps_of(found), outcomes_of(found)) == ("succeeded", {"ask": "succeeded"}, [])


# What is refused


@task(takes_context=True, max_attempts=1)
def wrong_step(context: Any, kind: str) -> None:
    """Use steps in a way that is refused."""
    match kind:
        case "twice":
            context.step("same", did, "first")
            context.step("same", did, "second")
        case "nested":
            context.step("outer", lambda: context.step("inner", did, "inner"))
        case "transaction":
            with transaction.atomic():
                context.step("inside", did, "inside")
        case "coroutine":
            context.step("async", a_did, "async")
        case "name":
            context.step("", did, "nameless")


@pytest.mark.parametrize(
    ("kind", "message", "done"),
    [
        ("twice", "step 'same' was begun before in this attempt", ["first"]),
        ("nested", "step 'inner' was begun while step 'outer' ran", []),
        ("transaction", "cannot begin inside transaction.atomic()", []),
        ("coroutine", "await context.astep(...)", []),
        ("name", "must be text of 1 to 100 characters", []),
    ],
)
def test_a_step_where_none_can_be_is_refused(kind: str, message: str, done: list[str]) -> None:
    found = wrong_step.enqueue(kind)

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.error_class == f"{InvalidStep.__module__}.{InvalidStep.__qualname__}"
    assert message in (row.error_line or "")
    assert ran == done


@task(takes_context=True, max_attempts=1, ack="atomic")
def atomic_with_step(context: Any) -> None:
    context.step("only", did, "only")


def test_a_task_that_is_one_transaction_has_no_steps() -> None:
    """S3-02: nothing of it outlives a failed attempt, so nothing is durable; that is said."""
    found = atomic_with_step.enqueue()

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert "a task with ack='atomic' has no steps" in (row.error_line or "")
    assert ran == []


@task(takes_context=True, max_attempts=1)
async def blocking_step(context: Any) -> None:
    context.step("only", did, "only")


def test_a_step_that_would_block_the_event_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-27: unless Django itself was told to allow it, as the tests in a browser do."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
    found = blocking_step.enqueue()

    run_burst(threads=1, async_slots=2)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert "await context.astep(...)" in (row.error_line or "")


# Coroutines


async def a_did(key: str) -> str:
    await asyncio.sleep(0)
    ran.append(key)
    return key


async def a_save(attempt: int) -> str:
    ran.append(f"save {attempt}")
    if attempt == 1:
        raise ValueError("no room")
    return "saved"


@task(takes_context=True, backoff=Fixed(0))
async def async_steps(context: Any) -> list[str]:
    """Run steps of both kinds; the second one fails once."""
    await context.aplan("parse", "save", "tell")
    first = await context.astep("parse", a_did, "parse")
    second = await context.astep("save", a_save, context.attempt)
    return [first, second, await context.astep("tell", did, "tell")]


@pytest.mark.parametrize("slots", [0, 2], ids=["in a thread", "on the event loop"])
def test_a_coroutine_goes_on_after_the_last_step_that_succeeded(slots: int) -> None:
    """S3-24: coroutine functions and plain ones."""
    found = async_steps.enqueue()

    run_burst(threads=1, async_slots=slots)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.result_value == ["parse", "saved", "tell"]
    assert ran == ["parse", "save 1", "save 2", "tell"]
    assert steps_of(found) == {"parse": "succeeded", "save": "succeeded", "tell": "succeeded"}


@task(takes_context=True, backoff=Fixed(0), timeout=0.3, max_attempts=1)
async def slow_step(context: Any) -> None:
    await context.astep("slow", asyncio.sleep, 30)


def test_a_step_that_is_stopped_at_the_tasks_timeout_has_failed_and_is_named() -> None:
    """S3-25: ended from outside, it cannot say so itself."""
    found = slow_step.enqueue()

    run_burst(threads=1, async_slots=2)

    row, step = row_of(found), Step.objects.get()
    assert isinstance(row, FinishedTask)
    assert row.error_line == "attempt 1 ran longer than 0.3 seconds, in step 'slow'"
    assert (step.state, step.error_class) == (StepState.FAILED, f"{TaskTimeout.__module__}.TaskTimeout")


# Lost and interrupted


@task(takes_context=True)
def wait_in_step(context: Any, key: str) -> str:
    """Wait in the second of two steps."""
    context.step("first", did, "first")
    return context.step("wait", wait_at, key)


def wait_at(key: str) -> str:
    ran.append("wait")
    gates[f"{key} runs"].set()
    gates[key].wait(20)
    return key


def begun(name: str = "save") -> Claim:
    """Claim a task and store that one of its steps runs, as an attempt does that is never heard of again."""
    claimed = claim_one(announce(silent_for=31))
    store.start(holder_of(claimed), name, now=db_now())
    return claimed


def holder_of(claimed: Claim) -> store.Holder:
    key = store.uuid.UUID(vendor_for(ALIAS).public_id(claimed.key))
    return store.Holder(ALIAS, key, claimed.lease, claimed.attempt, leases.worker_of(claimed.lease))


def test_a_lost_worker_leaves_its_step_interrupted_and_the_attempt_names_both() -> None:
    """S3-25: the context of the interrupted step is in the failure."""
    found = ready_task(three_steps, max_attempts=2)
    worker_id = leases.worker_of(begun().lease)

    rescue(ALIAS, now=db_now())

    [attempt] = Attempt.objects.all()
    assert attempt.message == f"worker {worker_id} stopped beating while it held the task, in step 'save'"
    assert (state_of(found), steps_of(found)) == ("ready", {"save": "interrupted"})
    assert Step.objects.get().worker_id == worker_id


def test_a_dead_letter_names_the_step_in_which_its_last_worker_was_lost() -> None:
    """S3-25, S3-36: also where nothing comes after it."""
    found = ready_task(three_steps, max_attempts=1)
    begun()

    rescue(ALIAS, now=db_now())

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.error_line or "").endswith("in step 'save'")
    assert steps_of(found) == {"save": "interrupted"}


def test_deaths_in_different_steps_are_one_group() -> None:
    """S2-32: the step is named, but it is one cause."""
    for name in ("save", "tell"):
        ready_task(three_steps, max_attempts=1)
        begun(name)
        rescue(ALIAS, now=db_now())

    assert len(set(FinishedTask.objects.values_list("fingerprint", flat=True))) == 1


def test_a_rescued_task_goes_on_after_its_last_step() -> None:
    """S3-25: what the lost worker finished stays done."""
    found = three_steps.enqueue()
    claimed = claim_one(announce(silent_for=31))
    holder = holder_of(claimed)
    store.start(holder, "parse", now=db_now())
    store.finish(holder, "parse", StepState.SUCCEEDED, now=db_now(), result='"by the other"')
    store.start(holder, "save", now=db_now())
    rescue(ALIAS, now=db_now())

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.result_value == ["by the other", "saved", "tell"]
    assert ran == ["save 2", "tell"]


def test_a_task_handed_back_at_the_end_of_the_grace_names_the_step_it_was_in() -> None:
    """S3-25, S0-73: recorded, at no attempt's cost."""
    found = wait_in_step.enqueue("k")
    with running_worker(threads=1, grace=timedelta(seconds=0.1)) as worker:
        worker_id = worker.id
        assert gates["k runs"].wait(10)
        worker.stop()
        worker.wait(20)
    before = state_of(found), steps_of(found)
    gates["k"].set()
    # Its old thread wakes up beside us, and may hold the row for a moment: then a claim passes it over.
    wait_for(lambda: drain() >= 0 and state_of(found) == "succeeded")

    [attempt] = Attempt.objects.all()
    assert before == ("ready", {"first": "succeeded", "wait": "interrupted"})
    assert (attempt.outcome, attempt.error_class) == ("interrupted", "")
    assert attempt.message == f"worker {worker_id} handed the task back, in step 'wait'"
    assert state_of(found) == "succeeded"
    assert ran == ["first", "wait", "wait"]


def test_a_zombie_stores_nothing_of_a_step() -> None:
    """S4-02: neither that it begins nor how it ended; the attempt that runs by now is not disturbed."""
    ready_task(three_steps)
    old = begun()
    rescue(ALIAS, now=db_now())
    new = claim_one()
    store.start(holder_of(new), "save", now=db_now())

    for work in (
        lambda: store.start(holder_of(old), "tell", now=db_now()),
        lambda: store.finish(holder_of(old), "save", StepState.SUCCEEDED, now=db_now(), result="1"),
        lambda: store.plan(holder_of(old), ["more"]),
    ):
        with pytest.raises(LeaseLost):
            work()

    step = Step.objects.get()
    assert (step.state, step.attempt, step.result) == (StepState.RUNNING, 2, None)


def test_an_attempt_that_wakes_up_after_its_rescue_ends_at_its_step() -> None:
    """S4-02: the function has run, its result is refused, and what follows is not begun."""
    found = wait_in_step.enqueue("k")
    refused: list[Any] = []
    events.subscribe(events.SettlementRefused, refused.append)
    claimed = claim_one()
    bench = engine.Bench()

    try:

        def take_it_away() -> None:
            assert gates["k runs"].wait(10)
            lose_worker(claimed)
            gates["k"].set()

        engine.in_threads(lambda: engine.run_one(bench, claimed), take_it_away)
        [ended] = bench.pending
        bench.write()
    finally:
        events.unsubscribe(events.SettlementRefused, refused.append)

    assert isinstance(ended.exception, LeaseLost)
    assert [event.task_id for event in refused] == [found.id]
    assert steps_of(found) == {"first": "succeeded", "wait": "interrupted"}


# Cancelling


@task(takes_context=True)
def cancel_between(context: Any) -> None:
    """Be cancelled while the first step runs."""
    context.plan("first", "second")
    context.step("first", lambda: api.cancel(context.task_id, actor="ann").asked)
    context.step("second", did, "second")


def test_a_cancel_is_heard_at_the_next_step_boundary_and_told_once() -> None:
    """S3-03, S3-16: though the step and the heartbeat can both notice it."""
    told: list[Any] = []
    events.subscribe(events.TaskCancelled, told.append)

    try:
        found = cancel_between.enqueue()
        with running_worker(threads=1, taskq={"HEARTBEAT_SECONDS": 0.1}):
            wait_for(lambda: state_of(found) == "cancelled")
    finally:
        events.unsubscribe(events.TaskCancelled, told.append)

    assert ran == []
    assert [event.task_id for event in told] == [found.id]
    assert steps_of(found) == {"first": "succeeded", "second": "cancelled"}


def test_a_cancel_asked_for_between_two_looks_stops_the_task_before_its_next_step() -> None:
    """S3-03: the row says so when the step is stored, before any heartbeat."""
    found = three_steps.enqueue()
    claimed = claim_one()
    api.cancel(found.id)

    ended = engine.run(claimed)
    write([ended])

    assert isinstance(ended.exception, TaskCancelled)
    assert (state_of(found), ran) == ("cancelled", [])
    assert steps_of(found) == {"parse": "cancelled", "save": "cancelled", "tell": "cancelled"}


def test_cancelling_a_task_that_waits_marks_its_unfinished_steps_cancelled() -> None:
    """S3-05, S3-15: in the same transaction, whatever they were."""
    found = three_steps.using(max_attempts=5, backoff=Fixed(3600)).enqueue(9)
    engine.run_and_settle(claim_one())
    before = state_of(found), steps_of(found)

    api.cancel(found.id)

    assert before == ("scheduled", {"parse": "succeeded", "save": "failed", "tell": "pending"})
    assert state_of(found) == "cancelled"
    assert steps_of(found) == {"parse": "succeeded", "save": "cancelled", "tell": "cancelled"}


def test_a_lost_worker_whose_task_was_to_be_cancelled_leaves_no_step_unfinished() -> None:
    """S3-05: the rescue cancels it, steps and all."""
    found = ready_task(three_steps, max_attempts=5)
    claimed = begun()
    store.plan(holder_of(claimed), ["tell"])
    api.cancel(str(found.pk))

    rescue(ALIAS, now=db_now())

    assert (state_of(found), steps_of(found)) == ("cancelled", {"save": "cancelled", "tell": "cancelled"})


# Replaying


def test_a_replay_goes_on_after_the_last_step_that_succeeded() -> None:
    """S3-24: the results of finished steps are kept."""
    found = three_steps.using(max_attempts=1).enqueue(2)
    drain()

    api.replay(found.id, attempts=1)
    drain()

    assert state_of(found) == "succeeded"
    assert ran == ["parse", "save 1", "save 2", "tell"]


def test_a_replay_from_the_start_forgets_the_steps() -> None:
    """S3-24: when what was done has to be done again; the audit log says which."""
    found = three_steps.using(max_attempts=1).enqueue(2)
    drain()

    api.replay(found.id, attempts=1, from_start=True)
    between = steps_of(found)
    drain()

    assert (between, state_of(found)) == ({}, "succeeded")
    assert ran == ["parse", "save 1", "parse", "save 2", "tell"]
    assert AuditEntry.objects.get(action="replay").detail == {"attempts": 1, "from_start": True}


def test_a_cancelled_task_that_is_replayed_has_its_steps_ahead_again() -> None:
    """S3-06: a live task has no cancelled step."""
    found = cancel_between.enqueue()
    engine.run_and_settle(claim_one())

    api.replay(found.id)
    between = steps_of(found)
    drain()

    assert between == {"first": "succeeded", "second": "pending"}
    assert (state_of(found), ran) == ("succeeded", ["second"])


# Answers that are lost, processes that are killed


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lose the answer of the commit in which a step named in the list is stored as succeeded."""
    commit = BaseDatabaseWrapper._commit
    losing: list[str] = []
    finish = store.finish

    def remember(holder: Any, name: str, state: StepState, **options: Any) -> Any:
        armed = name in losing and state == StepState.SUCCEEDED
        if armed:
            losing.remove(name)
            gates["armed"].set()
        return finish(holder, name, state, **options)

    def commit_and_lose(self: Any) -> None:
        commit(self)
        if gates["armed"].is_set():
            gates["armed"].clear()
            raise OperationalError("the connection is lost")

    monkeypatch.setattr(store, "finish", remember)
    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit_and_lose)
    return losing


def test_a_result_whose_answer_was_lost_is_stored_once_and_the_step_not_run_again(commits: list[str]) -> None:
    """S0-47: written twice, it changes nothing."""
    commits.append("save")
    found = three_steps.enqueue()

    drain()

    assert commits == []
    assert (state_of(found), ran) == ("succeeded", ["parse", "save 1", "tell"])
    assert steps_of(found) == {"parse": "succeeded", "save": "succeeded", "tell": "succeeded"}


@task(takes_context=True, max_attempts=1)
def outlive_connection(context: Any) -> list[str]:
    """Lose the connection in one step and between two."""
    first = context.step("first", cut, "first")
    cut("between")
    return [first, context.step("second", did, "second")]


def cut(key: str) -> str:
    ran.append(key)
    connection.ensure_connection()
    connection.connection.close()
    return key


@requires("server_connections")
def test_a_step_outlives_a_connection_that_broke_while_it_ran() -> None:
    """S0-13: servers close what is idle for long, and a step may take that long."""
    found = outlive_connection.enqueue()

    run_burst(threads=1)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert row.result_value == ["first", "second"]
    assert ran == ["first", "between", "second"]


@task(takes_context=True, backoff=Fixed(0))
def atomic_step(context: Any, key: str) -> str:
    """Leave an effect in a step that is one transaction with its record."""
    return context.step("effect", leave_effect, key, atomic=True)


def leave_effect(key: str) -> str:
    ran.append(key)
    Effect.objects.create(key=f"{key} {len(ran)}")
    return key


def test_an_atomic_step_whose_answer_was_lost_has_its_effect_exactly_once(commits: list[str]) -> None:
    """S0-47: the commit decided both, though nobody heard; the next attempt finds it done."""
    commits.append("effect")
    failed: list[Any] = []
    events.subscribe(events.StepFailed, failed.append)
    found = atomic_step.enqueue("k")

    try:
        drain()
    finally:
        events.unsubscribe(events.StepFailed, failed.append)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.state, row.attempt, row.result_value) == (State.SUCCEEDED, 2, "k")
    assert (ran, Effect.objects.count(), failed) == (["k"], 1, [])


@task(takes_context=True, backoff=Fixed(0))
def atomic_step_that_fails(context: Any) -> None:
    context.step("effect", effect_then_fail, context.attempt, atomic=True)


def effect_then_fail(attempt: int) -> None:
    Effect.objects.create(key=f"attempt {attempt}")
    if attempt == 1:
        raise ValueError("after the effect")


def test_an_atomic_step_that_fails_leaves_no_effect() -> None:
    """S0-47: its writes live and die with its record."""
    found = atomic_step_that_fails.enqueue()
    engine.run_and_settle(claim_one())
    between = steps_of(found), Effect.objects.count()

    drain()

    assert between == ({"effect": "failed"}, 0)
    assert list(Effect.objects.values_list("key", flat=True)) == ["attempt 2"]


@task(takes_context=True)
def atomic_zombie(context: Any) -> None:
    """Lose the lease in an atomic step, after its effect."""
    context.step("effect", effect_and_lose, context.task_id, atomic=True)


def effect_and_lose(task_id: str) -> None:
    ran.append("effect")
    Effect.objects.create(key=f"effect {len(ran)}")
    if len(ran) == 1:
        Task.objects.filter(pk=task_id).update(lease=leases.make_lease(99, 1))


def test_an_atomic_step_of_a_zombie_leaves_no_effect() -> None:
    """S4-02: the record is refused inside the transaction, so the effect goes with it."""
    atomic_zombie.enqueue()

    ended = engine.run(claim_one())

    assert isinstance(ended.exception, LeaseLost)
    assert Effect.objects.count() == 0
    assert Step.objects.get().state == StepState.RUNNING


def test_a_settlement_whose_answer_was_lost_closes_the_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-47: written again it matches no lease, and what it said of the steps stays."""
    found = ready_task(three_steps, max_attempts=2)
    claimed = begun()
    outcome = Ended(claimed, Lost(error=ERROR), None, db_now().timestamp())

    first, second = write([outcome]), write([outcome])

    assert (first.count, second.count) == (1, 0)
    assert (state_of(found), steps_of(found)) == ("ready", {"save": "interrupted"})
    assert outcomes_of(found) == ["lost"]


@task(takes_context=True, max_attempts=5)
def killed_task(context: Any, where: str, folder: str) -> str:
    """Run three steps, and kill the process once: before the second, between its effect and its record, or after."""
    proof = Path(folder)

    def die_once(here: str) -> None:
        if where == here and not (proof / "died").exists():
            (proof / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def effect(name: str) -> str:
        write_line(str(proof / "effects"), name)
        if name == "second":
            die_once("between its effect and its record")
        return name

    context.step("first", effect, "first")
    die_once("before the step")
    context.step("second", effect, "second")
    die_once("after the record")
    return context.step("third", effect, "third")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("where", "effects", "interrupted"),
    [
        ("before the step", ["first", "second", "third"], {"first": "succeeded"}),
        (
            "between its effect and its record",
            ["first", "second", "second", "third"],
            {"first": "succeeded", "second": "interrupted"},
        ),
        ("after the record", ["first", "second", "third"], {"first": "succeeded", "second": "succeeded"}),
    ],
)
def test_after_a_kill_the_task_goes_on_after_the_last_step_that_was_stored(
    where: str, effects: list[str], interrupted: dict[str, str], tmp_path: Path
) -> None:
    """S3-25, S0-39: a real kill -9; only a step killed before its record runs again."""
    found = killed_task.enqueue(where, str(tmp_path))
    with worker_process(threads=1) as first:
        first.wait(20)
    left = steps_of(found)
    wait_for(lambda: rescue(ALIAS, now=db_now()), 20)
    between = steps_of(found)

    with worker_process(threads=1):
        wait_for(lambda: state_of(found) == "succeeded", 20)

    assert (tmp_path / "effects").read_text().split() == effects
    assert between == interrupted
    assert {name for name, state in left.items() if state == "running"} == {
        name for name, state in interrupted.items() if state == "interrupted"
    }


@task(takes_context=True, max_attempts=20)
def atomic_killed(context: Any, key: str, where: str, folder: str) -> None:
    """Leave an effect in an atomic step; kill the process once, in it or after it."""
    proof = Path(folder) / "died"

    def die_once(here: str) -> None:
        if where == here and not proof.exists():
            proof.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def effect() -> None:
        Effect.objects.create(key=key)
        die_once("before the commit")

    context.step("effect", effect, atomic=True)
    die_once("after the commit")


@pytest.mark.chaos
@pytest.mark.parametrize(("where", "before"), [("before the commit", 0), ("after the commit", 1)])
def test_an_atomic_step_has_its_effect_exactly_once_wherever_its_process_is_killed(
    where: str, before: int, tmp_path: Path
) -> None:
    """S0-47: the key is unique, so a second effect would fail."""
    found = atomic_killed.enqueue("k", where, str(tmp_path))
    with worker_process(threads=1) as first:
        first.wait(20)
    left = Effect.objects.count()

    with worker_process(threads=1):
        wait_for(lambda: state_of(found) == "succeeded", 20)

    assert (left, Effect.objects.count()) == (before, 1)
    assert outcomes_of(found) == ["lost"]


# Child processes


@task(takes_context=True, backoff=Fixed(0))
def child_killed(context: Any, folder: str) -> int:
    """Let the child process die in the second step, once."""
    context.step("first", write_line, f"{folder}/effects", "first")

    def second() -> int:
        if context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    return context.step("second", second)


@pytest.mark.chaos
def test_a_child_process_that_dies_leaves_its_step_interrupted_and_named(tmp_path: Path) -> None:
    """S3-25: the worker lives on and tells."""
    found = child_killed.enqueue(str(tmp_path))
    told: list[dict[str, str]] = []

    def look(event: events.TaskRetried) -> None:
        told.append(steps_of(event.task_id))

    events.subscribe(events.TaskRetried, look)
    try:
        run_burst(executor="processes", threads=1)
    finally:
        events.unsubscribe(events.TaskRetried, look)

    row = row_of(found)
    [attempt] = Attempt.objects.all()
    assert isinstance(row, FinishedTask)
    assert told == [{"first": "succeeded", "second": "interrupted"}]
    assert "was killed by SIGKILL, in step 'second'" in attempt.message
    assert (row.state, row.result_value != os.getpid()) == (State.SUCCEEDED, True)
    assert (tmp_path / "effects").read_text() == "first\n"


# Nothing is contradictory


OUTCOMES = st.sampled_from(
    [
        Failed(error=ERROR, retry_in=0.0),
        Failed(error=ERROR, retry_in=3600.0),
        Failed(error=ERROR, retry_in=None),
        TimedOut(error=ERROR, retry_in=0.0),
        Crashed(error=ERROR),
        GaveUp(error=ERROR),
        BudgetOver(error=ERROR),
        Snoozed(0.0),
        Cancelled("asked"),
        Interrupted(),
        Lost(error=ERROR),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    states=st.lists(st.sampled_from(list(StepState)), max_size=4),
    outcome=OUTCOMES,
    attempt=st.sampled_from([1, 3]),
    is_cancelled=st.booleans(),
    replays=st.sampled_from([None, False, True]),
)
def test_no_end_of_an_attempt_leaves_a_task_and_its_steps_contradictory(
    states: list[StepState], outcome: Any, attempt: int, is_cancelled: bool, replays: bool | None
) -> None:
    """S3-06: only a running task has a running step; a cancelled task has nothing unfinished."""
    found = ready_task(three_steps, attempt=attempt - 1, max_attempts=3)
    claimed = claim_one()
    Step.objects.bulk_create(
        Step(task_id=found.pk, name=f"step {at}", position=at, state=state) for at, state in enumerate(states)
    )
    if is_cancelled:
        api.cancel(str(found.pk))

    write([Ended(claimed, outcome, 0.0, 1.0, cancelled=is_cancelled, left_step=True)])
    if replays is not None:
        api.replay([str(found.pk)], from_start=replays)

    left = [StepState(step.state) for step in store.of_task(ALIAS, found.pk)]
    assert StepState.RUNNING not in left
    if state_of(found) == "cancelled":
        assert set(left) <= {StepState.SUCCEEDED, StepState.CANCELLED}
    if replays and row_of(found).replays:
        assert left == []
    elif StepState.SUCCEEDED in states:
        assert [at for at, state in enumerate(left) if state == StepState.SUCCEEDED] == [
            at for at, state in enumerate(states) if state == StepState.SUCCEEDED
        ]
    Task.objects.all().delete()
    FinishedTask.objects.all().delete()
    Step.objects.all().delete()


# What it costs


def test_a_batch_without_steps_asks_for_none() -> None:
    """S3-02: a success, a plain failure and a retry never look at the table of steps."""
    for _ in range(4):
        note.enqueue()
    claims = engine.claim(limit=4)
    ended = [
        engine.run(claims[0]),
        Ended(claims[1], Failed(error=ERROR, retry_in=0.0), 0.0, 1.0),
        Ended(claims[2], Failed(error=ERROR, retry_in=None), 0.0, 1.0),
        Ended(claims[3], Snoozed(0.0), 0.0, 1.0),
    ]

    with CaptureQueriesContext(connection) as asked:
        write(ended)

    assert not [query["sql"] for query in asked if Step._meta.db_table in query["sql"]]


def test_rescuing_many_tasks_asks_once_for_their_steps() -> None:
    """S0-13: one statement for a batch."""
    for _ in range(20):
        ready_task()
    engine.claim(announce(silent_for=31), limit=20)

    with CaptureQueriesContext(connection) as asked:
        rescue(ALIAS, now=db_now())

    assert len([query["sql"] for query in asked if Step._meta.db_table in query["sql"]]) == 1


# Events


def test_the_events_of_steps_are_told_in_order_and_only_for_what_ran() -> None:
    """S0-27: started and how it ended; a step whose result is kept tells nothing."""
    told: list[tuple[str, str, int]] = []
    kinds = (events.StepStarted, events.StepSucceeded, events.StepFailed)

    def hear(event: events.StepEvent) -> None:
        told.append((type(event).__name__, event.step, event.attempt))

    for kind in kinds:
        events.subscribe(kind, hear)
    try:
        three_steps.enqueue(2)
        drain()
    finally:
        for kind in kinds:
            events.unsubscribe(kind, hear)

    assert told == [
        ("StepStarted", "parse", 1),
        ("StepSucceeded", "parse", 1),
        ("StepStarted", "save", 1),
        ("StepFailed", "save", 1),
        ("StepStarted", "save", 2),
        ("StepSucceeded", "save", 2),
        ("StepStarted", "tell", 2),
        ("StepSucceeded", "tell", 2),
    ]


def test_a_task_that_gives_up_in_a_step_is_a_dead_letter_at_once() -> None:
    found = give_up_in_step.enqueue()

    drain()

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert (row.reason, steps_of(found)) == ("gave_up", {"ask": "failed"})


@task(takes_context=True)
def give_up_in_step(context: Any) -> None:
    def give_up() -> None:
        raise GiveUp("there is no such customer")

    context.step("ask", give_up)


def test_two_steps_at_once_are_refused() -> None:
    """S3-02: steps follow one another, also where somebody gathers them."""
    found = gathered.enqueue()

    run_burst(threads=1, async_slots=2)

    row = row_of(found)
    assert isinstance(row, FinishedTask)
    assert "was begun while step" in (row.error_line or "")


@task(takes_context=True, max_attempts=1)
async def gathered(context: Any) -> None:
    await asyncio.gather(context.astep("one", a_did, "one"), context.astep("two", a_did, "two"))


def test_a_plan_may_be_made_again_and_changed() -> None:
    """S3-02: what is known stays where it is."""
    ready_task(three_steps)
    holder = holder_of(claim_one())

    store.plan(holder, ["b", "a"])
    store.plan(holder, ["a", "b", "c"])

    assert list(Step.objects.order_by("position").values_list("name", flat=True)) == ["b", "a", "c"]
