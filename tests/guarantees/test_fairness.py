"""Fairness: what each queue and each tenant gets of busy workers, measured."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from django_taskq import chain, conf, replay, task
from django_taskq.domain.lease import make_lease
from django_taskq.domain.outcomes import Succeeded
from django_taskq.domain.states import State
from django_taskq.exceptions import InvalidOptions
from django_taskq.ids import task_ids
from django_taskq.lifecycle import fair
from django_taskq.lifecycle.ageing import Ageing
from django_taskq.lifecycle.claim import Claimer, parse_queues
from django_taskq.lifecycle.fair import Turns
from django_taskq.lifecycle.settle import Ended
from django_taskq.models import FinishedTask, Queue, Task
from django_taskq.ops.search import first_id
from django_taskq.store.rows import Claim, NewTask
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.capabilities import requires
from tests.engine import announce, db_now, in_threads, write
from tests.guarantees.tasks import bill, bill_some, note
from tests.guarantees.test_claiming import PageCounter, old_transaction

pytestmark = pytest.mark.django_db(transaction=True)


def _no_tenant(customer_id: int) -> None:
    """A function without the parameter that a template names."""


def stored(count: int, **columns: Any) -> None:
    """Store ready tasks by the thousand."""
    values = {"queue": "default", "rank": 0, "state": int(State.READY), "max_attempts": 3, "ack": 0}
    values |= {"created_at": db_now(), "name": "tests.guarantees.tasks.note", "args": '{"args":[],"kwargs":{}}'}
    shared: dict[str, Any] = {**dict.fromkeys(NewTask._fields), **values, **columns}
    numbers = task_ids.many(count)
    for at in range(0, count, 5000):
        vendor_for(engine.ALIAS).insert([NewTask(**{**shared, "id": number}) for number in numbers[at : at + 5000]])


def claimer(queues: str = "default") -> Claimer:
    return Claimer(engine.ALIAS, announce(), parse_queues(queues))


def claimed(by: Claimer, limit: int) -> list[Claim]:
    return by.claim(limit, now=db_now())


def shares_of(rows: Iterable[Claim]) -> Counter[str | None]:
    """Count the claims of each fair key."""
    keys = dict(Task.objects.values_list("pk", "fair_key"))
    return Counter(keys[uuid.UUID(vendor_for(engine.ALIAS).public_id(row.key))] for row in rows)


# Queues with weights


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_queues_share_the_tasks_by_weight_whatever_the_size_of_a_batch(batch: int) -> None:
    """S4-100: three to one, to two tasks."""
    for queue in ("heavy", "light"):
        stored(420, queue=queue)
    worker = claimer("heavy:3,light:1")

    found = Counter(row.queue for _ in range(420 // batch) for row in claimed(worker, batch))

    assert found.total() == 420 // batch * batch
    assert abs(found["heavy"] - found.total() * 3 / 4) <= 2


def test_what_a_queue_cannot_give_is_shared_by_the_others() -> None:
    """S4-100: nobody waits for an empty queue, and the rest keep their weights among each other."""
    stored(10, queue="a")
    for queue in ("b", "c"):
        stored(300, queue=queue)
    worker = claimer("a:4,b:3,c:1")

    found = Counter(row.queue for _ in range(13) for row in claimed(worker, 30))

    assert found["a"] == 10
    assert abs(found["b"] - 380 * 3 / 4) <= 6
    assert found.total() == 390


def test_a_queue_that_was_empty_gets_its_share_again_and_no_more() -> None:
    """S4-100: an empty queue saves nothing up."""
    stored(400, queue="light")
    worker = claimer("heavy:3,light:1")
    for _ in range(10):
        claimed(worker, 20)
    stored(400, queue="heavy")

    found = Counter(row.queue for _ in range(10) for row in claimed(worker, 20))

    assert abs(found["heavy"] - 150) <= 2


def test_without_a_list_the_weights_are_those_of_the_operator() -> None:
    """S4-100: as set by `taskq arrange`; where nobody set one, the positions decide."""
    Queue.objects.create(name="a", weight=4)
    Queue.objects.create(name="b", position=-1)
    for queue in ("a", "b"):
        stored(100, queue=queue)

    found = Counter(row.queue for row in claimed(claimer(""), 50))
    Queue.objects.update(weight=1)
    ordered = Counter(row.queue for row in claimed(claimer(""), 50))

    assert abs(found["a"] - 40) <= 2
    assert ordered == Counter(b=50)


@pytest.mark.stress
@pytest.mark.parametrize("workers", [1, 4])
def test_over_twenty_thousand_tasks_shares_are_within_ten_percent_of_the_weights(workers: int) -> None:
    """S4-100: as long as no queue is empty, with one worker and with four."""
    weights = {"a": 6, "b": 3, "c": 1}
    for queue, weight in weights.items():
        stored(weight * 2000 + 500, queue=queue)
    stop_at = 20_000

    def work() -> Counter[str]:
        worker = claimer("a:6,b:3,c:1")
        return Counter(row.queue for _ in range(stop_at // workers // 50) for row in claimed(worker, 50))

    found = sum(in_threads(*[work] * workers), Counter())

    assert found.total() == stop_at
    for queue, weight in weights.items():
        assert abs(found[queue] / (stop_at * weight / 10) - 1) <= 0.10
    assert Task.objects.filter(state=State.READY).count() == 1500


# Fair keys in one queue


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_a_tenant_with_few_tasks_is_done_before_one_with_many_has_had_more(batch: int) -> None:
    """S4-101: the backlog of one holds up nobody, and what was stored first is not what runs first."""
    stored(400, fair_key="big")
    stored(30, fair_key="small")
    worker = claimer()

    rows = [row for _ in range(60 // batch) for row in claimed(worker, batch)]

    assert shares_of(rows) == {"big": 30, "small": 30}


def test_keys_take_turns_within_a_batch_too() -> None:
    """S4-101: a worker starts its line in that order."""
    for key in ("a", "b", "c"):
        stored(4, fair_key=key)

    rows = claimed(claimer(), 6)

    keys = [next(iter(shares_of([row]))) for row in rows]
    assert keys[:3] == keys[3:]
    assert set(keys) == {"a", "b", "c"}


@pytest.mark.parametrize("batch", [1, 7, 40, 300])
def test_many_tenants_get_the_same_whatever_the_size_of_a_batch(batch: int) -> None:
    """S4-101: more keys than are listed at once, fewer, and as many."""
    for at in range(80):
        stored(12, fair_key=f"tenant {at:03}")
    worker = claimer()

    rows = [row for _ in range(640 // batch) for row in claimed(worker, batch)]

    found = shares_of(rows)
    assert found.total() == 640 // batch * batch
    assert len(found) == 80
    # Eight each, where the batches come to 640. Where a listing begins elsewhere, one may be ahead by a turn.
    assert min(found.values()) >= 6
    assert max(found.values()) <= 10


def test_what_a_tenant_has_too_few_of_is_shared_by_the_others() -> None:
    """S4-101: no slot stays empty while there is work."""
    stored(3, fair_key="few")
    for key in ("a", "b"):
        stored(100, fair_key=key)

    found = shares_of(claimed(claimer(), 43))

    assert found == {"few": 3, "a": 20, "b": 20}


@pytest.mark.parametrize("batch", [1, 30])
def test_tasks_without_a_key_take_their_turn_as_one_tenant(batch: int) -> None:
    """S4-101: also behind the backlog of others."""
    for key in ("a", "b"):
        stored(200, fair_key=key)
    stored(60)
    worker = claimer()

    rows = [row for _ in range(90 // batch) for row in claimed(worker, batch)]

    assert shares_of(rows) == {"a": 30, "b": 30, None: 30}


def test_priority_orders_the_tasks_of_one_tenant_and_not_the_tenants() -> None:
    """S4-101: else whoever calls everything urgent would have it all."""
    stored(20, fair_key="pushy", rank=-100)
    stored(2, fair_key="modest", rank=5)
    stored(2, fair_key="modest", rank=1)

    rows = claimed(claimer(), 4)

    assert shares_of(rows) == {"pushy": 2, "modest": 2}
    assert sorted(row.rank for row in rows) == [-100, -100, 1, 1]


def test_every_task_of_a_fair_queue_is_claimed_once() -> None:
    """S4-101: by four workers at once, tasks with a key and without."""
    for at in range(7):
        stored(20 + 10 * at, fair_key=f"tenant {at}")
    stored(50)
    everything = Task.objects.count()

    def work() -> list[Any]:
        worker, taken, empty = claimer(), [], 0
        while empty < 3:
            rows = claimed(worker, 6)
            empty = 0 if rows else empty + 1
            taken += [row.key for row in rows]
        return taken

    keys = [key for part in in_threads(*[work] * 4) for key in part]

    assert len(keys) == len(set(keys)) == everything
    assert not Task.objects.filter(state=State.READY).exists()
    assert set(Task.objects.values_list("attempt", flat=True)) == {1}


def test_a_queue_becomes_fair_within_a_second_and_plain_again() -> None:
    """S4-101: whatever was stored in between is claimed all the same."""
    stored(5)
    worker = claimer()
    claimed(worker, 2)
    stored(5, fair_key="a")

    before = claimed(worker, 4)
    worker.refresh()
    stored(5, fair_key="b")
    during = claimed(worker, 6)
    stored(5)
    worker.refresh()
    after = claimed(worker, 50)

    assert shares_of(before) == {None: 3, "a": 1}
    assert shares_of(during) == {"a": 3, "b": 3}
    assert shares_of(after) == {None: 5, "a": 1, "b": 2}


def test_a_delayed_task_without_a_key_is_found_in_a_fair_queue_that_has_room() -> None:
    """S4-101: it is stored long before it is ready, so it lies where the worker has looked already."""
    [number] = task_ids.many(1)
    stored(3, fair_key="a")
    worker = claimer()
    claimed(worker, 2)
    values = {"queue": "default", "name": "n", "max_attempts": 3, "created_at": db_now()}
    Task.objects.create(id=uuid.UUID(int=number), **values)

    found = claimed(worker, 5)

    assert shares_of(found) == {"a": 1, None: 1}


def test_the_key_is_made_of_the_arguments_of_each_call() -> None:
    """S4-101: by name or place, one by one or many at once."""
    bill.enqueue(7)
    bill.enqueue(customer_id="acme", amount=3)
    bill.enqueue_many([(8,), {"customer_id": 9}, bill.s(10)])
    bill_some.enqueue(5)
    bill_some.enqueue(0)
    note.enqueue("plain")

    keys = list(Task.objects.order_by("id").values_list("fair_key", flat=True))

    assert keys == ["7", "acme", "8", "9", "10", "customer 5", None, None]


def test_a_key_given_to_one_call_is_taken_as_it_is() -> None:
    """S4-101: braces and all, so that a tenant's name is never read as a template."""
    note.using(fair_key="acme").enqueue(1)
    bill.using(fair_key="{odd} name}").enqueue(7)
    bill.using(priority=1).using(fair_key="b").using(priority=2).s(7).enqueue()
    note.using(fair_key=lambda key: f"of {key}").enqueue(2)

    keys = list(Task.objects.order_by("id").values_list("fair_key", flat=True))

    assert keys == ["acme", "{odd} name}", "b", "of 2"]


def test_two_long_keys_stay_two() -> None:
    """S4-101: what is longer than the column ends in a digest of the whole."""
    for end in ("a", "b"):
        note.using(fair_key="k" * 200 + end).enqueue(1)

    first, second = Task.objects.values_list("fair_key", flat=True)

    assert first != second
    assert len(first) == len(second) == 64


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"fair_key": ""}, "must not be empty"),
        ({"fair_key": 7}, "must be a template"),
        ({"fair_key": "a\nb"}, "control characters"),
        ({"fair_key": "x {customer_id}"}, "names an argument"),
    ],
)
def test_a_key_that_cannot_be_is_refused_when_it_is_given(wrong: dict[str, Any], told: str) -> None:
    """S4-101: with the rule and the way out."""
    with pytest.raises(InvalidOptions, match=told) as caught:
        bill.using(**wrong)

    assert caught.value.field == "fair_key"


def test_a_template_that_no_call_can_fill_is_refused_with_the_definition() -> None:
    """S4-101: not with the first task in production."""
    with pytest.raises(InvalidOptions, match="which is no parameter of"):
        task(fair_key="{tenant}")(_no_tenant)


def test_a_call_without_the_value_is_refused_before_anything_is_stored() -> None:
    """S4-101: None is nobody."""
    with pytest.raises(InvalidOptions, match="meets None"):
        bill.enqueue_many([(1,), (None,)])

    assert not Task.objects.exists()


def test_members_and_callbacks_of_workflows_have_their_keys() -> None:
    """S4-101: made when the workflow is stored, also of what is called later."""
    chain(bill.s(1), bill.s(2)).then(bill.s(3)).enqueue()

    engine.drain()

    keys = FinishedTask.objects.filter(name=bill.module_path).order_by("id").values_list("fair_key", flat=True)
    assert list(keys) == ["1", "2", "3"]


def test_a_key_stays_with_its_task() -> None:
    """S4-101: through its end and a replay."""
    found = bill.using(max_attempts=1).enqueue(7)
    engine.drain()
    FinishedTask.objects.update(state=State.DEAD)

    replay([found.id])

    assert Task.objects.get(pk=found.id).fair_key == "7"


# Ageing

STEP = timedelta(minutes=1)


def aged(step: timedelta | None = STEP) -> Claimer:
    options = conf.Options(queues={"default": conf.QueueOptions(age_step=step)})
    return Claimer(engine.ALIAS, announce(), [("default", None)], options)


def stored_at(moment: datetime, rank: int, count: int = 1) -> None:
    """Store ready tasks as if that had been at another moment: an id begins with it."""
    base = first_id(moment).int
    for _ in range(count):
        engine.ready_task(id=uuid.UUID(int=base + random.getrandbits(64)), rank=rank, created_at=moment)


def rounds_until_the_first_low_one(worker: Claimer, most: int) -> int | None:
    """Store five urgent tasks each half minute and claim five; return the round in which the low one was among them."""
    start = db_now()
    stored_at(start, rank=10)
    for at in range(1, most):
        stored_at(start + at * timedelta(seconds=30), rank=0, count=5)
        if any(row.rank == 10 for row in claimed(worker, 5)):
            return at
    return None


def test_with_ageing_a_steady_stream_of_urgent_tasks_starves_nobody() -> None:
    """S4-102: ten steps of a minute make up for ten of priority, so it is 20 rounds, or half a round more."""
    assert rounds_until_the_first_low_one(aged(), 40) in (20, 21, 22)


def test_without_ageing_the_same_stream_starves_it() -> None:
    """S4-102, non-guarantee: the default."""
    assert rounds_until_the_first_low_one(aged(None), 40) is None


@pytest.mark.parametrize("batch", [1, 20, 300])
def test_ageing_orders_by_priority_and_time_to_a_quarter_of_a_step(batch: int) -> None:
    """S4-102: over a backlog of three priorities."""
    start = db_now()
    ranks = (-5, 0, 5)
    for at in range(100):
        stored_at(start + at * timedelta(seconds=12), rank=ranks[at % 3])
    worker = aged()

    places = [row.created_at + row.rank * STEP for rows in iter(lambda: claimed(worker, batch), []) for row in rows]

    assert len(places) == 100
    for at, place in enumerate(places):
        assert place <= min(places[at:]) + STEP / 4


def test_tasks_with_limits_and_late_ones_are_not_lost_to_ageing() -> None:
    """S4-102: what is ready is claimed in the end, whenever it was stored."""
    now = db_now()
    worker = aged()
    stored_at(now, rank=0, count=3)
    claimed(worker, 2)
    stored_at(now - timedelta(hours=1), rank=0)
    stored_at(now - timedelta(hours=1), rank=7)
    stored_at(now, rank=-7)

    rows = [row for _ in range(3) for row in claimed(worker, 10)]

    assert len(rows) == 4
    assert claimed(worker, 10) == []


def test_every_task_is_claimed_once_with_ageing() -> None:
    """S4-102: by four workers at once."""
    for rank in range(5):
        stored(60, rank=rank)

    def work() -> list[Any]:
        worker, taken, empty = aged(), [], 0
        while empty < 3:
            rows = claimed(worker, 6)
            empty = 0 if rows else empty + 1
            taken += [row.key for row in rows]
        return taken

    keys = [key for part in in_threads(*[work] * 4) for key in part]

    assert len(keys) == len(set(keys)) == 300


# Limits


def in_turns() -> Turns:
    return Turns(vendor_for(engine.ALIAS), "default")


def with_ageing() -> Ageing:
    return Ageing(vendor_for(engine.ALIAS), "default", STEP)


@pytest.mark.parametrize("make", [in_turns, with_ageing])
def test_tasks_with_limits_are_passed_over_told_and_claimed_when_asked(make: Callable[[], Turns | Ageing]) -> None:
    """S4-101, S4-102: a claim that is full of other tasks still tells that some with limits wait."""
    keys = ("a", "b", "c") if make is in_turns else (None, None, None)
    for rank, key in enumerate(keys):
        stored(2, rank=rank, fair_key=key, limits="conc:x" if rank == 0 else None)
        stored(20, rank=rank, fair_key=key)
    order = make()

    plain = order.claim(12, lease=make_lease(1, 1), now=db_now())
    told = order.passes_over
    with vendor_for(engine.ALIAS).atomic():
        rest = order.claim(60, lease=make_lease(1, 2), now=db_now(), limited=True, slots="queue:default")

    assert {row.slots for row in plain} == {None}
    assert told
    assert len(plain) + len(rest) == 66
    assert Counter(row.slots for row in rest)["queue:default\nconc:x"] == 2


@pytest.mark.stress
def test_a_tenant_with_a_hundred_tasks_beside_one_with_many_is_done_within_twice_its_ideal_share() -> None:
    """S4-101: two share the worker, so 100 tasks are ideally done after 200."""
    stored(20_000, fair_key="big")
    stored(100, fair_key="small")
    worker = claimer()

    served, left = 0, 100
    while left:
        rows = claimed(worker, 20)
        served += len(rows)
        left -= shares_of(rows)["small"]

    assert served <= 2 * 200


@pytest.mark.stress
@requires("page_counts")
def test_a_backlog_of_dead_rows_of_one_tenant_is_walked_over_once_and_not_with_each_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 tasks of one tenant done under a long report: the next claims read a few pages for it and the others."""
    monkeypatch.setattr(fair, "_LIST_SECONDS", 3600.0)
    stored(21_000, fair_key="big")
    stored(1000, fair_key="small")
    vendor, counter = vendor_for(engine.ALIAS), PageCounter()
    with old_transaction():
        for number in range(40):
            found = vendor.claim_fair("default", [("big", 500)], lease=make_lease(1, number), now=db_now())
            now = time.time()
            write([Ended(row, Succeeded(), now, now) for row in found["big"]])

        with connection.execute_wrapper(counter):
            worker = claimer()
            rows = [row for _ in range(8) for row in claimed(worker, 100)]

    edge, *resumed = counter.pages
    assert shares_of(rows) == {"big": 400, "small": 400}
    assert edge > 200
    assert max(resumed) < 30
