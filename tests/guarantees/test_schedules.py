"""Schedules: each tick is dealt with exactly once, whoever leads, whatever fails, and as the policies say."""

import signal
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.test import override_settings

from django_taskq import conf, events, schedule, task
from django_taskq.domain.schedules import Kind, Policy, TickKind, check_policy, check_rule, jitter_of
from django_taskq.domain.states import State
from django_taskq.duties import prune
from django_taskq.duties import tick as duty
from django_taskq.exceptions import InvalidArguments, InvalidOptions, ScheduleNotFound, ScheduleRefused
from django_taskq.lifecycle import declarations, schedules, sync_schedules, tick
from django_taskq.models import AuditEntry, FinishedTask, Schedule, ScheduleTick, Task
from django_taskq.store import schedules as store
from django_taskq.store.vendors import vendor_for
from django_taskq.testing import travel
from tests import engine
from tests.engine import ALIAS, claim_one, in_threads, run_and_settle, running_worker, state_of, wait_for
from tests.guarantees import tasks

pytestmark = pytest.mark.django_db(transaction=True)

MORNING = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@task(schedulable=True)
def report(day: str = "today", *, pages: int = 1) -> str:
    """A task that operators may schedule."""
    return day


@task(enqueue_on_commit=True)
def on_commit() -> None:
    """A task that is stored after the caller's commit, but for schedules."""


@task(takes_context=True)
def tell_schedule(context: Any) -> list[Any]:
    """Return what the task knows of its schedule."""
    found = context.schedule
    tasks.ran.append(found)
    return None if found is None else [found.name, found.at.isoformat()]


@task(validate=True, schedulable=True)
def dated(day: date) -> str:
    """A task whose argument JSON has as text."""
    tasks.ran.append(day)
    return day.isoformat()


@task(unique=True, schedulable=True)
def one_at_a_time() -> None:
    """A task of which one is live."""


def _later(call: Any, enqueue_next: Callable[[], None]) -> None:
    call.using(enqueue_on_commit=True)
    enqueue_next()


@task(enqueue_middleware=[_later])
def put_off_by_middleware() -> None:
    """A task that a middleware would store after the caller's commit."""


@pytest.fixture
def declare() -> Iterator[Callable[..., str]]:
    """Declare schedules for the length of a test; returns the name."""
    names: list[str] = []

    def body(definition: Any = tasks.note, *, name: str = "nightly", **options: Any) -> str:
        schedule(name=name, timezone=options.pop("timezone", "UTC"), **options)(definition)
        names.append(name)
        return name

    yield body
    for name in names:
        declarations.forget(name)


@pytest.fixture
def now() -> Iterator[Any]:
    """The engine's clock, standing still on a Tuesday morning."""
    with travel(MORNING) as hands:
        yield hands


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no task today")


def sync(at: datetime = MORNING) -> int:
    return sync_schedules.sync(ALIAS, now=at)


def tick_at(at: datetime) -> int:
    return tick.tick_due(ALIAS, now=at)


def row(name: str = "nightly") -> Schedule:
    return Schedule.objects.get(name=name)


def ticks(name: str = "nightly") -> list[tuple[datetime, str]]:
    found = ScheduleTick.objects.filter(schedule__name=name).order_by("at")
    return [(made.at, TickKind(made.kind).name) for made in found]


def every_minute(count: int, *, after: datetime = MORNING) -> list[datetime]:
    return [after + MINUTE * number for number in range(1, count + 1)]


# Each tick once


def test_a_tick_makes_one_task(declare: Any) -> None:
    """S4-95 scenario_cron_fires_once_per_tick."""
    declare(cron="* * * * *", args=["key"])
    sync()

    early, due, again = tick_at(MORNING + MINUTE / 2), tick_at(MORNING + MINUTE), tick_at(MORNING + MINUTE)

    assert (early, due, again) == (0, 1, 0)
    [made] = Task.objects.all()
    assert (made.name, made.arguments) == ("tests.guarantees.tasks.note", (["key"], {}))
    assert ticks() == [(MORNING + MINUTE, "MADE")]
    assert (row().last_task_id, row().next_at) == (made.pk, MORNING + 2 * MINUTE)


def test_ticks_on_time_are_made_one_by_one_without_gap_or_double(declare: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()

    made = [tick_at(MORNING + timedelta(seconds=20 * step)) for step in range(1, 31)] + [tick_at(MORNING + HOUR / 2)]

    assert sum(made) == 30
    assert ticks() == [(at, "MADE") for at in every_minute(30)]


def test_two_leaders_at_once_tick_once(declare: Any) -> None:
    """Duties of two workers that both believe to lead, and race for the same ticks."""
    declare(cron="* * * * *", misfire_grace=HOUR)
    declare(every=MINUTE, name="second", misfire_grace=HOUR)
    sync()

    in_threads(*[partial(duty.run_once, ALIAS, conf.options("default"), MORNING + 5 * MINUTE) for _ in range(4)])

    assert Task.objects.count() == 10
    assert ticks() == ticks("second") == [(at, "MADE") for at in every_minute(5)]


def test_of_two_rows_for_one_tick_the_database_takes_one(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net below the lock: without it, a leader that reads an old row stores nothing."""
    declare(cron="* * * * *")
    sync()
    stale = row()
    assert tick_at(MORNING + MINUTE) == 1
    monkeypatch.setattr(store, "lock", lambda alias, **which: stale)
    monkeypatch.setattr(store, "noted", lambda alias, key, moments: set())
    monkeypatch.setattr(store, "due", lambda alias, now, limit: [stale.pk])

    made = tick_at(MORNING + MINUTE)

    assert made == 0
    assert Task.objects.count() == 1
    assert ticks() == [(MORNING + MINUTE, "MADE")]
    # Nothing failed: another one was faster.
    assert (row().last_error, row().due_at) == ("", MORNING + 2 * MINUTE)


@pytest.mark.parametrize("where", ["note_ticks", "change"])
def test_a_fault_between_the_task_and_the_tick_leaves_neither(
    declare: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    declare(cron="* * * * *")
    sync()

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, where, die)
        with pytest.raises(KeyboardInterrupt):
            tick_at(MORNING + MINUTE)

    assert (Task.objects.count(), ScheduleTick.objects.count()) == (0, 0)
    assert tick_at(MORNING + MINUTE) == 1
    assert Task.objects.count() == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
@pytest.mark.any_database
def test_a_leader_killed_between_the_task_and_the_tick_loses_and_doubles_nothing() -> None:
    prepare = "tests.guarantees.schedule_killers.kill_before_the_tick_is_noted"
    worker = engine.WorkerProcess(prepare=prepare)
    try:
        assert worker.wait(60) == -signal.SIGKILL
    finally:
        worker.close()
    assert (Task.objects.count(), ScheduleTick.objects.count()) == (0, 0)
    killed = row("killer")

    with engine.worker_process(prepare="tests.guarantees.schedule_killers.declare"):
        wait_for(lambda: ScheduleTick.objects.filter(schedule=killed).count() >= 1)

    made = list(ScheduleTick.objects.filter(schedule=killed).order_by("at"))
    first = made[0].since or made[0].at
    assert first == killed.next_at
    made_ids = {tick.task_id for tick in made}
    assert len(made_ids) == len(made) == Task.objects.count() + FinishedTask.objects.count()


def test_a_clock_that_jumps_back_repeats_no_tick(declare: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    assert tick_at(MORNING + 3 * MINUTE) == 3

    back = [tick_at(MORNING + MINUTE * step / 2) for step in range(7)]
    sync(MORNING)

    assert sum(back) == 0
    assert tick_at(MORNING + 4 * MINUTE) == 1
    assert ticks() == [(at, "MADE") for at in every_minute(4)]


def test_a_rule_that_changes_while_the_clock_is_back_repeats_no_tick(declare: Any) -> None:
    name = declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    tick_at(MORNING + 3 * MINUTE)
    declarations.forget(name)
    declare(cron="*/1 * * * *", misfire_grace=HOUR)

    sync(MORNING)

    assert row().next_at == MORNING + 4 * MINUTE


def test_the_duty_asks_once_a_second_where_there_are_no_schedules(django_assert_num_queries: Any) -> None:
    agenda = duty.Agenda()
    duty.run_once(ALIAS, conf.options("default"), MORNING, agenda=agenda)

    with django_assert_num_queries(1):
        duty.run_once(ALIAS, conf.options("default"), MORNING, agenda=agenda)


@pytest.mark.slow
def test_a_worker_wakes_up_for_the_next_tick(declare: Any) -> None:
    """Not a whole second later, when the duty would look anyway."""
    declare(cron="* * * * * *")
    with running_worker():
        found = wait_for(lambda: list(ScheduleTick.objects.order_by("at")[:4]) if ticks_of_all() >= 4 else None)

    late = sorted((made.made_at - made.at).total_seconds() for made in found)
    # Two of four on a busy machine; without its alarm clock all are as late as the duty's own second begins.
    assert late[1] < 0.3, late
    assert late[0] >= 0


def ticks_of_all() -> int:
    return ScheduleTick.objects.count()


@pytest.mark.slow
def test_any_number_of_workers_make_each_tick_once(declare: Any) -> None:
    declare(cron="* * * * * *")
    with running_worker(name="one"), running_worker(name="two"):
        wait_for(lambda: ticks_of_all() >= 3)

    made = list(ScheduleTick.objects.order_by("at"))
    assert [tick.kind for tick in made] == [TickKind.MADE] * len(made)
    assert {b.at - a.at for a, b in pairwise(made)} == {timedelta(seconds=1)}
    assert Task.objects.count() + FinishedTask.objects.count() == len(made)


# What a task knows


def test_a_task_knows_which_tick_it_is_for(declare: Any) -> None:
    declare(tell_schedule, cron="* * * * *")
    sync()
    tick_at(MORNING + MINUTE)

    run_and_settle(claim_one())

    [seen] = tasks.ran
    assert (seen.name, seen.at, seen.since, seen.manual) == ("nightly", MORNING + MINUTE, None, False)
    result = tell_schedule.get_result(str(row().last_task_id))
    assert result.return_value == ["nightly", (MORNING + MINUTE).isoformat()]
    assert result.schedule == seen


def test_a_task_that_no_schedule_made_has_none() -> None:
    result = tell_schedule.enqueue()

    run_and_settle(claim_one())

    assert tasks.ran == [None]
    assert result.schedule is None


def test_a_schedule_chooses_queue_and_priority_of_its_tasks(declare: Any) -> None:
    declare(cron="* * * * *", queue_name="reports", priority=7, kwargs={"key": 3})
    sync()

    tick_at(MORNING + MINUTE)

    [made] = Task.objects.all()
    assert (made.queue, made.priority, made.arguments) == ("reports", 7, ([], {"key": 3}))


def test_a_task_enqueued_on_commit_is_stored_with_its_tick(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a tick could be there without its task."""
    declare(on_commit, cron="* * * * *")
    sync()
    seen: list[int] = []
    keep = store.note_ticks
    monkeypatch.setattr(store, "note_ticks", lambda *args: (seen.append(Task.objects.count()), keep(*args)))

    with override_settings(TASKQ={"ENQUEUE_ON_COMMIT": True}):
        tick_at(MORNING + MINUTE)

    assert seen == [1]


# Misfires


def test_a_middleware_cannot_part_a_task_from_its_tick(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(put_off_by_middleware, cron="* * * * *")
    sync()
    counts: list[int] = []
    note_ticks = store.note_ticks
    monkeypatch.setattr(store, "note_ticks", lambda *args: (counts.append(Task.objects.count()), note_ticks(*args)))

    tick_at(MORNING + MINUTE)

    assert counts == [1]


def test_a_task_with_typed_arguments_gets_them_from_its_schedule(declare: Any, now: Any) -> None:
    declare(dated, cron="* * * * *", args=[date(2031, 1, 2)])
    sync()
    rule = check_rule(cron="* * * * *", timezone="UTC")
    values = {"task": "tests.guarantees.test_schedules.dated", "rule": rule, "policy": Policy()}
    schedules.create("by hand", args=["2031-01-03"], **values)
    tasks.ran.clear()

    assert tick_at(MORNING + MINUTE) == 2
    now.move_to(MORNING + MINUTE)
    run_and_settle(claim_one())
    run_and_settle(claim_one())

    assert sorted(tasks.ran) == [date(2031, 1, 2), date(2031, 1, 3)]


def test_typed_arguments_that_do_not_fit_are_refused_where_the_schedule_is_made(declare: Any, now: Any) -> None:
    rule = check_rule(cron="* * * * *", timezone="UTC")

    with pytest.raises(InvalidArguments, match="argument day must be date"):
        declare(dated, cron="* * * * *", args=["2031-01-02"])
    with pytest.raises(InvalidArguments, match="argument day must be date"):
        schedules.create(
            "by hand", task="tests.guarantees.test_schedules.dated", rule=rule, args=["tomorrow"], policy=Policy()
        )


def test_a_unique_task_that_a_running_one_keeps_out_cannot_replace_it(declare: Any, now: Any) -> None:
    rule = check_rule(cron="* * * * *", timezone="UTC")
    policy = check_policy(overlap="replace")

    with pytest.raises(InvalidOptions, match="unique key of one_at_a_time"):
        declare(one_at_a_time, cron="* * * * *", overlap="replace")
    with pytest.raises(InvalidOptions, match="unique key of one_at_a_time"):
        schedules.create("by hand", task="tests.guarantees.test_schedules.one_at_a_time", rule=rule, policy=policy)


def test_missed_ticks_make_one_task_that_stands_for_all(declare: Any) -> None:
    declare(cron="0 * * * *", misfire_grace=60)
    sync()

    made = tick_at(MORNING + 5 * HOUR + 30 * MINUTE)

    assert made == 1
    [found] = ScheduleTick.objects.all()
    assert (found.at, found.since) == (MORNING + 5 * HOUR, MORNING + HOUR)
    assert Task.objects.get().schedule.since == MORNING + HOUR
    assert row().next_at == MORNING + 6 * HOUR


def test_missed_ticks_need_no_task_of_their_own_beside_one_on_time(declare: Any) -> None:
    declare(cron="* * * * *", misfire_grace=90)
    sync()

    made = tick_at(MORNING + 10 * MINUTE)

    assert made == 2
    assert ticks() == [(MORNING + 9 * MINUTE, "MADE"), (MORNING + 10 * MINUTE, "MADE")]
    first = ScheduleTick.objects.order_by("at").first()
    assert first is not None
    assert first.since == MORNING + MINUTE


def test_missed_ticks_are_all_made_up_to_a_limit(declare: Any) -> None:
    declare(cron="0 * * * *", misfire="all", misfire_limit=3)
    sync()

    made = tick_at(MORNING + 6 * HOUR + 30 * MINUTE)

    assert made == 3
    assert ticks() == [
        (MORNING + 3 * HOUR, "MISSED"),
        (MORNING + 4 * HOUR, "MADE"),
        (MORNING + 5 * HOUR, "MADE"),
        (MORNING + 6 * HOUR, "MADE"),
    ]


def test_missed_ticks_are_left_out_where_nobody_wants_them(declare: Any) -> None:
    declare(cron="0 * * * *", misfire="skip")
    sync()

    made = [tick_at(MORNING + 6 * HOUR + 30 * MINUTE), tick_at(MORNING + 7 * HOUR)]

    assert made == [0, 1]
    assert ticks() == [(MORNING + 6 * HOUR, "MISSED"), (MORNING + 7 * HOUR, "MADE")]


@pytest.mark.parametrize(("late", "kind"), [(59.9, "MADE"), (60, "MADE"), (60.1, "MISSED")])
def test_a_tick_within_its_grace_is_not_missed(declare: Any, late: float, kind: str) -> None:
    declare(cron="0 9 * * *", misfire="skip", misfire_grace=60)
    sync()

    tick_at(MORNING + HOUR + timedelta(seconds=late))

    assert ticks() == [(MORNING + HOUR, kind)]


def test_a_second_rule_that_was_away_for_a_year_catches_up_at_once(declare: Any) -> None:
    declare(cron="* * * * * *")
    sync()

    made = tick_at(MORNING + timedelta(days=365))
    while row().next_at <= MORNING + timedelta(days=365):
        made += tick_at(MORNING + timedelta(days=365))

    assert made == 61
    assert ScheduleTick.objects.filter(since=MORNING + timedelta(seconds=1)).count() == 1


# Overlap


def test_a_tick_beside_a_live_task_is_made_where_nobody_minds(declare: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()

    tick_at(MORNING + MINUTE)
    tick_at(MORNING + 2 * MINUTE)

    assert Task.objects.count() == 2


def test_a_tick_beside_a_live_task_is_left_out(declare: Any) -> None:
    declare(cron="* * * * *", overlap="skip", misfire_grace=HOUR)
    sync()
    tick_at(MORNING + MINUTE)
    tick_at(MORNING + 2 * MINUTE)
    run_and_settle(claim_one())

    tick_at(MORNING + 3 * MINUTE)

    assert ticks() == [(MORNING + MINUTE, "MADE"), (MORNING + 2 * MINUTE, "OVERLAP"), (MORNING + 3 * MINUTE, "MADE")]
    assert Task.objects.count() == 1


def test_of_several_ticks_at_once_one_is_made_where_they_must_not_overlap(declare: Any) -> None:
    declare(cron="* * * * *", overlap="skip", misfire_grace=HOUR)
    sync()

    assert tick_at(MORNING + 3 * MINUTE) == 1

    assert [kind for _, kind in ticks()] == ["MADE", "OVERLAP", "OVERLAP"]


def test_a_tick_replaces_the_live_task(declare: Any) -> None:
    declare(cron="* * * * *", overlap="replace", misfire_grace=HOUR)
    sync()
    tick_at(MORNING + MINUTE)
    first = row().last_task_id

    tick_at(MORNING + 2 * MINUTE)

    assert state_of(first) == "cancelled"
    assert state_of(row().last_task_id) == "ready"
    assert AuditEntry.objects.get(action="cancel").actor == "schedule nightly"


def test_a_tick_asks_the_running_task_to_stop(declare: Any) -> None:
    declare(cron="* * * * *", overlap="replace", misfire_grace=HOUR)
    sync()
    tick_at(MORNING + MINUTE)
    claim_one()

    tick_at(MORNING + 2 * MINUTE)

    running = Task.objects.get(state=State.RUNNING)
    assert running.cancel
    assert Task.objects.count() == 2


def test_a_task_that_died_does_not_hold_up_its_schedule(declare: Any) -> None:
    declare(tasks.give_up, cron="* * * * *", overlap="skip", misfire_grace=HOUR)
    sync()
    tick_at(MORNING + MINUTE)
    run_and_settle(claim_one())

    tick_at(MORNING + 2 * MINUTE)

    assert [kind for _, kind in ticks()] == ["MADE", "MADE"]


# Jitter, start, end


def test_jitter_only_adds_and_is_the_same_for_each_look(declare: Any) -> None:
    declare(cron="* * * * *", jitter=30, misfire_grace=HOUR)
    sync()

    tick_at(MORNING + MINUTE)

    [made] = Task.objects.all()
    later = (made.run_after or MORNING) - (MORNING + MINUTE)
    assert timedelta(0) < later <= timedelta(seconds=30)
    assert later == jitter_of("nightly", MORNING + MINUTE, 30)
    assert ticks() == [(MORNING + MINUTE, "MADE")]


def test_no_tick_before_the_start_or_after_the_end(declare: Any) -> None:
    declare(cron="* * * * *", start=MORNING + 3 * MINUTE, end=MORNING + 5 * MINUTE, misfire_grace=HOUR)
    sync()

    tick_at(MORNING + 10 * MINUTE)

    assert [at for at, _ in ticks()] == [MORNING + 3 * MINUTE, MORNING + 4 * MINUTE, MORNING + 5 * MINUTE]
    assert (row().next_at, row().due_at) == (None, None)


def test_a_one_off_ticks_once(declare: Any) -> None:
    declare(at=MORNING + HOUR)
    sync()

    assert [tick_at(MORNING + HOUR * step) for step in (0, 1, 2)] == [0, 1, 0]
    sync(MORNING + 3 * HOUR)

    assert tick_at(MORNING + 4 * HOUR) == 0


# Failures


def test_an_enqueue_that_fails_is_told_and_tried_again(declare: Any) -> None:
    told: list[Any] = []
    events.subscribe(events.ScheduleFailed, told.append)
    declare(cron="0 * * * *", args=["x" * 100])
    sync()
    try:
        with override_settings(TASKQ={"MAX_PAYLOAD_BYTES": 64}):
            failed = tick_at(MORNING + HOUR)
        broken = row()
        early, later = tick_at(MORNING + HOUR + timedelta(seconds=1)), tick_at(MORNING + HOUR + timedelta(seconds=5))
    finally:
        events.unsubscribe(events.ScheduleFailed, told.append)

    assert (failed, early, later) == (0, 0, 1)
    assert broken.next_at == MORNING + HOUR
    assert "PayloadTooLarge" in broken.last_error
    assert [(event.schedule, event.at, type(event.error).__name__) for event in told] == [
        ("nightly", MORNING + HOUR, "PayloadTooLarge")
    ]
    assert row().last_error == ""
    assert ticks() == [(MORNING + HOUR, "MADE")]


def test_a_broken_schedule_does_not_keep_others_from_ticking(declare: Any) -> None:
    declare(cron="0 * * * *", name="a broken one")
    declare(cron="0 * * * *", name="b")
    sync()
    Schedule.objects.filter(name="a broken one").update(args="no JSON")

    made = tick_at(MORNING + HOUR)

    assert made == 1
    assert ticks("b") == [(MORNING + HOUR, "MADE")]
    assert ticks("a broken one") == []
    assert row("a broken one").last_error


@pytest.mark.parametrize(
    "column", [{"rule": "no cron"}, {"timezone": "Moon/Sea"}, {"options": "no JSON"}, {"task": "gone"}]
)
def test_a_damaged_row_is_told_and_left(declare: Any, column: dict[str, str]) -> None:
    declare(cron="0 * * * *")
    sync()
    Schedule.objects.update(**column)

    assert tick_at(MORNING + HOUR) == 0

    assert row().last_error
    assert row().due_at > MORNING + HOUR


def test_a_lost_connection_is_left_to_the_worker(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cron="0 * * * *")
    sync()
    monkeypatch.setattr(vendor_for(ALIAS), "is_lost_connection", lambda error: True)

    def lose(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "lock", lose)
        with pytest.raises(OperationalError):
            tick_at(MORNING + HOUR)

    assert row().last_error == ""
    assert tick_at(MORNING + HOUR) == 1


def test_a_schedule_that_keeps_failing_is_looked_at_less_and_less(declare: Any) -> None:
    declare(cron="0 9 10 3 *", args=["x" * 100], misfire_grace=timedelta(days=1))
    sync()
    waits: list[float] = []
    at = MORNING + HOUR
    with override_settings(TASKQ={"MAX_PAYLOAD_BYTES": 64}):
        for _ in range(20):
            tick_at(at)
            waits.append((row().due_at - at).total_seconds())
            at = row().due_at

    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (5, 300)


# Code and rows


def test_what_the_code_declares_is_there_when_a_worker_has_started(declare: Any) -> None:
    declare(cron="0 3 * * *", timezone="Europe/Rome")

    with running_worker():
        found = wait_for(Schedule.objects.first)

    assert (found.name, found.rule, found.timezone, found.source) == ("nightly", "0 3 * * *", "Europe/Rome", "code")


def test_workers_that_sync_at_once_make_one_row(declare: Any) -> None:
    declare(cron="0 3 * * *")

    counts = in_threads(*[partial(sync_schedules.sync, ALIAS, now=MORNING) for _ in range(6)])

    assert Schedule.objects.count() == 1
    assert all(count in (0, 1) for count in counts)


def test_a_sync_without_change_changes_nothing(declare: Any) -> None:
    declare(cron="0 3 * * *")
    sync()
    before = Schedule.objects.values().get()

    assert sync(MORNING + HOUR) == 0

    after = Schedule.objects.values().get()
    assert {**after, "seen_at": None} == {**before, "seen_at": None}


def test_a_changed_rule_counts_from_the_next_sync(declare: Any) -> None:
    name = declare(cron="0 3 * * *")
    sync()
    declarations.forget(name)
    declare(cron="0 12 * * *", args=[1])

    assert sync(MORNING + MINUTE) == 1

    assert (row().rule, row().next_at, row().due_at) == ("0 12 * * *", MORNING + 4 * HOUR, MORNING + 4 * HOUR)
    assert row().arguments == ([1], {})


def test_a_tick_that_is_overdue_when_its_rule_changes_is_not_lost(declare: Any) -> None:
    name = declare(cron="0 9 * * *")
    sync()
    declarations.forget(name)
    declare(cron="0 9,15 * * *")
    late = MORNING + HOUR + MINUTE / 2

    sync(late)

    assert (tick_at(late), ticks()) == (1, [(MORNING + HOUR, "MADE")])
    assert row().next_at == MORNING + 7 * HOUR


def test_a_tick_that_is_overdue_when_an_operator_changes_its_rule_is_not_lost(now: Any) -> None:
    values = {"task": "tests.guarantees.test_schedules.report", "policy": Policy()}
    schedules.create("nightly", rule=check_rule(cron="0 9 * * *", timezone="UTC"), **values)
    now.move_to(MORNING + HOUR + MINUTE / 2)

    schedules.change("nightly", rule=check_rule(cron="30 9 * * *", timezone="UTC"), **values)

    assert ticks() == [(MORNING + HOUR, "MADE")]
    assert (row().next_at, row().due_at) == (MORNING + 1.5 * HOUR, MORNING + 1.5 * HOUR)


def test_a_tick_that_fails_counts_from_there_when_its_rule_changes(now: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"task": "tests.guarantees.test_schedules.report", "policy": Policy()}
    schedules.create("nightly", rule=check_rule(cron="0 9 * * *", timezone="UTC"), **values)
    now.move_to(MORNING + HOUR + MINUTE / 2)

    with monkeypatch.context() as patch:
        patch.setattr(tick, "make_task", _fail)
        schedules.change("nightly", rule=check_rule(cron="0 9,15 * * *", timezone="UTC"), **values)

    assert (row().next_at, row().due_at) == (MORNING + HOUR, MORNING + HOUR)


def test_changed_arguments_do_not_move_the_next_tick(declare: Any) -> None:
    name = declare(cron="* * * * *")
    sync()
    declarations.forget(name)
    declare(cron="* * * * *", args=[1])

    sync(MORNING + 5 * MINUTE)

    assert row().next_at == MORNING + MINUTE


def test_a_schedule_that_left_the_code_is_switched_off_and_kept(declare: Any) -> None:
    name = declare(cron="* * * * *")
    sync()
    tick_at(MORNING + MINUTE)
    declarations.forget(name)

    soon = sync(MORNING + 9 * MINUTE)
    late = sync(MORNING + 10 * MINUTE)

    assert (soon, late) == (0, 1)
    assert row().gone_at == MORNING + 10 * MINUTE
    assert (row().due_at, row().is_on) == (None, False)
    assert ticks() == [(MORNING + MINUTE, "MADE")]
    assert AuditEntry.objects.get(action="schedule.gone").target == "schedule nightly"


def test_a_schedule_that_left_the_code_makes_no_task_meanwhile(declare: Any) -> None:
    name = declare(cron="* * * * *")
    sync()
    declarations.forget(name)

    assert tick_at(MORNING + MINUTE) == 0

    assert row().last_error == ""


def test_a_schedule_that_came_back_to_the_code_goes_on_from_then(declare: Any) -> None:
    name = declare(cron="* * * * *")
    sync()
    declarations.forget(name)
    sync(MORNING + HOUR)
    declare(cron="* * * * *")

    sync(MORNING + 2 * HOUR)

    assert (row().gone_at, row().next_at) == (None, MORNING + 2 * HOUR + MINUTE)


def test_an_older_release_does_not_switch_off_what_a_newer_one_declares(declare: Any) -> None:
    """The old leader has not this schedule; a new worker has just seen it."""
    name = declare(cron="* * * * *")
    sync()
    declarations.forget(name)

    sync(MORNING + MINUTE)

    assert row().is_on


def test_pause_and_disable_survive_a_sync(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    declare(cron="* * * * *", name="off")
    sync()
    schedules.pause("nightly", actor="eve", reason="month end")
    schedules.disable("off", actor="eve")
    declarations.forget("nightly")
    declarations.forget("off")
    declare(cron="*/2 * * * *")
    declare(cron="*/2 * * * *", name="off")

    sync(MORNING + MINUTE)

    assert row().rule == row("off").rule == "*/2 * * * *"
    assert (row().paused_by, row().due_at) == ("eve", None)
    assert (row("off").enabled, row("off").due_at) == (False, None)
    assert tick_at(MORNING + HOUR) == 0


def test_a_schedule_of_the_admin_is_not_taken_over_by_the_code(declare: Any, now: Any) -> None:
    schedules.create("nightly", task=REPORT, rule=check_rule(every=HOUR, timezone="UTC"))
    declare(cron="* * * * *")

    assert sync() == 0

    assert (row().source, row().kind) == ("admin", Kind.INTERVAL)


def test_a_schedule_whose_tasks_go_to_no_database_has_no_row(declare: Any) -> None:
    """As in a project that runs its tasks at once while it is developed."""
    declare(cron="* * * * *")

    with override_settings(TASKS={"default": {"BACKEND": "django_taskq.backend.ImmediateBackend"}}):
        assert sync() == 0

    assert not Schedule.objects.exists()


# Operators

REPORT = "tests.guarantees.test_schedules.report"


def test_a_paused_schedule_leaves_its_ticks_out_until_it_is_resumed(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    assert schedules.pause("nightly", actor="eve", reason="month end")

    while_paused = tick_at(MORNING + 5 * MINUTE)
    now.move_to(MORNING + 10 * MINUTE)
    assert schedules.resume("nightly", actor="eve")
    after = tick_at(MORNING + 11 * MINUTE)

    assert (while_paused, after) == (0, 1)
    assert ticks() == [(MORNING + 10 * MINUTE, "PAUSED"), (MORNING + 11 * MINUTE, "MADE")]
    assert ScheduleTick.objects.get(kind=TickKind.PAUSED).since == MORNING + MINUTE


def test_a_pause_ends_by_itself_at_its_moment(declare: Any, now: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    schedules.pause("nightly", until=MORNING + 5 * MINUTE)

    made = [tick_at(MORNING + 4 * MINUTE), tick_at(MORNING + 7 * MINUTE)]

    assert made == [0, 2]
    assert [kind for _, kind in ticks()] == ["PAUSED", "MADE", "MADE"]
    assert (row().paused_at, row().paused_until) == (None, None)


def test_the_next_tick_is_skipped_once(declare: Any, now: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()

    assert schedules.skip_next("nightly", actor="eve") == MORNING + MINUTE
    assert schedules.skip_next("nightly") is None
    tick_at(MORNING + 2 * MINUTE)

    assert ticks() == [(MORNING + MINUTE, "SKIPPED"), (MORNING + 2 * MINUTE, "MADE")]
    assert not row().skip_next


def test_a_skip_is_over_with_its_tick_where_a_pause_leaves_that_out(declare: Any, now: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    schedules.skip_next("nightly")
    schedules.pause("nightly", until=MORNING + 1.5 * MINUTE)

    tick_at(MORNING + 2 * MINUTE)

    assert ticks() == [(MORNING + MINUTE, "PAUSED"), (MORNING + 2 * MINUTE, "MADE")]


def test_nothing_is_skipped_while_all_is_left_out(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    schedules.pause("nightly", until=MORNING + HOUR)

    with pytest.raises(ScheduleRefused, match=r"paused until 2026-03-10T09:00:00\+00:00.*pause it longer"):
        schedules.skip_next("nightly")

    assert not row().skip_next


def test_ticks_between_two_pauses_are_made_however_late_the_leader_is(declare: Any, now: Any) -> None:
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    schedules.pause("nightly", until=MORNING + 1.5 * MINUTE)
    now.move_to(MORNING + 2.5 * MINUTE)

    schedules.pause("nightly", until=MORNING + 3.5 * MINUTE)
    tick_at(MORNING + 4 * MINUTE)

    assert [kind for _, kind in ticks()] == ["PAUSED", "MADE", "PAUSED", "MADE"]


def test_a_skip_leaves_out_one_tick_and_not_those_that_are_missed_with_it(declare: Any, now: Any) -> None:
    declare(cron="0 * * * *")
    sync()
    schedules.skip_next("nightly")

    tick_at(MORNING + 3 * HOUR + 30 * MINUTE)

    assert ticks() == [(MORNING + HOUR, "SKIPPED"), (MORNING + 3 * HOUR, "MADE")]
    assert ScheduleTick.objects.get(kind=TickKind.MADE).since == MORNING + 2 * HOUR


def test_a_skip_does_not_wait_for_a_later_tick_where_its_own_is_missed(declare: Any, now: Any) -> None:
    declare(cron="0 * * * *", misfire="skip")
    sync()
    schedules.skip_next("nightly")

    tick_at(MORNING + HOUR + 30 * MINUTE)
    tick_at(MORNING + 2 * HOUR)

    assert ticks() == [(MORNING + HOUR, "SKIPPED"), (MORNING + 2 * HOUR, "MADE")]


@pytest.mark.parametrize("left_out", ["paused", "missed"])
def test_ticks_that_a_clock_ahead_dealt_with_do_not_stop_a_schedule(declare: Any, now: Any, left_out: str) -> None:
    declare(cron="0 * * * *", misfire="skip")
    sync()
    tick_at(MORNING + 5 * HOUR)
    schedules.disable("nightly")
    schedules.enable("nightly")
    if left_out == "paused":
        schedules.pause("nightly", until=MORNING + 5 * HOUR)

    for minutes in (301, 360):
        tick_at(MORNING + minutes * MINUTE)

    assert ticks()[-1] == (MORNING + 6 * HOUR, "MADE")


def test_a_disabled_schedule_does_not_tick_and_goes_on_from_when_it_is_enabled(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    schedules.disable("nightly")
    assert tick_at(MORNING + 3 * MINUTE) == 0
    now.move_to(MORNING + HOUR)

    schedules.enable("nightly")

    assert (tick_at(MORNING + HOUR), row().next_at) == (0, MORNING + HOUR + MINUTE)
    assert ticks() == []


def test_run_now_makes_a_task_beside_the_ticks(declare: Any, now: Any) -> None:
    declare(tell_schedule, cron="* * * * *")
    sync()

    task_id = schedules.run_now("nightly", actor="eve", reason="asked for")

    run_and_settle(claim_one())
    assert state_of(task_id) == "succeeded"
    assert tasks.ran[0].manual
    assert row().next_at == MORNING + MINUTE
    assert ticks() == [(MORNING, "MANUAL")]


def test_a_run_by_hand_at_the_moment_of_a_tick_does_not_take_its_place(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    now.move_to(MORNING + MINUTE)

    schedules.run_now("nightly")
    tick_at(MORNING + MINUTE)

    assert [kind for _, kind in ticks()] == ["MANUAL", "MADE"]
    assert {task.state for task in Task.objects.all()} == {State.READY}


def test_run_now_is_limited(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    schedules.run_now("nightly")

    with pytest.raises(ScheduleRefused, match="10 seconds"):
        schedules.run_now("nightly")
    now.shift(11)
    schedules.run_now("nightly")

    assert Task.objects.count() == 2


def test_of_two_who_press_the_button_at_once_one_runs_it(declare: Any) -> None:
    declare(cron="0 3 1 1 *")
    sync_schedules.sync(ALIAS, now=engine.db_now())

    def press() -> str:
        try:
            return schedules.run_now("nightly")
        except ScheduleRefused:
            return ""

    found = in_threads(press, press, press)

    assert len([one for one in found if one]) == Task.objects.count() == 1


def test_run_now_does_not_run_beside_a_live_task_where_that_must_not_be(declare: Any, now: Any) -> None:
    declare(cron="* * * * *", overlap="skip")
    sync()
    tick_at(MORNING + MINUTE)

    with pytest.raises(ScheduleRefused, match="is live"):
        schedules.run_now("nightly")

    assert Task.objects.count() == 1


def test_what_operators_do_is_undone_with_their_transaction(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()

    with transaction.atomic():
        schedules.run_now("nightly")
        schedules.pause("nightly")
        transaction.set_rollback(True)

    assert (Task.objects.count(), ScheduleTick.objects.count(), AuditEntry.objects.count()) == (0, 0, 0)
    assert row().paused_at is None


def test_what_operators_do_is_audited(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    by_eve = {"actor": "eve", "reason": "because"}

    schedules.pause("nightly", **by_eve)
    schedules.resume("nightly", **by_eve)
    schedules.skip_next("nightly", **by_eve)
    schedules.run_now("nightly", **by_eve)
    schedules.disable("nightly", **by_eve)
    schedules.enable("nightly", **by_eve)

    entries = list(AuditEntry.objects.order_by("id").values_list("actor", "action", "target", "reason"))
    verbs = ["pause", "resume", "skip", "run", "disable", "enable"]
    assert entries == [("eve", f"schedule.{verb}", "schedule nightly", "because") for verb in verbs]


def test_verbs_that_change_nothing_say_so(declare: Any, now: Any) -> None:
    declare(cron="* * * * *")
    sync()
    schedules.pause("nightly")

    assert not schedules.pause("nightly")
    assert schedules.resume("nightly")
    assert not schedules.resume("nightly")
    assert not schedules.enable("nightly")
    assert schedules.disable("nightly")
    assert not schedules.disable("nightly")


@pytest.mark.parametrize("verb", ["pause", "resume", "enable", "disable", "skip_next", "run_now", "delete"])
def test_a_schedule_that_is_not_there_is_not_found(verb: str) -> None:
    with pytest.raises(ScheduleNotFound, match="no schedule is called 'nobody'"):
        getattr(schedules, verb)("nobody")


def test_operators_make_change_and_delete_schedules_of_exposed_tasks(now: Any) -> None:
    """S4-71."""
    rule = check_rule(cron="0 9 * * *", timezone="UTC")
    schedules.create("daily", task=REPORT, rule=rule, kwargs={"pages": 2}, actor="eve")
    assert tick_at(MORNING + HOUR) == 1
    later = check_rule(cron="0 10 * * *", timezone="UTC")

    assert schedules.change("daily", task=REPORT, rule=later, policy=check_policy(overlap="skip"), args=["x"])

    assert (row("daily").next_at, row("daily").policy.overlap) == (MORNING + 2 * HOUR, "skip")
    assert not schedules.change("daily", task=REPORT, rule=later, policy=check_policy(overlap="skip"), args=["x"])
    schedules.delete("daily", actor="eve", reason="enough")
    assert (Schedule.objects.count(), ScheduleTick.objects.count()) == (0, 0)
    assert list(AuditEntry.objects.order_by("id").values_list("action", flat=True)) == [
        "schedule.create",
        "schedule.change",
        "schedule.delete",
    ]


def test_of_two_operators_who_make_a_schedule_of_one_name_one_does() -> None:
    def make() -> bool:
        try:
            schedules.create("daily", task=REPORT, rule=check_rule(every=HOUR, timezone="UTC"))
        except InvalidOptions:
            return False
        return True

    assert sum(in_threads(make, make, make)) == 1
    assert Schedule.objects.count() == AuditEntry.objects.count() == 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"task": "tests.guarantees.tasks.note"}, "schedulable"),
        ({"task": "os.system"}, "schedulable"),
        ({"args": [1, 2, 3]}, "does not take these arguments"),
        ({"kwargs": {"color": 1}}, "does not take these arguments"),
        ({"priority": 1000}, "priority"),
        ({"queue_name": ""}, "queue_name"),
        ({"name": "daily"}, "already"),
        ({"name": "tab\tname"}, "printable"),
    ],
)
def test_operators_cannot_make_schedules_that_could_not_run(now: Any, values: dict[str, Any], match: str) -> None:
    rule = check_rule(every=HOUR, timezone="UTC")
    schedules.create("daily", task=REPORT, rule=rule)

    with pytest.raises(ValueError, match=match):
        schedules.create(**{"name": "another", "task": REPORT, "rule": rule, **values})

    assert Schedule.objects.count() == 1


def test_a_schedule_of_the_code_can_be_neither_changed_nor_deleted_by_operators(declare: Any, now: Any) -> None:
    declare(report, cron="* * * * *")
    sync()

    with pytest.raises(ScheduleRefused, match="declared in code"):
        schedules.delete("nightly")
    with pytest.raises(ScheduleRefused, match="declared in code"):
        schedules.change("nightly", task=REPORT, rule=row().rule_value, policy=Policy(), args=["x"])

    assert row().arguments == ([], {})


# Events, retention


def test_what_schedules_do_is_told_after_commit(declare: Any, now: Any) -> None:
    told: list[Any] = []
    kinds = (events.ScheduleTicked, events.ScheduleSkipped)
    declare(cron="* * * * *", misfire_grace=HOUR)
    sync()
    schedules.skip_next("nightly")
    for kind in kinds:
        events.subscribe(kind, told.append)
    try:
        tick_at(MORNING + 2 * MINUTE)
        now.move_to(MORNING + 2 * MINUTE)
        schedules.run_now("nightly")
    finally:
        for kind in kinds:
            events.unsubscribe(kind, told.append)

    skipped, ticked, manual = told
    assert (skipped.schedule, skipped.at, skipped.why) == ("nightly", MORNING + MINUTE, "skipped")
    assert (ticked.at, ticked.manual) == (MORNING + 2 * MINUTE, False)
    assert manual.manual
    assert state_of(ticked.task_id) == "ready"


def test_old_ticks_are_pruned_and_the_schedule_stays(declare: Any) -> None:
    declare(cron="0 * * * *")
    sync()
    tick_at(MORNING + HOUR)
    tick_at(MORNING + 2 * HOUR)

    with override_settings(TASKQ={"RETENTION": {"TICKS": HOUR}}):
        prune.run_once(ALIAS, conf.options("default"), MORNING + 2 * HOUR + MINUTE)

    assert ticks() == [(MORNING + 2 * HOUR, "MADE")]
    assert row().next_at == MORNING + 3 * HOUR
