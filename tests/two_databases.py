"""
A process with two databases, the tasks in the second.

Making the second one would slow every other test down, so the tests of
guarantees/test_second_database.py run ``main`` once. It prints as JSON what became of each
function whose name is in ``CASES``: an empty text, or a traceback.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from typing import Any

import django

django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from django.apps import apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections, transaction  # noqa: E402
from django.test import Client, override_settings  # noqa: E402
from django.test.utils import setup_databases, setup_test_environment, teardown_databases  # noqa: E402
from django.urls import reverse  # noqa: E402

from django_taskq import (  # noqa: E402
    InvalidArguments,
    InvalidWorkflow,
    acancel,
    batch,
    cancel,
    chain,
    clock,
    conf,
    discard,
    events,
    find_task,
    finished_since,
    pause_queue,
    previous,
    replay,
    resume_queue,
    schedule,
    subscribe_results,
)
from django_taskq.domain.states import State  # noqa: E402
from django_taskq.duties.runner import DutyRunner  # noqa: E402
from django_taskq.lifecycle import declarations, wake  # noqa: E402
from django_taskq.models import (  # noqa: E402
    Attempt,
    AuditEntry,
    FinishedTask,
    Queue,
    Schedule,
    ScheduleTick,
    Stat,
    Task,
    Worker,
)
from django_taskq.store.vendors import vendor_for  # noqa: E402
from django_taskq.worker.loop import Plan  # noqa: E402
from django_taskq.worker.loop import Worker as Engine  # noqa: E402
from tests.app.models import Effect  # noqa: E402
from tests.by_hand import HandWorker  # noqa: E402
from tests.engine import wait_for  # noqa: E402
from tests.guarantees import tasks  # noqa: E402

CASES: dict[str, Callable[[], None]] = {}


# As most projects have it that move their tasks elsewhere.
MAIN_ELSEWHERE = {"default": {**settings.TASKS["elsewhere"]}}


class ToOther:
    """A router that sends the tables of django_taskq to the second database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model._meta.app_label == "django_taskq" else None

    db_for_read = db_for_write


class Undone(Exception):
    """Raised to roll back."""


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def elsewhere(task: Any, **options: Any) -> Any:
    """Return the task as it is stored in the second database."""
    return task.using(backend="elsewhere", **options)


def rows(alias: str) -> int:
    """Return how many tasks a database has, live and finished."""
    return Task.objects.using(alias).count() + FinishedTask.objects.using(alias).count()


def untouched() -> bool:
    """Tell whether nothing of ours is in the first database."""
    models = (Task, FinishedTask, Attempt, Stat, Worker, Queue, AuditEntry)
    return not any(model._base_manager.using("default").exists() for model in models)


def run_worker(backend: str = "elsewhere", **options: Any) -> None:
    """Let a worker of the second database do what is ready."""
    worker = Engine(Plan(alias=backend, worker=conf.WorkerOptions(threads=2, **options), burst=True))
    worker.start()
    worker.join(60)


@case
def a_task_is_stored_where_its_backend_says() -> None:
    result = elsewhere(tasks.note).enqueue("a")
    many = elsewhere(tasks.note).enqueue_many([(1,), (2,)])

    assert rows("other") == 3
    assert untouched()
    assert find_task(result.id, using="other").pk == Task.objects.using("other").get(pk=result.id).pk
    assert elsewhere(tasks.note).get_result(many.ids[0]).args == [1]


@case
def a_task_belongs_to_the_transaction_of_its_own_database() -> None:
    for alias in ("other", "default"):
        with suppress(Undone), transaction.atomic(using=alias):
            elsewhere(tasks.note).enqueue(alias)
            raise Undone

    # A roll back of the first database says nothing about the second.
    assert [row.arguments[0] for row in Task.objects.using("other")] == [["default"]]


@case
def on_commit_waits_for_the_tasks_own_database() -> None:
    told: list[events.TaskEnqueued] = []
    events.subscribe(events.TaskEnqueued, told.append)
    late = elsewhere(tasks.note, enqueue_on_commit=True)
    seen = []
    with transaction.atomic(using="other"):
        late.enqueue("a")
        elsewhere(tasks.note).enqueue("b")
        seen.append((Task.objects.using("other").count(), len(told)))
    with transaction.atomic(using="default"):
        late.enqueue("c")
        seen.append((Task.objects.using("other").count(), len(told)))
    events.unsubscribe(events.TaskEnqueued, told.append)

    assert seen == [(1, 0), (3, 3)]
    assert {event.alias for event in told} == {"other"}


@case
def a_worker_claims_runs_and_settles_there() -> None:
    good = elsewhere(tasks.return_this).enqueue({"a": 1})
    bad = elsewhere(tasks.fail, max_attempts=2).enqueue("x")
    later = elsewhere(tasks.note, delay=0.1).enqueue("later")
    with subscribe_results() as stream:
        run_worker()
        wait_for(lambda: db_is_past(later))
        run_worker()

    assert good.get(timeout=1) == {"a": 1}
    assert bad.wait(timeout=1).state == "dead"
    assert later.wait(timeout=1).state == "succeeded"
    assert len(bad.errors) == Attempt.objects.using("other").count() == 2
    assert {(outcome.task_id, outcome.alias) for outcome in stream} == {(r.id, "other") for r in (good, bad, later)}
    assert {outcome.task_id for outcome in finished_since(None, lag=0, using="other").outcomes} == {
        good.id, bad.id, later.id,
    }  # fmt: skip
    assert Stat.objects.using("other").exists()
    assert untouched()


def db_is_past(result: Any) -> bool:
    """Tell whether a scheduled task is well past its time by its database's clock, as every worker knows it."""
    row = find_task(result.id, using="other")
    return row.run_after is not None and row.run_after + timedelta(seconds=0.1) <= vendor_for("other").now()


@case
def an_atomic_task_is_atomic_with_its_own_database() -> None:
    elsewhere(leave_effect).enqueue("good", "other", fails=False)
    elsewhere(leave_effect, max_attempts=1).enqueue("bad", "other", fails=True)
    elsewhere(leave_effect, max_attempts=1).enqueue("outside", "default", fails=True)
    run_worker()

    assert list(Effect.objects.using("other").values_list("key", flat=True)) == ["good"]
    assert list(Effect.objects.using("default").values_list("key", flat=True)) == ["outside"]
    assert FinishedTask.objects.using("other").filter(state=State.SUCCEEDED).count() == 1


@case
def the_tasks_of_a_lost_worker_are_rescued_there() -> None:
    lost = HandWorker("other", lease_seconds=1)
    result = elsewhere(tasks.note).enqueue("a")
    assert len(lost.claim()) == 1
    worker = Engine(Plan(alias="elsewhere", worker=conf.WorkerOptions(threads=1)))
    worker.start()
    try:
        # It beat when it was announced, and never again.
        wait_for(lambda: FinishedTask.objects.using("other").filter(pk=result.id).exists(), 30)
    finally:
        worker.stop()
        worker.join(30)

    row = FinishedTask.objects.using("other").get()
    assert (row.attempt, State(row.state)) == (2, State.SUCCEEDED)
    assert [attempt.outcome for attempt in Attempt.objects.using("other")] == ["lost"]
    assert untouched()


@case
def a_result_cancels_its_task_there() -> None:
    first, second, running = (elsewhere(tasks.note).enqueue(at) for at in range(3))
    third = elsewhere(tasks.note).enqueue("many")
    assert first.cancel(reason="not needed")
    assert async_to_sync(second.acancel)()
    assert cancel([third.id], using="other").count == 1
    HandWorker("other").claim()
    assert async_to_sync(acancel)(running.id, using="other").asked == (running.id,)

    first.refresh()
    assert first.state == "cancelled"
    assert FinishedTask.objects.using("other").filter(state=State.CANCELLED).count() == 3
    assert Task.objects.using("other").get().cancel
    assert untouched()


@case
def an_operator_replays_discards_and_pauses_there() -> None:
    first, second = (elsewhere(tasks.fail, max_attempts=1).enqueue(at) for at in range(2))
    run_worker()
    assert replay(first.id, using="other", reason="fixed").ids == (first.id,)
    assert discard([second.id], using="other").ids == (second.id,)
    assert pause_queue("default", using="other")

    assert HandWorker("other").claim() == []
    assert resume_queue("default", using="other")
    assert len(HandWorker("other").claim()) == 1
    assert sorted(AuditEntry.objects.using("other").values_list("action", flat=True)) == [
        "discard", "pause", "replay", "resume",
    ]  # fmt: skip
    assert untouched()


@case
def the_command_line_reads_and_acts_there() -> None:
    result = elsewhere(tasks.fail, max_attempts=1).enqueue("a")
    run_worker()
    told = io.StringIO()
    for words in ("dead list", f"inspect {result.id}", "stats", f"retry {result.id} --why fixed"):
        call_command("taskq", *words.split(), "--database", "other", "--json", stdout=told)

    assert told.getvalue().count(result.id) >= 3
    assert Task.objects.using("other").get().state == State.READY
    assert untouched()


@case
@override_settings(TASKS=MAIN_ELSEWHERE)
def the_admin_shows_and_acts_on_them_there() -> None:
    user = User.objects.create_superuser("admin")
    client = Client()
    client.force_login(user)
    result, dead = tasks.note.enqueue("a"), tasks.fail.using(max_attempts=1, queue_name="bad").enqueue("x")
    run_worker("default", queues="bad")

    pages = {
        model: client.get(reverse(f"admin:django_taskq_{model}_changelist")).content.decode()
        for model in ("task", "finishedtask", "deadtask", "queue", "worker", "auditentry")
    }
    shown = client.get(reverse("admin:django_taskq_deadtask_change", args=[dead.id])).content.decode()
    client.post(
        reverse("admin:django_taskq_task_act", args=["cancel"]), {"id": [result.id], "confirmed": "1", "reason": "no"}
    )

    assert result.id in pages["task"]
    assert dead.id in pages["deadtask"]
    assert "no luck with x" in shown
    assert FinishedTask.objects.using("other").get(pk=result.id).state == State.CANCELLED
    assert AuditEntry.objects.using("other").get().actor == "admin"
    assert untouched()


@case
@override_settings(TASKS=MAIN_ELSEWHERE)
def everybody_looks_where_the_main_backend_says() -> None:
    result = tasks.note.enqueue("a")
    dead = tasks.fail.using(max_attempts=1, queue_name="bad").enqueue("x")
    run_worker("default", queues="bad")
    told = io.StringIO()
    for words in ("dead list", f"inspect {result.id}", "prune --dry-run"):
        call_command("taskq", *words.split(), "--json", stdout=told)

    assert dead.id in told.getvalue()
    assert find_task(dead.id).pk == FinishedTask.objects.using("other").get().pk
    assert [outcome.task_id for outcome in finished_since(None, lag=0).outcomes] == [dead.id]
    assert pause_queue("default")
    assert cancel(result.id).count == replay(dead.id).count == 1
    assert untouched()


@case
@override_settings(DATABASE_ROUTERS=["tests.two_databases.ToOther"])
def a_router_is_enough() -> None:
    result = tasks.return_this.enqueue(3)
    late = tasks.note.using(enqueue_on_commit=True)
    with transaction.atomic(using="other"):
        late.enqueue("late")
        before = Task.objects.count()
    run_worker("default")
    unwanted = tasks.note.using(delay=3600).enqueue("unwanted")

    assert before == 1
    assert result.get(timeout=1) == 3
    assert unwanted.cancel()
    assert find_task(result.id).pk == FinishedTask.objects.using("other").get(pk=result.id).pk
    assert len(finished_since(None, lag=0).outcomes) == rows("other") == 3
    assert untouched()


@tasks.task(validate=True)
def on_day(day: date) -> date:
    """A task whose argument is no JSON."""
    assert isinstance(day, date)
    return day


@tasks.task
def on_typed_day(day: date) -> date:
    """A task whose argument is checked where its backend says so."""
    assert isinstance(day, date)
    return day


@contextmanager
def kept(kind: type[Exception]) -> Iterator[list[Exception]]:
    """Give the exception of this kind that has to come."""
    raised: list[Exception] = []
    try:
        yield raised
    except kind as error:
        raised.append(error)
    assert raised, f"no {kind.__name__}"


def with_validation(name: str, **options: Any) -> dict[str, Any]:
    """Return the backends, of which one validates all arguments and has options of its own."""
    own = {**settings.TASKS[name].get("OPTIONS", {}), "VALIDATE": True, **options}
    return {**settings.TASKS, name: {**settings.TASKS[name], "OPTIONS": own}}


@case
def a_member_of_another_database_is_refused_before_its_arguments() -> None:
    signature = elsewhere(on_day).s(5)
    compositions = [chain(signature), batch([tasks.note.s(1)]).then(signature), chain(tasks.note.s(1), signature)]
    with override_settings(TASKS=with_validation("default")):
        compositions.append(chain(elsewhere(on_typed_day).s(5)))

        for made in compositions:
            with kept(InvalidWorkflow) as raised:
                made.enqueue()
            text = str(raised[0])
            assert "is stored in the database 'other', by its backend 'elsewhere'" in text
            assert "workflows in 'default'" in text
            assert "using(backend='default')" in text
    assert rows("default") == rows("other") == 0


@case
def members_that_validate_go_where_the_main_backend_says() -> None:
    with override_settings(TASKS=MAIN_ELSEWHERE):
        flow = chain(on_day.s(date(2026, 1, 2)), on_day.s(previous)).then(on_day.s(date(2026, 1, 3))).enqueue()
        run_worker("default")

        assert flow.wait(timeout=5).status == "completed"
        ended = FinishedTask.objects.using("other").order_by("pk")
        assert [row.result for row in ended] == ['"2026-01-02"', '"2026-01-02"', '"2026-01-03"']
        assert untouched()


@case
def a_member_is_stored_by_the_rules_of_its_own_backend() -> None:
    with override_settings(TASKS=with_validation("elsewhere", DATABASE="default", MAX_ATTEMPTS=9)):
        alone = elsewhere(on_typed_day).enqueue(date(2026, 1, 2))
        flow = chain(elsewhere(on_typed_day).s(date(2026, 1, 2))).then(elsewhere(on_typed_day).s(date(2026, 1, 3)))
        flow.enqueue()
        run_worker("elsewhere")

        ended = FinishedTask.objects.using("default").order_by("pk")
        assert [(row.result, row.max_attempts) for row in ended] == [
            ('"2026-01-02"', 9), ('"2026-01-02"', 9), ('"2026-01-03"', 9),
        ]  # fmt: skip
        assert alone.id == str(ended[0].pk)
        with kept(InvalidArguments) as raised:
            chain(elsewhere(on_typed_day).s("tomorrow")).enqueue()
        assert "must be date" in str(raised[0])


@case
def upkeep_is_done_there() -> None:
    elsewhere(tasks.note).enqueue("old")
    run_worker()
    FinishedTask.objects.using("other").update(finished_at=clock.now() - timedelta(days=400))
    leader = HandWorker("other")
    runner = DutyRunner("other", lambda: leader.id, conf.options("elsewhere"), clock.now)
    wait_for(lambda: runner.run_due() or not FinishedTask.objects.using("other").exists(), 20)

    assert not FinishedTask.objects.using("other").exists()
    assert untouched()


@tasks.task(backend="elsewhere")
def stocktake() -> None:
    """A task whose schedule lives in the second database, too."""


@case
def a_schedule_ticks_there() -> None:
    schedule(cron="* * * * * *", name="stocktake", timezone="UTC")(stocktake)
    leader = HandWorker("other")
    runner = DutyRunner("other", lambda: leader.id, conf.options("elsewhere"), clock.now)
    first = DutyRunner("default", lambda: 1, conf.options("default"), clock.now)
    try:
        wait_for(lambda: runner.run_due() or ScheduleTick.objects.using("other").exists(), 20)
        first.run_due()
    finally:
        declarations.forget("stocktake")

    [tick, *_] = ScheduleTick.objects.using("other").order_by("at")
    assert Task.objects.using("other").get(pk=tick.task_id).schedule.name == "stocktake"
    assert not Schedule.objects.using("default").exists()
    assert not Task.objects.using("default").exists()


@tasks.task(ack="atomic")
def leave_effect(key: str, alias: str, *, fails: bool) -> None:
    """Write into a database, and fail after it."""
    Effect.objects.using(alias).create(key=key)
    if fails:
        raise ValueError(key)


def empty() -> None:
    """Leave both databases as they were made."""
    tasks.forget()
    # Ticks before their schedules.
    models = [*reversed([*apps.get_app_config("django_taskq").get_models()]), Effect, User]
    for alias in connections:
        for model in models:
            if not model._meta.proxy:
                model._base_manager.using(alias).all()._raw_delete(alias)
    # Queues are registered once per process, and their rows are gone.
    wake._known.clear()


def main() -> None:
    setup_test_environment()
    made = setup_databases(verbosity=0, interactive=False)
    found: dict[str, str] = {}
    try:
        for name, function in CASES.items():
            empty()
            try:
                function()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    finally:
        connections.close_all()
        teardown_databases(made, verbosity=0)
    json.dump(found, sys.stdout)
