"""Operators' verbs in any order, and a leader that is prompt or late: the ticks of a model without a database."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from django_taskq import clock, task
from django_taskq.domain.schedules import Policy, TickKind, check_rule
from django_taskq.exceptions import ScheduleRefused
from django_taskq.lifecycle import schedules, tick
from django_taskq.models import Schedule, ScheduleTick
from django_taskq.ops import schedules as views
from django_taskq.testing import travel
from tests.engine import ALIAS

pytestmark = pytest.mark.django_db(transaction=True)

MORNING = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
#: The verbs are called half a minute behind each of the first ticks; nothing is asked of the schedules from then on.
LAST = 9
TASK = "tests.guarantees.test_schedule_verbs.noted"
#: Late, but never too late for a task of its own.
POLICY = Policy(misfire_grace=3600.0)


@task(schedulable=True)
def noted() -> None:
    """What the schedules make."""


def every(minutes: int) -> Any:
    return check_rule(cron=f"*/{minutes} * * * *", timezone="UTC")


@dataclass
class Model:
    """One schedule as its page tells it: minute by minute, by somebody who is never late."""

    minutes: int = 1
    is_on: bool = True
    paused_until: float | None = None
    skips: bool = False
    told: dict[int, str] = field(default_factory=dict)

    def is_paused(self, at: float) -> bool:
        return self.paused_until is not None and at <= self.paused_until

    def pass_by(self, at: int) -> None:
        """Let a minute of the clock come."""
        if at % self.minutes:
            return
        skips, self.skips = self.skips, False
        if not self.is_on:
            return
        self.told[at] = "PAUSED" if self.is_paused(at) else "SKIPPED" if skips else "MADE"

    def ahead(self, at: float) -> list[tuple[int, bool]]:
        """Return what is to be made or skipped from now on, and whether it is skipped."""
        later = Model(self.minutes, self.is_on, self.paused_until, self.skips)
        for minute in range(int(at) + 1, LAST + 4):
            later.pass_by(minute)
        return [(minute, kind == "SKIPPED") for minute, kind in later.told.items() if kind != "PAUSED"]

    def pause(self, at: float) -> None:
        self.paused_until = float("inf")

    def pause_until(self, at: float) -> None:
        self.paused_until = at + 1.5

    def resume(self, at: float) -> None:
        self.paused_until = None

    def skip(self, at: float) -> None:
        self.skips = self.skips or (self.is_on and not self.is_paused(at))

    def edit(self, at: float) -> None:
        self.minutes = 2 if self.minutes == 1 else 1

    def disable(self, at: float) -> None:
        self.is_on = False

    def enable(self, at: float) -> None:
        self.is_on = True

    def run(self, at: float) -> None:
        """Nothing that comes by itself changes."""

    def wait(self, at: float) -> None:
        """Let one tick more come between two verbs."""


def _skip(name: str) -> None:
    with suppress(ScheduleRefused):
        schedules.skip_next(name)


def _edit(name: str) -> None:
    minutes = 2 if Schedule.objects.get(name=name).rule.startswith("*/1 ") else 1
    schedules.change(name, task=TASK, rule=every(minutes), policy=POLICY)


VERBS: dict[str, Callable[[str], Any]] = {
    "pause": schedules.pause,
    "pause_until": lambda name: schedules.pause(name, until=1.5 * MINUTE),
    "resume": schedules.resume,
    "skip": _skip,
    "edit": _edit,
    "disable": schedules.disable,
    "enable": schedules.enable,
    "run": schedules.run_now,
    "wait": lambda name: None,
}


def play(told: Sequence[tuple[str, ...]], *, looks_at: Sequence[int]) -> dict[tuple[str, ...], Model]:
    """Tell each story to a schedule and to a model, and compare what they show ahead after each verb."""
    names = {story: " ".join(story) for story in told}
    models = {story: Model() for story in told}
    with travel(MORNING) as hands:
        for name in names.values():
            schedules.create(name, task=TASK, rule=every(1), policy=POLICY)
        for minute in range(1, LAST + 1):
            hands.move_to(MORNING + minute * MINUTE)
            for model in models.values():
                model.pass_by(minute)
            if minute in looks_at:
                tick.tick_due(ALIAS, now=hands.now())
            at = minute + 0.5
            hands.move_to(MORNING + at * MINUTE)
            for story, name in names.items():
                if minute > len(story):
                    continue
                VERBS[story[minute - 1]](name)
                getattr(models[story], story[minute - 1])(at)
                assert shown(name) == models[story].ahead(at)[:4], f"{name}, after minute {minute}"
    return models


def shown(name: str) -> list[tuple[int, bool]]:
    """Return the next four runs as the pages show them."""
    runs = views.of_schedule(Schedule.objects.get(name=name), 4, now=clock.now())
    return [((run.at - MORNING) // MINUTE, run.note == views.SKIPPED) for run in runs]


def ticked(name: str) -> dict[int, str]:
    """Return what became of each tick, runs by hand left out; of a row for many only its last."""
    rows = ScheduleTick.objects.filter(schedule__name=name).exclude(kind=TickKind.MANUAL)
    return {(row.at - MORNING) // MINUTE: TickKind(row.kind).name for row in rows}


def _compare(models: dict[tuple[str, ...], Model]) -> None:
    for story, model in models.items():
        found = ticked(" ".join(story))
        # One row tells of all ticks that a pause left out, and of those of the new rule where it was changed.
        wanted = {at: kind for at, kind in model.told.items() if kind != "PAUSED"}
        assert {at: kind for at, kind in found.items() if kind != "PAUSED"} == wanted, story
        if "edit" not in story:
            assert {at for at, kind in found.items() if kind == "PAUSED"} <= model.told.keys() - wanted.keys(), story


def stories(length: int) -> list[tuple[str, ...]]:
    """Return all orders of so many verbs that begin with one."""
    return [story for story in product(VERBS, repeat=length) if story[0] != "wait"]


PROMPT, LATE = range(1, LAST + 1), [LAST]


@pytest.mark.any_database
@pytest.mark.parametrize(
    "looks_at", [pytest.param(PROMPT, id="prompt", marks=pytest.mark.slow), pytest.param(LATE, id="late")]
)
def test_two_verbs_in_any_order_lose_and_double_no_tick(looks_at: Sequence[int]) -> None:
    _compare(play(stories(2), looks_at=looks_at))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("looks_at", "first"), [(PROMPT, 0), (LATE, 4), ([3, LAST], 8)], ids=["prompt", "late", "in between"]
)
def test_three_verbs_in_many_orders_lose_and_double_no_tick(looks_at: Sequence[int], first: int) -> None:
    """One order in thirteen, so that each verb stands in each place; all of them take minutes."""
    _compare(play(stories(3)[first::13], looks_at=looks_at))
