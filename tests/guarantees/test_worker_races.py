"""What a worker's threads promise at their worst moments: each test holds one of them where another should not come."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, ProgrammingError, transaction

from django_taskq import clock
from django_taskq.duties import leader, tick
from django_taskq.lifecycle import execute
from django_taskq.lifecycle.rescue import rescue
from django_taskq.models import Duty, Stat, Task, Worker
from django_taskq.store import duties as duty_store
from django_taskq.store import workers as worker_store
from django_taskq.store.vendors import vendor_for
from django_taskq.worker import loop
from tests import engine
from tests.engine import (
    CALM,
    SHORT,
    db_now,
    declare_dead,
    outcomes_of,
    row_of,
    run_burst,
    running_worker,
    state_of,
    wait_for,
)
from tests.guarantees.tasks import gates, nap, note, pause, pause_deaf, ran, return_this

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how many seconds this machine's wall clock is ahead, for the test to change."""
    ahead = [0.0]
    monkeypatch.setattr(clock, "timestamp", lambda: time.time() + ahead[0])
    monkeypatch.setattr(clock, "now", lambda: datetime.now(UTC) + timedelta(seconds=ahead[0]))
    return ahead


# Clocks


@pytest.mark.parametrize("seconds", [0.5, 3600.0])
def test_a_clock_that_is_set_back_while_a_task_runs_stops_no_worker(wall_clock: list[float], seconds: float) -> None:
    """S4-94: how long tasks take says how many to claim ahead; none takes less than no time."""
    first = pause.enqueue("first")
    with running_worker(threads=2, duties=False):
        assert gates["first runs"].wait(30)
        wall_clock[0] = -seconds
        gates["first"].set()
        wait_for(lambda: state_of(first) == "succeeded")
        others = []
        for at in range(40):
            others.append(note.enqueue(at))
            wait_for(lambda: state_of(others[-1]) == "succeeded")

    assert ran == ["first", *range(40)]
    assert min(Stat.objects.values_list("run_ms", flat=True)) >= 0


def test_a_clock_that_is_set_ahead_while_a_task_runs_does_not_end_its_attempt(wall_clock: list[float]) -> None:
    """S4-94: an hour on the wall is no hour of work, and who did not overrun its time is not started again."""
    with running_worker(taskq=CALM, threads=2, duties=False) as worker:
        found = nap.using(timeout=60).enqueue(1.5)
        wait_for(lambda: worker.running)
        wall_clock[0] = 3600
        wait_for(lambda: state_of(found) == "succeeded")

    assert outcomes_of(found) == []


@pytest.mark.parametrize("executor", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_clock_that_is_set_back_while_a_task_runs_gives_it_no_more_time(
    wall_clock: list[float], executor: str
) -> None:
    """S4-94: who overran its time and does not come back loses its slot all the same."""
    quick = {"LEASE_SECONDS": 2, "HEARTBEAT_SECONDS": 0.2}
    with running_worker(taskq=quick, threads=1, duties=False, executor=executor) as worker:
        found = pause_deaf.using(timeout=0.5, max_attempts=1).enqueue("k")
        wait_for(lambda: worker.running)
        wall_clock[0] = -3600
        wait_for(lambda: state_of(found) == "dead")
        after = return_this.enqueue("after")
        wait_for(lambda: state_of(after) == "succeeded")
        gates["k"].set()

    assert outcomes_of(found) == ["timed_out"]


@pytest.mark.parametrize("is_of_the_end", [False, True])
def test_a_time_that_was_long_on_its_way_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, is_of_the_end: bool
) -> None:
    """S4-94: a worker that was suspended while it asked does not think that it is earlier or later than it is."""
    vendor = type(vendor_for(engine.ALIAS))
    ask, elapsed = vendor.now, clock.elapsed
    suspended = [0.0]

    def ask_slowly(self: Any) -> datetime:
        found = ask(self)
        if suspended[0]:
            return found
        suspended[0] = 1.0
        return found if is_of_the_end else found - timedelta(seconds=1)

    monkeypatch.setattr(clock, "elapsed", lambda: elapsed() + suspended[0])
    monkeypatch.setattr(vendor, "now", ask_slowly)
    worker = loop.Worker()
    # Not started, since its next heartbeat would ask again, too.
    worker._db_now()

    assert abs(worker.offset) < timedelta(seconds=0.3)


def test_a_worker_is_never_ahead_of_the_databases_clock_however_long_the_answer_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3-35, S4-94: what is due a moment later does not start a moment early."""
    vendor = type(vendor_for(engine.ALIAS))
    answer = db_now()
    late = [0.0]

    def ask(self: Any) -> datetime:
        # Asked at 0, told by the database at 0.15, heard at once.
        late[0] = 0.15
        return answer

    monkeypatch.setattr(clock, "elapsed", lambda: late[0])
    monkeypatch.setattr(vendor, "now", ask)
    worker = loop.Worker()
    worker._db_now()

    assert worker.now() == answer


# Heartbeats and duties


def refuse(*args: Any, **given: Any) -> Any:
    raise ProgrammingError("no such table")


def test_a_worker_whose_task_types_are_refused_each_time_beats_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-41: a table that is not there yet costs it neither its lease nor its tasks."""
    monkeypatch.setattr(worker_store, "announce_task_types", refuse)
    with running_worker(taskq=SHORT, threads=1, duties=False) as worker:
        wait_for(lambda: time.monotonic() - worker._born > 4)
        found = note.enqueue("k")
        wait_for(lambda: state_of(found) == "succeeded")

        assert worker.is_healthy


def test_schedules_that_are_refused_each_time_keep_no_duty_from_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-41: a release that runs before its migrations promotes and rescues."""
    monkeypatch.setattr(tick, "_sync", refuse)
    with running_worker(threads=1):
        found = note.using(delay=0.2).enqueue("k")
        wait_for(lambda: state_of(found) == "succeeded")


# Declared dead


def test_a_claim_that_is_let_start_when_its_worker_is_declared_dead_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S4-02, S4-16: the worker knows by then; somebody else may have it."""
    held_up = hold_up(monkeypatch, execute, "prepare")
    with running_worker(taskq=CALM, threads=1, duties=False) as worker:
        first_id = worker.id
        found = note.enqueue("k")
        held_up.wait_until_reached()
        declare_dead(first_id)
        wait_for(lambda: worker.id != first_id)
        before = list(ran)
        held_up.let_go()
        wait_for(lambda: state_of(found) == "succeeded")

    row = row_of(found)
    assert row is not None
    assert (before, ran) == ([], ["k"])
    assert row.worker_id == worker.id
    assert outcomes_of(found) == []


def test_a_worker_that_starts_anew_counts_nothing_that_it_hands_back_unbegun() -> None:
    """S4-02: it ends after so many tasks that it ran."""
    with running_worker(taskq=CALM, threads=1, duties=False, max_tasks=6) as worker:
        first_id = worker.id
        # Quick tasks, so that others are claimed ahead.
        for key in ("a", "b"):
            quick = note.enqueue(key)
            wait_for(lambda quick=quick: state_of(quick) == "succeeded")  # type: ignore[misc]
        with transaction.atomic():
            pause_deaf.using(priority=5).enqueue("held")
            note.enqueue_many([(key,) for key in "cdefg"])
        wait_for(lambda: worker.in_flight == 4)
        declare_dead(first_id)
        wait_for(lambda: worker.id != first_id)
        gates["held"].set()
        wait_for(lambda: worker.wait(0.1) or (rescue(engine.ALIAS, now=engine.db_now()) and False))

    # Three and the one whose outcome was refused; of the other three it knows that they never began.
    assert (len(ran), worker.stop_reason) == (6, "6 tasks done")


def test_a_claim_on_its_way_when_its_worker_is_declared_dead_is_handed_back_unbegun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S4-02: it was claimed under the dead id, and costs no attempt although nobody rescues it."""
    answers = HeldUpAfter(vendor_for(engine.ALIAS).claim)
    monkeypatch.setattr(vendor_for(engine.ALIAS), "claim", answers, raising=False)
    with running_worker(taskq=CALM, threads=1, duties=False) as worker:
        first_id = worker.id
        found = note.enqueue("k")
        answers.wait_until_reached()
        declare_dead(first_id)
        wait_for(lambda: worker._lease_until == 0.0)
        answers.let_go()
        wait_for(lambda: state_of(found) == "succeeded")

    row = row_of(found)
    assert row is not None
    assert (row.attempt, row.worker_id, outcomes_of(found), ran) == (1, worker.id, [], ["k"])
    assert worker.id != first_id


def test_a_worker_that_stops_while_it_starts_anew_leaves_no_row_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-73: nobody has to declare it dead."""
    with running_worker(taskq=CALM, threads=1, duties=False) as worker:
        first_id = worker.id
        held_up = hold_up(monkeypatch, worker_store, "announce")
        declare_dead(first_id)
        held_up.wait_until_reached()
        worker.stop()
        time.sleep(0.3)
        held_up.let_go()
        assert worker.wait(20)

    assert list(Worker.objects.exclude(state=Worker.State.DEAD)) == []


# Stopping


def test_a_claim_that_is_let_start_when_the_books_are_closed_is_handed_back_unbegun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S0-73, S4-88: its module took long to import, and the worker stopped at once meanwhile."""
    held_up = hold_up(monkeypatch, execute, "prepare")
    found = note.using(ack="first").enqueue("k")
    with running_worker(threads=1, duties=False) as worker:
        held_up.wait_until_reached()
        worker.stop_now()
        assert worker.wait(20)
        after = (state_of(found), Task.objects.get().attempt, Worker.objects.count())
        held_up.let_go()
        wait_for(lambda: not [one for one in threading.enumerate() if one.name.startswith("taskq-slot")])

    assert after == ("ready", 0, 0)
    assert ran == []
    assert outcomes_of(found) == []


def test_a_claim_that_is_answered_after_the_stop_is_handed_back_unbegun(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-73, S4-88: a slow database has the whole grace time to answer."""
    monkeypatch.setattr(loop, "_GOODBYE_SECONDS", 0.1)
    answers = HeldUpAfter(vendor_for(engine.ALIAS).claim)
    monkeypatch.setattr(vendor_for(engine.ALIAS), "claim", answers, raising=False)
    with running_worker(threads=1, duties=False) as worker:
        found = note.enqueue("k")
        answers.wait_until_reached()
        worker.stop()
        time.sleep(0.5)
        # Its last words to a busy database may take longer than that.
        monkeypatch.setattr(loop, "_GOODBYE_SECONDS", 10.0)
        answers.let_go()
        assert worker.wait(20)

    assert (state_of(found), Task.objects.get().attempt, ran) == ("ready", 0, [])
    assert Worker.objects.count() == 0


def test_a_stopped_leader_takes_no_lead_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4-03: the next one takes over at once, also if it was about to ask when it was stopped."""
    with running_worker(threads=1) as worker:
        wait_for(lambda: Duty.objects.filter(name="leader", worker_id=worker.id).exists())
        monkeypatch.setattr(leader.time, "monotonic", lambda: 1e9)
        asked = hold_up(monkeypatch, duty_store, "take")
        asked.wait_until_reached()
        worker.stop()
        wait_for(lambda: not worker._threads["flusher"].is_alive())
        time.sleep(0.3)
        asked.let_go()
        assert worker.wait(20)

    assert Duty.objects.get(name="leader").worker_id == 0


# Answers that are lost


def lose_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the first claim that takes something be committed and not be heard of; return what it took."""
    vendor = type(vendor_for(engine.ALIAS))
    claim = vendor.claim
    lost: list[Any] = []

    def claim_and_lose(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = claim(self, *args, **kwargs)
        if rows and not lost:
            lost.extend(rows)
            raise OperationalError("the connection is lost")
        return rows

    monkeypatch.setattr(vendor, "claim", claim_and_lose)
    return lost


def test_a_burst_runs_what_a_lost_answer_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-13: it is not done before, with the usual lease, and nobody has to rescue it."""
    lost = lose_the_first_answer(monkeypatch)
    found = note.using(ack="first").enqueue("k")

    run_burst(threads=1, duties=False)

    assert len(lost) == 1
    assert (state_of(found), ran, outcomes_of(found)) == ("succeeded", ["k"], [])


def test_a_worker_that_is_stopped_hands_back_what_a_lost_answer_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-73, S4-88."""
    lost = lose_the_first_answer(monkeypatch)
    with running_worker(threads=1, duties=False) as worker:
        survive = worker._survive

        def stop_and_survive(*args: Any, **given: Any) -> None:
            worker.stop()
            survive(*args, **given)

        monkeypatch.setattr(worker, "_survive", stop_and_survive)
        found = note.enqueue("k")
        assert worker.wait(20)

    assert len(lost) == 1
    assert (state_of(found), Task.objects.get().attempt, ran) == ("ready", 0, [])


def test_what_is_settled_while_a_worker_looks_for_forgotten_claims_is_not_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S0-72: no alarm, and nothing refused."""
    answers = HeldUpAfter(worker_store.held_since)
    with running_worker(taskq={"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.2}, threads=1, duties=False) as worker:
        found = pause.enqueue("k")
        assert gates["k runs"].wait(30)
        monkeypatch.setattr(worker_store, "held_since", answers)
        answers.wait_until_reached()
        gates["k"].set()
        wait_for(lambda: state_of(found) == "succeeded" and not worker.in_flight)
        answers.let_go()
        wait_for(lambda: worker.stop() and worker.wait(1))

    assert (worker._refused, worker.in_flight) == (0, 0)
    assert "never reached" not in caplog.text


# Outcomes that are put aside


def refuse_results(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> None:
    """Let the database refuse the result "bad" for no reason of the value's, until something is mended."""
    monkeypatch.setattr(loop, "_ASIDE_SECONDS", 0.3)
    monkeypatch.setattr(loop, "_BACKOFF_FIRST", 0.01)
    vendor = type(vendor_for(engine.ALIAS))
    finish = vendor.finish

    def refuse(self: Any, endings: Any) -> Any:
        if not until.is_set() and any('"bad"' in (ending.result or "") for ending in endings):
            raise IntegrityError("something else is in the way")
        return finish(self, endings)

    monkeypatch.setattr(vendor, "finish", refuse)


def test_an_outcome_put_aside_is_tried_again_also_by_a_worker_that_is_never_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S2-41."""
    refuse_results(monkeypatch, gates["mended"])
    bad = note.enqueue("bad")
    with running_worker(threads=2, duties=False) as worker:
        wait_for(lambda: worker._aside)
        gates["mended"].set()
        until = time.monotonic() + 10
        while state_of(bad) != "succeeded" and time.monotonic() < until:
            note.enqueue("good")
            time.sleep(0.02)

        assert state_of(bad) == "succeeded"


def test_an_outcome_put_aside_is_tried_once_more_when_its_worker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-41, S4-30."""
    refuse_results(monkeypatch, gates["mended"])
    bad = note.enqueue("bad")
    with running_worker(threads=1, duties=False, grace=timedelta(seconds=0.1)) as worker:
        wait_for(lambda: worker._aside)
        monkeypatch.setattr(worker, "_aside_at", time.monotonic() + 1000)
        worker.stop()
        gates["mended"].set()
        assert worker.wait(20)

    assert (state_of(bad), Worker.objects.count()) == ("succeeded", 0)


class HeldUp:
    """A function that, the first time it is called, waits until it is let go."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self._reached, self._may_go = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **given: Any) -> Any:
        self._wait()
        return self._work(*args, **given)

    def _wait(self) -> None:
        if not self._reached.is_set():
            self._reached.set()
            assert self._may_go.wait(30)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(20)

    def let_go(self) -> None:
        self._may_go.set()


class HeldUpAfter(HeldUp):
    """The same for its answer, of the first call that finds something."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        found = self._work(*args, **given)
        if found:
            self._wait()
        return found


def hold_up(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> HeldUp:
    """Hold up the next call of a function."""
    held_up = HeldUp(getattr(module, name))
    monkeypatch.setattr(module, name, held_up)
    return held_up
