"""``tick_schedules``: schedules by the clock of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import override_settings
from freezegun import freeze_time

from django_taskq import clock, schedule
from django_taskq.lifecycle import declarations
from django_taskq.models import Schedule
from django_taskq.testing import DrainOverrun, drain, tick_schedules, travel
from tests.testing import tasks

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    names: list[str] = []

    def body(name: str = "hourly", **options: Any) -> None:
        schedule(name=name, timezone="UTC", **options)(tasks.note)
        names.append(name)

    yield body
    for name in names:
        declarations.forget(name)


def test_what_is_due_by_the_clock_is_made_and_run_by_a_drain(declare: Any) -> None:
    declare(cron="0 * * * *", args=[3])
    with travel(NOON) as hands:
        before = tick_schedules()
        hands.shift(HOUR)

        [tick] = tick_schedules()

        [ran] = drain()
    assert before == []
    assert (tick.schedule.name, tick.at, str(tick.task_id)) == ("hourly", NOON + HOUR, ran.task_id)
    assert ran.result == 3


def test_the_clock_moves_from_tick_to_tick_up_to_a_moment(declare: Any) -> None:
    declare(cron="0 * * * *", args=[3])
    declare(name="daily", cron="30 15 * * *", args=[3], misfire="skip")
    with travel(NOON):
        found = tick_schedules(until=timedelta(hours=4))

        assert clock.now() == NOON + 4 * HOUR
    names = [tick.schedule.name for tick in found]
    assert names == ["hourly", "hourly", "hourly", "daily", "hourly"]
    assert {tick.made_at - tick.at for tick in found} == {timedelta(0)}


def test_without_a_clock_of_its_own_time_is_back_afterwards(declare: Any) -> None:
    declare(cron="0 * * * *", args=[3])

    found = tick_schedules(until=timedelta(hours=3))

    assert len(found) == 3
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_frozen_time_moves_too(declare: Any) -> None:
    declare(cron="0 * * * *", args=[3])
    with freeze_time(NOON, ignore=["pixeltable"]):
        assert len(tick_schedules(until=2 * HOUR)) == 2

        assert datetime.now(UTC) == NOON + 2 * HOUR


def test_ticks_without_end_are_told(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_taskq.testing.ticking.RUNAWAY", 5)
    declare(cron="* * * * * *", args=[3])

    with travel(NOON), pytest.raises(DrainOverrun, match="shorter span"):
        tick_schedules(until=HOUR)


def test_a_failing_schedule_does_not_hold_the_clock(declare: Any) -> None:
    declare(cron="0 * * * *", args=["x" * 100])
    with travel(NOON) as hands, override_settings(TASKQ={"MAX_PAYLOAD_BYTES": 64}):
        tick_schedules()
        hands.shift(HOUR)

        assert tick_schedules() == []

        assert Schedule.objects.get().last_error
