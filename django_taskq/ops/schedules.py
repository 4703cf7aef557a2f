"""What admin and command line tell of schedules: rules in words, next runs, states, what became of ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from django_taskq.domain.schedules import Kind, Rule, ticks
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Schedule, ScheduleTick, Task

__all__ = [
    "MOST_RUNS",
    "SKIPPED",
    "Run",
    "Ticked",
    "describe",
    "find",
    "history",
    "last_runs",
    "listed",
    "next_runs",
    "of_schedule",
    "state_name",
    "task_states",
    "words_of",
]

MOST_RUNS = 100
SKIPPED = "is skipped, as an operator wished"

_DAYS = ("Sundays", "Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays")
_SHORT_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_SHORT_MONTHS = tuple(name[:3].upper() for name in _MONTHS)
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A tick ahead, in the schedule's time zone; ``note`` tells what clocks do there, where they are set."""

    at: datetime
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """A tick that was dealt with, and the state of its task: "gone" where that was pruned, "" where none was made."""

    row: ScheduleTick
    state: str


# Rules in words


def describe(rule: Rule) -> str:
    """Return a rule in plain English; a cron expression that has no plain words stands for itself."""
    if rule.kind == Kind.ONCE:
        at = datetime.fromisoformat(rule.text).astimezone(ZoneInfo(rule.timezone))
        return f"once, at {at:%Y-%m-%d %H:%M:%S}, {rule.timezone}"
    if rule.kind == Kind.INTERVAL:
        return _every(float(rule.text))
    words = _cron_words(rule.text)
    return f"{words or f'cron {rule.text}'}, {rule.timezone}"


def _every(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size and not seconds % size:
            count = int(seconds // size)
            return f"every {unit}" if count == 1 else f"every {count} {unit}s"
    return f"every {seconds:g} seconds"


def _cron_words(text: str) -> str | None:
    *second, minute, hour, day, month, weekday = text.split()
    days = _day_words(day, month, weekday)
    if days is None:
        return None
    is_daily = (day, month, weekday) == ("*", "*", "*")
    if second and second[0] != "0":
        each = _step(second[0], 60)
        if each is None or (minute, hour) != ("*", "*"):
            return None
        return _every(each) if is_daily else f"{_every(each)} {days}"
    if hour == "*" or hour.startswith("*/"):
        return _through_the_day(minute, hour, "" if is_daily else f" {days}")
    minutes, hours = _numbers(minute), _numbers(hour)
    if minutes is None or hours is None or len(minutes) * len(hours) > 4:
        return None
    return f"at {_and([f'{h:02d}:{m:02d}' for h in hours for m in minutes])} {days}"


def _through_the_day(minute: str, hour: str, days: str) -> str | None:
    each_hour, each_minute, minutes = _step(hour, 24), _step(minute, 60), _numbers(minute)
    if each_minute is not None and each_hour == 1:
        return _every(each_minute * 60) + days
    if minutes is None or len(minutes) > 4 or each_hour is None:
        return None
    hours = "of every hour" if each_hour == 1 else f"of every {each_hour} hours, counted from midnight"
    return f"at minute {_and([str(number) for number in minutes])} {hours}{days}"


def _step(field: str, size: int) -> int | None:
    """Return 1 for ``*`` and n for ``*/n``, where n goes evenly into the size; None for anything else."""
    if field == "*":
        return 1
    if not field.startswith("*/") or not field[2:].isdigit():
        return None
    step = int(field[2:])
    return step if 0 < step < size and size % step == 0 else None


def _numbers(field: str, names: Sequence[str] = (), first: int = 0) -> list[int] | None:
    """Return the numbers of a list such as ``0,30`` or ``MON,FRI``; None for anything else."""
    found: list[int] = []
    for part in field.split(","):
        if part in names:
            found.append(names.index(part) + first)
        elif part.isdigit():
            found.append(int(part))
        else:
            return None
    return sorted(set(found))


def _day_words(day: str, month: str, weekday: str) -> str | None:
    if (day, month) == ("*", "*"):
        if weekday == "*":
            return "every day"
        if weekday in ("1-5", "MON-FRI"):
            return "on weekdays"
        if weekday in ("0,6", "6,0", "6,7", "6-7", "SAT,SUN", "SUN,SAT"):
            return "on weekends"
        weekdays = _numbers(weekday, _SHORT_DAYS)
        return None if weekdays is None else f"on {_and([_DAYS[number % 7] for number in weekdays])}"
    if weekday != "*":
        return None
    months = None if month == "*" else _numbers(month, _SHORT_MONTHS, first=1)
    if month != "*" and months is None:
        return None
    of = "of every month" if months is None else f"of {_and([_MONTHS[number - 1] for number in months])}"
    if day == "*":
        return f"every day {of}"
    if day == "L":
        return f"on the last day {of}"
    if day == "LW":
        return f"on the last weekday {of}"
    days = _numbers(day)
    return None if days is None else f"on day {_and([str(number) for number in days])} {of}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# What is ahead


def next_runs(rule: Rule, count: int, *, after: datetime) -> list[Run]:
    """Return the next ticks, at most 100, in the rule's time zone."""
    zone = ZoneInfo(rule.timezone)
    return [
        Run(at=at.astimezone(zone), note=_note(rule, zone, at))
        for at in islice(ticks(rule, after), max(0, min(count, MOST_RUNS)))
    ]


def _note(rule: Rule, zone: ZoneInfo, at: datetime) -> str:
    if rule.kind != Kind.CRON:
        return ""
    from django_taskq.domain import cron

    local = at.astimezone(zone)
    if cron.is_moved(rule.text, zone, at):
        return "clocks skip the time it names; this is right after"
    if local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset():
        if cron.is_fixed(rule.text):
            return "clocks show this time twice; this is the first"
        return f"clocks show this time twice; this is the {'second' if local.fold else 'first'}"
    return ""


def words_of(row: Schedule) -> str:
    """Return a schedule's rule in words; as it is stored where it cannot be read."""
    try:
        return describe(row.rule_value)
    except Exception:
        # A damaged row must not hide the others.
        return f"unreadable: {row.rule}, {row.timezone}"


def of_schedule(row: Schedule, count: int, *, now: datetime) -> list[Run]:
    """
    Return the next ticks of a schedule; none where it is off, paused for good, or cannot be read.

    The one that is to be skipped is among them; its note is ``SKIPPED``.
    """
    try:
        return _ahead(row, count, now)
    except Exception:
        # Its last error says why.
        return []


def _ahead(row: Schedule, count: int, now: datetime) -> list[Run]:
    if not row.is_on or row.next_at is None:
        return []
    after = max(now, row.next_at - timedelta(microseconds=1))
    if row.is_paused(now):
        if row.paused_until is None:
            return []
        after = max(after, row.paused_until)
    return [
        replace(run, note=SKIPPED) if row.skip_next and run.at == row.next_at else run
        for run in next_runs(row.rule_value, count, after=after)
    ]


# How they stand


def state_name(row: Schedule, now: datetime) -> str:
    """Return "gone", "disabled", "paused", "failing", "ended" or "active"."""
    if row.gone_at is not None:
        return "gone"
    if not row.enabled:
        return "disabled"
    if row.is_paused(now):
        return "paused"
    if row.last_error:
        return "failing"
    return "active" if row.next_at is not None else "ended"


def listed(alias: str) -> list[Schedule]:
    """Return all schedules by name."""
    return list(Schedule.objects.using(alias).order_by("name"))


def find(alias: str, name: str) -> Schedule | None:
    """Return a schedule by its name."""
    return Schedule.objects.using(alias).filter(name=name).first()


def history(alias: str, row: Schedule, *, limit: int) -> list[Ticked]:
    """Return the last ticks of a schedule, newest first, with what became of their tasks."""
    found = list(ScheduleTick.objects.using(alias).filter(schedule_id=row.pk).order_by("-at")[:limit])
    states = task_states(alias, [tick.task_id for tick in found])
    return [Ticked(row=tick, state=_state(states, tick.task_id)) for tick in found]


def last_runs(alias: str, rows: Sequence[Schedule]) -> dict[int, str]:
    """Return the state of each schedule's last task by the schedule's key, "" where it made none."""
    states = task_states(alias, [row.last_task_id for row in rows])
    return {row.pk: _state(states, row.last_task_id) for row in rows}


def _state(states: Mapping[Any, str], key: Any) -> str:
    return "" if key is None else states.get(key, "gone")


def task_states(alias: str, ids: Sequence[Any]) -> dict[Any, str]:
    """Return the states of those tasks that are still there, by id."""
    found: dict[Any, str] = {}
    ids = [key for key in ids if key is not None]
    for model in (FinishedTask, Task):
        # A task may be moving just now: the live row counts.
        states = model._default_manager.using(alias).filter(pk__in=ids).values_list("pk", "state")
        found.update({key: State(state).name.lower() for key, state in states})
    return found
