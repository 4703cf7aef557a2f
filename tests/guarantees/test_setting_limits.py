"""What operators set for limits: it holds for all workers within a second, until its time is over, and it is told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_taskq import InvalidOptions, LimitNotFound, Rate, events, find_limits, reset_limit, set_limit
from django_taskq.duties import release
from django_taskq.lifecycle.claim import Claimer
from django_taskq.models import AuditEntry, Limit
from django_taskq.store import limits as limit_store
from tests.engine import ALIAS, announce, claim, db_now, run_and_settle, running_worker, wait_for
from tests.guarantees.tasks import note, one_at_once, ran, ten_a_minute
from tests.guarantees.test_limits import (  # noqa: F401 - a fixture
    ONE,
    TEN,
    _conf,
    claim_at,
    limit_of,
    options,
    states,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE_NAME, TEN_NAME = ONE[3:], TEN[3:]
SECOND = timedelta(seconds=1)


def look(moment: datetime) -> int:
    return release.run_once(ALIAS, _conf(), moment)


def test_a_raised_bound_releases_parked_tasks_within_a_second() -> None:
    one_at_once.enqueue_many([(at,) for at in range(6)])
    claim(limit=10)

    set_limit(ONE_NAME, concurrency=3)
    look(db_now() + SECOND)

    assert states() == {"running": 1, "ready": 2, "parked": 3}


def test_a_lowered_bound_lets_running_tasks_go_on_and_nothing_start() -> None:
    set_limit("queue:default", concurrency=3)
    note.enqueue_many([(at,) for at in range(6)])
    running = claim(limit=10)
    set_limit("queue:default", concurrency=1)

    counts = []
    for claimed in running:
        run_and_settle(claimed)
        counts.append(len(claim(limit=10)))

    assert (len(running), counts) == (3, [0, 0, 1])


def test_the_bound_of_the_code_holds_again_when_the_time_is_over() -> None:
    one_at_once.enqueue_many([(1,), (2,), (3,)])
    [running] = claim(limit=10)
    set_limit(ONE_NAME, concurrency=0, until=timedelta(minutes=5))
    run_and_settle(running)
    start = db_now()

    for seconds in (1, 100, 298):
        look(start + timedelta(seconds=seconds))
        assert states() == {"parked": 2}
    look(start + timedelta(seconds=301))

    assert states() == {"parked": 1, "ready": 1}
    assert len(claim_at(start + timedelta(seconds=301))) == 1


def test_tasks_parked_while_a_bound_is_set_are_looked_at_when_it_ends() -> None:
    one_at_once.enqueue(1)
    run_and_settle(claim(limit=1)[0])
    set_limit(ONE_NAME, concurrency=0, until=timedelta(minutes=5))
    look(db_now() + SECOND)

    one_at_once.enqueue(2)
    assert claim(limit=10) == []

    assert limit_of(ONE).next_at == limit_of(ONE).set_until


def test_a_rate_set_to_nothing_starts_nothing_and_begins_again_when_its_time_is_over() -> None:
    ten_a_minute.enqueue_many([(at,) for at in range(4)])
    start = db_now()
    assert len(claim_at(start, limit=1)) == 1
    set_limit(TEN_NAME, rate="0/m", until=timedelta(minutes=5))

    for seconds in (1, 60, 298):
        look(start + timedelta(seconds=seconds))
        assert claim_at(start + timedelta(seconds=seconds)) == []
    look(start + timedelta(seconds=301))

    assert len(claim_at(start + timedelta(seconds=301))) == 3


def test_a_rate_that_is_raised_gives_no_tokens_for_the_time_before() -> None:
    """The bucket is empty after three starts; what came in since came in at ten a minute."""
    ten_a_minute.enqueue_many([(at,) for at in range(20)])
    start = db_now()
    claim_at(start)

    set_limit(TEN_NAME, rate="600/m", burst=10)
    look(db_now())

    assert len(claim_at(db_now())) < 10
    look(start + timedelta(seconds=30))
    assert len(claim_at(start + timedelta(seconds=30))) >= 8


def test_a_queue_without_a_limit_gets_one_at_run_time() -> None:
    note.enqueue_many([(at,) for at in range(6)])
    claimer = Claimer(ALIAS, announce(), [("default", None)])
    assert len(claimer.claim(1, now=db_now())) == 1

    set_limit("queue:default", concurrency=2)
    claimer._refresh_at = 0.0  # a second later

    # What runs already took no slot, so it is not counted.
    assert len(claimer.claim(10, now=db_now())) == 2


def test_a_limit_that_only_an_operator_made_is_gone_when_it_is_reset() -> None:
    set_limit("queue:default", concurrency=0)
    set_limit("all", rate="1/h")
    note.enqueue_many([(at,) for at in range(3)])
    assert claim(limit=10) == []

    assert reset_limit("queue:default")
    assert reset_limit("all", kind="rate")
    assert not reset_limit("all")

    assert not Limit.objects.exists()
    assert len(claim(limit=10)) == 3


def test_a_worker_that_has_not_heard_of_a_reset_yet_is_held_by_nothing() -> None:
    set_limit("queue:default", concurrency=1)
    set_limit("all", rate="1/h")
    note.enqueue_many([(at,) for at in range(3)])
    claimer = Claimer(ALIAS, announce(), [("default", None)])
    claimer.refresh()
    assert len(claimer.claim(10, now=db_now())) == 1

    reset_limit("queue:default")
    reset_limit("all")
    found = claimer.claim(10, now=db_now())

    assert len(found) == 2
    assert {claimed.slots for claimed in found} == {None}
    limit_store.prune(ALIAS, now=db_now(), before=db_now() + SECOND, limit=100)
    assert set(Limit.objects.values_list("key", "held")) == {("1c:queue:default", 1)}


def test_a_limit_of_a_queue_ends_with_its_time() -> None:
    set_limit("queue:default", concurrency=0, until=timedelta(minutes=5))
    note.enqueue_many([(at,) for at in range(3)])
    start = db_now()

    assert claim_at(start) == []
    assert look(start + timedelta(seconds=301)) == 1  # the queue is woken
    [*found] = claim_at(start + timedelta(seconds=301))

    assert len(found) == 3
    assert {claimed.slots for claimed in found} == {None}


def test_a_limit_of_a_queue_that_the_settings_gave_up_holds_nobody(options: Any) -> None:  # noqa: F811
    options(QUEUES={"default": {"CONCURRENCY": 1, "RATE": Rate("1/h")}})
    note.enqueue_many([(at,) for at in range(5)])
    assert len(claim(limit=10)) == 1

    options(QUEUES={})

    assert len(claim(limit=10)) == 4


def test_a_waiting_worker_goes_on_within_a_second_of_a_change() -> None:
    set_limit("queue:default", concurrency=0)
    note.enqueue("x")

    with running_worker(threads=1):
        reset_limit("queue:default")
        wait_for(lambda: "x" in ran, 5)


def test_expired_bounds_are_pruned_with_their_limits() -> None:
    now = db_now()
    old = now - timedelta(days=3)
    Limit.objects.create(key="2c:over", amount=1, set_amount=3, set_until=old, used_at=old)
    Limit.objects.create(key="2c:set", amount=1, set_amount=3, used_at=old)

    limit_store.prune(ALIAS, now=now, before=now - timedelta(days=1), limit=100)

    assert [limit.key for limit in Limit.objects.all()] == ["2c:set"]


def test_a_change_is_audited_and_told_after_the_commit() -> None:
    heard: list[events.LimitChanged] = []
    until = db_now() + timedelta(hours=1)
    events.subscribe(events.LimitChanged, heard.append)
    try:
        set_limit("queue:email", rate="100/m", burst=7, until=until, actor="ana", reason="provider slow")
        reset_limit("queue:email", actor="bob")
        reset_limit("queue:email", actor="eve")
    finally:
        events.unsubscribe(events.LimitChanged, heard.append)

    entries = [(entry.action, entry.actor, entry.target, entry.reason) for entry in AuditEntry.objects.order_by("id")]
    assert entries == [
        ("set_limit", "ana", "queue:email", "provider slow"),
        ("reset_limit", "bob", "queue:email", ""),
    ]
    assert [(event.limit, event.kind, event.amount, event.per_seconds, event.burst) for event in heard] == [
        ("queue:email", "rate", 100, 60.0, 7),
        ("queue:email", "rate", None, None, None),
    ]
    assert heard[0].until == until


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "one of them"),
        ({"concurrency": 1, "rate": "1/s"}, "one of them"),
        ({"concurrency": -1}, "concurrency must be a whole number from 0"),
        ({"concurrency": True}, "concurrency must be a whole number"),
        ({"concurrency": 1, "burst": 2}, "burst belongs to a rate"),
        ({"rate": "x"}, "rate must be a number per time"),
        ({"rate": "1/s", "burst": 0}, "burst must be a whole number"),
        ({"concurrency": 1, "until": timedelta(0)}, "until must be a moment ahead"),
        ({"concurrency": 1, "until": timedelta.max}, "until must be a moment ahead"),
        ({"concurrency": 1, "until": datetime(2999, 1, 1)}, "names its time zone"),
        ({"concurrency": 1, "until": datetime(1999, 1, 1, tzinfo=UTC)}, "until must be a moment ahead"),
        ({"concurrency": 1, "name": ""}, "name of a limit must be"),
        ({"concurrency": 1, "name": "a\nb"}, "name of a limit must be"),
        ({"concurrency": 1, "name": "x" * 191}, "name of a limit must be"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidOptions, match=match):
        set_limit(**{"name": "all", **given})
    assert not Limit.objects.exists()


def test_a_key_that_no_task_has_cannot_be_limited_at_run_time() -> None:
    with pytest.raises(LimitNotFound, match=r"no task has a concurrency limit called 'task:shop\.send'"):
        set_limit("task:shop.send", concurrency=1)
    with pytest.raises(InvalidOptions, match="kind must be"):
        reset_limit("all", kind="speed")

    assert not Limit.objects.exists()


def test_find_limits_tells_bounds_holders_and_who_waits() -> None:
    one_at_once.enqueue_many([(at,) for at in range(4)])
    claim(limit=10)
    set_limit("all", rate="0/m")

    everything, task = find_limits()

    assert (everything.name, everything.kind, everything.is_full, str(everything.bound)) == (
        "all",
        "rate",
        True,
        "0 per 60 s, burst 1",
    )
    assert (task.name, task.held, task.parked, task.is_set) == (ONE_NAME, 1, 3, False)
    assert find_limits("task:tests") == [task]
    assert find_limits("queue") == []
