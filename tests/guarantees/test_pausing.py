"""Pausing: what is paused is not started, nothing is lost by it, and a pause with an end ends by itself."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

import django_taskq
from django_taskq import (
    EnqueuePaused,
    EnqueueRefused,
    Fixed,
    InvalidOptions,
    UnsupportedCapability,
    chain,
    conf,
    events,
)
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import State
from django_taskq.duties import release
from django_taskq.lifecycle import admission
from django_taskq.lifecycle.claim import Claimer
from django_taskq.models import AuditEntry, FinishedTask, Pause, Queue, Task
from django_taskq.store import pauses as store
from django_taskq.store.vendors import vendor_for
from tests.engine import (
    ALIAS,
    announce,
    claim,
    db_now,
    drain,
    in_threads,
    ready_task,
    row_of,
    run_burst,
    running_worker,
    state_of,
    wait_for,
)
from tests.guarantees.tasks import fail_slowly, gates, note, note_attempt, pause_deaf, ran
from tests.guarantees.tasks import pause as pause_task

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = {"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.2}
NOTE = "tests.guarantees.tasks.note"


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    """Collect what is told of pauses."""
    found: list[Any] = []
    kinds = [
        events.QueuePaused,
        events.QueueResumed,
        events.TaskTypePaused,
        events.TaskTypeResumed,
        events.EverythingPaused,
        events.EverythingResumed,
    ]
    for kind in kinds:
        events.subscribe(kind, found.append)
    yield found
    for kind in kinds:
        events.unsubscribe(kind, found.append)


def claimed_at(moment: datetime, *queues: str) -> int:
    """Return how many tasks a fresh look gets at a moment on the database's clock."""
    return len(Claimer(ALIAS, announce(), [(name, None) for name in queues]).claim(10, now=moment))


# What a pause stops


def test_nothing_is_claimed_from_a_paused_queue_and_others_go_on() -> None:
    """S0-98: and after the resume everything is there."""
    held, other = note.enqueue("held"), note.using(queue_name="mail").enqueue("other")

    assert django_taskq.pause("default", actor="ana", reason="provider outage") is True
    drain(queues="default,mail")
    while_paused = (state_of(held), state_of(other))
    assert django_taskq.resume("default") is True
    drain(queues="default,mail")

    assert while_paused == ("ready", "succeeded")
    assert ran == ["other", "held"]


def test_while_everything_is_paused_nothing_is_claimed_at_all() -> None:
    """S4-14: registered queues, named queues and queues that nobody knows."""
    ready_task(note)
    ready_task(note, queue="mail")
    django_taskq.pause(everything=True)

    assert claimed_at(db_now()) == claimed_at(db_now(), "default", "mail") == 0

    django_taskq.resume(everything=True)
    assert claimed_at(db_now()) == 2


def test_resuming_everything_leaves_what_was_paused_for_itself_paused() -> None:
    """S4-14: each pause has its own author and end."""
    ready_task(note)
    ready_task(note, queue="mail")
    django_taskq.pause("mail")
    django_taskq.pause(everything=True)

    django_taskq.resume(everything=True)

    assert [row.queue for row in claim(queues="default,mail", limit=10)] == ["default"]


def test_what_runs_when_the_pause_begins_runs_to_its_end() -> None:
    """S0-98, S4-29: a pause stops claiming, not running."""
    with running_worker(taskq=QUICK, threads=1):
        running = pause_task.enqueue("job")
        assert gates["job runs"].wait(10)
        django_taskq.pause("default")
        # The time within which workers hear of it.
        time.sleep(1.1)
        later = note.enqueue("later")
        gates["job"].set()
        wait_for(lambda: state_of(running) == "succeeded")
        time.sleep(0.3)

        assert state_of(later) == "ready"


def test_scheduled_tasks_become_ready_while_paused_and_wait() -> None:
    """S0-98: the pause changes when a task runs, not what becomes of it."""
    task = ready_task(note, state=State.SCHEDULED, run_after=db_now() - timedelta(seconds=1))
    django_taskq.pause(everything=True)

    drain()

    assert (state_of(task), ran) == ("ready", [])


def test_a_retry_waits_for_the_end_of_the_pause() -> None:
    """S0-98: its attempt is not lost, and not used."""
    task = fail_slowly.using(backoff=Fixed(0), max_attempts=2).enqueue()
    found = claim()
    django_taskq.pause("default")
    from tests import engine

    engine.run_and_settle(found[0])
    drain()
    while_paused = state_of(task)
    django_taskq.resume("default")
    drain()

    assert (while_paused, state_of(task)) == ("ready", "dead")
    assert len(ran) == 2


def test_workflows_advance_and_their_next_members_wait() -> None:
    """S0-98: the end of a running member is written, and what follows from it."""
    from tests import engine

    chain(note.s("first"), note.s("second")).enqueue()
    found = claim()
    django_taskq.pause("default")

    engine.run_and_settle(found[0])
    drain()

    second = Task.objects.get()
    assert (State(second.state), ran) == (State.READY, ["first"])
    django_taskq.resume("default")
    drain()
    assert ran == ["first", "second"]


def test_a_burst_ends_although_a_paused_queue_is_not_empty() -> None:
    """S0-98: what is paused is left."""
    task = note.enqueue()
    django_taskq.pause("default")

    run_burst(threads=1, seconds=20)

    assert state_of(task) == "ready"


# How soon


def test_a_busy_worker_stops_claiming_within_a_second_and_goes_on_after_the_resume() -> None:
    """S0-98: it looks at the pauses each second, however much there is to do."""
    with running_worker(taskq=QUICK, threads=2):
        django_taskq.enqueue_many(pause_deaf, [(f"job {at}", 0.02) for at in range(2000)])
        wait_for(lambda: len(ran) > 20)

        django_taskq.pause("default")
        time.sleep(1.3)
        at_most = len(ran)
        time.sleep(0.5)
        stopped = len(ran)
        django_taskq.resume("default")
        wait_for(lambda: len(ran) > stopped, 3)

    # What the worker held when it looked is handed back within half a second.
    assert stopped - at_most <= 60


@pytest.mark.parametrize("target", [{"queue": "default"}, {"everything": True}], ids=["queue", "everything"])
def test_an_idle_worker_starts_within_a_second_of_the_end_of_a_pause(target: dict[str, Any]) -> None:
    """S0-98: it knows the end and wakes up for it, however seldom it polls; the best of three on a busy machine."""
    late: list[float] = []
    while len(late) < 3 and not any(seconds < 1.0 for seconds in late):
        django_taskq.pause(**target, until=timedelta(seconds=2))
        task = note.enqueue()
        ends = Pause.objects.get().until
        assert ends is not None
        with running_worker(taskq=QUICK, threads=1, poll=timedelta(seconds=30)):
            wait_for(lambda task=task: state_of(task) == "succeeded", 10)
        late.append((FinishedTask.objects.get(pk=task.id).started_at - ends).total_seconds())

    assert min(late) >= 0
    assert min(late) < 1.0


def test_a_claim_that_a_pause_kept_from_tasks_says_when_to_look_again() -> None:
    """S0-98: at the end of the first that has one; its worker may sleep through all that others write."""
    now = db_now()
    django_taskq.pause("default", until=now + timedelta(hours=1))
    django_taskq.pause("other")
    claimers = [Claimer(ALIAS, announce(), [(queue, None)]) for queue in ("default", "other")]

    looks = []
    for claimer in claimers:
        assert claimer.claim(1, now=now) == []
        looks.append(claimer.looks_in(now))
    django_taskq.resume("default")
    claimers[0].refresh()
    claimers[0].claim(1, now=now)

    assert looks == pytest.approx([3600, 3600], abs=2)
    assert claimers[0].looks_in(now) is None


# The end


def test_a_pause_with_an_end_does_not_count_from_that_moment_on() -> None:
    """S0-98: judged by the database's clock; no duty is needed for it."""
    ready_task(note)
    django_taskq.pause("default", until=timedelta(hours=1))
    ends = Pause.objects.get().until
    assert ends is not None

    before = claimed_at(ends - timedelta(milliseconds=1), "default")
    after = claimed_at(ends, "default")

    assert (before, after) == (0, 1)


def test_the_end_of_a_pause_is_tidied_away_audited_and_told_once(heard: list[Any]) -> None:
    """S0-98: of eight workers that come across it, one does."""
    django_taskq.pause("default", actor="ana", until=timedelta(hours=1))
    ends = Pause.objects.get().until
    assert ends is not None

    in_threads(*[lambda: claimed_at(ends, "default")] * 8)

    assert not Pause.objects.exists()
    assert [(type(event).__name__, event.actor) for event in heard] == [
        ("QueuePaused", "ana"),
        ("QueueResumed", "its end"),
    ]
    assert list(AuditEntry.objects.order_by("id").values_list("action", "actor")) == [
        ("pause", "ana"),
        ("resume", "its end"),
    ]


def test_a_pause_that_is_over_can_be_paused_anew_and_is_not_resumed() -> None:
    """S0-98: before anybody tidied it away."""
    vendor_now = db_now()
    for name in ("default", "mail"):
        Pause.objects.create(
            scope=PauseScope.QUEUE,
            name=name,
            paused_at=vendor_now - timedelta(hours=2),
            until=vendor_now - timedelta(hours=1),
        )

    assert django_taskq.pauses() == []
    assert django_taskq.resume("mail") is False
    assert django_taskq.pause("default", reason="again") is True
    assert [(pause.name, pause.reason, pause.until) for pause in django_taskq.pauses()] == [("default", "again", None)]


def test_an_older_pause_that_ends_does_not_lift_the_one_that_took_its_place() -> None:
    """S0-98: a worker read it before, and tidies after."""
    django_taskq.pause("default", until=timedelta(hours=1))
    old = list(Pause.objects.all())
    django_taskq.pause("default", until=timedelta(hours=3), replace=True)
    from django_taskq.lifecycle import pausing

    pausing.lift_ended(ALIAS, old, now=db_now() + timedelta(hours=2))

    assert Pause.objects.count() == 1


# Who, why, and twice


def test_reason_author_and_end_are_kept_and_a_second_pause_changes_nothing() -> None:
    """S0-98, S4-74: unless it is told to take its place."""
    assert django_taskq.pause("default", actor="ana", reason="outage", until=timedelta(hours=1)) is True
    assert django_taskq.pause("default", actor="bob", reason="me too") is False
    (first,) = django_taskq.pauses()
    assert django_taskq.pause("default", actor="bob", reason="longer", replace=True) is True
    (second,) = django_taskq.pauses()

    assert (first.paused_by, first.reason, first.until is None) == ("ana", "outage", False)
    assert (second.paused_by, second.reason, second.until) == ("bob", "longer", None)
    assert list(AuditEntry.objects.values_list("action", "actor", "target")) == [
        ("pause", "ana", "default"),
        ("pause", "bob", "default"),
    ]


def test_of_eight_who_pause_at_once_one_does_and_the_same_for_the_resume(heard: list[Any]) -> None:
    """S0-98: one row, one audit entry, one event."""
    paused = in_threads(*[lambda: django_taskq.pause(task=note)] * 8)
    resumed = in_threads(*[lambda: django_taskq.resume(task=note)] * 8)

    assert (paused.count(True), resumed.count(True)) == (1, 1)
    assert [type(event).__name__ for event in heard] == ["TaskTypePaused", "TaskTypeResumed"]
    assert AuditEntry.objects.count() == 2


def test_a_pause_that_is_of_no_queue_makes_none() -> None:
    django_taskq.pause(task=note)
    django_taskq.pause(everything=True)

    assert not Queue.objects.exists()


def test_pauses_of_types_are_found_by_their_stored_name(heard: list[Any]) -> None:
    """S0-98: by definition or by name; what is over does not count."""
    now = db_now()
    django_taskq.pause(task=note, reason="poison")
    django_taskq.pause(task="shop.tasks.other", until=timedelta(minutes=1))

    assert store.paused_types(ALIAS, now) == {NOTE, "shop.tasks.other"}
    assert store.paused_types(ALIAS, now + timedelta(hours=1)) == {NOTE}
    assert [event.task for event in heard] == [NOTE, "shop.tasks.other"]
    assert django_taskq.resume(task=NOTE) is True


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "queue"),
        ({"queue": "default", "everything": True}, "queue"),
        ({"queue": ""}, "queue"),
        ({"queue": "q" * 65}, "queue"),
        ({"queue": "default", "until": timedelta(0)}, "until"),
        ({"queue": "default", "until": timedelta(days=10**9 - 1)}, "until"),
        ({"queue": "default", "until": datetime(2090, 1, 1)}, "until"),
        ({"queue": "default", "until": "16:00"}, "until"),
    ],
    ids=range(8),
)
def test_a_pause_that_cannot_be_is_refused(given: dict[str, Any], field: str) -> None:
    """S0-135: with the option named."""
    with pytest.raises(InvalidOptions) as caught:
        django_taskq.pause(**given)

    assert caught.value.field == field
    assert not Pause.objects.exists()


@pytest.mark.parametrize("kind", ["ImmediateBackend", "NullBackend"])
def test_where_no_backend_has_workers_a_pause_is_unsupported(kind: str) -> None:
    """S0-12, S0-98, S0-135: an error of its own, and ``supports`` says so before."""
    with override_settings(TASKS={"default": {"BACKEND": f"django_taskq.backend.{kind}"}}):
        assert note.get_backend().supports("pause") is False
        for change in (django_taskq.pause, django_taskq.resume):
            with pytest.raises(UnsupportedCapability) as caught:
                change("default")
            assert (caught.value.capability, caught.value.backend) == ("pause", kind)
            with pytest.raises(UnsupportedCapability, match=kind):
                change(task=note)
        with pytest.raises(UnsupportedCapability):
            django_taskq.pauses()
    assert note.get_backend().supports("pause") is True


# Refusing new tasks


@pytest.mark.parametrize(
    ("target", "scope", "name"),
    [
        ({"queue": "default"}, "queue", "default"),
        ({"task": NOTE}, "task", NOTE),
        ({"everything": True}, "everything", ""),
    ],
    ids=["queue", "task", "everything"],
)
def test_a_pause_may_refuse_new_tasks(target: dict[str, Any], scope: str, name: str) -> None:
    """S0-98: with who, why and until when; nothing is stored."""
    django_taskq.pause(**target, reject=True, actor="ana", reason="outage", until=timedelta(hours=1))

    for enqueue in (
        note.enqueue,
        lambda: django_taskq.enqueue_many(note, [(1,), (2,)]),
        lambda: note.using(delay=60).enqueue(),
        lambda: chain(note.s(1), note.s(2)).enqueue(),
    ):
        with pytest.raises(EnqueuePaused, match="outage") as caught:
            enqueue()
    assert isinstance(caught.value, EnqueueRefused)
    assert (caught.value.scope, caught.value.name, caught.value.actor) == (scope, name, "ana")
    assert caught.value.until == Pause.objects.get().until
    assert not Task.objects.exists()


def test_a_pause_refuses_only_what_it_stops() -> None:
    """S0-98: other queues and other types are stored."""
    django_taskq.pause("mail", reject=True)
    django_taskq.pause(task="shop.tasks.other", reject=True)

    note.enqueue()

    assert Task.objects.count() == 1


def test_enqueueing_goes_on_while_paused_unless_the_pause_or_the_settings_say_otherwise() -> None:
    """The default, the setting of a queue, and a pause that overrules it."""
    rules = {"QUEUES": {"default": {"REJECT_WHEN_PAUSED": True}}}
    django_taskq.pause(everything=True)
    note.enqueue()
    with override_settings(TASKQ=rules):
        with pytest.raises(EnqueuePaused):
            note.enqueue()
        note.using(queue_name="mail").enqueue()
        django_taskq.pause(everything=True, reject=False, replace=True)
        note.enqueue()

    assert Task.objects.count() == 3


def test_after_the_resume_and_after_the_end_tasks_are_taken_at_once() -> None:
    """Nothing is refused by an old copy of the pauses."""
    django_taskq.pause("default", reject=True)
    with pytest.raises(EnqueuePaused):
        note.enqueue()
    # Another process resumes: this one is told nothing.
    Pause.objects.all().delete()

    note.enqueue()

    now = db_now()
    admission.forget(ALIAS)
    Pause.objects.create(
        scope=PauseScope.QUEUE,
        name="default",
        rejects=True,
        paused_at=now - timedelta(hours=1),
        until=now - timedelta(seconds=1),
    )
    note.enqueue()
    assert Task.objects.count() == 2


def test_a_pause_of_another_process_refuses_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is looked at again; until then tasks are stored."""
    ticks = [1000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: ticks[0])
    admission.forget(ALIAS)
    note.enqueue()
    store.put(ALIAS, PauseScope.QUEUE, "default", actor="", reason="", now=db_now(), rejects=True)

    ticks[0] += 0.99
    note.enqueue()
    ticks[0] += 0.01
    with pytest.raises(EnqueuePaused):
        note.enqueue()

    assert Task.objects.count() == 2


def test_a_pause_that_was_rolled_back_refuses_nothing() -> None:
    """In its own transaction it does."""
    with transaction.atomic():
        django_taskq.pause("default", reject=True)
        with pytest.raises(EnqueuePaused):
            note.enqueue()
        transaction.set_rollback(True)

    note.enqueue()

    assert Task.objects.count() == 1
    assert not AuditEntry.objects.exists()


def test_without_pauses_an_enqueue_costs_no_query_for_them() -> None:
    """One look in a second, whatever is enqueued meanwhile."""
    note.enqueue()
    with CaptureQueriesContext(connection) as queries:
        for _ in range(5):
            note.enqueue()

    looks = [query["sql"] for query in queries if "taskq_pause" in query["sql"]]
    assert len(looks) <= 1


def test_accepted_work_is_never_refused() -> None:
    """Retries, members of workflows and replays go on being stored while new tasks are refused."""
    from tests import engine

    retried = fail_slowly.using(backoff=Fixed(0), max_attempts=2).enqueue()
    chain(note.s("first"), note.s("second")).enqueue()
    dead = fail_slowly.using(max_attempts=1, queue_name="mail").enqueue()
    drain(queues="mail")
    found = claim(limit=2)

    django_taskq.pause(everything=True, reject=True)
    for claimed in found:
        engine.run_and_settle(claimed)
    django_taskq.replay(dead.id)

    assert state_of(retried) == state_of(dead) == "ready"
    assert Task.objects.filter(name=NOTE, state=State.READY).count() == 1


def test_an_unknown_queue_can_be_paused_before_its_first_task() -> None:
    """S0-98: it is registered, so that everybody sees it."""
    django_taskq.pause("new")

    assert Queue.objects.filter(name="new").exists()
    assert vendor_for(ALIAS).ready_queues() == []


# Task types


def test_tasks_of_a_paused_type_are_put_aside_and_the_others_go_on() -> None:
    held = [note.enqueue(at) for at in range(3)]
    free = note_attempt.enqueue("free")
    django_taskq.pause(task=note)

    drain()

    assert ran == [("free", 1)]
    assert {state_of(task) for task in held} == {"parked"}
    assert {row_of(task).attempt for task in held} == {0}  # type: ignore[union-attr]
    assert state_of(free) == "succeeded"


def test_a_resumed_type_goes_on_in_order() -> None:
    note.enqueue_many([(at,) for at in range(5)])
    django_taskq.pause(task=note)
    drain()

    django_taskq.resume(task=note)
    release.run_once(ALIAS, conf.options(), db_now())
    drain()

    assert ran == [0, 1, 2, 3, 4]


def test_a_resumed_type_with_a_large_backlog_goes_on_at_once() -> None:
    """Thousands come back within a fifth of a second, and not a thousand each second."""
    note.enqueue_many([(at,) for at in range(2500)])
    django_taskq.pause(task=note)
    claimer = Claimer(ALIAS, announce(), [("default", None)])
    while Task.objects.filter(state=State.READY).exists():
        assert claimer.claim(200, now=db_now()) == []

    django_taskq.resume(task=note)
    resumed = db_now()
    for part in range(3):
        release.run_once(ALIAS, conf.options(), resumed + timedelta(seconds=0.06 * part))

    assert Task.objects.filter(state=State.READY).count() == 2500


def test_a_type_goes_on_by_itself_when_its_pause_is_over() -> None:
    note.enqueue_many([(at,) for at in range(3)])
    now = db_now()
    django_taskq.pause(task=note, until=now + timedelta(seconds=5))
    claimer = Claimer(ALIAS, announce(), [("default", None)])
    before = claimer.claim(10, now=now)

    later = now + timedelta(seconds=6)
    release.run_once(ALIAS, conf.options(), later)
    claimer.refresh()

    assert before == []
    assert len(claimer.claim(10, now=later)) == 3


def test_a_worker_stops_and_goes_on_with_a_type_within_a_second() -> None:
    with running_worker():
        note.enqueue("before")
        wait_for(lambda: ran == ["before"])
        django_taskq.pause(task=note)
        wait_for(lambda: _is_parked(note.enqueue("held")), 3)
        seen = len(ran)
        django_taskq.resume(task=note)
        wait_for(lambda: len(ran) > seen, 3)


def _is_parked(task: Any) -> bool:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        if state_of(task) == "parked":
            return True
        time.sleep(0.01)
    return False
