"""Names that lead nowhere: put aside for a worker that knows them, dead when nobody did for the grace time."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings

from django_taskq import api
from django_taskq.lifecycle import definitions
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import claim_one, db_now, drain, outcomes_of, ready_task, row_of, run_burst, state_of
from tests.guarantees import renamed
from tests.guarantees.tasks import note, ran

pytestmark = pytest.mark.django_db(transaction=True)

LATER = timedelta(seconds=6)


@pytest.fixture(autouse=True)
def _look_again() -> Any:
    definitions.forget_all()
    yield
    definitions.forget_all()


def due_again() -> None:
    Task.objects.update(run_after=db_now() - timedelta(seconds=1))
    engine.vendor_for(engine.ALIAS).promote(db_now(), 10)
    definitions.forget_all()


def test_an_unknown_name_is_put_aside_at_no_attempts_cost() -> None:
    """S2-07, S2-30: a rolling deploy: other workers may know it."""
    task = ready_task("shop.tasks.not_here_yet")

    engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, Task)
    assert (state_of(task), row.attempt, outcomes_of(task)) == ("scheduled", 0, [])
    assert row.run_after is not None
    assert (row.run_after - db_now()) < LATER


def test_it_does_not_hold_up_the_others() -> None:
    """S2-30: the loop goes on."""
    ready_task("shop.tasks.not_here_yet", rank=-50)
    other = note.enqueue("other")

    run_burst(threads=1)

    assert state_of(other) == "succeeded"


def test_it_is_dead_when_nobody_knew_it_for_the_grace_time() -> None:
    """S2-30: it fails, and does not wait for ever."""
    with override_settings(TASKQ={"UNKNOWN_TASK_GRACE": 0.2}):
        task = ready_task("shop.tasks.never")
        engine.run_and_settle(claim_one())
        first = state_of(task)
        engine.wait_for(lambda: (db_now() - row_of(task).created_at).total_seconds() > 0.5)
        due_again()
        engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert (first, row.reason, row.attempt) == ("scheduled", "unknown_task", 0)


def test_it_runs_once_a_worker_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-30: the deploy has arrived here too."""
    task = ready_task("shop.tasks.new_one", args='{"args":["new"],"kwargs":{}}')
    engine.run_and_settle(claim_one())

    monkeypatch.setitem(definitions._registry, "shop.tasks.new_one", note)
    due_again()
    drain()

    row = row_of(task)
    assert row is not None
    assert (state_of(task), row.attempt, ran) == ("succeeded", 1, ["new"])


def test_a_name_that_was_known_in_between_has_its_grace_time_anew() -> None:
    """S2-30: the clock of last month's deploy does not count."""
    options = f'{{"unknown_since":{time.time() - 90 * 86400}}}'
    task = ready_task("tests.guarantees.tasks.fail_slowly", options=options)

    engine.run_and_settle(claim_one())

    row = row_of(task)
    assert isinstance(row, Task)
    assert "unknown_since" not in row.option_values


def test_a_replay_has_its_grace_time_anew() -> None:
    """S2-30, S4-17: forced by an operator who knows better."""
    with override_settings(TASKQ={"UNKNOWN_TASK_GRACE": 0}):
        task = ready_task("shop.tasks.never")
        drain()
    from django_taskq.lifecycle import control

    control.replay(str(task.pk), force=True)
    definitions.forget_all()
    engine.run_and_settle(claim_one())

    assert state_of(task) == "scheduled"


def test_an_operator_is_told_that_a_replay_would_only_die_again() -> None:
    """S2-30: unknown here, so skipped."""
    with override_settings(TASKQ={"UNKNOWN_TASK_GRACE": 0}):
        task = ready_task("shop.tasks.never")
        drain()

    changed = api.replay([str(task.pk)])

    assert changed.count == 0
    assert "shop.tasks.never" in changed.skipped[0][1]


@pytest.mark.parametrize("name", ["billing.charge", "billing.bill", "tests.guarantees.old_place.bill"])
def test_a_renamed_task_runs_under_its_old_names(name: str) -> None:
    """S2-30: aliases."""
    assert renamed.charge.aliases
    task = ready_task(name, name)

    drain()

    assert (state_of(task), ran) == ("succeeded", [name])


@pytest.mark.parametrize("module", ["breaks_on_import", "exits_on_import"])
def test_a_module_that_cannot_be_imported_fails_the_attempt_and_nothing_else(module: str) -> None:
    """S2-41: whatever it does, even leave; the worker goes on, and the traceback is kept."""
    task = ready_task(f"tests.guarantees.{module}.work", max_attempts=1)
    other = note.enqueue("other")

    for executor in ("threads", "asyncio"):
        run_burst(threads=1, executor=executor)

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert row.reason == "exhausted"
    assert row.error_class in {"builtins.RuntimeError", "builtins.ImportError"}
    assert state_of(other) == "succeeded"


@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "django_taskq.api.cancel", "x", "..x", "", "a\u00fc.b"])
def test_a_name_leads_to_a_task_and_to_nothing_else(name: str) -> None:
    """S2-30: a row cannot call what is no task."""
    task = ready_task(name, "true")

    engine.run_and_settle(claim_one())

    assert state_of(task) == "scheduled"
    assert ran == []
