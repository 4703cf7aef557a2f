"""
S4-31, S4-32, S4-34: everybody who wants results gets them, and nobody pays for a reader who is slow or gone.

In this process by subscribing; from other processes by a cursor over what has finished.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction

from django_taskq import (
    InvalidOptions,
    ResultNotReady,
    afinished_since,
    cancel,
    events,
    finished_since,
    replay,
    subscribe_results,
)
from django_taskq.domain.outcomes import Succeeded
from django_taskq.exceptions import InvalidCursor
from django_taskq.lifecycle.settle import LATE_SECONDS, Ended
from django_taskq.lifecycle.streams import ResultStream, TaskOutcome
from django_taskq.models import FinishedTask
from tests.capabilities import requires
from tests.engine import claim_one, db_now, drain, ready_task, running_worker, wait_for, write
from tests.guarantees.tasks import fail, note, return_this

pytestmark = pytest.mark.django_db(transaction=True)

ENDINGS = (events.TaskSucceeded, events.TaskDead, events.TaskCancelled)


@pytest.fixture
def subscribe() -> Iterator[Callable[..., ResultStream]]:
    """Subscribe; what was subscribed is closed at the end."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(subscribe_results(**options))


def unread(stream: ResultStream) -> list[TaskOutcome]:
    """Take what is in the buffer."""
    return [stream.get(0) for _ in range(len(stream))]  # type: ignore[misc]


def keys(outcomes: list[TaskOutcome]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


# In this process


def test_every_subscriber_gets_every_outcome(subscribe: Callable[..., ResultStream]) -> None:
    """S4-31: results fan out; each says how its task ended."""
    first, second = subscribe(), subscribe()
    good, bad, unwanted = return_this.enqueue({"a": 1}), fail.using(max_attempts=1).enqueue("x"), note.enqueue("never")
    cancel(unwanted.id)

    with running_worker(burst=True) as worker:
        worker.join(60)

    heard = {outcome.task_id: outcome for outcome in unread(first)}
    assert {outcome.task_id: outcome for outcome in unread(second)} == heard
    assert {key: outcome.state for key, outcome in heard.items()} == {
        good.id: "succeeded", bad.id: "dead", unwanted.id: "cancelled",
    }  # fmt: skip
    assert (heard[good.id].value, heard[good.id].task, heard[good.id].queue) == (
        {"a": 1}, return_this.module_path, "default",
    )  # fmt: skip
    dead = heard[bad.id]
    assert (dead.reason, dead.error_class, dead.error) == ("exhausted", "builtins.ValueError", "no luck with x")
    with pytest.raises(ResultNotReady, match=r"is dead: builtins\.ValueError"):
        _ = dead.value
    assert "1" not in repr(heard[good.id]).partition("state")[2].replace("attempt=1", "")


@pytest.mark.parametrize(
    ("drop", "kept"), [("newest", [0, 1, 2]), ("oldest", [7, 8, 9])], ids=["the newest", "the oldest"]
)
def test_a_full_buffer_drops_what_its_policy_says_and_counts_it(
    subscribe: Callable[..., ResultStream], drop: str, kept: list[int]
) -> None:
    """S4-32: and the buffer of one says nothing of another's."""
    narrow, wide = subscribe(buffer=3, drop=drop), subscribe()
    told: list[events.ResultsDropped] = []
    events.subscribe(events.ResultsDropped, told.append)
    for at in range(10):
        return_this.enqueue(at)

    drain()

    events.unsubscribe(events.ResultsDropped, told.append)
    assert (keys(unread(narrow)), narrow.dropped) == (kept, 7)
    assert (keys(unread(wide)), wide.dropped) == (list(range(10)), 0)
    assert sum(event.count for event in told) == 7


def test_with_block_a_reader_that_is_a_little_slow_gets_all(subscribe: Callable[..., ResultStream]) -> None:
    """S4-32: whoever makes room in time loses nothing."""
    stream = subscribe(buffer=1, drop="block", timeout=5)
    return_this.enqueue_many([(at,) for at in range(20)])
    got: list[TaskOutcome] = []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()

    drain()

    stream.close()
    reader.join(20)
    assert (keys(got), stream.dropped) == (list(range(20)), 0)


def test_with_block_a_reader_that_never_reads_stops_no_worker_and_no_other_reader(
    subscribe: Callable[..., ResultStream],
) -> None:
    """S4-32: the settling thread waits for its patience to end, once and not for each task; leases are kept."""
    stuck, other = subscribe(buffer=1, drop="block", timeout=0.5), subscribe()
    tasks = [return_this.enqueue(at) for at in range(300)]

    began = time.monotonic()
    with running_worker(burst=True, threads=2) as worker:
        worker.join(60)
    took = time.monotonic() - began

    assert len(unread(other)) == len(tasks)
    assert (len(stuck), stuck.dropped) == (1, len(tasks) - 1)
    assert FinishedTask.objects.filter(attempt=1).count() == len(tasks)
    # 299 waits of half a second would be 150.
    assert took < 30


def test_blocking_takes_no_more_than_half_of_the_time(subscribe: Callable[..., ResultStream]) -> None:
    """S4-32: patience that was used up comes back only as fast as time goes by without waiting."""
    stream = subscribe(buffer=1, drop="block", timeout=0.2)
    event = events.TaskSucceeded(task_id="a", task="t", queue="q", worker_id=1, run_seconds=0, wait_seconds=0)
    events.emit(event)

    began = time.monotonic()
    for _ in range(50):
        events.emit(event)
    took = time.monotonic() - began

    assert stream.dropped == 50
    assert 0.15 < took < 2.0


def test_a_closed_stream_lets_go_of_whoever_waits_for_it(subscribe: Callable[..., ResultStream]) -> None:
    stream = subscribe(buffer=1, drop="block", timeout=5)
    return_this.enqueue_many([(1,), (2,)])
    settling = threading.Thread(target=lambda: (drain(), connections.close_all()))
    settling.start()
    wait_for(lambda: len(stream) == 1)

    stream.close()
    settling.join(4)

    assert not settling.is_alive()
    assert keys(list(stream)) == [1]
    assert stream.get() is None


def test_a_subscriber_that_fails_costs_neither_a_task_nor_another_subscriber(
    subscribe: Callable[..., ResultStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = subscribe(), subscribe()
    monkeypatch.setattr(broken, "_offer", None)
    task = return_this.enqueue(1)

    drain()

    assert [outcome.task_id for outcome in unread(good)] == [task.id]
    assert FinishedTask.objects.get().attempt == 1


def test_a_coroutine_reads_a_stream_without_blocking_its_loop(subscribe: Callable[..., ResultStream]) -> None:
    stream = subscribe()
    return_this.enqueue_many([(at,) for at in range(5)])

    async def read() -> tuple[list[Any], bool]:
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        was_waiting = not first.done()
        await asyncio.to_thread(lambda: (drain(), connections.close_all()))
        found = [(await first).value]
        stream.close()
        return found + [outcome.value async for outcome in stream], was_waiting

    assert async_to_sync(read)() == ([0, 1, 2, 3, 4], True)


def test_a_wait_that_was_cancelled_leaves_nothing_behind(subscribe: Callable[..., ResultStream]) -> None:
    stream = subscribe()

    async def give_up() -> None:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.001)

    async_to_sync(give_up)()

    assert stream._wakers == []


def test_nothing_is_paid_where_nobody_subscribes() -> None:
    before = {kind: events._listeners.get(kind, ()) for kind in ENDINGS}

    with subscribe_results():
        during = {kind: len(events._listeners[kind]) for kind in ENDINGS}

    assert {kind: events._listeners.get(kind, ()) for kind in ENDINGS} == before
    assert during == {kind: len(listeners) + 1 for kind, listeners in before.items()}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"buffer": 0}, "buffer"), ({"drop": "all"}, "drop"), ({"timeout": -1}, "timeout"), ({"timeout": 60}, "timeout")],
)
def test_a_stream_that_makes_no_sense_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        subscribe_results(**options)

    assert caught.value.field == field


# From other processes


def read_all(since: Any = None, *, limit: int = 7, lag: float = 0.0) -> tuple[list[TaskOutcome], str]:
    """Read page by page until there is no more."""
    found: list[TaskOutcome] = []
    while True:
        page = finished_since(since, limit=limit, lag=lag)
        found += page.outcomes
        since = page.cursor
        if not page.more:
            return found, since


def test_two_clients_get_all_results_and_take_none_from_each_other() -> None:
    """S4-31, S4-34: each has a cursor of its own; reading changes nothing."""
    return_this.enqueue_many([(at,) for at in range(20)])
    drain()
    first, cursor = read_all()
    return_this.enqueue_many([(at,) for at in range(20, 30)])
    dead = fail.using(max_attempts=1).enqueue("x")
    drain()

    second, _ = read_all(limit=4)
    more, _ = read_all(cursor)

    assert sorted(keys(first)) == list(range(20))
    assert {outcome.task_id for outcome in (*first, *more)} == {outcome.task_id for outcome in second}
    assert len(first) + len(more) == len(second) == 31
    assert [outcome.task_id for outcome in second] == [
        str(key) for key in FinishedTask.objects.order_by("finished_at", "id").values_list("pk", flat=True)
    ]
    [last] = [outcome for outcome in more if outcome.task_id == dead.id]
    assert (last.state, last.reason, last.error_class) == ("dead", "exhausted", "builtins.ValueError")


def test_tasks_that_ended_at_the_same_moment_are_each_given_once() -> None:
    """The id goes on where the moment is the same: cancelling many at once ends them all at one moment."""
    tasks = [note.enqueue(at) for at in range(25)]
    cancel([task.id for task in tasks])

    found, _ = read_all(limit=4)

    assert FinishedTask.objects.values("finished_at").distinct().count() == 1
    assert sorted(outcome.task_id for outcome in found) == sorted(task.id for task in tasks)


@requires("concurrent_writers")
def test_a_row_that_is_committed_late_is_not_passed_over() -> None:
    """S4-34: it ended first, and becomes visible after one that ended later; who reads meanwhile misses neither."""
    lag = 3.0
    ready_task(note, "late")
    late = claim_one()
    ready_task(note, "early")
    early = claim_one()
    written, may_commit = threading.Event(), threading.Event()

    def commit_late() -> None:
        try:
            with transaction.atomic():
                write([Ended(late, Succeeded('"late"'), None, time.time())])
                written.set()
                assert may_commit.wait(20)
        finally:
            connections.close_all()

    committing = threading.Thread(target=commit_late)
    committing.start()
    assert written.wait(20)
    write([Ended(early, Succeeded('"early"'), None, time.time())])
    hasty = finished_since(None, lag=0)
    got, cursor = read_all(lag=lag)
    may_commit.set()
    committing.join(20)

    def read_on() -> int:
        nonlocal cursor
        found, cursor = read_all(cursor, lag=lag)
        got.extend(found)
        return len(got) == 2

    wait_for(read_on)

    assert keys(got) == ["late", "early"]
    # And this is what the lag is for: without it the late one lies behind the cursor.
    assert keys(hasty.outcomes) == ["early"]
    assert finished_since(hasty.cursor, lag=0).outcomes == []


@pytest.mark.parametrize("hours", [-1, 1], ids=["an outage or a clock behind", "a clock ahead"])
def test_an_end_that_is_written_hours_late_is_dated_by_its_writing(hours: int) -> None:
    """S4-34: what a worker kept through an outage does not lie where clients have been."""
    ready_task(note)
    claimed = claim_one()
    before = db_now()
    _, cursor = read_all(before - timedelta(seconds=2 * LATE_SECONDS))

    write([Ended(claimed, Succeeded('"kept"'), None, time.time() + hours * 3600)])

    ended = FinishedTask.objects.get().finished_at
    assert ended >= before - timedelta(seconds=LATE_SECONDS)
    # One that claims to end in an hour is given in an hour: late, but not passed over.
    assert keys(read_all(cursor)[0]) == ([] if hours > 0 else ["kept"])


def test_what_ended_less_than_the_lag_ago_is_not_shown_yet() -> None:
    return_this.enqueue(1)
    drain()

    assert finished_since(None, lag=timedelta(hours=1)).outcomes == []
    assert len(finished_since(None, lag=0).outcomes) == 1


def test_a_client_may_begin_at_a_moment_and_come_back_with_its_cursor() -> None:
    """A cursor of an empty page is as good as any other."""
    return_this.enqueue("before")
    drain()
    page = finished_since(db_now(), lag=0)
    return_this.enqueue("after")
    drain()

    assert (page.outcomes, page.more) == ([], False)
    assert keys(finished_since(page.cursor, lag=0).outcomes) == ["after"]
    assert keys(async_to_sync(afinished_since)(page.cursor, lag=0).outcomes) == ["after"]


def test_a_task_that_is_replayed_and_ends_again_is_given_again() -> None:
    task = fail.using(max_attempts=1).enqueue("x")
    drain()
    first, cursor = read_all()
    replay(task.id, attempts=1)
    drain()

    again, _ = read_all(cursor)

    assert [outcome.task_id for outcome in (*first, *again)] == [task.id] * 2
    assert [outcome.attempt for outcome in (*first, *again)] == [1, 2]


@pytest.mark.parametrize("since", ["", "nonsense", "WyJuZXdlc3QiLCJhIl0"])
def test_a_cursor_that_nobody_gave_is_refused(since: str) -> None:
    with pytest.raises(InvalidCursor):
        finished_since(since)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"limit": 0}, "limit"), ({"lag": -1}, "lag"), ({"since": datetime(2026, 1, 1)}, "since")],
)
def test_a_reading_that_makes_no_sense_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        finished_since(**{"since": None, **options})

    assert caught.value.field == field
