"""Middleware: what stands around a task function and around an enqueue, and what is ready to use."""

from __future__ import annotations

import pickle
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction
from django.test import override_settings

from django_taskq import InvalidOptions, Skip, batch, chain, events, previous, task
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import State
from django_taskq.duties import prune
from django_taskq.exceptions import LeaseLost
from django_taskq.lifecycle.rescue import rescue
from django_taskq.middleware import fail_on, rate_limited, retry_policy, skip_when, within, without_overlapping
from django_taskq.models import FinishedTask, Lock, Task
from django_taskq.store import locks
from django_taskq.testing import record_tasks
from tests import engine
from tests.engine import (
    announce,
    claim_one,
    db_now,
    drain,
    in_a_loop,
    outcomes_of,
    ready_task,
    row_of,
    running_worker,
    state_of,
    wait_for,
    worker_process,
    worker_processes,
)
from tests.faces.backend_tasks import add_plainly
from tests.guarantees import around_tasks as tasks
from tests.guarantees.tasks import gates, ran

pytestmark = pytest.mark.django_db(transaction=True)

OUTER = {"MIDDLEWARE": ["tests.guarantees.around_tasks.outer"]}


@pytest.fixture(autouse=True)
def _nothing_answered() -> None:
    tasks.answers.clear()


def finished(result: Any) -> FinishedTask:
    row = row_of(result)
    assert isinstance(row, FinishedTask), state_of(result)
    return row


def result_after_a_run(definition: Any, *args: Any, **kwargs: Any) -> Any:
    """Enqueue a task, run it, and return its result."""
    result = definition.enqueue(*args, **kwargs)
    drain()
    result.refresh()
    return result


# Around the function


def test_the_settings_middleware_is_outside_then_the_tasks_own_in_their_order() -> None:
    with override_settings(TASKQ=OUTER):
        found = result_after_a_run(tasks.ordered, 7)

    assert found.return_value == 7
    assert ran == ["outer in", "first in", "second in", "task", "second out", "first out", "outer out"]


def test_a_task_without_middleware_has_nothing_around_it() -> None:
    found = result_after_a_run(tasks.bare, 7)

    assert (found.return_value, ran) == (7, ["task"])


def test_a_plain_task_of_django_gets_the_settings_middleware_too() -> None:
    with override_settings(TASKQ=OUTER):
        found = result_after_a_run(add_plainly, 1, b=2)

    assert (found.return_value, ran) == (3, ["outer in", "outer out"])


def test_a_backends_own_setting_holds_for_its_tasks() -> None:
    backend = {"BACKEND": "django_taskq.backend.DatabaseBackend", "QUEUES": [], "OPTIONS": OUTER}

    with override_settings(TASKS={"default": backend}):
        result_after_a_run(tasks.bare)

    assert ran == ["outer in", "task", "outer out"]


def test_a_class_is_made_once_and_stands_around_both_kinds_of_function() -> None:
    before = tasks.Both.made

    for _ in range(2):
        assert result_after_a_run(tasks.plain_both, 3).return_value == 3
        assert result_after_a_run(tasks.async_both, 4).return_value == 4

    assert ran == ["both in", "both in, awaited"] * 2
    assert tasks.Both.made - before <= 1


def test_a_coroutine_on_the_workers_event_loop_is_wrapped_as_well() -> None:
    result = tasks.async_both.enqueue(4)

    with running_worker(async_slots=4):
        wait_for(lambda: state_of(result) == "succeeded")

    assert ran == ["both in, awaited"]


def test_a_middleware_sees_the_task_and_may_replace_arguments_and_result() -> None:
    found = result_after_a_run(tasks.seen_and_doubled.using(metadata={"user": 5}), 3, extra=1)

    name = "tests.guarantees.around_tasks.seen_and_doubled"
    assert ran == [(name, "default", 1, (3,), {"extra": 1}, {"user": 5})]
    # call_next(value) replaces all arguments: the keyword is gone.
    assert found.return_value == {"got": 6, "args": [6]}


def test_the_context_of_a_task_that_takes_one_is_not_among_its_arguments() -> None:
    found = result_after_a_run(tasks.seen_with_context, 3)

    assert ran == [("tests.guarantees.around_tasks.seen_with_context", "default", 1, (3,), {}, {})]
    assert found.return_value == [1, 3]


def test_a_middleware_may_answer_for_the_task_and_make_a_failure_a_success() -> None:
    assert result_after_a_run(tasks.never_run).return_value == "instead"
    assert result_after_a_run(tasks.swallowed).return_value == "swallowed a mistake"
    assert ran == []


def test_a_failing_middleware_fails_the_attempt_and_is_named() -> None:
    result = result_after_a_run(tasks.breaks_before)

    assert result.state == "dead"
    assert outcomes_of(result) == ["failed", "failed"]
    assert ran == ["fine in", "fine out"] * 2
    for error in result.errors:
        assert error.exception_class_path == "builtins.LookupError"
        assert "Raised by the middleware tests.guarantees.around_tasks.broken_before, before it went on" in (
            error.traceback
        )


def test_a_middleware_that_fails_after_the_function_is_named_too() -> None:
    [error] = result_after_a_run(tasks.breaks_after).errors

    assert ran == ["task"]
    assert "around_tasks.broken_after, after it had gone on to the task function" in error.traceback


def test_a_failure_of_the_function_is_blamed_on_no_middleware() -> None:
    [error] = result_after_a_run(tasks.breaks_itself).errors

    assert error.exception_class_path == "builtins.KeyError"
    assert "Raised by the middleware" not in error.traceback


def test_putting_a_task_off_in_a_middleware_uses_no_attempt() -> None:
    result = result_after_a_run(tasks.put_off)

    row = row_of(result)
    assert isinstance(row, Task)
    assert (result.state, row.attempt, outcomes_of(result), ran) == ("scheduled", 0, [], [])


def test_a_context_manager_stands_around_both_kinds_of_function() -> None:
    for definition in (tasks.who, tasks.awho):
        assert result_after_a_run(definition.using(metadata={"tenant": "acme"})).return_value == "acme"
        assert result_after_a_run(definition).return_value == "nobody"
    assert tasks.tenant.get() == "nobody"


def test_the_timeout_covers_the_middleware() -> None:
    for definition in (tasks.slow_around, tasks.aslow_around):
        result = result_after_a_run(definition)
        assert (result.state, outcomes_of(result), ran) == ("dead", ["timed_out"], [])


def test_a_middleware_named_by_its_path_is_imported_when_the_task_runs() -> None:
    result_after_a_run(tasks.by_path)
    assert ran == ["outer in", "task", "outer out"]

    [error] = result_after_a_run(tasks.by_wrong_path).errors
    assert "'tests.guarantees.nowhere.at_all', which cannot be imported" in error.traceback


def test_what_cannot_stand_around_a_function_is_refused_where_it_is_defined() -> None:
    async def coroutine() -> None: ...

    def plain() -> None: ...

    coroutine.__qualname__, plain.__qualname__ = "coroutine", "plain"

    with pytest.raises(InvalidOptions, match=r"plain middleware cannot stand around a coroutine function: .*outer"):
        task(middleware=[tasks.outer])(coroutine)
    with pytest.raises(InvalidOptions, match=r"async middleware cannot stand around a plain function: .*only_async"):
        task(middleware=[tasks.only_async])(plain)
    with pytest.raises(InvalidOptions, match="must be callables, classes of them, or their dotted paths, got 3"):
        task(middleware=[3])(plain)  # type: ignore[list-item]
    with pytest.raises(InvalidOptions, match=r"must be a list of callables or their dotted paths, got 'a.b'"):
        task(middleware="a.b")(plain)
    with pytest.raises(InvalidOptions, match="async middleware cannot stand around a plain function"):
        task(enqueue_middleware=[tasks.only_async])(plain)


def test_a_generator_that_would_run_nothing_is_refused_where_it_is_defined() -> None:
    def plain() -> None: ...

    async def coroutine() -> None: ...

    def bare(context: Any, call_next: Any) -> Any:
        yield call_next()

    async def abare(context: Any, call_next: Any) -> Any:
        yield await call_next()

    class Both:
        def __call__(self, context: Any, call_next: Any) -> Any:
            return call_next()

        acall = staticmethod(abare)

    plain.__qualname__, coroutine.__qualname__ = "plain", "coroutine"

    for middleware, function in ((bare, plain), (bare, coroutine), (abare, coroutine), (Both, coroutine)):
        with pytest.raises(InvalidOptions, match=r"must not be a generator function.*within"):
            task(middleware=[middleware])(function)
    with pytest.raises(InvalidOptions, match="enqueue_middleware must not be a generator function"):
        task(enqueue_middleware=[bare])(plain)


def test_the_settings_middleware_that_does_not_fit_a_task_is_reported_by_check_and_fails_its_attempt() -> None:
    with override_settings(TASKQ=OUTER):
        with pytest.raises(SystemCheckError, match=r"taskq.E008.*around tests.guarantees.around_tasks.abare"):
            call_command("check", "--tag", "django_taskq")

        [error] = result_after_a_run(tasks.abare).errors

    assert "a plain middleware cannot stand around a coroutine function" in error.traceback
    assert ran == []


def test_a_path_of_the_settings_that_leads_nowhere_is_reported_by_check() -> None:
    with (
        override_settings(TASKQ={"ENQUEUE_MIDDLEWARE": ["shop.nowhere.stamp"]}),
        pytest.raises(SystemCheckError, match=r"taskq.E008.*'shop.nowhere.stamp', which cannot be imported"),
    ):
        call_command("check", "--tag", "django_taskq")


def test_a_definition_with_middleware_travels_as_its_path() -> None:
    copy = pickle.loads(pickle.dumps(tasks.ordered.using(priority=3)))

    assert (copy.priority, copy.middleware) == (3, tasks.ordered.middleware)


@pytest.mark.parametrize("backend", ["ImmediateBackend"])
def test_running_in_line_goes_through_the_same_middleware(backend: str) -> None:
    with override_settings(TASKS={"default": {"BACKEND": f"django_taskq.backend.{backend}", "QUEUES": []}}):
        assert tasks.seen_and_doubled.enqueue(3).return_value == {"got": 6, "args": [6]}
        assert tasks.async_both.enqueue(4).return_value == 4
        assert tasks.who.using(metadata={"tenant": "acme"}).enqueue().return_value == "acme"
        assert tasks.seen_with_context.enqueue(3).return_value == [1, 3]
        assert tasks.arranged.enqueue(3).return_value == 6
        assert tasks.alone.enqueue(1).return_value == 1
        tasks.answers["skip"] = True
        assert (tasks.skipped.enqueue(1).status, tasks.skipped.enqueue(1).return_value) == ("SUCCESSFUL", None)
        with pytest.raises(PermissionError):
            tasks.arranged.enqueue(-1)


@pytest.mark.slow
def test_a_process_of_its_own_runs_the_middleware_with_the_function() -> None:
    result = tasks.seen_and_doubled.enqueue(3)

    with running_worker(executor="processes", threads=1):
        wait_for(lambda: state_of(result) == "succeeded", 60)

    assert finished(result).result_value == {"got": 6, "args": [6]}


# Ready to use: skip, fail, limit, retry


def test_a_skipped_task_succeeds_without_a_result_and_says_so() -> None:
    told: list[Any] = []
    for kind in (events.TaskSucceeded, events.TaskSkipped):
        events.subscribe(kind, told.append)
    tasks.answers["skip"] = "the shop is closed"

    try:
        result, awaited = result_after_a_run(tasks.skipped, 3), result_after_a_run(tasks.askipped)
    finally:
        for kind in (events.TaskSucceeded, events.TaskSkipped):
            events.unsubscribe(kind, told.append)

    assert (result.state, result.return_value, ran) == ("succeeded", None, [])
    assert (awaited.state, awaited.return_value) == ("succeeded", None)
    assert finished(result).error_line == "skipped: the shop is closed"
    assert finished(awaited).error_line == "skipped: not today"
    assert [type(event).__name__ for event in told] == ["TaskSucceeded", "TaskSkipped"] * 2
    assert told[1].reason == "the shop is closed"


def test_a_task_is_not_skipped_where_the_predicate_says_no() -> None:
    assert result_after_a_run(tasks.skipped, 3).return_value == 3
    assert result_after_a_run(tasks.askipped).return_value == "done"


def test_a_skipped_member_lets_its_workflow_go_on() -> None:
    tasks.answers["skip"] = True

    chain(tasks.skipped.s(1), tasks.ordered.s(previous)).enqueue()
    drain()

    assert ran == ["first in", "second in", "task", "second out", "first out"]


def test_a_task_may_skip_itself() -> None:
    result = result_after_a_run(skips_itself)

    assert (result.state, finished(result).error_line) == ("succeeded", "skipped: no news")


@task
def skips_itself() -> None:
    """Have nothing to do."""
    raise Skip("no news")


def test_a_final_error_makes_a_task_dead_at_once_and_stays_visible() -> None:
    dead = result_after_a_run(tasks.fails_for_good, "PermissionError")
    adead = result_after_a_run(tasks.afails_for_good, "card refused")

    assert (finished(dead).reason, outcomes_of(dead)) == ("gave_up", ["gave_up"])
    assert finished(dead).error_class == "builtins.PermissionError"
    assert (finished(adead).reason, finished(adead).error_class) == ("gave_up", "builtins.ValueError")


def test_other_errors_are_retried_as_ever() -> None:
    for definition, argument in ((tasks.fails_for_good, "ValueError"), (tasks.afails_for_good, "no answer")):
        result = result_after_a_run(definition, argument)
        assert (finished(result).reason, outcomes_of(result)) == ("exhausted", ["failed"] * 3)


@pytest.mark.parametrize("definition", [tasks.limited, tasks.alimited], ids=["plain", "coroutine"])
def test_a_limiter_puts_a_task_off_at_no_attempts_cost(definition: Any) -> None:
    tasks.answers["wait"] = timedelta(seconds=60)
    result = result_after_a_run(definition)

    row = row_of(result)
    assert isinstance(row, Task)
    assert row.run_after is not None
    assert (row.attempt, ran) == (0, [])
    assert 55 < (row.run_after - db_now()).total_seconds() <= 60

    tasks.answers["wait"] = True
    assert result_after_a_run(definition).state == "succeeded"


def test_a_limiter_that_answers_neither_is_told_the_rule() -> None:
    tasks.answers["wait"] = False

    [error] = result_after_a_run(tasks.limited).errors

    assert "a limiter must return True, or the seconds to wait, got False" in error.traceback


@pytest.mark.parametrize(
    ("kind", "seconds"), [("ConnectionResetError", 100), ("ValueError", 200)], ids=["its own class", "otherwise"]
)
def test_a_policy_chooses_the_wait_by_the_nearest_class(kind: str, seconds: int) -> None:
    result = tasks.by_policy.enqueue(kind)
    engine.run_and_settle(claim_one())

    row = row_of(result)
    assert row is not None
    assert row.run_after is not None
    assert seconds - 5 < (row.run_after - db_now()).total_seconds() <= seconds
    assert (row.attempt, outcomes_of(result)) == (1, ["failed"])


def test_a_policy_bounds_the_attempts_by_the_class_and_the_error_stays_visible() -> None:
    at_once, twice = (
        result_after_a_run(tasks.by_policy, "KeyError"),
        result_after_a_run(tasks.by_policy, "FileNotFoundError"),
    )

    assert (finished(at_once).reason, outcomes_of(at_once)) == ("exhausted", ["failed"])
    assert finished(at_once).error_class == "builtins.KeyError"
    assert (finished(twice).reason, outcomes_of(twice)) == ("exhausted", ["failed", "failed"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: skip_when(3), "predicate must be a callable"),  # type: ignore[arg-type]
        (fail_on, "needs exception classes, or when="),
        (lambda: fail_on("KeyError"), "takes exception classes, got 'KeyError'"),  # type: ignore[arg-type]
        (lambda: rate_limited("5/m"), "limiter must be a callable"),  # type: ignore[arg-type]
        (lambda: retry_policy({"KeyError": 3}), "exception classes, got the key 'KeyError'"),  # type: ignore[dict-item]
        (lambda: retry_policy({KeyError: "soon"}), "must be Fixed, Steps, Exponential, a number"),
        (lambda: retry_policy({KeyError: (3, 0)}), "must be a pair such as"),
        (lambda: within(3), "factory must be a callable"),  # type: ignore[arg-type]
        (lambda: without_overlapping(ttl=0), "ttl must be a timedelta or a number of seconds, more than 0"),
        (lambda: without_overlapping(3), "key must be a text, or a callable"),  # type: ignore[arg-type]
    ],
)
def test_what_is_ready_to_use_refuses_what_it_cannot_use(make: Any, message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        make()


# Ready to use: one at a time


def take(row: Task, *, key: str = "key", ttl: timedelta | None = None) -> bool:
    """Take a lock for the attempt that this claimed row stands for."""
    assert row.lease is not None
    return locks.take(engine.ALIAS, key, task_id=row.pk, lease=row.lease, ttl=ttl)


def claimed(worker_id: int | None = None) -> Task:
    """Return the row of a task that a worker holds."""
    made = ready_task()
    claim_one(worker_id)
    return Task.objects.get(pk=made.pk)


def test_whoever_finds_the_key_taken_is_put_off_at_no_attempts_cost() -> None:
    holder = claimed()
    assert take(holder, key="tests.guarantees.around_tasks.alone")

    result = result_after_a_run(tasks.alone)

    row = row_of(result)
    assert isinstance(row, Task)
    assert row.run_after is not None
    assert (row.attempt, outcomes_of(result), ran) == (0, [], [])
    assert 55 < (row.run_after - db_now()).total_seconds() <= 60


def test_a_lock_ends_with_the_function_and_leaves_no_row() -> None:
    assert result_after_a_run(tasks.alone, 1).return_value == 1
    assert result_after_a_run(tasks.alone, 2).return_value == 2
    assert not Lock.objects.exists()


def test_keys_made_of_arguments_exclude_only_each_other() -> None:
    assert take(claimed(), key="account:1")

    one, two = (
        result_after_a_run(tasks.aalone_per_account, 1),
        result_after_a_run(tasks.aalone_per_account, account_id=2),
    )

    assert (one.state, two.state) == ("scheduled", "succeeded")
    assert list(Lock.objects.values_list("key", flat=True)) == ["account:1"]


def test_of_attempts_that_ask_at_once_one_gets_the_key() -> None:
    rows = [claimed() for _ in range(8)]

    got = engine.in_threads(*(lambda row=row: take(row) for row in rows))  # type: ignore[misc]

    assert sorted(got) == [False] * 7 + [True]


def test_the_key_of_an_attempt_that_is_over_goes_to_one_of_those_that_ask_at_once() -> None:
    gone, *rows = [claimed() for _ in range(7)]
    assert take(gone)
    Task.objects.filter(pk=gone.pk).delete()

    got = engine.in_threads(*(lambda row=row: take(row) for row in rows))  # type: ignore[misc]

    assert sorted(got) == [False] * 5 + [True]


def test_in_a_race_of_takes_releases_and_lost_attempts_never_two_are_inside() -> None:
    """Each thread plays attempts one after the other; every third is lost without a release."""
    inside: list[Any] = []
    seen: list[int] = []

    def attempts(number: int) -> int:
        got = 0
        for turn in range(12):
            row = ready_task(state=State.RUNNING, attempt=1, lease=make_lease(number + 1, turn), started_at=db_now())
            if take(row):
                got += 1
                inside.append(row.pk)
                seen.append(len(inside))
                inside.remove(row.pk)
                if turn % 3:
                    assert row.lease is not None
                    locks.release(engine.ALIAS, "key", task_id=row.pk, lease=row.lease)
            Task.objects.filter(pk=row.pk).delete()
        return got

    got = engine.in_threads(*(lambda number=number: attempts(number) for number in range(8)))  # type: ignore[misc]

    assert set(seen) == {1}
    assert sum(got) == len(seen) >= 12


def test_tasks_that_were_claimed_together_exclude_each_other_too() -> None:
    rows = [ready_task() for _ in range(2)]
    engine.claim(limit=2)
    one, two = Task.objects.order_by("pk")

    assert (one.lease, {one.pk, two.pk}) == (two.lease, {row.pk for row in rows})
    assert (take(one), take(two)) == (True, False)
    assert two.lease is not None
    locks.release(engine.ALIAS, "key", task_id=two.pk, lease=two.lease)
    assert not take(two)


def test_asking_again_after_a_lost_answer_finds_the_own_lock() -> None:
    row, other = claimed(), claimed()

    assert [take(row), take(row), take(other), take(row)] == [True, True, False, True]


def test_the_lock_of_a_silent_worker_is_free_when_its_task_is_rescued_and_not_before() -> None:
    silent, other = claimed(announce(silent_for=31)), claimed()
    assert take(silent)
    assert not take(other)

    rescue(engine.ALIAS, now=db_now())

    assert take(other)


def test_a_worker_that_lost_its_lease_can_neither_take_a_lock_nor_release_anothers() -> None:
    zombie, other = claimed(announce(silent_for=31)), claimed()
    assert take(zombie)
    rescue(engine.ALIAS, now=db_now())

    with pytest.raises(LeaseLost):
        take(zombie)
    assert take(other)
    assert zombie.lease is not None
    locks.release(engine.ALIAS, "key", task_id=zombie.pk, lease=zombie.lease)
    with pytest.raises(LeaseLost):
        take(zombie, key="another")

    assert list(Lock.objects.values_list("key", "task_id")) == [("key", other.pk)]


def test_a_lock_that_was_taken_by_a_zombie_in_between_is_given_back() -> None:
    zombie = claimed()
    Task.objects.filter(pk=zombie.pk).delete()

    with pytest.raises(LeaseLost):
        take(zombie)

    assert not Lock.objects.exists()


def test_a_time_to_live_ends_a_lock_before_its_attempt_does() -> None:
    slow, other = claimed(), claimed()

    assert take(slow, ttl=timedelta(seconds=30))
    assert not take(other)
    Lock.objects.update(until=db_now() - timedelta(seconds=1))

    assert take(other)
    assert not take(slow)


def test_a_lock_that_a_killed_worker_left_behind_is_swept_once_its_attempt_is_over() -> None:
    gone, live = claimed(), claimed()
    assert take(gone, key="gone")
    assert take(live, key="live")
    Task.objects.filter(pk=gone.pk).delete()
    Lock.objects.update(taken_at=db_now() - timedelta(hours=2))

    prune.run_once(engine.ALIAS, engine.conf.options(), db_now())

    assert list(Lock.objects.values_list("key", flat=True)) == ["live"]


def test_an_atomic_task_cannot_be_kept_from_overlapping_and_says_so_at_once() -> None:
    result = result_after_a_run(tasks.alone_atomic)

    assert finished(result).reason == "gave_up"
    assert "cannot stand around a task with ack='atomic'" in result.errors[0].traceback
    assert (ran, Lock.objects.count()) == ([], 0)


def test_a_key_that_the_arguments_cannot_fill_is_told() -> None:
    [error] = result_after_a_run(tasks.alone_by_a_wrong_key).errors

    assert "key '{nobody}' names 'nobody', which is no parameter of alone_by_a_wrong_key" in error.traceback


def test_two_threads_of_a_worker_run_tasks_of_one_key_one_after_the_other() -> None:
    first = tasks.alone_at_a_gate.enqueue("first")

    with running_worker(threads=4):
        wait_for(gates["first runs"].is_set)
        second = tasks.alone_at_a_gate.enqueue("second")
        wait_for(lambda: state_of(second) == "scheduled")
        assert ran == ["first"]
        gates["first"].set()
        wait_for(lambda: state_of(first) == "succeeded")

    assert not gates["second runs"].is_set()


def spans_of(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return when tasks ran, by account, from what they wrote; one that was killed has no end."""
    open_spans: dict[tuple[str, str, str], float] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text().splitlines():
        what, account, task_id, attempt, at = line.split()
        key = (account, task_id, attempt)
        if what == "start":
            open_spans[key] = float(at)
        else:
            spans.setdefault(account, []).append((open_spans.pop(key), float(at)))
    return spans


def overlaps(spans: dict[str, list[tuple[float, float]]]) -> list[Any]:
    found = []
    for account, pairs in spans.items():
        ordered = sorted(pairs)
        found += [(account, one, two) for one, two in pairwise(ordered) if two[0] < one[1]]
    return found


@pytest.mark.slow
def test_workers_of_several_processes_never_overlap_on_a_key(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    path.touch()
    for at in range(40):
        tasks.alone_per_account.enqueue(at % 2, str(path), 0.01)

    with worker_processes(3, threads=4, poll=0.05):
        wait_for(lambda: FinishedTask.objects.count() == 40, 90)

    spans = spans_of(path)
    assert sum(map(len, spans.values())) == 40
    assert overlaps(spans) == []
    assert not Lock.objects.exists()


@pytest.mark.slow
def test_a_killed_workers_key_is_free_within_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    path.touch()
    first = tasks.alone_per_account.enqueue(1, str(path), 30.0)
    with worker_process(threads=1) as doomed:
        wait_for(path.read_text)
        doomed.kill()
    # So that it does not run again after its rescue.
    first.cancel()
    second = tasks.alone_per_account.enqueue(1, str(path), 0.0)

    with worker_process(threads=1, poll=0.05):
        wait_for(lambda: state_of(second) == "succeeded", 60)

    assert (state_of(first), outcomes_of(first)) == ("cancelled", ["lost"])
    assert path.read_text().count("start") == 2
    assert finished(second).started_at >= finished(first).finished_at  # type: ignore[operator]
    assert finished(second).attempt == 1


# Around the enqueue


def test_an_enqueue_middleware_changes_arguments_and_options_before_the_row_is_made() -> None:
    result = tasks.arranged.enqueue(3)

    row = row_of(result)
    assert isinstance(row, Task)
    assert (row.arguments[0], row.queue, row.priority) == ([6], "even", 5)
    assert (result.args, result.task.queue_name) == ([6], "even")


def test_an_enqueue_middleware_refuses_and_nothing_is_stored() -> None:
    told: list[Any] = []
    events.subscribe(events.EnqueueRejected, told.append)

    try:
        with transaction.atomic(), pytest.raises(PermissionError, match=r"no -2 for .*arranged on default"):
            tasks.arranged.enqueue(-1)
        with pytest.raises(PermissionError):
            tasks.arranged.enqueue_many([(1,), (-1,)])
        with pytest.raises(PermissionError):
            chain(tasks.arranged.s(1), tasks.arranged.s(-1)).enqueue()
    finally:
        events.unsubscribe(events.EnqueueRejected, told.append)

    assert not Task.objects.exists()
    assert [type(event.error) for event in told] == [PermissionError, PermissionError]


def test_every_way_to_enqueue_goes_through_it_once_for_each_call() -> None:
    async def enqueue_async() -> None:
        await tasks.arranged.aenqueue(2)
        await tasks.arranged.s(3).aenqueue()

    tasks.arranged.enqueue(1)
    async_to_sync(enqueue_async)()
    many = tasks.arranged.enqueue_many([(4,), tasks.arranged.s(5)])
    chain(tasks.arranged.s(6), tasks.arranged.s(7)).enqueue()
    batch([tasks.arranged.s(8)]).then(tasks.arranged.s(9)).enqueue()
    drain(queues="even")

    assert sorted(ran) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [result.args for result in many] == [[8], [10]]


@task(enqueue_middleware=[tasks.sorting])
def sorted_number(number: int) -> None:
    """Be on a queue by its number."""


def test_many_calls_with_options_of_their_own_are_stored_in_order_all_or_none() -> None:
    results = sorted_number.enqueue_many([(number,) for number in range(6)])

    rows = [row_of(result_id) for result_id in results.ids]
    assert [(row.arguments[0][0], row.queue) for row in rows if row] == [
        (number, "even" if number % 2 == 0 else "default") for number in range(6)
    ]
    assert [result.task.queue_name for result in results] == ["even", "default"] * 3
    assert len(set(results.ids)) == 6


def test_what_it_puts_into_the_metadata_is_there_when_the_task_runs() -> None:
    token = tasks.tenant.set("acme")
    try:
        one = tasks.stamped.enqueue()
        many = tasks.stamped.enqueue_many([(1,), (2,)])
        chain(tasks.stamped.s(1), tasks.stamped.s(2)).enqueue()
    finally:
        tasks.tenant.reset(token)
    drain()

    assert {row.result_value for row in FinishedTask.objects.all()} == {"acme"}
    assert FinishedTask.objects.count() == len(many) + 3
    assert finished(one).result_value == "acme"


def test_an_aenqueue_sees_the_context_variables_of_its_coroutine() -> None:
    async def enqueue() -> Any:
        tasks.tenant.set("acme")
        return await tasks.stamped.aenqueue()

    result = in_a_loop(enqueue())
    drain()

    assert finished(result).result_value == "acme"


def test_a_recorder_sees_what_would_have_been_stored() -> None:
    with record_tasks() as recorded:
        tasks.arranged.enqueue(3)
        sorted_number.enqueue_many([(1,), (2,)])

    assert [(found.args, found.queue) for found in recorded.tasks] == [
        ([6], "even"),
        ([1], "default"),
        ([2], "even"),
    ]


def test_one_of_the_settings_is_outside_of_the_tasks_own() -> None:
    with override_settings(TASKQ={"ENQUEUE_MIDDLEWARE": ["tests.guarantees.around_tasks.refusing"]}):
        assert tasks.arranged.enqueue(1).args == [2]
        with pytest.raises(PermissionError, match="no -1 for"):
            tasks.arranged.enqueue(-1)


def test_one_that_neither_goes_on_nor_refuses_is_told_so() -> None:
    with pytest.raises(InvalidOptions, match=r"around_tasks.forgetting returned without calling enqueue_next"):
        tasks.forgotten.enqueue(1)


def test_one_cannot_move_a_call_to_another_backend() -> None:
    backend = {"BACKEND": "django_taskq.backend.DatabaseBackend", "QUEUES": []}
    setting = {"ENQUEUE_MIDDLEWARE": ["tests.guarantees.around_tasks.moving"]}

    with (
        override_settings(TASKS={"default": backend, "other": backend}, TASKQ=setting),
        pytest.raises(InvalidOptions, match="cannot move a call from the backend 'default' to 'other'"),
    ):
        tasks.bare.enqueue()


def test_a_key_that_is_too_long_for_its_column_is_told_apart_by_its_end() -> None:
    for text in ("a" * 300 + "1", "a" * 300 + "2"):
        result_after_a_run(tasks.alone_by_text, text)

    assert len(set(ran)) == 2
    assert all(len(key) == 200 for key in ran)
