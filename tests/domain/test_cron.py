"""
Cron expressions: what matches, what is refused, and what happens when clocks are set.

The oracle below knows nothing of the code under test: it walks through real time step by step, looks at what a clock
on the wall shows, and applies the written policy.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_taskq.domain import cron
from django_taskq.domain.schedules import (
    Kind,
    Rule,
    TickKind,
    check_policy,
    check_rule,
    jitter_of,
    latest,
    next_after,
    plan,
    ticks,
)
from django_taskq.exceptions import InvalidOptions

ROME, NEW_YORK, LORD_HOWE = "Europe/Rome", "America/New_York", "Australia/Lord_Howe"
ZONES = (ROME, NEW_YORK, LORD_HOWE)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


def matches(text: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Return the matches later than a moment and not later than another, from the code under test."""
    found: list[datetime] = []
    at = cron.next_after(cron.check(text), ZoneInfo(zone), after)
    while at is not None and at <= until:
        assert at > (found[-1] if found else after)
        found.append(at)
        at = cron.next_after(cron.check(text), ZoneInfo(zone), at)
    return found


def local(text: str, zone: str, after: str, count: int) -> list[str]:
    """Return the next matches after a wall-clock time, as a clock shows them with its offset."""
    at = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    found = []
    for _ in range(count):
        at = cron.next_after(cron.check(text), ZoneInfo(zone), at)
        assert at is not None
        found.append(at.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z"))
    return found


# The oracle


def numbers(field: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            first, last = str(low), str(high)
        elif not last:
            last = str(high) if step else first
        found.update(range(int(first), int(last) + 1, int(step or 1)))
    return found


def day_test(day: str, month: str, weekday: str) -> Callable[[date], bool]:
    months, days = numbers(month, 1, 12), numbers(day, 1, 31)
    weekdays = {number % 7 for number in numbers(weekday, 0, 7)}
    both = day.startswith("*") or weekday.startswith("*")

    def is_match(at: date) -> bool:
        by_day, by_weekday = at.day in days, at.isoweekday() % 7 in weekdays
        return at.month in months and ((by_day and by_weekday) if both else (by_day or by_weekday))

    return is_match


@cache
def walk(zone: str, start: datetime, end: datetime, step: timedelta = MINUTE) -> list[tuple[datetime, datetime]]:
    """Return each step of real time with what a clock on the wall shows."""
    found = []
    at = start
    while at <= end:
        found.append((at, at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)))
        at += step
    return found


def oracle(text: str, zone: str, start: datetime, end: datetime, step: timedelta = MINUTE) -> list[datetime]:
    """Return all moments from start to end at which an expression fires, by looking at every single one."""
    *second, minute, hour, day, month, weekday = text.split()
    seconds = numbers(second[0], 0, 59) if second else {0}
    minutes, hours, is_day = numbers(minute, 0, 59), numbers(hour, 0, 23), day_test(day, month, weekday)

    def is_match(wall: datetime) -> bool:
        return wall.second in seconds and wall.minute in minutes and wall.hour in hours and is_day(wall.date())

    steps = walk(zone, start, end, step)
    if minute.startswith("*") or hour.startswith("*"):
        return [at for at, wall in steps if is_match(wall)]
    found: list[datetime] = []
    newest = steps[0][1] - step
    for at, wall in steps:
        # Whatever the wall shows for the first time now: one time as a rule, none when it was set back, many when it
        # was set forward.
        fires = False
        while newest < wall:
            newest += step
            fires = fires or is_match(newest)
        if fires:
            found.append(at)
    return found


EXPRESSIONS = [
    "0 0 * * *",
    "30 2 * * *",
    "0 2,3 * * *",
    "0,30 1,2 * * *",
    "15 1-3 * * *",
    "45 1 * * 0",
    "55 23 31 12 *",
    "0 0 1 1 *",
    "0 0 29 2 *",
    "10 2 1-7 * */7",
    "30 3 1,15 * 5",
    "0 * * * *",
    "*/30 * * * *",
    "*/20 1-2 * * *",
    "15 */2 * * *",
    "30 2-22/4 * 3,4,10,11 *",
]


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_years_of_ticks_have_no_gap_and_no_double(text: str, zone: str) -> None:
    """Two years and their edges, a leap day among them. Steps of five minutes, since all these are multiples of it."""
    start, end = datetime(2023, 12, 30, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)

    assert matches(text, zone, start - SECOND, end) == oracle(text, zone, start, end, 5 * MINUTE)


TURNS = {
    ROME: [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    NEW_YORK: [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    LORD_HOWE: [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)],
    # A whole day that nobody had, and a midnight that does not exist.
    "Pacific/Apia": [datetime(2011, 12, 30, 10, tzinfo=UTC)],
    "Africa/Cairo": [datetime(2026, 4, 23, 22, tzinfo=UTC), datetime(2026, 10, 29, 21, tzinfo=UTC)],
}

field = {
    "minute": st.sampled_from(["*", "*/7", "*/15", "0", "30", "59", "0,30", "10-20", "5-50/9"]),
    "hour": st.sampled_from(["*", "*/2", "0", "1", "2", "3", "23", "1,2", "0-3", "1-23/2"]),
    "day": st.sampled_from(["*", "*/2", "1", "29", "25,30,31", "1-8"]),
    "month": st.sampled_from(["*", "3,4", "10-12", "12"]),
    "weekday": st.sampled_from(["*", "0", "7", "1-5", "*/3", "6"]),
}


@settings(max_examples=200, deadline=None)
@given(st.tuples(*field.values()), st.sampled_from([(zone, turn) for zone, turns in TURNS.items() for turn in turns]))
def test_any_expression_is_exact_where_clocks_are_set(fields: tuple[str, ...], where: tuple[str, datetime]) -> None:
    text, (zone, turn) = " ".join(fields), where
    start, end = turn - timedelta(hours=30), turn + timedelta(hours=30)

    assert matches(text, zone, start - SECOND, end) == oracle(text, zone, start, end)


@pytest.mark.parametrize("text", ["*/10 * * * * *", "0,30 30 2 * * *", "15 0 1-3 * * *", "*/20 */30 2 * * *"])
@pytest.mark.parametrize("zone", ZONES)
def test_expressions_with_seconds_are_exact_where_clocks_are_set(text: str, zone: str) -> None:
    for turn in TURNS[zone]:
        start, end = turn - timedelta(hours=2), turn + timedelta(hours=2)

        assert matches(text, zone, start - SECOND, end) == oracle(text, zone, start, end, SECOND)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*field.values()),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)
def test_the_next_match_is_the_same_from_wherever_one_looks(
    fields: tuple[str, ...], zone: str, moment: datetime
) -> None:
    rule = Rule(kind=Kind.CRON, text=" ".join(fields), timezone=zone)
    found = next_after(rule, moment)
    if found is None:
        return

    assert found > moment
    assert next_after(rule, moment + (found - moment) / 2) == found
    assert next_after(rule, found - timedelta(microseconds=1)) == found
    assert latest(rule, found, found) == found


# The written policy, as tables


@pytest.mark.parametrize(
    ("text", "zone", "after", "expected"),
    [
        # Skipped: once, right after the gap; then as always.
        ("30 2 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("0,30 2 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00 +0200", "03-30 02:00 +0200", "03-30 02:30 +0200"]),
        ("0 2,3 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-03 12:00", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        ("45 2 * * *", LORD_HOWE, "2026-10-03 12:00", ["10-04 02:45 +1100", "10-05 02:45 +1100"]),
        # Repeated: once, at the first.
        ("30 2 * * *", ROME, "2026-10-24 12:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31 12:00", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04 12:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        # Intervals follow real time: nothing in a gap, both passes of what is repeated.
        (
            "0 * * * *",
            ROME,
            "2026-03-29 00:30",
            ["03-29 01:00 +0100", "03-29 03:00 +0200", "03-29 04:00 +0200"],
        ),
        (
            "0 * * * *",
            ROME,
            "2026-10-25 01:30",
            ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"],
        ),
        ("*/30 2 * * *", ROME, "2026-03-28 12:00", ["03-30 02:00 +0200", "03-30 02:30 +0200"]),
        (
            "*/15 1 * * *",
            LORD_HOWE,
            "2026-04-05 01:20",
            ["04-05 01:30 +1100", "04-05 01:45 +1100", "04-05 01:30 +1030", "04-05 01:45 +1030"],
        ),
        (
            "*/15 * * * *",
            LORD_HOWE,
            "2026-10-04 01:35",
            ["10-04 01:45 +1030", "10-04 02:30 +1100", "10-04 02:45 +1100"],
        ),
        # The year's edge.
        ("59 23 * * *", ROME, "2026-12-31 12:00", ["12-31 23:59 +0100", "01-01 23:59 +0100"]),
        ("0 0 1 1 *", NEW_YORK, "2026-12-31 23:59", ["01-01 00:00 -0500"]),
        ("0 0 29 2 *", ROME, "2026-01-01 00:00", ["02-29 00:00 +0100"]),
    ],
)
def test_where_clocks_are_set_the_policy_holds(text: str, zone: str, after: str, expected: list[str]) -> None:
    assert local(text, zone, after, len(expected)) == expected


def test_a_time_of_day_is_a_fixed_time_and_a_star_is_an_interval() -> None:
    texts = ("30 2 * * *", "0 30 2 * * *", "*/5 2 * * *", "0 */2 * * *", "1-59 0-23 * * *")

    assert [cron.is_fixed(text) for text in texts] == [True, True, False, False, True]


# What is refused


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "5 fields"),
        ("* * * *", "5 fields"),
        ("0 0 1 1 * * 2030", "5 fields"),
        ("@daily", "5 fields"),
        ("61 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day-of-month"),
        ("* * * 13 *", "month"),
        ("* * * * MOO", "day-of-week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("0 0 30 2 *", "day-of-month"),
        ("0 0 31 4,6,9,11 *", "day-of-month"),
        ("0 0 */31 * MON#5", "never matches"),
        ("0 0 1 1 * 2030", "day-of-week"),
        ("9" * 150 + " * * * *", "minute"),
        ("*," * 120 + "* * * * *", "at most 200"),
        ("\u0661 * * * *", "ASCII"),
        (None, "string"),
        (5, "string"),
    ],
)
def test_what_can_never_be_is_refused_at_once(text: object, match: str) -> None:
    began = time.perf_counter()

    with pytest.raises(InvalidOptions, match=match) as caught:
        cron.check(text)

    assert time.perf_counter() - began < 1
    assert caught.value.field == "cron"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-#LWMONFEB ", max_size=40))
def test_whatever_is_typed_is_refused_or_answered_quickly(text: str) -> None:
    began = time.perf_counter()

    try:
        found = cron.next_after(cron.check(text), ZoneInfo(LORD_HOWE), datetime(2026, 1, 1, tzinfo=UTC))
    except InvalidOptions:
        found = None

    assert time.perf_counter() - began < 2
    assert found is None or found.year < 2080


@pytest.mark.parametrize("text", ["0 0 * 2 MON#5", "0 0 29 2 */7", "*/59 */23 29 2 */7", "* * 29 2 */7"])
def test_dates_decades_away_are_found_quickly(text: str) -> None:
    began = time.perf_counter()

    found = cron.next_after(cron.check(text), ZoneInfo(ROME), datetime(2026, 3, 1, tzinfo=UTC))

    assert time.perf_counter() - began < 2
    assert found is not None
    assert found.year in (2032, 2044)


def test_an_expression_is_stored_in_one_spelling() -> None:
    assert cron.check("  0  3 * *   mon-fri ") == "0 3 * * MON-FRI"


# Intervals and single moments

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


def few(rule: Rule, after: datetime, count: int) -> list[datetime]:
    found: Iterator[datetime] = ticks(rule, after)
    return [next(found) for _ in range(count)]


def test_an_interval_is_counted_from_its_start_and_does_not_drift() -> None:
    rule = check_rule(every=timedelta(seconds=7.5), start=NOON, timezone="UTC")

    assert few(rule, NOON - SECOND, 2) == [NOON, NOON + timedelta(seconds=7.5)]
    late = NOON + timedelta(seconds=7.5) * 1_000_000 + SECOND
    assert next_after(rule, late) == NOON + timedelta(seconds=7.5) * 1_000_001


def test_an_interval_without_a_start_is_on_the_hour() -> None:
    rule = check_rule(every=timedelta(hours=1), timezone=ROME)

    assert next_after(rule, NOON + 17 * MINUTE) == NOON + timedelta(hours=1)


def test_an_interval_takes_no_notice_of_clocks_being_set() -> None:
    rule = check_rule(every=timedelta(hours=1), timezone=ROME)
    turn = TURNS[ROME][0]

    found = few(rule, turn - timedelta(hours=3), 6)

    assert [later - at for at, later in pairwise(found)] == [timedelta(hours=1)] * 5


def test_one_moment_ticks_once() -> None:
    rule = check_rule(at=NOON, timezone="UTC")

    assert (next_after(rule, NOON - SECOND), next_after(rule, NOON)) == (NOON, None)


def test_start_and_end_are_ticks_themselves() -> None:
    rule = check_rule(cron="* * * * *", start=NOON, end=NOON + MINUTE, timezone="UTC")

    assert list(ticks(rule, NOON - timedelta(days=1))) == [NOON, NOON + MINUTE]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "cron"),
        ({"cron": "* * * * *", "every": MINUTE}, "cron"),
        ({"every": timedelta(0)}, "every"),
        ({"every": timedelta(milliseconds=500)}, "every"),
        ({"every": timedelta(days=999_999)}, "every"),
        ({"every": 60}, "every"),
        ({"at": datetime(2026, 1, 1)}, "at"),
        ({"at": "tomorrow"}, "at"),
        ({"at": datetime.max.replace(tzinfo=UTC)}, "at"),
        ({"every": MINUTE, "start": NOON, "end": NOON - MINUTE}, "end"),
        ({"every": MINUTE, "timezone": "Europe/Roma"}, "timezone"),
        ({"every": MINUTE, "timezone": "Europe"}, "timezone"),
        ({"every": MINUTE, "timezone": "../../etc/passwd"}, "timezone"),
        ({"every": MINUTE, "timezone": ""}, "timezone"),
        ({"every": MINUTE, "timezone": None}, "timezone"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        check_rule(**{"timezone": "UTC", **values})  # type: ignore[arg-type]

    assert caught.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        {"misfire": "never"},
        {"overlap": "maybe"},
        {"misfire_limit": 0},
        {"misfire_limit": 101},
        {"misfire_limit": True},
        {"jitter": -1},
        {"jitter": float("nan")},
        {"jitter": timedelta(days=2)},
        {"misfire_grace": "a minute"},
    ],
)
def test_a_policy_that_cannot_be_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidOptions) as caught:
        check_policy(**values)  # type: ignore[arg-type]

    assert caught.value.field == next(iter(values))


def test_the_numbers_that_are_stored_are_those_of_the_tables_choices() -> None:
    """The models name them again, so that they need not load the rules."""
    from django_taskq.models import Schedule, ScheduleTick

    for field, kinds in ((Schedule._meta.get_field("kind"), Kind), (ScheduleTick._meta.get_field("kind"), TickKind)):
        assert [number for number, _ in field.choices] == [int(kind) for kind in kinds]
    assert [str(label) for _, label in Schedule._meta.get_field("kind").choices] == ["cron", "interval", "once"]


# Plans


@settings(max_examples=150, deadline=None)
@given(
    every=st.integers(1, 400),
    away=st.integers(0, 5000),
    grace=st.integers(0, 600),
    misfire=st.sampled_from(["once", "all", "skip"]),
    limit=st.integers(1, 5),
)
def test_a_plan_accounts_for_each_tick_once(every: int, away: int, grace: int, misfire: str, limit: int) -> None:
    rule = check_rule(every=timedelta(seconds=every), start=NOON, timezone="UTC")
    policy = check_policy(misfire=misfire, misfire_limit=limit, misfire_grace=grace)
    now = NOON + timedelta(seconds=away)
    due = [NOON + timedelta(seconds=every) * number for number in range(away // every + 1)]
    late = [at for at in due if now - at > timedelta(seconds=grace)]

    found = plan(rule, policy, NOON, now, most=10_000)

    rows = [*([found.missed] if found.missed else []), *found.make]
    accounted = [at for row in rows for at in due if (row.since or row.at) <= at <= row.at]
    assert accounted == due
    assert found.next_at == NOON + timedelta(seconds=every) * len(due)
    on_time = len(due) - len(late)
    made_late = {"once": int(bool(late) and not on_time), "all": min(limit, len(late)), "skip": 0}[misfire]
    assert len(found.make) == on_time + made_late


def test_a_plan_is_made_in_pieces_where_there_is_too_much() -> None:
    rule = check_rule(every=SECOND, start=NOON, timezone="UTC")
    policy = check_policy(misfire_grace=3600)

    first = plan(rule, policy, NOON, NOON + timedelta(seconds=9), most=4)

    assert [due.at for due in first.make] == [NOON + timedelta(seconds=number) for number in range(4)]
    assert first.next_at == NOON + timedelta(seconds=4)


@given(st.integers(0, 10_000), st.floats(0.001, 86_400))
def test_jitter_stays_below_its_bound_and_never_changes(number: int, bound: float) -> None:
    at = NOON + MINUTE * number

    found = jitter_of("nightly", at, bound)

    assert timedelta(0) <= found <= timedelta(seconds=bound)
    assert found == jitter_of("nightly", at.astimezone(ZoneInfo(ROME)), bound)


def test_jitter_spreads_schedules_of_one_moment() -> None:
    found = sorted(jitter_of(f"schedule {number}", NOON, 100).total_seconds() for number in range(200))

    assert found[20] < 25
    assert found[180] > 75
