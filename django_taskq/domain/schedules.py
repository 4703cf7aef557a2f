"""
When schedules tick, and what becomes of ticks that nobody was there for.

A rule is a cron expression, an interval or one moment. Ticks are a pure function of the rule, so
whoever asks, and whenever, gets the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any
from zoneinfo import ZoneInfo

from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions

__all__ = [
    "Due",
    "Kind",
    "Occurrence",
    "Plan",
    "Policy",
    "Rule",
    "TickKind",
    "check_policy",
    "check_rule",
    "check_zone",
    "jitter_of",
    "latest",
    "next_after",
    "occurrence_of",
    "plan",
    "policy_of",
    "ticks",
]

MISFIRES = ("once", "all", "skip")
OVERLAPS = ("queue", "skip", "replace")
MOST_MISFIRES = 100
MOST_JITTER = timedelta(days=1)
MOST_INTERVAL = timedelta(days=36_500)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)


class Kind(IntEnum):
    """What a rule is. The numbers are stored."""

    CRON = 1
    INTERVAL = 2
    ONCE = 3


class TickKind(IntEnum):
    """What became of a tick. The numbers are stored."""

    MADE = 1
    MANUAL = 2
    OVERLAP = 3
    PAUSED = 4
    MISSED = 5
    SKIPPED = 6


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a schedule ticks. ``text`` is a cron expression, a number of seconds, or a moment in ISO 8601."""

    kind: Kind
    text: str
    timezone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a schedule treats its ticks. ``jitter`` and ``misfire_grace`` are seconds."""

    jitter: float = 0.0
    misfire: str = "once"
    misfire_limit: int = 10
    misfire_grace: float = 60.0
    overlap: str = "queue"


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A tick to make a task for; ``since`` is the first of those it stands for, where there are several."""

    at: datetime
    since: datetime | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """
    The tick that a task was made for: the schedule's name and the moment.

    ``since`` is the first of the ticks it stands for, where several were missed; ``manual``: an operator ran it.
    """

    name: str
    at: datetime
    since: datetime | None = None
    manual: bool = False


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do with the ticks up to now: make these, note those as missed, and come back at ``next_at``."""

    make: tuple[Due, ...]
    missed: Due | None
    next_at: datetime | None


# Checks: what a declaration and a form may say


def check_zone(name: object) -> str:
    """Return the name of a time zone. Raise InvalidOptions for what this machine has no zone of."""
    given = name
    # A ZoneInfo has its name as its key.
    name = getattr(name, "key", name)
    try:
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise ValueError
        ZoneInfo(name)
    # A directory of the zone files, such as "Europe", is an OSError; not found is a KeyError.
    except (KeyError, ValueError, OSError) as error:
        raise InvalidOptions(
            f"timezone must be an IANA name such as 'Europe/Rome', got {given!r}; on a machine without "
            "time zone data, install the package tzdata",
            field="timezone",
            code="unknown",
        ) from error
    return name


def check_rule(
    *,
    cron: object = None,
    every: object = None,
    at: object = None,
    timezone: object,
    start: object = None,
    end: object = None,
) -> Rule:
    """Return the rule that one of ``cron``, ``every`` and ``at`` gives. Raise InvalidOptions for what cannot be."""
    given = {"cron": cron, "every": every, "at": at}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InvalidOptions(
            f"a schedule has one of cron, every and at, got {', '.join(named) or 'none'}", field="cron", code="conflict"
        )
    shared: dict[str, Any] = {
        "timezone": check_zone(timezone),
        "start": _moment("start", start),
        "end": _moment("end", end),
    }
    if shared["start"] is not None and shared["end"] is not None and shared["start"] > shared["end"]:
        raise InvalidOptions(f"end ({end}) is before start ({start})", field="end", code="conflict")
    if cron is not None:
        # Loads cronsim: only for those who have cron expressions.
        from django_taskq.domain.cron import check

        return Rule(kind=Kind.CRON, text=check(cron), **shared)
    if every is not None:
        return Rule(kind=Kind.INTERVAL, text=_interval(every), **shared)
    moment = _moment("at", at)
    assert moment is not None
    return Rule(kind=Kind.ONCE, text=moment.isoformat(), **shared)


def _moment(field: str, value: object) -> datetime | None:
    if value is None:
        return None
    try:
        if not isinstance(value, datetime) or value.utcoffset() is None:
            raise ValueError
        found = value.astimezone(UTC)
        if not 1000 <= found.year <= 9998:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidOptions(
            f"{field} must be an aware datetime of the years 1000 to 9998, got {value!r}", field=field, code="type"
        ) from None
    return found


def _interval(value: object) -> str:
    span = value if isinstance(value, timedelta) else None
    if span is None or not _SECOND <= span <= MOST_INTERVAL:
        raise InvalidOptions(
            f"every must be a timedelta from 1 second to {MOST_INTERVAL.days} days, got {value!r}",
            field="every",
            code="range",
        )
    seconds, rest = divmod(span, _SECOND)
    return f"{seconds}.{rest // _INSTANT:06d}".rstrip("0").rstrip(".") if rest else str(seconds)


def check_policy(
    *,
    jitter: object = 0,
    misfire: object = "once",
    misfire_limit: object = 10,
    misfire_grace: object = 60,
    overlap: object = "queue",
) -> Policy:
    """Return how ticks are treated. Raise InvalidOptions for a value outside its rule."""
    if misfire not in MISFIRES:
        raise InvalidOptions(
            f"misfire must be 'once', 'all' or 'skip', got {misfire!r}", field="misfire", code="unknown"
        )
    if overlap not in OVERLAPS:
        raise InvalidOptions(
            f"overlap must be 'queue', 'skip' or 'replace', got {overlap!r}", field="overlap", code="unknown"
        )
    if isinstance(misfire_limit, bool) or not isinstance(misfire_limit, int) or not 1 <= misfire_limit <= MOST_MISFIRES:
        raise InvalidOptions(
            f"misfire_limit must be a whole number from 1 to {MOST_MISFIRES}, got {misfire_limit!r}",
            field="misfire_limit",
            code="range",
        )
    return Policy(
        jitter=_seconds("jitter", jitter, MOST_JITTER),
        misfire=str(misfire),
        misfire_limit=misfire_limit,
        misfire_grace=_seconds("misfire_grace", misfire_grace, MOST_INTERVAL),
        overlap=str(overlap),
    )


def _seconds(field: str, value: object, most: timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= most.total_seconds():
        raise InvalidOptions(
            f"{field} must be a timedelta or a number of seconds, from 0 to {most.total_seconds():.0f}, got {value!r}",
            field=field,
            code="range",
        )
    return float(seconds)


def policy_of(values: Mapping[str, Any]) -> Policy:
    """Return the policy that stored options hold; what they do not name is the default."""
    names = ("jitter", "misfire", "misfire_limit", "misfire_grace", "overlap")
    return Policy(**{name: values[name] for name in names if name in values})


# Ticks


def next_after(rule: Rule, moment: datetime) -> datetime | None:
    """Return the first tick later than ``moment``, in UTC; None if there is none."""
    if rule.start is not None and moment < rule.start:
        moment = rule.start - _INSTANT
    found = _next(rule, moment)
    return None if found is None or (rule.end is not None and found > rule.end) else found


def _next(rule: Rule, moment: datetime) -> datetime | None:
    if rule.kind == Kind.ONCE:
        at = datetime.fromisoformat(rule.text)
        return at if at > moment else None
    if rule.kind == Kind.INTERVAL:
        # Counted from where it starts, never from the last tick: it cannot drift.
        anchor, every = rule.start or EPOCH, _every(rule)
        try:
            return anchor if moment < anchor else anchor + ((moment - anchor) // every + 1) * every
        except OverflowError:
            return None
    from django_taskq.domain.cron import next_after as next_match

    return next_match(rule.text, ZoneInfo(rule.timezone), moment)


def _every(rule: Rule) -> timedelta:
    seconds, _, rest = rule.text.partition(".")
    return timedelta(seconds=int(seconds), microseconds=int(rest.ljust(6, "0")) if rest else 0)


def ticks(rule: Rule, moment: datetime) -> Iterator[datetime]:
    """Yield the ticks later than ``moment``, one after the other."""
    found = next_after(rule, moment)
    while found is not None:
        yield found
        found = next_after(rule, found)


def latest(rule: Rule, since: datetime, until: datetime) -> datetime:
    """
    Return the last tick not later than ``until``; ``since`` is one that is not.

    Found by halving, not by walking: a rule of every second may have been away for a year.
    """
    span = _SECOND
    low = max(until - span, since)
    found = _within(rule, low, until)
    while found is None and low > since:
        span *= 2
        low = max(until - span, since)
        found = _within(rule, low, until)
    if found is None:
        return since
    high = until
    while high - low > _INSTANT:
        middle = low + (high - low) // 2
        later = _within(rule, middle, until)
        if later is None:
            high = middle
        else:
            # Whatever lies before this tick is known by now.
            found, low = later, later
    return found


def _within(rule: Rule, moment: datetime, until: datetime) -> datetime | None:
    found = next_after(rule, moment)
    return None if found is None or found > until else found


def plan(rule: Rule, policy: Policy, first: datetime, now: datetime, *, most: int) -> Plan:
    """
    Return what to do with the ticks from ``first``, the earliest nobody has dealt with, up to ``now``.

    A tick is missed if it is later than the grace. At most ``most`` ticks on time are dealt with at
    once; the others come with the next look.
    """
    edge = now - timedelta(seconds=policy.misfire_grace)
    make: list[Due] = []
    missed: Due | None = None
    on_time: datetime | None = first
    since: datetime | None = None
    if first < edge:
        last = latest(rule, first, edge - _INSTANT)
        on_time = next_after(rule, last)
        if policy.misfire == "skip":
            missed = _run(first, last)
        elif policy.misfire == "all":
            make, missed = _catch_up(rule, first, last, policy.misfire_limit)
        elif on_time is None or on_time > now:
            make = [_run(first, last)]
        else:
            # One task for all of them: the tick that is on time stands for the missed ones, too.
            since = first
    while on_time is not None and on_time <= now and len(make) < most:
        make.append(Due(at=on_time, since=since))
        since = None
        on_time = next_after(rule, on_time)
    return Plan(make=tuple(make), missed=missed, next_at=on_time)


def _run(first: datetime, last: datetime) -> Due:
    return Due(at=last, since=None if first == last else first)


def _catch_up(rule: Rule, first: datetime, last: datetime, limit: int) -> tuple[list[Due], Due | None]:
    """Return the newest ``limit`` of the missed ticks to be made, and those before them to be noted."""
    newest = [last]
    while len(newest) < limit and newest[-1] > first:
        newest.append(latest(rule, first, newest[-1] - _INSTANT))
    older = None if newest[-1] == first else _run(first, latest(rule, first, newest[-1] - _INSTANT))
    return [Due(at=at) for at in reversed(newest)], older


def occurrence_of(options: Mapping[str, Any]) -> Occurrence | None:
    """Return the tick that a task's stored options name, None for a task that no schedule made."""
    found = options.get("schedule")
    if not isinstance(found, Mapping):
        return None
    since = found.get("since")
    return Occurrence(
        name=found["name"],
        at=datetime.fromisoformat(found["at"]),
        since=None if since is None else datetime.fromisoformat(since),
        manual=found.get("manual", False),
    )


def jitter_of(name: str, tick: datetime, seconds: float) -> timedelta:
    """Return how much later than its tick a task may start: always the same for one schedule and tick."""
    if not seconds:
        return timedelta(0)
    from hashlib import blake2b

    digest = blake2b(f"{name}\n{tick.astimezone(UTC).isoformat()}".encode(), digest_size=6).digest()
    return timedelta(seconds=seconds * int.from_bytes(digest) / 2**48)
