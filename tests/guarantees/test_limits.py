"""Limits: never more at once, never more often, whatever becomes of who holds a slot; and nobody waits for ever."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_taskq import Concurrency, InvalidOptions, Rate, Unique, batch, cancel, chain, clock, previous, task, testing
from django_taskq.domain.limits import parse_rate
from django_taskq.duties import reconcile, release
from django_taskq.lifecycle import control, rescue
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.limits import Gate
from django_taskq.lifecycle.settle import settle
from django_taskq.models import FinishedTask, Limit, Task
from django_taskq.store import limits as limit_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from tests import engine
from tests.capabilities import requires
from tests.engine import (
    ALIAS,
    announce,
    claim,
    claim_one,
    db_now,
    drain,
    row_of,
    run,
    run_and_settle,
    run_burst,
    running_worker,
    state_of,
    wait_for,
    write,
)
from tests.guarantees.tasks import (
    at_desk_in_room,
    lowly,
    most,
    note,
    one_at_once,
    paced,
    ran,
    ten_a_minute,
    twice_limited,
    two_at_once,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE = "2c:task:tests.guarantees.tasks.one_at_once"
PAIR = "2c:pair:a"
DESK = "2c:desk:a"
TEN = "2r:task:tests.guarantees.tasks.ten_a_minute"


@pytest.fixture
def options(settings: Any) -> Iterator[Any]:
    """Set options of the project for one test."""

    def change(**values: Any) -> None:
        settings.TASKQ = {**getattr(settings, "TASKQ", {}), **values}

    return change  # type: ignore[return-value]


def limit_of(key: str) -> Limit:
    return Limit.objects.get(key=key)


def held(key: str) -> int:
    return limit_of(key).held


def make_limits(*keys: str) -> None:
    """Give limits their rows, as the first claim of each does: else whoever races for that would take turns."""
    vendor = vendor_for(ALIAS)
    with vendor.atomic():
        limit_store.locked(vendor, keys, make=True)


def states() -> Counter[str]:
    return Counter(Task(state=state).get_state_display() for state in Task.objects.values_list("state", flat=True))


def claim_at(moment: datetime, limit: int = 50, worker_id: int | None = None) -> list[Claim]:
    return Claimer(ALIAS, worker_id or announce(), [("default", None)]).claim(limit, now=moment)


# Concurrency


def test_a_concurrency_limit_lets_so_many_start_and_parks_the_rest() -> None:
    one_at_once.enqueue_many([(at,) for at in range(5)])

    found = claim(limit=10)

    assert len(found) == 1
    assert states() == {"running": 1, "parked": 4}
    assert held(ONE) == 1


def test_parking_uses_no_attempt_and_no_lease() -> None:
    one_at_once.enqueue_many([(1,), (2,)])
    claim(limit=10)

    parked = Task.objects.get(state=5)

    assert (parked.attempt, parked.lease, parked.slots, parked.parked_on) == (0, None, None, ONE)


def test_parked_tasks_are_released_in_order() -> None:
    one_at_once.enqueue_many([(at,) for at in range(6)])
    one_at_once.using(priority=10).enqueue("urgent")

    assert drain() == 7

    assert ran == ["urgent", 0, 1, 2, 3, 4, 5]
    assert held(ONE) == 0


@pytest.mark.parametrize("end", ["success", "failure", "death", "cancel", "hand back", "timeout"])
def test_a_slot_is_given_back_however_the_task_ends(end: str) -> None:
    from django_taskq.domain.outcomes import Cancelled, Crashed, ErrorInfo, Failed, Interrupted, Succeeded, TimedOut
    from django_taskq.lifecycle.settle import Ended

    error = ErrorInfo(class_path="x.Y", message="m", traceback="", fingerprint="f")
    outcomes = {
        "success": Succeeded(),
        "failure": Failed(error=error, retry_in=60.0),
        "death": Crashed(error=error),
        "cancel": Cancelled(),
        "hand back": Interrupted(started=False),
        "timeout": TimedOut(error=error, retry_in=0.0),
    }
    first = one_at_once.enqueue("first")
    second = one_at_once.enqueue("second")
    claimed = claim(limit=10)[0]
    assert str(row_of(first).pk) == str(first.id)  # type: ignore[union-attr]

    now = db_now().timestamp()
    write([Ended(claimed, outcomes[end], None if end == "hand back" else now, now)])

    assert held(ONE) == 0
    assert state_of(second) == "ready"


def test_the_slot_of_a_dead_worker_is_given_back_with_its_lease() -> None:
    worker_id = announce(silent_for=60)
    one_at_once.enqueue_many([(1,), (2,)])
    claim(worker_id, limit=10)

    rescue.rescue(ALIAS, now=db_now())

    assert held(ONE) == 0
    assert states() == {"ready": 2}


def test_a_zombie_gives_no_slot_back_a_second_time() -> None:
    worker_id = announce(silent_for=60)
    one_at_once.enqueue("only")
    zombies = claim_one(worker_id)
    rescue.rescue(ALIAS, now=db_now())
    claim_one()

    settled = write([run(zombies)])

    assert settled.refused
    assert held(ONE) == 1


def test_two_keys_do_not_wait_for_each_other() -> None:
    two_at_once.enqueue_many([("a",)] * 3 + [("b",)] * 3)

    found = claim(limit=10)

    assert Counter(found_claim.slots for found_claim in found) == {"2c:pair:a": 2, "2c:pair:b": 2}


def test_unlimited_tasks_behind_parked_ones_are_claimed_in_the_same_turn() -> None:
    one_at_once.enqueue_many([(at,) for at in range(30)])
    note.enqueue("free")

    found = claim(limit=2)

    assert {claimed.name.rpartition(".")[2] for claimed in found} == {"one_at_once", "note"}


def test_what_was_looked_at_and_is_too_much_is_claimed_next() -> None:
    """To park many at once a claim looks at more than it wants; its next one must not begin behind them."""
    one_at_once.enqueue_many([(at,) for at in range(3)])
    notes = note.enqueue_many([(at,) for at in range(300)])
    claimer = Claimer(ALIAS, announce(), [("default", None)])

    found = [claimed for _ in range(6) for claimed in claimer.claim(1, now=db_now())]

    ids = [vendor_for(ALIAS).public_id(claimed.key) for claimed in found if claimed.name.endswith("note")]
    assert ids == [each.id for each in notes[:5]]


def test_eight_racing_claimers_never_exceed_a_limit() -> None:
    two_at_once.enqueue_many([(key, at) for at in range(20) for key in "abc"])
    make_limits(*(f"2c:pair:{key}" for key in "abc"))
    workers = [announce() for _ in range(8)]
    barrier = threading.Barrier(8)
    found: list[Claim] = []

    def race(worker_id: int) -> None:
        claimer = Claimer(ALIAS, worker_id, [("default", None)])
        barrier.wait()
        try:
            for _ in range(5):
                found.extend(claimer.claim(7, now=db_now()))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=race, args=(worker_id,)) for worker_id in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Counter(claimed.slots for claimed in found) == {f"2c:pair:{key}": 2 for key in "abc"}
    assert {held(f"2c:pair:{key}") for key in "abc"} == {2}


@pytest.mark.stress
def test_eight_workers_never_run_more_than_a_limit_allows_and_leave_nobody_behind() -> None:
    two_at_once.enqueue_many([(key, at) for at in range(100) for key in "abc"])

    from contextlib import ExitStack

    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(running_worker(threads=3))
        wait_for(lambda: FinishedTask.objects.count() == 300, 120)

    assert max(most.values()) <= 2
    assert Limit.objects.filter(held__gt=0).count() == 0
    assert len(ran) == 300


def test_a_task_that_waits_for_two_limits_takes_neither_alone() -> None:
    paced.enqueue("acme", 1)
    paced.enqueue("acme", 2)
    claimed = claim(limit=10)

    assert len(claimed) == 1
    assert limit_of("2r:acme").tokens == pytest.approx(1, abs=0.2)
    assert held("2c:acme") == 1


def test_a_retry_gives_its_slot_back_while_it_waits() -> None:
    paced.enqueue("acme", "fail")
    run_and_settle(claim_one())

    assert held("2c:acme") == 0


# Rates


def test_a_bucket_begins_full_and_fills_evenly() -> None:
    ten_a_minute.enqueue_many([(at,) for at in range(8)])
    start = db_now()

    counts = [len(claim_at(start))]
    for seconds in (5.9, 6.1, 12.1, 30.1):
        release.run_once(ALIAS, _conf(), start + timedelta(seconds=seconds))
        counts.append(len(claim_at(start + timedelta(seconds=seconds))))

    assert counts == [3, 0, 1, 1, 3]


def test_a_rate_is_never_exceeded_in_any_window() -> None:
    """The defining property of a token bucket: burst plus what comes in the window."""
    ten_a_minute.enqueue_many([(at,) for at in range(60)])
    start = db_now()
    started: list[float] = []

    for step in range(100):
        moment = start + timedelta(seconds=step * 0.7)
        release.run_once(ALIAS, _conf(), moment)
        started += [step * 0.7] * len(claim_at(moment, limit=3))

    for first in range(len(started)):
        for last in range(first, len(started)):
            assert last - first + 1 <= 3 + (started[last] - started[first]) / 6 + 0.001
    assert len(started) >= 3 + int(100 * 0.7 / 6) - 2


def test_a_start_that_did_not_take_place_is_given_back_to_its_rate() -> None:
    from django_taskq.domain.outcomes import Interrupted
    from django_taskq.lifecycle.settle import Ended

    ten_a_minute.enqueue(1)
    now = db_now()
    [claimed] = claim_at(now)

    write([Ended(claimed, Interrupted(started=False), None, now.timestamp())])

    assert limit_of(TEN).tokens == pytest.approx(3, abs=0.1)


def test_tasks_that_wait_for_a_rate_keep_their_order() -> None:
    ten_a_minute.enqueue_many([(at,) for at in range(5)])
    start = db_now()
    order: list[str] = []

    for seconds in range(0, 60, 2):
        moment = start + timedelta(seconds=seconds)
        release.run_once(ALIAS, _conf(), moment)
        order += [claimed.args for claimed in claim_at(moment)]
        if seconds == 2:
            ten_a_minute.enqueue(5)

    assert [int(text.split("[")[1].split("]")[0]) for text in order] == [0, 1, 2, 3, 4, 5]


def test_a_clock_that_is_set_back_brings_no_starts() -> None:
    ten_a_minute.enqueue_many([(at,) for at in range(8)])
    start = db_now()
    claim_at(start)

    release.run_once(ALIAS, _conf(), start - timedelta(seconds=3))

    assert claim_at(start - timedelta(seconds=3)) == []
    release.run_once(ALIAS, _conf(), start + timedelta(seconds=6.1))
    assert len(claim_at(start + timedelta(seconds=6.1))) == 1


@task(limits=[Rate("1/s", burst=5)])
def _each_second(key: Any = None) -> None:
    """Do nothing, five at once and then one a second."""


@pytest.mark.parametrize(("look", "back"), [("claim", 0), ("release", 0), ("hand back", 1)])
def test_whoever_looks_with_the_time_of_a_moment_ago_brings_no_starts(look: str, back: int) -> None:
    """A worker waited for the row, or was suspended: what came in since then does not come in a second time."""
    from django_taskq.domain.outcomes import Interrupted
    from django_taskq.lifecycle.settle import Ended, settle

    _each_second.enqueue_many([(at,) for at in range(40)])
    start = db_now()
    late, now, soon = (start + timedelta(seconds=seconds) for seconds in (10, 20, 21.1))
    began = claim_at(start)
    release.run_once(ALIAS, _conf(), now)
    went_on = claim_at(now)

    match look:
        case "claim":
            _each_second.using(priority=1).enqueue("not parked yet")
            assert claim_at(late) == []
        case "release":
            Limit.objects.update(next_at=late)
            release.run_once(ALIAS, _conf(), late)
        case "hand back":
            ended = Ended(went_on[0], Interrupted(started=False), None, late.timestamp())
            settle([ended], alias=ALIAS, worker_id=went_on[0].lease >> 32, now=late)
    release.run_once(ALIAS, _conf(), soon)

    assert (len(began), len(went_on)) == (5, 5)
    assert len(claim_at(soon)) == 1 + back


@pytest.mark.parametrize("kind", ["task", "queue"])
def test_a_claim_that_waited_for_its_row_counts_from_when_it_got_it(
    kind: str, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    """Counted from when it was asked for, what came in meanwhile and did not fit would be there once more."""
    options(QUEUES={"default": {"RATE": Rate("1/s", burst=5)}} if kind == "queue" else {})
    asked: Any = _each_second if kind == "task" else note
    asked.enqueue_many([(at,) for at in range(40)])
    start = db_now()
    began = claim_at(start)
    fresh = asked.using(priority=1)
    fresh.enqueue_many([("not parked yet",)] * 20)
    locked, elapsed = limit_store.locked, clock.elapsed

    with monkeypatch.context() as patch:

        def locked_late(*args: Any, **kwargs: Any) -> Any:
            patch.setattr(clock, "elapsed", lambda: elapsed() + 10)
            return locked(*args, **kwargs)

        patch.setattr(limit_store, "locked", locked_late)
        late = claim_at(start + timedelta(seconds=10))

    assert (len(began), len(late)) == (5, 5)
    fresh.enqueue_many([("not parked yet",)] * 20)
    assert claim_at(start + timedelta(seconds=20)) == []


def test_a_clock_that_is_set_back_by_hours_does_not_stop_a_rate_for_hours() -> None:
    """Nobody looks with a time that old; counting goes on from what the clock shows now."""
    ten_a_minute.enqueue_many([(at,) for at in range(8)])
    start = db_now()
    claim_at(start)
    back = start - timedelta(hours=3)
    Limit.objects.update(next_at=back)

    counts = []
    for seconds in (0, 5.9, 6.1, 12.1):
        release.run_once(ALIAS, _conf(), back + timedelta(seconds=seconds))
        counts.append(len(claim_at(back + timedelta(seconds=seconds))))

    assert counts == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "amount", "seconds"), [("100/m", 100, 60), ("5/30s", 5, 30), ("1/d", 1, 86400), ("7 / 2 hours", 7, 7200)]
)
def test_a_rate_is_a_number_per_time(text: str, amount: int, seconds: float) -> None:
    assert parse_rate(text) == (amount, seconds)


@pytest.mark.parametrize(
    "text", ["", "100", "m", "0/m", "-1/m", "1/0s", "1.5/m", "1/y", "1/400d", None, 5, "9" * 20 + "/s"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(InvalidOptions, match="rate must be"):
        Rate(text)


# Queues and everything


def test_a_queue_has_a_limit_of_its_own(options: Any) -> None:
    options(QUEUES={"default": {"CONCURRENCY": 2}})
    note.enqueue_many([(at,) for at in range(5)])
    note.using(queue_name="other").enqueue("free")

    first = claim(queues="default,other", limit=10)

    assert Counter(claimed.queue for claimed in first) == {"default": 2, "other": 1}
    assert states() == {"running": 3, "ready": 3}
    for claimed in first:
        run_and_settle(claimed)
    assert held("1c:queue:default") == 0
    assert len(claim(limit=10)) == 2


def test_all_queues_together_have_a_limit(options: Any) -> None:
    options(CONCURRENCY=3)
    note.enqueue_many([(at,) for at in range(5)])
    note.using(queue_name="other").enqueue_many([(at,) for at in range(5)])

    assert len(claim(queues="default,other", limit=10)) == 3
    assert len(claim(queues="other,default", limit=10)) == 0


def test_a_queue_has_a_rate(options: Any) -> None:
    options(QUEUES={"default": {"RATE": Rate("60/m", burst=2)}})
    note.enqueue_many([(at,) for at in range(5)])
    start = db_now()

    assert [len(claim_at(start + timedelta(seconds=at))) for at in (0, 0.5, 1.1, 9)] == [2, 0, 1, 2]


def test_the_slots_of_a_queue_are_given_back_by_a_rescue(options: Any) -> None:
    options(QUEUES={"default": {"CONCURRENCY": 1}})
    note.enqueue_many([(1,), (2,)])
    claim(announce(silent_for=60), limit=5)

    rescue.rescue(ALIAS, now=db_now())

    assert held("1c:queue:default") == 0


def test_a_worker_drains_a_queue_with_a_limit_and_own_limits(options: Any) -> None:
    options(QUEUES={"default": {"CONCURRENCY": 2}}, CONCURRENCY=50)
    two_at_once.enqueue_many([("a", at) for at in range(20)])
    one_at_once.enqueue_many([(at,) for at in range(20)])

    run_burst(threads=4)

    assert FinishedTask.objects.count() == 40
    assert not Limit.objects.filter(held__gt=0).exists()


@pytest.mark.parametrize("run_all", [run_burst, testing.drain], ids=["burst", "drain"])
def test_what_stands_behind_many_that_have_to_be_parked_is_run_before_the_end(run_all: Any) -> None:
    one_at_once.enqueue()
    claim_one(announce(lease_seconds=300))
    one_at_once.enqueue_many([()] * 1000)
    last = note.enqueue("last")

    run_all()

    assert state_of(last) == "succeeded"
    assert states() == {"running": 1, "parked": 1000}


def test_a_limit_that_the_settings_gave_up_holds_nobody(options: Any) -> None:
    options(QUEUES={"default": {"CONCURRENCY": 1}})
    note.enqueue_many([(at,) for at in range(3)])
    claim(limit=5)

    options(QUEUES={})

    assert len(claim(limit=5)) == 2


RACED: dict[str, tuple[dict[str, Any], int, str]] = {
    "queue": ({"QUEUES": {"default": {"CONCURRENCY": 5}}}, 5, "1c:queue:default"),
    "everything": ({"CONCURRENCY": 5}, 5, "0c:all"),
    "rate of a queue": ({"QUEUES": {"default": {"RATE": Rate("60/h", burst=5)}}}, 5, "1r:queue:default"),
    "rate of everything": ({"RATE": Rate("60/h", burst=5)}, 5, "0r:all"),
    "rate of a task": ({}, 3, TEN),
}


@pytest.mark.parametrize("kind", RACED)
def test_eight_racing_claimers_never_exceed_a_limit_that_all_tasks_share(kind: str, options: Any) -> None:
    """S4-03, S4-63: of a queue, of everything, and rates, all workers at one moment; what is too much is kept."""
    taskq, bound, key = RACED[kind]
    options(**taskq)
    asked: Any = ten_a_minute if key == TEN else note
    asked.enqueue_many([(at,) for at in range(100)])
    make_limits(key)
    now = db_now()
    claimers = [Claimer(ALIAS, announce(), [("default", None)]) for _ in range(8)]

    def race(claimer: Claimer) -> list[Claim]:
        return [claimed for _ in range(5) for claimed in claimer.claim(3, now=now)]

    parts = engine.in_threads(*[partial(race, claimer) for claimer in claimers])

    found = [claimed for part in parts for claimed in part]
    assert len({claimed.key for claimed in found}) == len(found) == bound
    assert states()["running"] == bound
    assert Task.objects.count() == 100
    assert Task.objects.exclude(state=2).filter(attempt=0, lease=None).count() == 100 - bound
    room = limit_of(key)
    assert (room.tokens if room.key[1] == "r" else 5 - room.held) == pytest.approx(0, abs=0.5)


def test_workers_of_several_queues_share_the_rate_of_everything(options: Any) -> None:
    """S4-63: one bucket, whoever claims from wherever."""
    options(RATE=Rate("60/m", burst=4))
    for queue in ("default", "other"):
        note.using(queue_name=queue).enqueue_many([(at,) for at in range(20)])
    workers = [Claimer(ALIAS, announce(), [(queue, None)]) for queue in ("default", "other")]
    start = db_now()

    counts = [
        [len(worker.claim(10, now=start + timedelta(seconds=seconds))) for worker in workers]
        for seconds in (0, 1.1, 3.2, 3.3)
    ]

    assert counts == [[4, 0], [1, 0], [2, 0], [0, 0]]
    assert [len(worker.claim(10, now=start + timedelta(seconds=9))) for worker in reversed(workers)] == [4, 0]


# One limiter, and low values


def test_a_start_is_counted_once_however_often_its_task_was_parked_and_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S4-19: parking, releasing and claiming take one start together, and one slot."""
    # Each claim at the moment it names, however long it waits for the machine.
    monkeypatch.setattr(clock, "elapsed", lambda: 1000.0)
    paced.enqueue_many([("acme", at) for at in range(3)])
    start = db_now()
    tokens = []

    for seconds in (0, 1, 2):
        moment = start + timedelta(seconds=seconds)
        release.run_once(ALIAS, _conf(), moment)
        [claimed] = claim_at(moment)
        tokens.append(limit_of("2r:acme").tokens)
        assert held("2c:acme") == 1
        run_and_settle(claimed)

    # Two to begin with, and one that comes in each second: each start takes one.
    assert tokens == pytest.approx([1, 1, 1], abs=0.1)


def test_a_limit_and_a_limiting_middleware_each_count_for_themselves() -> None:
    """S4-19: the limit counts starts; what the middleware puts off has started, and starts again when it is due."""
    twice_limited.enqueue_many([(1,), (2,)])
    now = db_now()

    for claimed in claim_at(now):
        run_and_settle(claimed)

    assert ran == [1]
    assert limit_of("2r:twice").tokens == pytest.approx(3, abs=0.5)
    [put_off] = Task.objects.all()
    assert (put_off.get_state_display(), put_off.attempt) == ("scheduled", 0)
    put_off_until = put_off.run_after
    assert put_off_until is not None
    assert put_off_until > now


def test_low_values_work() -> None:
    """S4-20: no retry, one slot, a start a minute: each task is run once, one a minute, and a failure is final."""
    lowly.enqueue_many([("a",), ("fail",), ("b",)])
    start = db_now()

    for seconds in (0, 30, 59.9, 60.1, 90, 120.2, 180):
        moment = start + timedelta(seconds=seconds)
        release.run_once(ALIAS, _conf(), moment)
        for claimed in claim_at(moment):
            ran.append(seconds)
            run_and_settle(claimed)

    assert ran == [0, "a", 60.1, "fail", 120.2, "b"]
    assert sorted(FinishedTask.objects.values_list("attempt", "state")) == [(1, 3), (1, 3), (1, 4)]
    assert not Task.objects.exists()


def test_one_thread_works_off_low_limits(options: Any) -> None:
    """S4-20: one thread, one slot of everything, of the queue and of the task, and a task that is not retried."""
    options(CONCURRENCY=1, QUEUES={"default": {"CONCURRENCY": 1}})
    one_at_once.using(max_attempts=1).enqueue_many([(at,) for at in range(20)])

    run_burst(threads=1)

    assert ran == list(range(20))
    assert not Limit.objects.exclude(held=0).exists()


@pytest.mark.parametrize(
    ("text", "burst"), [("1/d", 1), ("1/m", 1), ("60/m", 1), ("7/s", 1), ("8/s", 2), ("100/s", 25), ("1000/s", 250)]
)
def test_a_default_burst_is_what_comes_in_a_quarter_of_a_second(text: str, burst: int, options: Any) -> None:
    """S4-21: so many start at once, every time."""
    options(RATE=text)
    note.enqueue_many([(at,) for at in range(300)])
    start = db_now()

    assert [len(claim_at(start + timedelta(days=day), 300)) for day in (0, 2)] == [burst, min(burst, 300 - burst)]


# Bounds


def test_what_the_code_says_now_holds_for_tasks_that_wait_already(monkeypatch: pytest.MonkeyPatch) -> None:
    one_at_once.enqueue_many([(at,) for at in range(5)])
    object.__setattr__(one_at_once, "limits", (Concurrency(3),))
    try:
        assert len(claim(limit=10)) == 3
    finally:
        object.__setattr__(one_at_once, "limits", (Concurrency(1),))


def test_a_limit_that_the_code_gave_up_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    one_at_once.enqueue_many([(at,) for at in range(5)])
    object.__setattr__(one_at_once, "limits", ())
    try:
        assert len(claim(limit=10)) == 5
    finally:
        object.__setattr__(one_at_once, "limits", (Concurrency(1),))


def test_a_parked_task_is_cancelled_at_once() -> None:
    one_at_once.enqueue("holds")
    parked = one_at_once.enqueue("parked")
    claim(limit=10)

    cancel(parked.id)

    assert state_of(parked) == "cancelled"


def test_a_key_may_be_made_by_a_callable_and_be_none() -> None:
    limited = _by_callable.enqueue("acme")
    free = _by_callable.enqueue("")

    assert row_of(limited).limits == "2c:firm-acme"  # type: ignore[union-attr]
    assert row_of(free).limits is None  # type: ignore[union-attr]


@task(limits=[Concurrency(1, key=lambda firm: f"firm-{firm}" if firm else None)])
def _by_callable(firm: str) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("limit", "match"),
    [
        (lambda: Concurrency(0), "limit must be a whole number"),
        (lambda: Concurrency(True), "limit must be a whole number"),
        (lambda: Concurrency(2, key=""), "key must be a text"),
        (lambda: Concurrency(2, key="queue:x"), "must not be 'all'"),
        (lambda: Rate("1/s", burst=0), "burst must be a whole number"),
        (lambda: note.using().__class__ and task(limits=["x"])(note.func), "limits must hold"),
        (lambda: task(limits=[Concurrency(2, key="{nobody}")])(note.func), "no parameter"),
        (lambda: task(limits=[Concurrency(2), Concurrency(3)])(note.func), "two limits of one kind"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_when_it_is_declared(limit: Any, match: str) -> None:
    with pytest.raises(InvalidOptions, match=match):
        limit()


# Upkeep


def test_a_promise_that_nobody_claims_lapses() -> None:
    one_at_once.enqueue_many([(at,) for at in range(3)])
    [holder] = claim(limit=10)
    run_and_settle(holder)
    released = Task.objects.get(state=1)
    cancel(str(released.pk))
    now = db_now()

    release.run_once(ALIAS, _conf(), now + timedelta(seconds=2.5))

    assert states() == {"ready": 1}


# Promises


def promised(key: str) -> int:
    """Return for how many released tasks a limit keeps room."""
    return limit_of(key).promised


def desk_is_free_for_the_second_of_three() -> tuple[Any, Any]:
    """Let the first of three at desk a end; return the second, who is released and needs room 2, and the third."""
    at_desk_in_room.enqueue("a", "1")
    second, third = (at_desk_in_room.enqueue("a", room) for room in ("2", "3"))
    [holder] = claim(limit=10)
    run_and_settle(holder)
    assert (state_of(second), state_of(third), promised(DESK)) == ("ready", "parked", 1)
    return second, third


def test_a_released_task_that_parks_elsewhere_gives_its_promise_back_at_once() -> None:
    second, third = desk_is_free_for_the_second_of_three()
    at_desk_in_room.using(priority=10).enqueue("b", "2")

    # The desk is offered to the next, who needs another room, in the transaction that parks the second.
    found = claim(limit=2)

    assert (state_of(second), row_of(second).parked_on) == ("parked", "2c:room:2")  # type: ignore[union-attr]
    assert (len(found), state_of(third), promised(DESK), held(DESK)) == (2, "running", 0, 1)


def test_room_is_not_offered_to_those_who_need_what_the_first_waits_for() -> None:
    at_desk_in_room.enqueue("a", "1")
    waiting = [at_desk_in_room.enqueue("a", "2") for _ in range(3)]
    [holder] = claim(limit=10)
    run_and_settle(holder)
    at_desk_in_room.using(priority=10).enqueue("b", "2")

    claim(limit=10)
    claim(limit=10)

    assert [row_of(task).parked_on for task in waiting] == ["2c:room:2", DESK, DESK]  # type: ignore[union-attr]
    assert promised(DESK) == 0


@pytest.mark.parametrize("how", ["cancel", "kill", "cancel and rollback"])
def test_a_released_task_that_is_ended_gives_its_promise_back_with_the_commit(how: str) -> None:
    second, third = desk_is_free_for_the_second_of_three()

    with transaction.atomic():
        (control.kill if how == "kill" else cancel)(second.id)
        during = state_of(third), promised(DESK)
        transaction.set_rollback("rollback" in how)

    assert during == ("parked", 1)
    assert state_of(second) == {"cancel": "cancelled", "kill": "dead"}.get(how, "ready")
    assert (state_of(third), promised(DESK)) == ("parked" if "rollback" in how else "ready", 1)
    claim(limit=10)
    assert (promised(DESK), held(DESK)) == (0, 1)


def test_a_released_task_of_a_type_that_is_paused_meanwhile_gives_its_promise_back() -> None:
    second, _ = desk_is_free_for_the_second_of_three()
    control.pause(task=at_desk_in_room)

    claim(limit=10)

    assert (state_of(second), promised(DESK)) == ("parked", 0)


@pytest.mark.parametrize("rule", ["replace", "reschedule"])
def test_a_released_task_that_another_call_changes_gives_its_promise_back(rule: Any) -> None:
    unique = Unique(key="{room}", on_conflict=rule)
    at_desk_in_room.enqueue("a", "1")
    second = at_desk_in_room.using(unique=unique).enqueue("a", "2")
    third = at_desk_in_room.enqueue("a", "3")
    [holder] = claim(limit=10)
    run_and_settle(holder)
    assert (state_of(second), promised(DESK)) == ("ready", 1)

    again = at_desk_in_room.using(unique=unique, delay=3600).enqueue("a", "2")

    assert (again.id, state_of(second)) == (second.id, "scheduled")
    assert (state_of(third), promised(DESK)) == ("ready", 1)


def test_what_is_claimed_and_too_much_keeps_its_promise() -> None:
    two_at_once.enqueue_many([("a", at) for at in range(5)])
    claimed = claim(limit=10)
    write([run(one) for one in claimed])
    gate = Gate(ALIAS, _conf())
    take = partial(vendor_for(ALIAS).claim, "default", lease=announce() << 32, now=db_now(), limited=True)
    assert (states(), promised(PAIR)) == ({"ready": 2, "parked": 1}, 2)

    _, started = gate.claim(take, "default", 1, look=10, now=db_now(), read_at=clock.elapsed())
    assert (len(started), promised(PAIR), states()) == (1, 1, {"running": 1, "ready": 1, "parked": 1})
    _, started = gate.claim(take, "default", 1, look=10, now=db_now(), read_at=clock.elapsed())

    assert (len(started), promised(PAIR), held(PAIR)) == (1, 0, 2)


def test_who_takes_the_room_of_a_released_task_leaves_its_promise_to_it() -> None:
    one_at_once.enqueue_many([(1,), (2,), (3,)])
    [holder] = claim(limit=10)
    run_and_settle(holder)
    urgent = one_at_once.using(priority=50).enqueue("urgent")

    claim(limit=1)
    assert (state_of(urgent), promised(ONE)) == ("running", 1)
    claim(limit=10)

    assert (promised(ONE), held(ONE), states()) == (0, 1, {"running": 1, "parked": 2})


def test_promises_that_are_claimed_do_not_renew_one_that_is_not() -> None:
    """A released task in a queue that nobody serves."""
    two_at_once.enqueue_many([("a", at) for at in range(9)])
    lost, running = claim(limit=10)
    run_and_settle(lost)
    Task.objects.filter(state=1).update(queue="nobody")
    begin = db_now()
    found: list[int] = []

    for at in range(1, 4):
        moment = begin + timedelta(seconds=at * 0.9)
        settle([run(running)], alias=ALIAS, worker_id=0, now=moment)
        running, *others = claim_at(moment)
        found.append(1 + len(others))

    assert found == [1, 1, 2]


@requires("skip_locked")
def test_a_parked_task_that_somebody_locks_and_lets_go_is_released_with_the_next_look() -> None:
    """A transaction that meets it as the holder of a unique key, or that cancels it and is rolled back."""
    one_at_once.enqueue_many([(at,) for at in range(2)])
    [holder] = claim(limit=10)
    parked = Task.objects.get(state=5)
    locked, over = threading.Event(), threading.Event()

    def look() -> None:
        with transaction.atomic():
            Task.objects.select_for_update().get(pk=parked.pk)
            locked.set()
            over.wait(10)
        connections.close_all()

    other = threading.Thread(target=look)
    other.start()
    assert locked.wait(10)
    run_and_settle(holder)
    before = state_of(parked)
    over.set()
    other.join(10)
    release.run_once(ALIAS, _conf(), db_now() + timedelta(seconds=1.5))

    assert (before, state_of(parked)) == ("parked", "ready")


def test_counters_that_somebody_broke_are_mended() -> None:
    one_at_once.enqueue_many([(at,) for at in range(3)])
    claim(limit=10)
    Limit.objects.filter(key=ONE).update(held=7, waits=False, next_at=None)

    assert reconcile.run_once(ALIAS, _conf(), db_now()) == 1

    assert (held(ONE), limit_of(ONE).waits) == (1, True)


def test_a_parked_task_whose_holder_was_deleted_by_hand_is_found() -> None:
    one_at_once.enqueue_many([(at,) for at in range(2)])
    claim(limit=10)
    Task.objects.filter(state=2).delete()

    reconcile.run_once(ALIAS, _conf(), db_now())
    release.run_once(ALIAS, _conf(), db_now() + timedelta(seconds=3))

    assert states() == {"ready": 1}


def test_limits_that_nobody_uses_are_deleted_and_those_in_use_are_not() -> None:
    now = db_now()
    old = now - timedelta(days=3)
    Limit.objects.create(key="2c:idle", amount=1, used_at=old)
    Limit.objects.create(key="2c:held", amount=1, held=1, used_at=old)
    Limit.objects.create(key="2c:set", amount=1, set_amount=3, used_at=old)
    Limit.objects.create(key="2r:empty", amount=1, per_seconds=864000, burst=9, tokens=0, refilled_at=old, used_at=old)
    Limit.objects.create(key="2r:full", amount=9, per_seconds=60, burst=9, tokens=0, refilled_at=old, used_at=old)

    limit_store.prune(ALIAS, now=now, before=now - timedelta(days=1), limit=100)

    assert set(Limit.objects.values_list("key", flat=True)) == {"2c:held", "2c:set", "2r:empty"}


# Cost


def test_a_task_without_limits_pays_nothing_for_them() -> None:
    note.enqueue_many([(at,) for at in range(3)])
    claimer = Claimer(ALIAS, announce(), [("default", None)])
    claimer.claim(1, now=db_now())

    with CaptureQueriesContext(
        connection,
    ) as context:
        [claimed] = claimer.claim(1, now=db_now())
        run_and_settle(claimed)

    assert not [query["sql"] for query in context.captured_queries if "taskq_limit" in query["sql"]]
    assert claimed.slots is None


def _conf() -> Any:
    from django_taskq import conf

    return conf.options()


# Workflows and tests


def test_members_and_callbacks_of_workflows_have_their_limits() -> None:
    batch(one_at_once.s(at) for at in range(3)).then(one_at_once.s("then")).enqueue()

    assert len(claim(limit=10)) == 1
    drain()
    rescue.rescue_worker(ALIAS, Task.objects.get(state=2).worker_id or 0, now=db_now())
    drain()

    assert sorted(map(str, ran)) == ["0", "1", "2", "then"]
    assert list(FinishedTask.objects.values_list("limits", flat=True)) == [ONE] * 4


def test_a_key_cannot_be_made_of_another_tasks_result() -> None:
    with pytest.raises(InvalidOptions, match="known only when the task runs"):
        chain(note.s("a"), two_at_once.s(previous)).enqueue()


def test_a_test_can_follow_a_rate_to_its_end() -> None:
    ten_a_minute.enqueue_many([(at,) for at in range(6)])

    drained = testing.drain(with_scheduled=True)

    assert [attempt.outcome for attempt in drained] == ["succeeded"] * 6
    assert ran == [0, 1, 2, 3, 4, 5]


def test_a_test_can_follow_the_rate_of_a_queue_to_its_end(options: Any) -> None:
    options(QUEUES={"default": {"RATE": "10/m"}})
    note.enqueue_many([(at,) for at in range(4)])

    with testing.travel() as hands:
        began = hands.now()
        testing.drain(with_scheduled=True)
        spent = hands.now() - began

    assert ran == [0, 1, 2, 3]
    assert spent >= timedelta(seconds=17.9)
