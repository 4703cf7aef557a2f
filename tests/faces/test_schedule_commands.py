"""``manage.py taskq schedules``, and what it shows: rules in words, runs ahead."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from django_taskq.domain.schedules import check_rule
from django_taskq.lifecycle import schedules
from django_taskq.management.commands import taskq
from django_taskq.models import AuditEntry, Schedule, Task
from django_taskq.ops import schedules as ops
from django_taskq.testing import travel
from tests.faces.schedules import MORNING, made, rule
from tests.faces.test_commands import data, refusal, run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def clock() -> Iterator[Any]:
    with travel(MORNING) as hands:
        yield hands


def test_schedules_are_listed_with_their_rules_and_states() -> None:
    made("daily")
    made("paused")
    schedules.pause("paused", actor="eve", reason="month end")
    Schedule.objects.filter(name="daily").update(last_error="UnknownTask: gone")

    first, second = data("schedules", "list")
    printed = run("schedules", "list")

    assert (first["name"], first["rule"], first["state"]) == ("daily", "at 09:00 every day, UTC", "failing")
    assert first["next_at"] == "2026-03-10T09:00:00Z"
    assert (second["state"], second["paused_by"], second["pause_reason"]) == ("paused", "eve", "month end")
    assert "daily fails: UnknownTask: gone" in printed


def test_next_runs_are_shown_in_the_zone_of_the_schedule(clock: Any) -> None:
    clock.move_to(MORNING.replace(day=28))
    made("rome", rule=rule(cron="30 2 * * *", timezone="Europe/Rome"))
    schedules.pause(made("quiet").name)

    found = data("schedules", "next", "--count", "2")

    assert [record["at"] for record in found] == ["2026-03-29 03:00:00 CEST", "2026-03-30 02:30:00 CEST"]
    assert found[0]["note"] == "clocks skip the time it names; this is right after"
    assert "Without a next tick: quiet" in run("schedules", "next")
    assert len(data("schedules", "next", "rome")) == 5


@pytest.mark.parametrize(
    ("verb", "outcome"),
    [
        ("pause", "paused"),
        ("run", "run"),
        ("skip", "skips its next tick"),
        ("disable", "disabled"),
        ("resume", "not changed"),
        ("enable", "not changed"),
    ],
)
def test_each_verb_does_it_and_says_so(verb: str, outcome: str) -> None:
    made()

    [record] = data("schedules", verb, "daily", "--reason", "because", "--actor", "eve")

    assert record["outcome"] == outcome
    audited = list(AuditEntry.objects.exclude(action="schedule.create").values_list("actor", "action", "reason"))
    assert audited == ([] if outcome == "not changed" else [("eve", f"schedule.{verb}", "because")])


def test_a_pause_may_end_by_itself() -> None:
    made()

    run("schedules", "pause", "daily", "--until", "2h")

    assert Schedule.objects.get().paused_until == MORNING + timedelta(hours=2)
    assert refusal("schedules", "pause", "daily", "--until", "2020-01-01").returncode == taskq.REFUSED


def test_a_schedule_that_is_not_there_is_not_found() -> None:
    made()

    error = refusal("schedules", "pause", "dayly")

    assert error.returncode == taskq.NOT_FOUND
    assert "did you mean 'daily'?" in str(error)
    assert refusal("schedules", "next", "nobody").returncode == taskq.NOT_FOUND


def test_what_is_refused_is_told_and_the_others_are_done() -> None:
    made("a")
    made("b")
    schedules.run_now("a")

    partly = refusal("schedules", "run", "a", "b")
    again = refusal("schedules", "run", "a", "b")

    assert (partly.returncode, again.returncode) == (taskq.PARTLY, taskq.REFUSED)
    assert Task.objects.count() == 2


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("*/15 * * * 1-5", "every 15 minutes on weekdays"),
        ("0 * * * *", "at minute 0 of every hour"),
        ("5,35 * * * *", "at minute 5 and 35 of every hour"),
        ("0 */6 * * *", "at minute 0 of every 6 hours, counted from midnight"),
        ("0 3 * * *", "at 03:00 every day"),
        ("0 3,15 * * *", "at 03:00 and 15:00 every day"),
        ("30 9 * * MON-FRI", "at 09:30 on weekdays"),
        ("30 9 * * 0", "at 09:30 on Sundays"),
        ("30 9 * * MON,WED,FRI", "at 09:30 on Mondays, Wednesdays and Fridays"),
        ("0 0 1 * *", "at 00:00 on day 1 of every month"),
        ("0 0 L * *", "at 00:00 on the last day of every month"),
        ("0 0 1 1 *", "at 00:00 on day 1 of January"),
        ("0 12 25 DEC *", "at 12:00 on day 25 of December"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("* * * * * *", "every second"),
        ("0 0 3 * * *", "at 03:00 every day"),
        # No plain words: the expression speaks for itself, rather than words that are wrong.
        ("*/7 * * * *", "cron */7 * * * *"),
        ("0 3 1 * MON", "cron 0 3 1 * MON"),
        ("0 3 * * MON#1", "cron 0 3 * * MON#1"),
        ("*/5 9-17 * * *", "cron */5 9-17 * * *"),
        ("5 0 3 * * *", "cron 5 0 3 * * *"),
    ],
)
def test_a_rule_is_told_in_plain_words(text: str, words: str) -> None:
    assert ops.describe(check_rule(cron=text, timezone="Europe/Rome")) == f"{words}, Europe/Rome"


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(seconds=1), "every second"),
        (timedelta(seconds=90), "every 90 seconds"),
        (timedelta(minutes=15), "every 15 minutes"),
        (timedelta(hours=1), "every hour"),
        (timedelta(days=2), "every 2 days"),
        (timedelta(seconds=1.5), "every 1.5 seconds"),
    ],
)
def test_an_interval_is_told_in_plain_words(span: timedelta, words: str) -> None:
    assert ops.describe(check_rule(every=span, timezone="UTC")) == words


def test_a_one_off_is_told_in_its_zone() -> None:
    found = ops.describe(check_rule(at=MORNING, timezone="Europe/Rome"))

    assert found == "once, at 2026-03-10 09:00:00, Europe/Rome"


def test_a_look_ahead_is_bounded() -> None:
    assert len(ops.next_runs(rule(cron="* * * * * *"), 10_000, after=MORNING)) == 100
    assert ops.next_runs(rule(at=MORNING), 5, after=MORNING) == []


def test_a_repeated_hour_is_told_ahead(clock: Any) -> None:
    fixed = ops.next_runs(rule(cron="30 2 25 10 *", timezone="Europe/Rome"), 1, after=MORNING)
    hourly = ops.next_runs(
        rule(cron="0 * * * *", timezone="Europe/Rome"), 3, after=MORNING.replace(month=10, day=24, hour=23)
    )

    assert [run.note for run in fixed] == ["clocks show this time twice; this is the first"]
    assert [run.note[-5:] for run in hourly] == ["first", "econd", ""]
