"""Claims, ends and operators' verbs that meet: real connections in real threads, let go at one barrier."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from django_taskq import clock
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import State
from django_taskq.ids import task_ids
from django_taskq.lifecycle.claim import Claimer
from django_taskq.models import FinishedTask, Task
from django_taskq.store import tasks as store
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors import Vendor, vendor_for

pytestmark = pytest.mark.django_db(transaction=True)

DEADLINE = 60


def together(*works: Callable[[], Any]) -> list[Any]:
    """Run all at once, each in a thread with a connection of its own; return what each returned."""
    barrier, results, errors = threading.Barrier(len(works)), [None] * len(works), []

    def run(at: int) -> None:
        try:
            connections["default"].ensure_connection()
            barrier.wait(DEADLINE)
            results[at] = works[at]()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=[at]) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results


def stored(count: int, **changes: Any) -> list[uuid.UUID]:
    now = clock.now()
    rows = [
        NewTask(
            **{
                **dict.fromkeys(NewTask._fields),
                "id": number,
                "queue": "q",
                "rank": 0,
                "state": int(State.READY),
                "max_attempts": 3,
                "ack": 0,
                "created_at": now,
                "name": "race.task",
                "args": '{"args":[],"kwargs":{}}',
                **changes,
            }
        )
        for number in task_ids.many(count)
    ]
    vendor_for("default").insert(rows)
    return [uuid.UUID(int=row.id) for row in rows]


def claim(limit: int, worker: int, number: int = 1, vendor: Vendor | None = None) -> list[Claim]:
    vendor = vendor or vendor_for("default")
    return vendor.retrying(lambda: vendor.claim("q", limit, lease=make_lease(worker, number), now=clock.now()))


def success(one: Claim, lease: int | None = None) -> Ending:
    now = clock.timestamp()
    lease = one.lease if lease is None else lease
    return Ending(one.key, lease, int(State.SUCCEEDED), 0, now, now, None, None, None, None, None, None)


def finish(endings: Sequence[Ending]) -> set[Any]:
    vendor = vendor_for("default")

    def work() -> set[Any]:
        with vendor.atomic():
            return vendor.finish(endings)

    return vendor.retrying(work)


@pytest.mark.parametrize("vendor", [None, Vendor("default")], ids=["own", "portable"])
def test_claimers_in_turns_never_get_the_same_task(vendor: Vendor | None) -> None:
    for key in ("a", "b", "c", None):
        stored(60, fair_key=key)
    own = vendor or vendor_for("default")

    def drain(worker: int) -> list[Any]:
        taken: list[Any] = []
        empty = number = 0
        while empty < 3:
            number += 1
            lease, now = make_lease(worker, number), clock.now()
            found = own.retrying(
                lambda lease=lease, now=now: own.claim_fair("q", [("a", 3), ("b", 3), ("c", 3)], lease=lease, now=now)
            )
            rows = [row for part in found.values() for row in part]
            first, last = own.unkeyed("q", after=None, size=1000)
            if first is not None and last is not None:
                rows += own.retrying(
                    lambda lease=lease, now=now, first=first, last=last: own.claim_between(
                        "q", 3, first=first, last=last, lease=lease, now=now
                    )
                )
            empty = 0 if rows else empty + 1
            taken += [row.key for row in rows]
        return taken

    taken = [key for part in together(*(lambda worker=at: drain(worker) for at in range(1, 5))) for key in part]

    assert len(taken) == len(set(taken)) == 240
    assert set(Task.objects.values_list("attempt", "state")) == {(1, int(State.RUNNING))}


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("vendor", [None, Vendor("default")], ids=["own", "portable"])
def test_claimers_never_get_the_same_task(workers: int, vendor: Vendor | None) -> None:
    keys = stored(400)

    def drain(worker: int) -> list[Any]:
        taken: list[Any] = []
        number = 0
        empty = 0
        while empty < 3:
            number += 1
            rows = claim(7, worker, number, vendor)
            # Rows that others hold locked are passed over: look again before giving up.
            empty = 0 if rows else empty + 1
            taken += [row.key for row in rows]
        return taken

    taken = together(*(lambda worker=worker: drain(worker) for worker in range(1, workers + 1)))

    counts = Counter(key for part in taken for key in part)
    assert len(counts) == len(keys)
    assert max(counts.values()) == 1
    assert set(Task.objects.values_list("attempt", "state")) == {(1, int(State.RUNNING))}
    assert sum(len(part) > 0 for part in taken) >= 1


def test_of_a_claim_and_a_cancel_at_one_moment_exactly_one_wins() -> None:
    won = Counter()
    for turn in range(1, 31):
        [key] = stored(1)

        claimed, ended = together(
            lambda turn=turn: claim(1, 1, turn),
            lambda key=key: store.end_waiting("default", [key], state=State.CANCELLED, now=clock.now())[0],
        )

        live, over = Task.objects.filter(pk=key).first(), FinishedTask.objects.filter(pk=key).first()
        assert (len(claimed), len(ended)) in {(1, 0), (0, 1)}
        assert (live is None) == (over is not None) == bool(ended)
        if live is not None:
            assert live.state == State.RUNNING
            Task.objects.filter(pk=key).delete()
        won["cancel" if ended else "claim"] += 1
    assert won.total() == 30


def test_two_replays_at_one_moment_send_a_task_back_once() -> None:
    for turn in range(1, 11):
        [key] = stored(1)
        store.end_waiting("default", [key], state=State.DEAD, now=clock.now())

        sent = together(*[lambda key=key: store.replay("default", [key], now=clock.now())] * 2)

        assert sorted(map(len, sent)) == [0, 1], turn
        assert Task.objects.get(pk=key).replays == 1
        assert not FinishedTask.objects.filter(pk=key).exists()
        Task.objects.filter(pk=key).delete()


def test_two_discards_at_one_moment_count_once() -> None:
    keys = stored(10)
    store.end_waiting("default", keys, state=State.DEAD, now=clock.now())

    changed = together(*[lambda: store.discard("default", keys, now=clock.now())] * 3)

    assert sorted(key for part in changed for key in part) == sorted(keys)


def test_a_replay_and_a_discard_leave_one_row() -> None:
    for _ in range(10):
        [key] = stored(1)
        store.end_waiting("default", [key], state=State.DEAD, now=clock.now())

        together(
            lambda key=key: store.replay("default", [key], now=clock.now()),
            lambda key=key: store.discard("default", [key], now=clock.now()),
        )

        assert Task.objects.filter(pk=key).count() + FinishedTask.objects.filter(pk=key).count() == 1


def test_the_worker_and_its_rescuer_never_both_settle() -> None:
    vendor = vendor_for("default")
    stored(60)
    claims = claim(60, 1)

    def rescue() -> set[Any]:
        def work() -> set[Any]:
            with vendor.atomic():
                return vendor.put_back([Again(one.key, one.lease, int(State.READY), 0, None, None) for one in claims])

        return vendor.retrying(work)

    finished, rescued = together(lambda: finish([success(one) for one in reversed(claims)]), rescue)

    assert finished.isdisjoint(rescued)
    assert finished | rescued == {one.key for one in claims}
    assert FinishedTask.objects.count() == len(finished)
    assert Task.objects.filter(state=State.READY).count() == len(rescued)


def test_promoters_share_what_is_due_and_promote_it_once() -> None:
    now = clock.now()
    stored(300, state=int(State.SCHEDULED), run_after=now - timedelta(seconds=1))
    stored(50, state=int(State.SCHEDULED), run_after=now + timedelta(hours=1))
    vendor = vendor_for("default")

    def promote() -> int:
        count = 0
        for _ in range(20):
            count += len(vendor.retrying(lambda: vendor.promote(now, 37)))
        return count

    promoted = together(*[promote] * 4)

    assert sum(promoted) == 300
    assert Counter(Task.objects.values_list("state", flat=True)) == {int(State.READY): 300, int(State.SCHEDULED): 50}


def test_pruning_beside_settling_touches_no_live_row() -> None:
    stored(100)
    first = claim(50, 1)
    finish([success(one) for one in first])
    second = claim(50, 1, 2)
    vendor = vendor_for("default")

    def prune() -> int:
        return sum(
            vendor.retrying(lambda: vendor.prune(State.SUCCEEDED, before=clock.now(), limit=7)) for _ in range(10)
        )

    together(prune, prune, lambda: finish([success(one) for one in second[:25]]))

    assert Task.objects.filter(state=State.RUNNING).count() == 25
    assert Task.objects.count() == 25


def test_a_resumed_scan_finds_what_was_committed_late_within_a_quarter_of_a_second() -> None:
    older = task_ids.many(3)
    stored(200)
    claimer = Claimer("default", 1, [("q", None)])
    first = claimer.claim(10, now=clock.now())
    vendor = vendor_for("default")
    # Made before the others, committed after them: they sort before the point where the claimer goes on.
    template = dict.fromkeys(NewTask._fields) | {"queue": "q", "rank": 0, "state": int(State.READY), "max_attempts": 3}
    template |= {"ack": 0, "created_at": clock.now(), "name": "late", "args": '{"args":[],"kwargs":{}}'}
    vendor.insert([NewTask(**{**template, "id": number}) for number in older])

    began = time.monotonic()
    found: list[str] = []
    while "late" not in found and time.monotonic() - began < 5:
        found += [row.name for row in claimer.claim(1, now=clock.now())]
    took = time.monotonic() - began

    assert len(first) == 10
    assert "late" in found
    # The quarter of a second, and one claim on a busy machine.
    assert took < 0.25 + 0.25
    Task.objects.all().delete()


def test_a_short_batch_starts_again_from_the_edge_at_once() -> None:
    older = task_ids.many(1)
    stored(4)
    claimer = Claimer("default", 1, [("q", None)])
    claimer.claim(2, now=clock.now())
    template = dict.fromkeys(NewTask._fields) | {"queue": "q", "rank": 0, "state": int(State.READY), "max_attempts": 3}
    template |= {"ack": 0, "created_at": clock.now(), "name": "late", "args": '{"args":[],"kwargs":{}}'}
    vendor_for("default").insert([NewTask(**{**template, "id": older[0]})])

    names = [row.name for row in claimer.claim(10, now=clock.now())]

    assert sorted(names) == ["late", "race.task", "race.task"]
