"""
When a cron expression matches next, in a time zone that sets its clocks.

The expression itself is matched by ``cronsim`` on bare wall-clock times; what happens when clocks are set is
decided here, as in Vixie's cron. A *fixed* time (neither the minute nor the hour begins with ``*``) that is
skipped fires once right after the gap, and one that occurs twice fires at the first. Everything else
follows real time: nothing inside a gap, and both passes of a repeated hour.

Its surprise: cronsim is never given a time zone. Where a zone moves by half an hour its own arithmetic
passes over matches.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim, CronSimError

from django_taskq.exceptions import InvalidOptions

__all__ = ["check", "is_fixed", "is_moved", "next_after"]

MOST_CHARACTERS = 200
_SECOND = timedelta(seconds=1)
# Shorter than two changes of a zone's offset ever were apart where the second undid the first.
_STRIDE = timedelta(days=7)
# Any start will do: dates repeat after 28 years, or 40 around a century without a leap day; cronsim looks 50 ahead.
_ANY_WALL = datetime(2000, 1, 1)  # noqa: DTZ001 - wall-clock time, on purpose


def check(text: object) -> str:
    """
    Return the expression as it is stored: in capitals, single spaces between its fields.

    Raise InvalidOptions where it has not 5 fields, or 6 with seconds first, or where no date ever matches.
    """
    if not isinstance(text, str) or not text.isascii() or len(text) > MOST_CHARACTERS:
        raise _refused(text, f"must be a string of at most {MOST_CHARACTERS} ASCII characters")
    fields = text.upper().split()
    if len(fields) not in (5, 6):
        raise _refused(
            text, 'must have 5 fields (minute, hour, day, month, weekday), or 6 with seconds first, like "0 3 * * *"'
        )
    found = " ".join(fields)
    try:
        CronSim(found, _ANY_WALL)
    except (CronSimError, ValueError, AssertionError) as error:
        raise _refused(text, f"is no cron expression: {str(error) or 'it cannot be read'}") from error
    if _next_wall(found, _ANY_WALL) is None:
        raise _refused(text, "never matches: no date within 50 years is like that")
    return found


def _refused(text: object, why: str) -> InvalidOptions:
    shown = repr(text)
    return InvalidOptions(
        f"cron {why}, got {shown if len(shown) < 250 else shown[:250] + '…'}", field="cron", code="cron"
    )


def is_fixed(text: str) -> bool:
    """Return whether an expression names times of the day rather than an interval."""
    minute, hour = text.split()[-5:-3]
    return not minute.startswith("*") and not hour.startswith("*")


def next_after(text: str, zone: tzinfo, moment: datetime) -> datetime | None:
    """Return the first moment later than ``moment`` at which the expression matches, in UTC; None if there is none."""
    moment = moment.astimezone(UTC).replace(microsecond=0)
    try:
        return _next_fixed(text, zone, moment) if is_fixed(text) else _next_real(text, zone, moment)
    except OverflowError:
        # Beyond the year 9999.
        return None


def _next_wall(text: str, wall: datetime) -> datetime | None:
    """Return the first bare wall-clock time later than ``wall`` that matches."""
    return next(CronSim(text, wall), None)


def _wall(zone: tzinfo, moment: datetime) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _offset(zone: tzinfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _next_fixed(text: str, zone: tzinfo, moment: datetime) -> datetime | None:
    wall = _next_wall(text, _wall(zone, moment))
    while wall is not None:
        found = _first_instant(zone, wall)
        # Not later inside the second pass of a repeated hour: those were the first pass's.
        if found > moment:
            return found
        wall = _next_wall(text, wall)
    return None


def _first_instant(zone: tzinfo, wall: datetime) -> datetime:
    """Return the first moment at which clocks show ``wall``; if they never do, when they jump over it."""
    found = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _wall(zone, found) == wall:
        return found
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return _first_change(zone, before, found) or found


def _next_real(text: str, zone: tzinfo, moment: datetime) -> datetime | None:
    wall = _wall(zone, moment)
    while True:
        offset = _offset(zone, moment)
        match = _next_wall(text, wall)
        if match is None:
            return None
        found = (match - offset).replace(tzinfo=UTC)
        change = _first_change(zone, moment, found)
        if change is None:
            return found
        # Nothing matches before the clocks are set; from there on with what they show then.
        moment = change
        wall = _wall(zone, change) - _SECOND


def _first_change(zone: tzinfo, low: datetime, high: datetime) -> datetime | None:
    """Return the first moment later than ``low`` and not later than ``high`` with another offset, None if none has."""
    offset = _offset(zone, low)
    while low < high:
        stop = min(low + _STRIDE, high)
        if _offset(zone, stop) == offset:
            low = stop
            continue
        while stop - low > _SECOND:
            middle = low + (stop - low) // 2
            middle = middle.replace(microsecond=0)
            if _offset(zone, middle) == offset:
                low = middle
            else:
                stop = middle
        return stop
    return None


def is_moved(text: str, zone: tzinfo, moment: datetime) -> bool:
    """Return whether a match stands for a time that clocks jump over: they do not show what the expression names."""
    wall = _wall(zone, moment)
    return _next_wall(text, wall - _SECOND) != wall
