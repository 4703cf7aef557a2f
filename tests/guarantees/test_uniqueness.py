"""Unique tasks: one lives at a time, whoever races, and the key is free in every end."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_taskq import (
    DuplicateTask,
    EnqueuePaused,
    InvalidOptions,
    InvalidWorkflow,
    Unique,
    batch,
    cancel,
    chain,
    debounce,
    events,
    pause,
    replay,
    throttle,
)
from django_taskq.domain.states import State
from django_taskq.domain.unique import is_freed_by_start
from django_taskq.duties import rescue
from django_taskq.lifecycle import control
from django_taskq.models import FinishedTask, IdempotencyKey, Task
from django_taskq.store import tasks as task_store
from django_taskq.store.vendors import vendor_for
from django_taskq.testing import record_tasks, travel
from tests.capabilities import requires
from tests.engine import (
    ALIAS,
    announce,
    claim,
    claim_one,
    db_now,
    drain,
    in_threads,
    row_of,
    run,
    run_and_settle,
    state_of,
    totals,
    write,
)
from tests.guarantees.tasks import note, ran
from tests.guarantees.unique_tasks import (
    by_arguments,
    charge,
    double_in_steps,
    fail_with_key,
    pay,
    reindex,
    reindex_by_version,
    reindex_later,
    reindex_latest,
    reindex_one_by_one,
    remind,
)

pytestmark = pytest.mark.django_db(transaction=True)

RAISES = Unique(key="order:{order_id}", on_conflict="raise")


def keys() -> list[str | None]:
    """Return the unique keys of the live tasks."""
    return list(Task.objects.order_by("id").values_list("unique_key", flat=True))


# While live


def test_a_task_is_not_stored_while_one_with_its_key_lives() -> None:
    first = charge.enqueue(7, "first")
    second = charge.enqueue(7, "second")
    other = charge.enqueue(8)

    assert (first.is_duplicate, second.is_duplicate, other.is_duplicate) == (False, True, False)
    assert second.id == first.id
    assert second.args == [7, "first"]
    assert sorted(map(str, Task.objects.values_list("pk", flat=True))) == sorted([first.id, other.id])


def test_the_result_of_a_duplicate_is_the_living_tasks_own() -> None:
    first = charge.enqueue(7)
    claim_one()

    second = charge.enqueue(7)
    drain()
    second.refresh()

    assert second.id == first.id
    assert second.is_duplicate
    assert second.state == "running"


def test_all_arguments_are_the_key_of_a_task_that_names_none() -> None:
    calls = [by_arguments.enqueue(1, a=2), by_arguments.enqueue(1, a=3), by_arguments.enqueue(1, a=2)]

    assert [result.is_duplicate for result in calls] == [False, False, True]


def end_by_success() -> None:
    run_and_settle(claim_one())


def end_by_death() -> None:
    Task.objects.update(max_attempts=1)
    claimed = claim_one()
    run_and_settle(claimed._replace(name="tests.guarantees.tasks.fail", args='{"args":[],"kwargs":{}}'))


def end_by_cancelling_the_waiting() -> None:
    cancel(str(Task.objects.get().pk))


def end_by_cancelling_the_running() -> None:
    claimed = claim_one()
    cancel(str(Task.objects.get().pk))
    # Handed back, it is ready at once, and the next claim ends it.
    _hand_back(claimed)
    run_and_settle(claim_one())


def end_by_expiry() -> None:
    Task.objects.update(expires_at=db_now() - timedelta(seconds=1))
    run_and_settle(claim_one())


def end_by_killing() -> None:
    control.kill(str(Task.objects.get().pk))


def end_by_rescue() -> None:
    Task.objects.update(max_attempts=1)
    claim_one(announce(silent_for=100, lease_seconds=3))
    rescue.run_once(ALIAS, _options(), db_now())


def _options() -> Any:
    from django_taskq import conf

    return conf.options("default")


@pytest.mark.parametrize(
    "end",
    [
        end_by_success,
        end_by_death,
        end_by_cancelling_the_waiting,
        end_by_cancelling_the_running,
        end_by_expiry,
        end_by_killing,
        end_by_rescue,
    ],
    ids=lambda end: end.__name__.removeprefix("end_by_"),
)
def test_every_end_frees_the_key(end: Callable[[], None]) -> None:
    first = charge.enqueue(7)
    end()
    assert row_of(first).finished_at  # type: ignore[union-attr]

    second = charge.enqueue(7)

    assert not second.is_duplicate
    assert state_of(second) == "ready"


def test_the_key_is_kept_from_attempt_to_attempt_and_over_a_rescue() -> None:
    first = fail_with_key.enqueue("a")
    run_and_settle(claim_one())
    assert fail_with_key.enqueue("a").id == first.id

    vendor_for(ALIAS).promote(db_now() + timedelta(seconds=1), 10)
    Task.objects.update(max_attempts=5)
    claim_one(announce(silent_for=100, lease_seconds=3))
    assert fail_with_key.enqueue("a").id == first.id
    rescue.run_once(ALIAS, _options(), db_now())

    assert state_of(first) in ("ready", "scheduled")
    assert fail_with_key.enqueue("a").id == first.id


def test_a_zombie_does_not_free_the_key_of_the_next_task() -> None:
    first = charge.enqueue(7)
    Task.objects.update(max_attempts=1)
    zombie = claim_one(announce(silent_for=100, lease_seconds=3))
    rescue.run_once(ALIAS, _options(), db_now())
    second = charge.enqueue(7)

    settled = run_and_settle(zombie)

    assert settled is not None
    assert settled.count == 0
    assert (state_of(first), state_of(second)) == ("dead", "ready")
    assert charge.enqueue(7).id == second.id


# Until the start


def test_a_key_held_until_the_start_is_free_from_the_claim_on() -> None:
    first = reindex.enqueue("books", 1)
    assert reindex.enqueue("books", 2).id == first.id
    claimed = claim_one()

    second = reindex.enqueue("books", 3)
    run_and_settle(claimed)
    drain()

    assert not second.is_duplicate
    assert ran == [("books", 1), ("books", 3)]


def test_a_key_is_freed_if_and_only_if_the_claim_is_committed() -> None:
    first = reindex.enqueue("books")
    charge.enqueue(7)
    with transaction.atomic():
        assert len(claim(limit=2)) == 2
        assert [key is None or not is_freed_by_start(key) for key in keys()] == [True, True]
        transaction.set_rollback(True)

    assert is_freed_by_start(row_of(first).unique_key)  # type: ignore[union-attr]
    assert reindex.enqueue("books").id == first.id


def test_a_task_handed_back_unstarted_has_no_key_until_its_start_any_more() -> None:
    first = reindex.enqueue("books", 1)
    _hand_back(claim_one())
    assert (state_of(first), keys()) == ("ready", [None])

    second = reindex.enqueue("books", 2)
    drain()

    assert not second.is_duplicate
    assert ran == [("books", 1), ("books", 2)]


def _hand_back(claimed: Any) -> None:
    from django_taskq.domain.outcomes import Interrupted
    from django_taskq.lifecycle.settle import Ended

    now = db_now().timestamp()
    write([Ended(claimed, Interrupted(started=False), None, now)])


def test_a_retry_does_not_get_back_the_key_it_held_until_its_start() -> None:
    task = fail_with_key.using(unique=Unique(key="{key}", until="started"))
    first = task.enqueue("a")
    run_and_settle(claim_one())

    second = task.enqueue("a")

    assert not second.is_duplicate
    assert state_of(first) in ("ready", "scheduled")


def test_a_task_that_a_limit_parks_keeps_its_key_until_its_start() -> None:
    first, second = reindex_one_by_one.enqueue("books"), reindex_one_by_one.enqueue("films")
    claimed = claim_one()
    assert len(claim(limit=5)) == 0

    assert (state_of(first), state_of(second)) == ("running", "parked")
    assert not reindex_one_by_one.enqueue("books").is_duplicate
    assert reindex_one_by_one.enqueue("films").id == second.id
    run_and_settle(claimed)
    drain()
    assert ran.count("films") == 1
    assert ran.count("books") == 2


def test_a_key_that_a_worker_of_an_older_release_did_not_free_is_free_all_the_same() -> None:
    first = reindex.enqueue("books")
    lease = announce() << 32 | 1
    Task.objects.update(state=State.RUNNING, lease=lease, started_at=db_now())

    second = reindex.enqueue("books")

    assert not second.is_duplicate
    assert (state_of(first), state_of(second)) == ("running", "ready")


@requires("skip_locked")
def test_what_a_duplicate_counts_on_does_not_start_before_its_transaction_commits() -> None:
    first = reindex.enqueue("books")
    with transaction.atomic():
        assert reindex.enqueue("books").id == first.id
        [before] = in_threads(lambda: len(claim()))

    assert before == 0
    assert len(claim()) == 1


# Conflicts


def test_a_conflict_can_raise_an_error_that_names_the_task() -> None:
    first = charge.enqueue(7)

    with pytest.raises(DuplicateTask) as caught:
        charge.using(unique=RAISES).enqueue(7)

    assert caught.value.task_id == first.id
    assert caught.value.key == "tests.guarantees.unique_tasks.charge:order:7"
    assert first.id in str(caught.value)


def test_a_conflict_can_replace_what_waits() -> None:
    first = reindex_latest.using(priority=5, delay=60).enqueue("books", 1)
    second = reindex_latest.using(priority=9, metadata={"by": "test"}).enqueue("books", 2)
    drain()

    row = row_of(first)
    assert second.id == first.id
    assert ran == [("books", 2)]
    assert row is not None
    assert (row.priority, row.metadata_values["user"]) == (9, {"by": "test"})


def test_what_was_tried_before_is_replaced_with_all_attempts_ahead() -> None:
    rule = Unique(key="{key}", until="finished", on_conflict="replace")
    first = fail_with_key.using(unique=rule).enqueue("a")
    run_and_settle(claim_one())

    fail_with_key.using(unique=rule, max_attempts=3).enqueue("a")

    row = row_of(first)
    assert row is not None
    assert (row.attempt, row.max_attempts) == (1, 4)


def test_what_is_replaced_begins_without_the_steps_of_the_call_before() -> None:
    rule = Unique(key="{key}", until="finished", on_conflict="replace")
    double_in_steps.using(unique=rule).enqueue("a", 1)
    run_and_settle(claim_one())

    double_in_steps.using(unique=rule).enqueue("a", 20)
    drain()

    assert ran == [2, 40]


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_a_cancel_of_an_attempt_before_does_not_end_the_call_that_came_after_it(on_conflict: Any) -> None:
    rule = Unique(key="{key}", until="finished", on_conflict=on_conflict)
    first = double_in_steps.using(unique=rule).enqueue("a", 1)
    failed = run(claim_one())
    # Too late for the attempt, which has ended, and before that is written.
    cancel(first.id)
    write([failed])

    again = double_in_steps.using(unique=rule).enqueue("a", 1)
    drain()

    assert again.id == first.id
    assert state_of(first) == "succeeded"


def test_a_task_that_shares_its_key_replaces_another_one_whole() -> None:
    rule = Unique(key="nightly", scope="global", on_conflict="replace")
    first = charge.using(unique=rule).enqueue(7)

    second = reindex.using(unique=rule).enqueue("books", 2)

    row = row_of(first)
    assert row is not None
    assert second.id == first.id
    assert (row.name, row.arguments) == (reindex.module_path, (["books", 2], {}))


@requires("concurrent_writers")
def test_a_call_and_the_end_of_the_task_it_meets_wait_for_each_other_without_a_deadlock() -> None:
    first = reindex_latest.using(unique=Unique(key="{index}", until="finished")).enqueue("books")
    locked, asked = threading.Event(), threading.Event()

    def settle() -> None:
        with transaction.atomic():
            # As a settlement does: the row by its id, then what hangs on it.
            row = Task.objects.select_for_update().get(pk=first.id)
            locked.set()
            asked.wait(20)
            row.delete()

    def call() -> Any:
        locked.wait(20)
        threading.Timer(0.3, asked.set).start()
        with transaction.atomic():
            note.enqueue("before")
            return reindex_latest.using(unique=Unique(key="{index}", until="finished", on_conflict="replace")).enqueue(
                "books"
            )

    _, second = in_threads(settle, call)

    assert not second.is_duplicate
    assert Task.objects.count() == 2


@pytest.mark.parametrize("on_conflict", ["replace", "reschedule"])
def test_what_runs_is_neither_replaced_nor_rescheduled(on_conflict: Any) -> None:
    first = charge.enqueue(7, "first")
    claimed = claim_one()

    with pytest.raises(DuplicateTask, match="and runs") as caught:
        charge.using(unique=Unique(key="order:{order_id}", until="finished", on_conflict=on_conflict)).enqueue(7, "x")

    assert caught.value.task_id == first.id
    assert row_of(first).arguments == ([7, "first"], {})  # type: ignore[union-attr]
    assert run_and_settle(claimed).count == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("on_conflict", ["return", "raise", "replace", "reschedule"])
def test_a_conflict_leaves_the_callers_transaction_usable(on_conflict: Any) -> None:
    rule = Unique(key="order:{order_id}", until="finished", on_conflict=on_conflict)
    charge.using(delay=60).enqueue(7)
    with transaction.atomic():
        before = note.enqueue("before")
        try:
            charge.using(unique=rule).enqueue(7)
        except DuplicateTask:
            assert on_conflict == "raise"
        after = note.enqueue("after")
        assert Task.objects.count() == 3

    assert (state_of(before), state_of(after)) == ("ready", "ready")
    assert Task.objects.filter(unique_key__isnull=False).count() == 1


def test_a_duplicate_that_is_rolled_back_changes_nothing() -> None:
    first = reindex_latest.using(delay=60).enqueue("books", 1)
    with transaction.atomic():
        reindex_latest.enqueue("books", 2)
        charge.enqueue(7)
        transaction.set_rollback(True)

    assert row_of(first).arguments == (["books", 1], {})  # type: ignore[union-attr]
    assert state_of(first) == "scheduled"
    assert not charge.enqueue(7).is_duplicate


# Debounce and throttle


def test_a_debounced_task_runs_once_after_the_last_call() -> None:
    with travel() as clock:
        start = clock.now()
        first = reindex_later.enqueue("books", 1)
        clock.shift(6)
        second = reindex_later.enqueue("books", 2)
        other = reindex_later.enqueue("films", 1)

        row = row_of(first)
        assert second.id == first.id != other.id
        assert row is not None
        assert row.state == State.SCHEDULED
        assert row.run_after == start + timedelta(seconds=16)


def test_a_debounced_task_is_not_put_off_for_ever() -> None:
    with travel() as clock:
        start = clock.now()
        first = reindex_later.enqueue("books")
        for _ in range(2):
            clock.shift(9)
            reindex_later.enqueue("books")

        assert row_of(first).run_after == start + timedelta(seconds=25)  # type: ignore[union-attr]
        clock.shift(9)
        reindex_later.enqueue("books")

    assert state_of(first) == "ready"


def test_a_throttled_task_is_stored_once_in_its_period_whatever_becomes_of_it() -> None:
    with travel() as clock:
        first = remind.enqueue("ada", "one")
        clock.shift(30)
        waiting = remind.enqueue("ada", "two")
        other = remind.enqueue("bob", "one")
        drain()
        ended = remind.enqueue("ada", "three")
        clock.shift(31)
        later = remind.enqueue("ada", "four")

    assert {waiting.id, ended.id} == {first.id}
    assert ended.status == "SUCCESSFUL"
    assert [result.is_duplicate for result in (first, waiting, other, ended, later)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_period_can_raise() -> None:
    task = remind.using(unique=Unique(key="{customer}", period=60, on_conflict="raise"))
    first = task.enqueue("ada")

    with pytest.raises(DuplicateTask) as caught:
        task.enqueue("ada")

    assert caught.value.task_id == first.id
    assert IdempotencyKey.objects.count() == 1


# Races


@pytest.mark.parametrize(
    "rule",
    [
        Unique(key="{index}"),
        Unique(key="{index}", until="started"),
        Unique(key="{index}", on_conflict="replace"),
        debounce(30, key="{index}"),
        throttle(30, key="{index}"),
    ],
    ids=["finished", "started", "replace", "debounce", "throttle"],
)
def test_of_eight_that_store_a_key_at_once_one_does(rule: Unique) -> None:
    task = reindex.using(unique=rule)
    for turn in range(5):
        results = in_threads(*[lambda turn=turn, at=at: task.enqueue(f"index {turn}", at) for at in range(8)])

        assert Task.objects.count() == turn + 1
        assert len({result.id for result in results}) == 1
        assert sorted(result.is_duplicate for result in results) == [False] + [True] * 7


def test_of_eight_in_transactions_of_their_own_one_stores_the_key_and_all_commit() -> None:
    def body(at: int) -> Any:
        with transaction.atomic():
            result = charge.enqueue(7, str(at))
            note.enqueue(at)
            return result

    results = in_threads(*[lambda at=at: body(at) for at in range(8)])

    assert len({result.id for result in results}) == 1
    assert Task.objects.filter(unique_key__isnull=False).count() == 1
    assert Task.objects.filter(unique_key=None).count() == 8


def test_whoever_waits_for_a_key_that_is_rolled_back_stores_the_task() -> None:
    inside, decided = threading.Event(), threading.Event()

    def first() -> Any:
        with transaction.atomic():
            result = charge.enqueue(7, "rolled back")
            inside.set()
            decided.wait(20)
            transaction.set_rollback(True)
        return result

    def second() -> Any:
        inside.wait(20)
        threading.Timer(0.2, decided.set).start()
        return charge.enqueue(7, "stored")

    gone, stored = in_threads(first, second)

    assert state_of(gone) == "gone"
    assert not stored.is_duplicate
    assert state_of(stored) == "ready"


def test_an_enqueue_while_the_holder_ends_meets_a_task_or_stores_one() -> None:
    stop = threading.Event()
    most: list[int] = []

    def produce() -> list[str]:
        found = []
        for at in range(40):
            found.append(charge.enqueue(7, str(at)).id)
            most.append(Task.objects.filter(unique_key__isnull=False).count())
        return found

    def consume() -> list[str]:
        worker_id = announce(lease_seconds=300)
        while not stop.is_set():
            for claimed in claim(worker_id, limit=5):
                run_and_settle(claimed)
        return []

    def produce_and_stop(barrier: threading.Barrier) -> list[str]:
        try:
            return produce()
        finally:
            if barrier.wait(60) == 0:
                stop.set()

    last = threading.Barrier(4)
    results = in_threads(*[lambda: produce_and_stop(last)] * 4, consume)
    drain()

    ids = {found for part in results for found in part}
    assert max(most) <= 1
    assert ids == {str(key) for key in FinishedTask.objects.values_list("pk", flat=True)}
    assert len(ran) == len(ids)


# Queues that take nothing


@pytest.mark.parametrize("policy", ["raise", "drop", "block"])
def test_a_full_queue_does_not_refuse_a_call_whose_task_is_there(policy: str) -> None:
    queues = {"QUEUES": {"default": {"MAX_READY": 2, "FULL_POLICY": policy}}}
    throttled = remind.using(queue_name="other").enqueue("ada")
    with override_settings(TASKQ=queues):
        first = charge.enqueue(7)
        paid = pay.using(idempotency_key="request").enqueue(7)

        results = [
            charge.enqueue(7),
            charge.enqueue_many([(7,)])[0],
            remind.enqueue("ada"),
            pay.using(idempotency_key="request").enqueue(7),
        ]
        with pytest.raises(DuplicateTask):
            charge.using(unique=RAISES).enqueue(7)

    assert [result.id for result in results] == [first.id, first.id, throttled.id, paid.id]
    assert all(result.is_duplicate for result in results)
    assert Task.objects.count() == 3


def test_a_pause_that_refuses_tasks_does_not_refuse_a_call_whose_task_is_there() -> None:
    first = charge.enqueue(7)
    pause("default", reject=True)

    assert charge.enqueue(7).id == first.id
    for call in (lambda: charge.enqueue(8), lambda: charge.enqueue_many([(7,), (8,)])):
        with pytest.raises(EnqueuePaused):
            call()
    # It would give the paused queue other work.
    with pytest.raises(EnqueuePaused):
        charge.using(unique=Unique(key="order:{order_id}", until="finished", on_conflict="replace")).enqueue(7)


# Many at once


def test_of_many_each_call_gets_the_task_that_has_its_key() -> None:
    held = charge.enqueue(2, "held")

    results = charge.enqueue_many([(1, "a"), (2, "b"), (1, "c"), (3, "d")])

    assert [result.is_duplicate for result in results] == [False, True, True, False]
    assert results[1].id == held.id
    assert results[2].id == results[0].id
    assert results.ids == [result.id for result in results]
    assert {tuple(row.arguments[0]) for row in Task.objects.all()} == {(1, "a"), (2, "held"), (3, "d")}


def test_of_many_that_replace_each_other_the_last_counts() -> None:
    held = reindex_latest.using(delay=60).enqueue("books", 1)

    results = reindex_latest.enqueue_many([("films", 1), ("books", 2), ("films", 2), ("books", 3)])

    assert results[1].id == results[3].id == held.id
    assert {tuple(row.arguments[0]) for row in Task.objects.all()} == {("films", 2), ("books", 3)}


def test_of_many_that_replace_each_other_limits_and_fair_key_are_those_of_the_last() -> None:
    reindex_by_version.enqueue_many([("books", 1), ("books", 2)])

    row = Task.objects.get()
    assert row.fair_key == "2"
    assert row.limits is not None
    assert row.limits.endswith("v:2")


def test_of_many_of_which_one_raises_none_is_stored() -> None:
    held = charge.enqueue(600)

    with pytest.raises(DuplicateTask) as caught:
        charge.using(unique=RAISES).enqueue_many([(at,) for at in range(601)])
    with pytest.raises(DuplicateTask, match="two calls of one enqueue_many"):
        charge.using(unique=RAISES).enqueue_many([(1,), (1,)])

    assert caught.value.task_id == held.id
    assert Task.objects.count() == 1


def test_eight_that_store_the_same_many_in_other_orders_do_not_block_each_other() -> None:
    def body(at: int) -> Any:
        calls = [(number,) for number in range(60)]
        return charge.enqueue_many(calls if at % 2 else calls[::-1]).ids

    results = in_threads(*[lambda at=at: body(at) for at in range(8)])

    assert Task.objects.count() == 60
    assert {tuple(sorted(ids)) for ids in results} == {tuple(sorted(results[0]))}


def test_of_many_that_are_throttled_each_call_gets_the_task_that_has_its_key() -> None:
    held = remind.enqueue("ada")

    results = remind.enqueue_many([("bob",), ("ada",), ("bob",)])

    assert [result.is_duplicate for result in results] == [False, True, True]
    assert results[1].id == held.id
    assert results[2].id == results[0].id


# Scope and options


def test_keys_belong_to_the_task_unless_they_are_shared() -> None:
    own = [charge.enqueue(1), reindex.using(unique=Unique(key="order:1")).enqueue("books")]
    rule = Unique(key="nightly", scope="global")
    shared = [charge.using(unique=rule).enqueue(2), reindex.using(unique=rule).enqueue("films")]

    assert [result.is_duplicate for result in (*own, *shared)] == [False, False, False, True]
    assert shared[1].task.module_path == charge.module_path


def test_a_call_without_a_key_is_not_unique() -> None:
    task = charge.using(unique=Unique(key=lambda order_id, note="": note or None))

    results = [task.enqueue(1), task.enqueue(1), task.enqueue(1, "x"), task.enqueue(2, "x"), charge.enqueue(1)]

    assert [result.is_duplicate for result in results] == [False, False, False, True, False]


def test_uniqueness_can_be_switched_off_for_a_call() -> None:
    assert not any(charge.using(unique=False).enqueue(1).is_duplicate for _ in range(2))
    assert keys() == [None, None]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"until": "ended"}, "unique.until"),
        ({"on_conflict": "ignore"}, "unique.on_conflict"),
        ({"scope": "queue", "key": "a"}, "unique.scope"),
        ({"scope": "global"}, "unique.scope"),
        ({"period": 0}, "unique.period"),
        ({"period": 5, "until": "started"}, "unique.period"),
        ({"period": 5, "on_conflict": "replace"}, "unique.period"),
        ({"max_wait": 5}, "unique.max_wait"),
        ({"wait": timedelta(minutes=1), "max_wait": 59, "on_conflict": "reschedule"}, "unique.max_wait"),
        ({"wait": -1}, "unique.wait"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        Unique(**options)

    assert caught.value.field == field


def test_a_task_cannot_be_unique_and_stored_after_the_commit() -> None:
    with pytest.raises(InvalidOptions, match="enqueue_on_commit does not go with unique"):
        charge.using(enqueue_on_commit=True)
    with pytest.raises(InvalidOptions, match="must be True, False, Unique"):
        note.using(unique="order")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptions, match="no parameter of note"):
        note.using(unique=Unique(key="{order}"))


def test_where_all_is_stored_after_the_commit_unique_tasks_are_stored_in_the_transaction(settings: Any) -> None:
    settings.TASKQ = {"ENQUEUE_ON_COMMIT": True}
    with transaction.atomic():
        first, second = charge.enqueue(1), charge.enqueue(1)
        late = note.enqueue()
        assert [str(key) for key in Task.objects.values_list("pk", flat=True)] == [first.id]

    assert second.id == first.id
    assert state_of(late) == "ready"


def test_a_unique_task_is_no_member_of_a_workflow() -> None:
    with pytest.raises(InvalidWorkflow, match="is unique"):
        chain(charge.s(1), note.s()).enqueue()
    with pytest.raises(InvalidWorkflow, match="is unique"):
        batch([note.s()]).then(charge.s(1)).enqueue()

    assert chain(charge.using(unique=False).s(1), note.s()).enqueue()


def test_a_long_key_and_a_long_name_are_as_exact_as_short_ones() -> None:
    task = charge.using(unique=Unique(key="{note}"))
    texts = ["x" * 500 + end for end in "abc"]

    results = [task.enqueue(1, text) for text in (*texts, *texts)]

    assert [result.is_duplicate for result in results] == [False] * 3 + [True] * 3
    assert all(len(key or "") <= 100 for key in keys())


# Replays


def test_a_replay_whose_key_is_taken_is_skipped_with_the_reason() -> None:
    dead, free = fail_with_key.enqueue("a"), fail_with_key.enqueue("b")
    drain()
    live = fail_with_key.enqueue("a")

    changed = replay([dead.id, free.id], actor="ops")

    assert changed.ids == (free.id,)
    [(skipped, why)] = changed.skipped
    assert skipped == dead.id
    assert live.id in why
    assert "unique key" in why
    assert (state_of(dead), state_of(live), state_of(free)) == ("dead", "ready", "ready")


def test_of_two_dead_with_one_key_one_is_replayed_and_holds_it() -> None:
    first = fail_with_key.enqueue("a")
    drain()
    second = fail_with_key.enqueue("a")
    drain()

    changed = replay([first.id, second.id])

    assert len(changed.ids) == 1
    assert len(changed.skipped) == 1
    assert fail_with_key.enqueue("a").id == changed.ids[0]


def test_eight_replays_and_enqueues_at_once_leave_one_live_task() -> None:
    dead = fail_with_key.enqueue("a")
    drain()

    def body(at: int) -> Any:
        return replay([dead.id]).ids if at % 2 else fail_with_key.enqueue("a").id

    in_threads(*[lambda at=at: body(at) for at in range(8)])

    assert Task.objects.count() == 1


def test_a_task_cancelled_before_its_start_gets_its_key_back_with_a_replay() -> None:
    first = reindex.enqueue("books")
    cancel(first.id)

    replay(first.id)

    assert reindex.enqueue("books").id == first.id
    claim_one()
    assert not reindex.enqueue("books").is_duplicate


# Told, counted, and what others pay


def test_a_duplicate_is_told_as_such_after_the_commit_and_counted_nowhere() -> None:
    heard: list[Any] = []
    for kind in (events.EnqueueDeduplicated, events.TaskEnqueued, events.TasksStored):
        events.subscribe(kind, heard.append)
    try:
        first = charge.enqueue(7)
        with transaction.atomic():
            charge.enqueue(7)
            charge.enqueue_many([(7,), (8,)])
            assert len(heard) == 2
        with transaction.atomic():
            charge.enqueue(7)
            transaction.set_rollback(True)
    finally:
        for kind in (events.EnqueueDeduplicated, events.TaskEnqueued, events.TasksStored):
            events.unsubscribe(kind, heard.append)

    told = [(type(event).__name__, getattr(event, "how", getattr(event, "count", None))) for event in heard]
    assert told == [
        ("TasksStored", 1),
        ("TaskEnqueued", None),
        ("EnqueueDeduplicated", "returned"),
        ("EnqueueDeduplicated", "returned"),
        ("TasksStored", 1),
        ("TaskEnqueued", None),
    ]
    assert heard[2].task_id == first.id
    assert heard[2].key == "tests.guarantees.unique_tasks.charge:order:7"
    drain()
    assert totals()["succeeded"] == 2


def _statements(work: Callable[[], object]) -> int:
    """Count the statements about tasks and locks of keys; words to workers and looks at pauses go by time."""
    with CaptureQueriesContext(connection) as found:
        work()
    return sum(Task._meta.db_table in query["sql"] or "_LOCK(" in query["sql"] for query in found)


def test_a_task_without_a_key_costs_no_statement_more() -> None:
    assert _statements(lambda: note.enqueue(2)) == 1
    assert _statements(lambda: charge.enqueue(1)) == (1 if connection.vendor != "mysql" else 5)
    Task.objects.all().delete()
    with CaptureQueriesContext(connection) as keyless:
        vendor_for(ALIAS).claim("default", 5, lease=1 << 32, now=db_now())
    assert not [query["sql"] for query in keyless if "unique_key" in query["sql"].split("SET", 1)[0]]


def test_a_recorder_notes_each_enqueue_with_its_key() -> None:
    with record_tasks() as recorded:
        first, second = charge.enqueue(7), charge.enqueue(7)

    assert [task.unique_key for task in recorded.tasks] == ["tests.guarantees.unique_tasks.charge:order:7"] * 2
    assert first.id != second.id
    assert not Task.objects.exists()


@pytest.mark.parametrize("backend", ["ImmediateBackend", "NullBackend"])
def test_backends_that_store_nothing_check_keys_and_find_no_duplicates(backend: str, settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": f"django_taskq.backend.{backend}"}}

    results = [charge.enqueue(7), charge.enqueue(7)]

    assert len({result.id for result in results}) == 2
    assert not any(result.is_duplicate for result in results)
    with pytest.raises(InvalidOptions, match="meets None"):
        charge.using(unique=Unique(key="{note}")).enqueue(7, None)  # type: ignore[arg-type]


def test_the_store_brings_back_only_what_is_free() -> None:
    dead = fail_with_key.enqueue("a")
    drain()
    fail_with_key.enqueue("a")

    rows = task_store.bring_back(ALIAS, [FinishedTask.objects.get(pk=uuid.UUID(dead.id))], now=db_now())

    assert rows == []
    assert state_of(dead) == "dead"
