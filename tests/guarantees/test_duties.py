"""Duties: one worker at a time does the upkeep, another takes over, and one broken duty does not stop the rest."""

from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import DatabaseError

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.duties import runner as runners
from django_taskq.duties.leader import Leader
from django_taskq.models import Duty, Task
from django_taskq.store import duties as store
from tests import engine
from tests.engine import db_now, in_threads, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

HOLD = timedelta(seconds=10)


def leader(worker_id: int, hold: timedelta = HOLD) -> Leader:
    return Leader(engine.ALIAS, lambda: worker_id, hold)


def test_one_worker_leads_at_a_time() -> None:
    """S4-64."""
    now = db_now()

    assert [leader(number).leads(now) for number in (1, 2, 3)] == [True, False, False]


def test_of_workers_that_ask_at_once_one_leads() -> None:
    """S4-107: any number of workers may be started together."""
    now = db_now()

    answers = in_threads(*[partial(leader(number).leads, now) for number in range(1, 7)])

    assert sum(answers) == 1


def test_a_leader_that_stops_is_followed_at_once() -> None:
    now = db_now()
    assert leader(1).leads(now)

    store.give_up(engine.ALIAS, 1)

    assert leader(2).leads(now)


def test_a_leader_that_dies_is_followed_when_its_time_is_over() -> None:
    """S4-64: nothing but time passes; the dead leader says nothing."""
    now = db_now()
    assert leader(1).leads(now)

    before, after = leader(2).leads(now + HOLD / 2), leader(3).leads(now + HOLD + timedelta(seconds=1))

    assert (before, after) == (False, True)


def test_a_leader_that_lost_its_place_learns_it_when_it_renews() -> None:
    first = leader(1, hold=timedelta(seconds=0.3))
    assert first.leads(db_now())
    assert leader(2).leads(db_now() + timedelta(seconds=5))

    wait_for(lambda: not first.leads(db_now()))

    assert Duty.objects.get(name="leader").worker_id == 2


def test_a_leader_that_renews_keeps_its_place() -> None:
    now = db_now()
    assert leader(1).leads(now)
    assert leader(1).leads(now + HOLD / 2)

    assert not leader(2).leads(now + HOLD + timedelta(seconds=1))


@pytest.mark.parametrize("error", [DatabaseError("refused"), RuntimeError("broken")])
def test_a_duty_that_fails_each_time_does_not_keep_the_others_from_their_turn(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    done: list[str] = []

    def fail(*args: Any) -> int:
        raise error

    def work(*args: Any) -> int:
        done.append("prune")
        return 0

    runner = runners.DutyRunner(engine.ALIAS, lambda: 1, conf.options("default"), db_now)
    monkeypatch.setattr(runner, "_duties", {"promote": fail, "prune": work})

    for _ in range(2):
        try:
            runner.run_due()
        except DatabaseError:
            continue

    assert done == ["prune"]


def test_the_leader_looks_when_a_task_is_due_and_not_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3-35: at its moment, however close to the look before; a stream of them in one look for a twentieth second."""
    start = db_now()
    spent = [0.0]

    def now() -> datetime:
        return start + timedelta(seconds=spent[0])

    monkeypatch.setattr(runners, "time", SimpleNamespace(monotonic=lambda: 1000 + spent[0]))
    runner = runners.DutyRunner(engine.ALIAS, lambda: 1, conf.options("default"), now)
    alone = [0.4, 0.55, 1.14]
    stream = [2 + at / 1000 for at in range(100)]
    for due in (*alone, *stream):
        engine.ready_task(state=State.SCHEDULED, run_after=start + timedelta(seconds=due))

    seen: list[float] = []
    looks = 0
    while spent[0] < 2.5:
        runner.run_due()
        ready = Task.objects.filter(state=State.READY).count()
        seen += [spent[0]] * (ready - len(seen))
        spent[0] += runner.pause()
        looks += 1

    assert len(seen) == 103
    late = [at - due for at, due in zip(seen, (*alone, *stream), strict=True)]
    # To the microsecond that a database keeps.
    assert min(late) >= -1e-6
    assert max(late[:3]) <= 0.011
    assert max(late) <= 0.06
    assert looks < 60
