"""
A clock that a test moves.

Inside ``travel`` the engine's clock (``django_taskq.clock``) shows what the test says. Django's own
``timezone.now()`` is not touched: where a task reads that, use freezegun, which moves
both; ``drain`` moves freezegun's time too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django_taskq import clock

__all__ = ["TestClock", "active_clock", "travel"]

_MICROSECOND = timedelta(microseconds=1)


def _epoch_us(moment: datetime) -> int:
    """Return whole microseconds since 1970, without the rounding of a float."""
    return (moment - clock.from_timestamp(0)) // _MICROSECOND


class TestClock:
    """The clock inside ``travel``. Stands still until moved, or ticks on from where it was put."""

    __test__ = False  # pytest takes any Test* for a test class

    def __init__(self, start: datetime, *, is_ticking: bool, real_now: Any) -> None:
        _require_aware(start)
        self._moment = start
        self._real_now = real_now
        self._since = real_now()
        self.is_ticking = is_ticking

    def now(self) -> datetime:
        """Return the moment this clock shows, aware, in UTC."""
        moment = self._moment
        if self.is_ticking:
            moment += self._real_now() - self._since
        return moment.astimezone(clock.from_timestamp(0).tzinfo)

    def move_to(self, moment: datetime) -> datetime:
        """Show ``moment`` from now on, which may lie in the past; return it. Raise ValueError for a naive one."""
        _require_aware(moment)
        self._moment, self._since = moment, self._real_now()
        return moment

    def shift(self, span: timedelta | float) -> datetime:
        """Move forward by a span, in seconds unless a timedelta (back, if negative); return the new moment."""
        return self.move_to(self.now() + (span if isinstance(span, timedelta) else timedelta(seconds=span)))


def _require_aware(moment: datetime) -> None:
    if moment.tzinfo is None:
        raise ValueError(f"the clock needs an aware datetime, got {moment!r}; add tzinfo=datetime.UTC")


_clocks: list[TestClock] = []


@contextmanager
def travel(to: datetime | None = None, *, ticking: bool = False) -> Iterator[TestClock]:
    """
    Let the engine's clock show ``to`` (default: the present) until the block ends.

    It stands still unless ``ticking``. May be nested; the inner one counts. Yields
    the clock, to be moved with ``move_to`` and ``shift``.
    """
    before = {name: getattr(clock, name) for name in ("now", "timestamp", "now_ns")}
    made = TestClock(to or clock.now(), is_ticking=ticking, real_now=clock.now)

    def timestamp() -> float:
        return _epoch_us(made.now()) / 1_000_000

    def now_ns() -> int:
        return _epoch_us(made.now()) * 1000

    vars(clock).update(now=made.now, timestamp=timestamp, now_ns=now_ns)
    _clocks.append(made)
    try:
        yield made
    finally:
        _clocks.remove(made)
        vars(clock).update(before)


class _Frozen:
    """freezegun's time, with the verbs of ``TestClock``."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def now(self) -> datetime:
        return clock.now()

    def move_to(self, moment: datetime) -> datetime:
        self._factory.move_to(moment)
        return moment


def active_clock() -> TestClock | _Frozen | None:
    """Return the clock the test has taken in hand, by ``travel`` or by freezegun; None if time is real."""
    if _clocks:
        return _clocks[-1]
    freezegun = sys.modules.get("freezegun.api")
    factories = getattr(freezegun, "freeze_factories", None)
    # Only kinds that can be moved: freeze_time(as_arg=…) of a plain function hands out others.
    if factories and hasattr(factories[-1], "move_to"):
        return _Frozen(factories[-1])
    return None
