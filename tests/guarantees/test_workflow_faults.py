"""
Workflows under faults and races: written twice, rolled back half-way, raced by threads, changed by operators meanwhile.

What ends a task advances its workflow in the same transaction, under the lock of
the workflow's row. So each test here asks for the same: all of it, once, or nothing.
"""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction

from django_taskq import batch, cancel, chain, find_workflow, previous, replay, result_of, workflow
from django_taskq.domain import lease as leases
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role
from django_taskq.exceptions import InvalidTransition, WorkflowEnded
from django_taskq.lifecycle import advance
from django_taskq.lifecycle import settle as settling
from django_taskq.lifecycle.control import kill
from django_taskq.lifecycle.rescue import rescue
from django_taskq.lifecycle.workflows import replay_members
from django_taskq.models import Dependency, FinishedTask, Stat, Task, Worker, Workflow
from django_taskq.store import retention
from django_taskq.store import tasks as task_store
from django_taskq.store import workflows as store
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.app.models import Effect
from tests.capabilities import requires
from tests.engine import ALIAS, announce, claim_one, db_now, drain, in_threads, row_of, run, run_and_settle, write
from tests.guarantees.flows import (
    assert_all_ended,
    by_tag,
    claim_all,
    ended,
    open_flows,
    refuse,
    say,
    say_atomic,
    settle,
    state_by_tag,
    tag,
)
from tests.guarantees.tasks import forget, note, ran

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

DEAD, CANCELLED = State.DEAD, State.CANCELLED


def callbacks() -> Counter[str]:
    """Return how often each kind of callback was stored."""
    rows = [*Task.objects.exclude(role=None), *FinishedTask.objects.exclude(role=None)]
    return Counter(Role(row.role or 0).name.lower() for row in rows if row.role != Role.MEMBER)


def everything() -> dict[str, Any]:
    """Return all rows there are, to compare before and after."""
    return {
        model.__name__: sorted(map(str, model.objects.values_list()))
        for model in (Task, FinishedTask, Workflow, Dependency, Stat, Effect)
    }


def called(made: Any) -> Any:
    return made.then(say.s("then")).catch(say.s("catch")).finally_(say.s("finally"))


# Written twice, rolled back, lost


def test_a_settlement_written_again_does_not_advance_twice() -> None:
    """S0-28, S0-92: the answer of the commit was lost, so the worker writes the same batch again."""
    handle = called(batch(say.s("a"), say.s("b"))).enqueue()
    endings = [ended(found) for found in claim_all().values()]

    assert write(endings).count == 2
    after = everything()
    assert [again.claim for again in write(endings).refused] == [found.claim for found in endings]

    assert everything() == after
    assert handle.refresh().counts.succeeded == 2
    assert callbacks() == {"then": 1, "finally": 1}


def test_a_member_told_twice_in_one_settlement_counts_once() -> None:
    handle = batch(say.s("a"), say.s("b")).enqueue()
    found = claim_all()

    write([ended(found["a"]), ended(found["a"], DEAD), ended(found["b"])])

    assert handle.refresh().status == "completed"
    assert handle.counts.succeeded == 2
    assert_all_ended()


WRITES = [
    (type(vendor_for(ALIAS)), "finish"),
    (type(vendor_for(ALIAS)), "add_stats"),
    (type(vendor_for(ALIAS)), "record_attempts"),
    (advance, "advance"),
    (store, "lock"),
    (store, "innermost"),
    (store, "followers"),
    (store, "unblock_tasks"),
    (store, "unblock_workflows"),
    (store, "release"),
    (store, "start"),
    (store, "waiting_members"),
    (store, "cut_tasks"),
    (store, "cut_workflow"),
    (store, "insert"),
    (store, "write"),
    (store, "live_callbacks"),
    (advance, "call_back"),
    (advance, "conclude"),
]


def break_once(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *, late: bool) -> list[str]:
    """Let a function raise at its first call, before or after its work; return where that is noted."""
    work: Callable[..., Any] = getattr(place, name)
    broken: list[str] = []

    def fail_first(*args: Any, **options: Any) -> Any:
        found = work(*args, **options) if late or broken else None
        if not broken:
            broken.append(name)
            raise OperationalError("the server closed the connection unexpectedly")
        return found

    monkeypatch.setattr(place, name, fail_first)
    return broken


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_fault_at_any_write_of_a_settlement_leaves_nothing_half_done(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S0-92, S0-96: rolled back whole, and complete when it is written again."""
    for place, name in WRITES:
        forget()
        handle = called(
            workflow()
            .add("a", say.s("a"))
            .add("b", called(chain(say.s("b"), say.s("b2"))), after="a")
            .add("c", say.s(previous), after="a")
            .add("x", say.s("x"))
            .add("y", called(chain(say.s("y"), say.s("y2"))), after="x")
            .add("z", say.s("z"), after="x")
        ).enqueue()
        found = claim_all()
        before = everything()
        ends = [ended(found["a"]), ended(found["x"], DEAD)]
        with monkeypatch.context() as patch:
            broken = break_once(patch, place, name, late=late)
            with pytest.raises(OperationalError):
                write(ends)
            assert broken == [name]
            assert everything() == before, name

            assert write(ends).count == 2
            drain()

        assert handle.refresh().status == "failed"
        assert Counter(map(str, ran)) == {"b": 1, "b2": 1, "then": 1, "catch": 1, "finally": 3, "None": 1}
        assert_all_ended()


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_fault_half_way_through_an_enqueue_leaves_nothing(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-94, S0-97: record and tasks in one transaction, also without one of the caller's."""
    for name in ("insert", "start", "release", "lock", "write"):
        before = everything()
        made = called(batch(chain(say.s("a"), say.s("b")), batch(), say.s("c")))
        with monkeypatch.context() as patch:
            broken = break_once(patch, store, name, late=late)
            with pytest.raises(OperationalError):
                made.enqueue()

            assert broken == [name]
            assert everything() == before
            made.enqueue()
        drain()
        assert_all_ended()


def test_a_fault_half_way_through_a_replay_leaves_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = chain(refuse.s("a"), chain(say.s("b")), say.s("c")).enqueue()
    drain()
    before = everything()
    for place, name in ((task_store, "bring_back"), (store, "write"), (store, "set_waits"), (store, "release")):
        with monkeypatch.context() as patch:
            broken = break_once(patch, place, name, late=True)
            with pytest.raises(OperationalError):
                handle.replay()
        assert broken == [name]
        assert everything() == before

    assert handle.replay() == 3


def test_a_rolled_back_transaction_of_the_caller_leaves_no_workflow() -> None:
    before = everything()

    with transaction.atomic():
        called(chain(say.s("a"), batch(say.s("b")), batch())).enqueue()
        transaction.set_rollback(True)

    assert everything() == before


def test_a_crash_after_the_commit_loses_events_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-97: what was to be told is gone; callbacks are rows, written before."""
    handle = called(chain(say.s("a"), say.s("b"))).enqueue()
    drained = claim_all()
    settle(drained["a"])
    last = claim_all()["b"]

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(settling, "_emit", die)
        with pytest.raises(Killed):
            settle(last)

    assert handle.refresh().status == "completed"
    drain()
    assert ran == ["then", "finally"]
    assert_all_ended()


def test_members_of_every_acknowledgement_advance_once() -> None:
    for ack in ("late", "now", "first", "atomic"):
        forget()
        made = called(chain(say.using(ack=ack).s("a"), batch(say.using(ack=ack).s("b"), say.using(ack=ack).s("c"))))
        handle = made.enqueue()

        drain()

        assert sorted(ran) == ["a", "b", "c", "finally", "then"]
        assert handle.refresh().status == "completed"
        assert_all_ended()


@pytest.mark.parametrize("name", ["write", "insert"])
def test_an_atomic_member_has_effect_and_followers_or_neither(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction: its effect, its end, its workflow's end, and the callback."""
    handle = chain(say_atomic.s("a")).then(say.s("then")).enqueue()
    claimed = claim_one()
    before = everything()
    with monkeypatch.context() as patch:
        broken = break_once(patch, store, name, late=True)
        try:
            settled = run_and_settle(claimed)
        except DatabaseError:
            settled = None
    assert broken == [name]
    if settled is None:
        assert everything() == before
        lose_worker(claimed)
    else:
        assert not Effect.objects.exists()
        assert open_flows()

    Task.objects.filter(state=State.SCHEDULED).update(run_after=db_now())
    drain()

    assert handle.refresh().status == "completed"
    assert Effect.objects.count() == 1
    assert ran[-1] == "then"
    assert_all_ended()


def lose_worker(claimed: Any) -> None:
    """Let the lease of a claim run out, and rescue what it held."""
    silent_since = db_now() - timedelta(seconds=31)
    Worker.objects.filter(pk=leases.worker_of(claimed.lease)).update(beat_at=silent_since)
    assert rescue(ALIAS, now=db_now()) >= 1


@pytest.mark.parametrize("ack", ["late", "first"])
def test_a_lost_member_is_counted_by_its_rescue_and_not_by_the_worker_that_comes_back(ack: str) -> None:
    """S0-95: the zombie is refused, and advances nothing."""
    handle = called(batch(say.using(ack=ack, max_attempts=1).s("a"), say.s("b"))).enqueue()
    zombie = announce()
    [lost] = [found for found in claim_all(zombie).values() if found.name.endswith("say")][:1]
    late = ended(lost)
    lose_worker(lost)

    assert len(write([late]).refused) == 1

    drain()
    assert handle.refresh().status == "failed"
    assert handle.counts.failed == 1
    assert_all_ended()


# Races


def test_of_threads_that_settle_the_last_members_at_once_one_ends_the_batch() -> None:
    """S0-28, S0-95: twelve members, twelve connections, one transition, each callback once."""
    handle = called(batch(say.s(at) for at in range(12))).enqueue()
    worker_id = announce()
    found = claim_all(worker_id)

    in_threads(*(lambda claimed=claimed: settle(claimed) for claimed in found.values()))

    assert handle.refresh().status == "completed"
    assert handle.counts.succeeded == 12
    assert callbacks() == {"then": 1, "finally": 1}
    drain()
    assert_all_ended()


def test_threads_that_settle_across_nested_workflows_all_come_through() -> None:
    """Crosswise locks are conflicts, which are repeated: inner and outer ends at once, in groups."""
    handle = called(
        batch(*(called(chain(say.s(f"{at}a"), say.s(f"{at}b"))) for at in range(4)), *(say.s(at) for at in range(8)))
    ).enqueue()
    found = claim_all()
    groups = [[ended(found[f"{at}a"]), ended(found[at]), ended(found[at + 4])] for at in range(4)]

    in_threads(*(lambda group=group: write(group) for group in groups))
    found = claim_all()
    in_threads(*(lambda claimed=claimed: settle(claimed) for claimed in found.values()))

    assert handle.refresh().status == "completed"
    assert callbacks() == {"then": 5, "finally": 5}
    drain()
    assert_all_ended()


@requires("concurrent_writers")
def test_a_deadlock_between_settlements_of_nested_workflows_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transactions each hold the row that the other wants: the database ends one, and it is written again."""
    import threading

    # In a table of four rows MariaDB reads, and locks, all of them.
    note.using(priority=-1).enqueue_many([(at,) for at in range(1000)])
    first, second = (batch(say.s(f"{at}a"), say.s(f"{at}b")).enqueue() for at in range(2))
    found = {tag(one): one for one in engine.claim(limit=4)}
    barrier = threading.Barrier(2)
    tries: list[int] = []
    lock = store.lock

    def lock_crosswise(alias: str, keys: Any) -> Any:
        """Lock one by one, in the order given, and meet after the first."""
        rows: list[Any] = []
        tries.append(1)
        for key in keys:
            rows += lock(alias, [key])
            if len(tries) <= 2 and len(rows) == 1:
                barrier.wait(10)
        return rows

    # Their row would be locked before, so that the two would never meet.
    monkeypatch.setattr(type(vendor_for(ALIAS)), "add_stats", lambda *_: None)
    monkeypatch.setattr(store, "lock", lock_crosswise)
    in_threads(
        lambda: write([ended(found["0a"]), ended(found["1a"])]),
        lambda: write([ended(found["1b"]), ended(found["0b"])]),
    )

    assert len(tries) >= 3
    assert [handle.refresh().counts.succeeded for handle in (first, second)] == [2, 2]
    assert open_flows() == []


def test_of_two_replays_at_once_one_sends_each_task_back() -> None:
    handle = chain(refuse.s("a"), chain(say.s("b")), say.s("c")).enqueue()
    drain()

    def again() -> int:
        try:
            return handle.replay()
        except InvalidTransition:
            return 0

    assert sorted(in_threads(again, again, again)) == [0, 0, 3]
    assert handle.refresh().counts.open == 3
    drain()
    assert handle.refresh().status == "failed"
    [dead] = FinishedTask.objects.filter(state=DEAD)

    counts = in_threads(*(lambda: replay([dead.pk]).count for _ in range(3)))

    assert sorted(counts) == [0, 0, 1]
    assert handle.refresh().counts.open == 3
    drain()
    assert_all_ended()


def test_a_member_that_two_send_back_at_once_is_waited_for_once() -> None:
    """The second read it before the first sent it back; its follower waits for nobody twice."""
    chain(refuse.s("a"), say.s("b")).enqueue()
    drain()
    dead = list(FinishedTask.objects.filter(state=DEAD))

    sent = [replay_members(ALIAS, dead, now=db_now(), attempts=None, actor="ada") for _ in range(2)]

    assert [len(rows) for rows in sent] == [1, 0]
    assert Task.objects.get(state=State.WAITING).waits_for == 1
    drain()
    assert_all_ended()


def test_a_cancel_at_the_moment_of_the_last_end_is_either_heard_or_too_late() -> None:
    for _ in range(4):
        handle = called(chain(batch(say.s("a"), say.s("b")), say.s("c"))).enqueue()
        found = claim_all()
        settle(found["a"])

        heard, _settled = in_threads(handle.cancel, lambda found=found: settle(found["b"]))
        drain()

        assert heard is True
        assert handle.refresh().status == "cancelled"
        assert_all_ended()

        last = batch(say.s("a")).then(say.s("then")).finally_(say.s("finally")).enqueue()
        found = claim_all()
        told, _settled = in_threads(last.cancel, lambda found=found: settle(found["a"]))
        drain()
        assert last.refresh().status == ("cancelled" if told else "completed")
        assert_all_ended()
    assert callbacks()["then"] <= 4


def test_adding_at_the_moment_of_the_last_end_is_either_in_time_or_refused() -> None:
    for at in range(4):
        handle = called(batch(say.s("a"))).enqueue()
        found = claim_all()

        def add(handle: Any = handle) -> int:
            try:
                return int(handle.add(say.s("late"), chain(say.s("later"), say.s("last"))))
            except WorkflowEnded:
                return 0

        added, _settled = in_threads(add, lambda found=found: settle(found["a"]))
        drain()

        assert handle.refresh().status == "completed"
        assert handle.counts.total == handle.counts.succeeded == 1 + added
        assert callbacks() == {"then": at + 1, "finally": at + 1}
        assert_all_ended()


def test_of_two_signals_at_once_one_is_taken() -> None:
    handle = workflow().wait_for("go").add("b", say.s(previous), after="go").enqueue()

    taken = in_threads(*(lambda at=at: handle.signal("go", at) for at in range(3)))

    assert sorted(taken) == [False, False, True]
    drain()
    assert ran == [taken.index(True)]
    assert_all_ended()


def test_what_is_added_while_a_cancel_is_asked_for_is_cancelled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new workflow inside was stored between the look at the tree and the lock."""
    handle = batch(say.s("a")).enqueue()
    claimed = claim_all()["a"]
    look = store.open_below
    added: list[int] = []

    def look_and_add(alias: str, key: Any) -> Any:
        found = look(alias, key)
        if not added:
            added.append(0)
            in_threads(lambda: added.append(handle.add(chain(say.s("b"), say.s("c")))))
        return found

    # In a transaction SQLite would let nobody add: there the look itself is under the lock.
    if connection.features.has_select_for_update:
        monkeypatch.setattr(store, "open_below", look_and_add)
    assert handle.cancel()
    settle(claimed)

    drain()
    assert ran == []
    assert handle.refresh().status == "cancelled"
    assert_all_ended()


# Operators in between


def test_cancelling_a_waiting_member_of_a_chain_cancels_what_waits_for_it() -> None:
    handle = called(chain(say.s("a"), say.s("b"), chain(say.s("c")), say.s("d"))).enqueue()

    cancel(by_tag("b").pk)
    drain()

    assert ran == ["a", "finally"]
    assert handle.refresh().status == "cancelled"
    assert [row.reason for row in FinishedTask.objects.order_by("pk") if row.state == CANCELLED] == [
        None,
        "upstream",
        "upstream",
    ]
    assert_all_ended()


def test_what_follows_a_cancelled_member_still_comes_after_what_that_waited_for() -> None:
    """Its end is allowed, so the chain goes on, but not before its turn."""
    handle = chain(say.s("a"), say.s("b"), say.s("c"), say.s("d")).allow_failures().enqueue()
    cancel([by_tag("b").pk, by_tag("c").pk])
    assert state_by_tag()["d"] == "waiting"

    drain()

    assert ran == ["a", "d"]
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_member_cancelled_in_a_workflow_whose_turn_has_not_come_lets_nothing_start() -> None:
    inner = workflow().add("b", say.s("b")).add("c", say.s("c"), after="b").allow_failures()
    chain(say.s("a"), inner).enqueue()

    cancel(by_tag("b").pk)

    assert state_by_tag() == {"a": "ready", "b": "cancelled", "c": "waiting"}
    drain()
    assert ran == ["a", "c"]
    assert_all_ended()


def test_members_inside_and_outside_ended_together_are_counted_once() -> None:
    """An operator selects tasks of a nested workflow, in any order, and cancels them all."""
    for at, tags in enumerate(("ab", "ba", "abc", "bc", "abcd")):
        handle = called(chain(say.s("a"), called(chain(say.s("b"), say.s("c"))), say.s("d"))).enqueue()
        live = {tag(row): row.pk for row in Task.objects.all()}

        cancel([live[value] for value in tags])
        drain()

        assert handle.refresh().status == "cancelled"
        assert callbacks() == {"finally": 2 * (at + 1)}
        assert_all_ended()


def test_dead_members_inside_and_outside_replayed_together_all_come_back() -> None:
    inner = workflow().add("x", refuse.s("x")).add("y", say.s("y"), after="x")
    handle = batch(refuse.s("a"), inner, say.s("b")).catch(say.s("catch")).enqueue()
    drain()
    assert ran == ["b", "catch"]
    dead = list(FinishedTask.objects.filter(state=DEAD).values_list("pk", flat=True))

    assert replay(dead).count == 2
    assert handle.refresh().counts.open == 2
    found = claim_all()
    write([ended(found["a"]), ended(found["x"])])
    drain()

    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_member_replayed_while_its_follower_waits_is_waited_for_again() -> None:
    """Its first end was allowed and had been taken off; its second must not stand for that of another."""
    made = workflow().add("b", say.s("b")).add("c", say.s("c")).add("d", say.s("d"), after=("b", "c")).allow_failures(1)
    handle = made.enqueue()
    found = claim_all()
    settle(found["b"], DEAD)

    replay(by_tag("b").pk)
    settle(claim_all()["b"])

    assert state_by_tag()["d"] == "waiting"
    settle(found["c"])
    drain()
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_workflow_replayed_while_its_follower_waits_is_waited_for_again() -> None:
    made = (
        workflow()
        .add("b", chain(say.s("b")))
        .add("c", say.s("c"))
        .add("d", chain(say.s("d")), after=("b", "c"))
        .allow_failures(1)
    )
    handle = made.enqueue()
    found = claim_all()
    settle(found["b"], DEAD)
    replay(by_tag("b").pk)
    settle(claim_all()["b"])
    assert state_by_tag()["d"] == "waiting"
    settle(found["c"])
    drain()
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_replayed_workflow_waits_for_its_turn_in_the_one_around_it() -> None:
    """It was cancelled before its turn; brought back it still comes second."""
    handle = chain(say.s("a"), chain(say.s("b"), say.s("c")), say.s("d")).enqueue()
    inner = find_workflow(Workflow.objects.get(parent_id=handle.id).pk)
    assert inner.cancel()
    assert handle.refresh().counts.cancelled == 2

    assert inner.replay() == 3
    assert state_by_tag() == {"a": "ready", "b": "waiting", "c": "waiting", "d": "waiting"}

    drain()
    assert ran == ["a", "b", "c", "d"]
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_workflow_replayed_inside_one_that_waits_starts_with_it() -> None:
    handle = chain(say.s("a"), chain(chain(say.s("b")), say.s("c"))).enqueue()
    outer = Workflow.objects.get(parent_id=handle.id)
    inner = find_workflow(Workflow.objects.get(parent_id=outer.pk).pk)
    cancel(by_tag("b").pk)
    assert inner.refresh().status == "cancelled"

    inner.replay()
    drain()

    assert ran == ["a", "b", "c"]
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_what_was_cut_off_in_a_second_run_comes_back_as_well() -> None:
    handle = chain(say.s("a"), chain(say.s("b"))).enqueue()
    drain()
    handle.replay(from_start=True)
    settle(claim_all()["a"], DEAD)
    assert handle.refresh().status == "failed"

    replay(by_tag("a").pk)
    drain()

    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_a_replay_from_the_start_ends_also_where_empty_batches_are() -> None:
    handle = called(chain(batch(), batch(batch()), say.s("a"), batch())).enqueue()
    alone = batch(batch()).then(say.s("then2")).enqueue()
    drain()

    assert handle.replay(from_start=True) == 1
    assert alone.replay(from_start=True) == 0
    drain()

    assert handle.refresh().status == alone.refresh().status == "completed"
    assert Counter(ran) == {"a": 2, "then": 2, "finally": 2, "then2": 2}
    assert_all_ended()


def test_a_gate_that_was_cancelled_waits_for_its_signal_again() -> None:
    handle = workflow().wait_for("go").add("b", say.s(previous), after="go").enqueue()
    handle.cancel()
    handle.replay()

    drain()
    assert ran == []
    assert handle.refresh().status == "running"
    assert handle.signal("go", 7)
    drain()
    assert ran == [7]
    assert_all_ended()


def test_a_dead_letter_that_outlived_its_workflow_can_be_replayed() -> None:
    handle = batch(refuse.s("a"), say.s("b")).enqueue()
    drain()
    Workflow.objects.filter(pk=handle.id).delete()

    assert replay(by_tag("a").pk).count == 1

    settle(claim_all()["a"])
    assert state_by_tag()["a"] == "succeeded"


def test_a_replay_does_not_lift_a_cancel() -> None:
    handle = batch(say.s("a"), say.s("b"), chain(say.s("c"))).enqueue()
    found = claim_all()
    settle(found["a"], DEAD)
    settle(found["c"], DEAD)
    handle.cancel()
    inner = find_workflow(Workflow.objects.get(parent_id=handle.id).pk)

    assert replay([by_tag("a").pk, by_tag("c").pk]).count == 0
    with pytest.raises(InvalidTransition, match="being cancelled"):
        inner.replay()

    settle(found["b"])
    assert handle.refresh().status == "cancelled"
    assert_all_ended()


def test_a_cancel_that_died_half_way_still_ends_its_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and committed; whoever asked was killed before the members were cancelled."""
    from django_taskq.lifecycle import workflows

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    handle = called(chain(say.s("a"), called(chain(say.s("b"))), say.s("c"))).enqueue()
    claimed = claim_all()["a"]
    with monkeypatch.context() as patch:
        patch.setattr(workflows, "_cancel_members", die)
        with pytest.raises(Killed):
            handle.cancel()

    settle(claimed)
    drain()

    assert handle.refresh().status == "cancelled"
    assert set(ran) == {"finally"}
    assert_all_ended()


def test_no_catch_is_called_once_a_cancel_was_asked_for() -> None:
    handle = called(batch(say.s("a"), say.s("b"))).enqueue()
    found = claim_all()
    handle.cancel()

    settle(found["a"], DEAD)
    settle(found["b"])

    assert handle.refresh().status == "cancelled"
    assert callbacks() == {"finally": 1}


def test_a_failure_stops_only_what_still_waits_for_it() -> None:
    """Its follower went on after an allowed failure, and what comes after that one waits for no failure any more."""
    made = workflow().add("a", say.s("a")).add("b", say.s("b"), after="a").add("c", say.s("c"), after="b")
    made = made.add("x", say.s("x")).allow_failures(1)
    handle = made.enqueue()
    found = claim_all()
    settle(found["a"], DEAD)
    running = claim_all()["b"]
    replay(by_tag("a").pk)
    settle(found["x"], DEAD)

    settle(claim_all()["a"], DEAD)

    assert state_by_tag()["c"] == "waiting"
    settle(running)
    assert state_by_tag()["c"] == "ready"
    drain()
    assert handle.refresh().status == "failed"
    assert_all_ended()


def test_what_is_called_finally_waits_for_then_and_catch_however_they_end() -> None:
    """S0-93: a callback that dies changes nothing about its workflow; one that is replayed is waited for once."""
    handle = batch(say.s("a")).then(say.s("t1"), say.s("t2")).finally_(say.s("finally")).enqueue()
    settle(claim_all()["a"])
    found = claim_all()
    settle(found["t1"], DEAD)
    assert handle.refresh().status == "completed"
    assert state_by_tag()["finally"] == "waiting"
    replay(by_tag("t1").pk)
    settle(claim_all()["t1"])
    assert state_by_tag()["finally"] == "waiting"

    settle(found["t2"], CANCELLED)

    assert state_by_tag()["finally"] == "ready"
    drain()
    assert handle.refresh().status == "completed"
    assert_all_ended()


def test_what_was_cut_off_is_told_finally() -> None:
    """However it ended: also a workflow whose turn never came."""
    called(chain(refuse.s("a"), called(chain(say.s("b"))))).enqueue()

    drain()

    assert Counter(ran) == {"catch": 1, "finally": 2}
    assert callbacks() == {"catch": 1, "finally": 2}
    assert_all_ended()


def test_members_that_expired_are_unknown_or_damaged_end_their_workflows() -> None:
    handles = [called(chain(note.s(at), say.s("next"))).enqueue() for at in range(3)]
    expired, unknown, damaged = (by_tag(at) for at in range(3))
    Task.objects.filter(pk=expired.pk).update(expires_at=db_now() - timedelta(seconds=1))
    Task.objects.filter(pk=damaged.pk).update(args="{")
    Task.objects.filter(pk=unknown.pk).update(name="nobody.knows.this", options='{"unknown_since": 1.0}')

    drain()

    assert [row.reason for key in (expired, unknown, damaged) if (row := row_of(key.pk))] == [
        "expired",
        "unknown_task",
        "undecodable",
    ]
    assert [handle.refresh().status for handle in handles] == ["failed"] * 3
    assert callbacks() == {"catch": 3, "finally": 3}
    assert not Task.objects.exists()


def test_a_member_moved_to_the_dead_letters_counts_as_dead() -> None:
    handle = called(chain(say.s("a"), say.s("b"))).enqueue()

    kill(by_tag("a").pk)
    drain()

    assert handle.refresh().status == "failed"
    assert ran == ["catch", "finally"]
    assert_all_ended()


def test_two_callbacks_that_end_at_the_moment_of_the_workflow_end_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still: the end of an inner workflow's callback is not taken for the workflow's own."""
    now = db_now()
    handle = batch(batch(say.s("a")).then(say.s("t1"), say.s("t2")), say.s("b")).enqueue()

    def at_once(*found: Any) -> None:
        settling.settle([ended(one) for one in found], alias=ALIAS, worker_id=found[0].lease >> 32, now=now)

    found = claim_all()
    at_once(found["a"])
    callbacks_found = claim_all()
    at_once(*callbacks_found.values())

    assert handle.refresh().counts.succeeded == 1
    at_once(found["b"])
    assert_all_ended()


def test_a_result_that_is_used_after_a_crash_is_that_of_the_settled_attempt() -> None:
    handle = workflow().add("a", say.s("a")).add("b", say.s(result_of("a")), after="a").enqueue()
    worker_id = announce()
    first = claim_one(worker_id)
    lost = run(first)
    lose_worker(first)
    Task.objects.filter(state=State.SCHEDULED).update(run_after=db_now())

    drain()

    assert len(write([lost]).refused) == 1
    assert ran == ["a", "a", "a"]
    assert handle.refresh().counts.succeeded == 2
    assert_all_ended()


def test_a_workflow_is_not_pruned_while_anything_in_it_lives() -> None:
    """S0-89: a callback of one inside still runs, or it was replayed after the look and before the lock."""
    handle = batch(batch(say.s("a")).then(say.s("then")).finally_(say.s(previous)), refuse.s("b")).enqueue()
    found = claim_all()
    write([ended(found["a"]), ended(found["b"], DEAD)])
    later = db_now() + timedelta(seconds=1)
    [key] = retention.old_workflows(ALIAS, state=handle.refresh()._row.state, before=later, limit=10)

    assert retention.delete_workflow(ALIAS, key, limit=100, dead_before=later) == (0, True)
    assert Workflow.objects.count() == 2
    drain()
    assert ran == ["then", [None]]

    handle.replay()
    assert retention.delete_workflow(ALIAS, key, limit=100, dead_before=later) == (0, True)
    assert Workflow.objects.count() == 2
    drain()
    assert retention.delete_workflow(ALIAS, key, limit=100, dead_before=None)[1]
    assert not Workflow.objects.exists()
    assert not Dependency.objects.exists()
    assert [tag(row) for row in FinishedTask.objects.all()] == ["b"]
