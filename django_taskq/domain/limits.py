"""
Limits: how many tasks may run at once, and how often one may start, over all workers together.

``Concurrency`` and ``Rate`` are what a project writes; ``Room`` is one row of ``Limit`` and does the counting.
Its surprise: a released task has no right to its slot. It is promised one, so that
nobody releases another in its place, but whoever claims first takes it. The released task carries
the promise, so that it is given back whatever becomes of the task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django_taskq.domain.limit_columns import LIMIT_FIELDS
from django_taskq.domain.parking import PAUSED, is_paused_type
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions

__all__ = [
    "Concurrency",
    "LimitKind",
    "Rate",
    "Room",
    "default_burst",
    "is_rate",
    "is_shared",
    "key_name",
    "key_of",
    "matched",
    "own_key",
    "parse_rate",
    "queue_of",
    "whole",
]

# Keys sort in the order in which their rows are locked: everything, a queue, a key of its own.
_ALL, _QUEUE, _OWN = "0", "1", "2"
_KINDS = {"c": "concurrency", "r": "rate"}
_LONGEST_SPAN = 366 * 86400.0
_MOST = 1_000_000_000
# What a bucket holds where nobody says: what comes in this time, so that high rates need no claim per task.
_BURST_SECONDS = 0.25
# How long a released task has to be claimed before its place is offered to the next.
PROMISE_SECONDS = 2.0
# Tokens are no whole numbers: what is lost in rounding must not delay a task by a whole look.
_ALMOST = 1e-6
# How often at most a bucket is looked at to release tasks.
_LOOK_SECONDS = 0.02

# How soon what is parked although there is room is looked at again.
_AGAIN_SECONDS = 1.0
# Up to here a time before the last look is that of somebody who waited for the row's lock, or was suspended, since
# they asked for it. Taken for a clock that was set back, it would let what came in since then come in twice.
_SET_BACK_SECONDS = 300.0

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\d+(?:\.\d+)?)?\s*(s|sec|second|m|min|minute|h|hour|d|day)s?\s*")


class LimitKind:
    """What a limit counts. Stored as one letter in its key."""

    CONCURRENCY = "concurrency"
    RATE = "rate"


def whole(value: object, field_name: str, low: int = 1) -> int:
    """Return a number of tasks or starts. Raise InvalidOptions for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _MOST:
        raise InvalidOptions(
            f"{field_name} must be a whole number from {low} to {_MOST}, got {value!r}", field=field_name, code="range"
        )
    return value


def _check_key(key: object) -> None:
    if key is not None and not callable(key) and (not isinstance(key, str) or not key.strip()):
        raise InvalidOptions(
            f"key must be a text such as 'smtp:{{account_id}}', a callable, or None for one limit "
            f"over all tasks of the definition, got {key!r}",
            field="key",
            code="type",
        )
    if isinstance(key, str) and (key == "all" or key.startswith(("queue:", "task:"))):
        raise InvalidOptions(
            f"key must not be 'all' nor begin with 'queue:' or 'task:', which name limits of other kinds, got {key!r}",
            field="key",
            code="reserved",
        )


@lean
@dataclass(frozen=True, slots=True)
class Concurrency:
    """
    Let at most ``limit`` tasks of one key be claimed at once, over all workers.

    ``key`` is a template over the arguments (``"smtp:{account_id}"``) or a callable that gets them; tasks of
    different definitions with the same key share the limit. Without one it counts all tasks of the definition.
    """

    limit: int
    key: str | Callable[..., object] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        whole(self.limit, "limit")
        _check_key(self.key)

    @property
    def amount(self) -> int:
        return self.limit


@lean
@dataclass(frozen=True, slots=True)
class Rate:
    """
    Let tasks of one key start no more often than ``rate`` says, over all workers: ``Rate("100/m")``.

    A token bucket: it fills evenly, holds at most ``burst`` starts, and begins full. So within any
    time there are at most ``burst`` plus what comes in it. Without ``burst`` the bucket holds
    what comes in a quarter of a second, at least one start. ``rate`` is a number per
    s, m, h, d, or per several of them (``"5/30s"``); ``key`` as for ``Concurrency``.
    """

    rate: str
    burst: int | None = field(default=None, kw_only=True)
    key: str | Callable[..., object] | None = field(default=None, kw_only=True)
    amount: int = field(init=False, repr=False, compare=False)
    per_seconds: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        amount, seconds = parse_rate(self.rate)
        if self.burst is not None:
            whole(self.burst, "burst")
        _check_key(self.key)
        object.__setattr__(self, "rate", f"{amount}/{seconds:g}s")
        object.__setattr__(self, "burst", self.burst or default_burst(amount, seconds))
        object.__setattr__(self, "amount", amount)
        object.__setattr__(self, "per_seconds", seconds)


Limitation = Concurrency | Rate


def parse_rate(text: object, *, least: int = 1) -> tuple[int, float]:
    """Return how many starts in how many seconds a text such as "100/m" allows. Raise InvalidOptions."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidOptions(
            f"rate must be a number per time such as '100/m', '5/30s' or '1000/h', got {text!r}",
            field="rate",
            code="format",
        )
    amount = whole(int(found[1]), "rate", least)
    seconds = float(found[2] or 1) * _UNITS[found[3][0]]
    if not 0 < seconds <= _LONGEST_SPAN:
        raise InvalidOptions(f"rate must be per 366 days at most, got {text!r}", field="rate", code="range")
    return amount, seconds


def default_burst(amount: int, per_seconds: float) -> int:
    """Return how many starts a bucket holds where nobody says."""
    return max(math.floor(amount / per_seconds * _BURST_SECONDS + _ALMOST), 1)


# Keys


def key_of(kind: str, name: str) -> str:
    """Return the key of a limit by what users call it: "all", "queue:email", "task:shop.send" or a key of their own."""
    place = _ALL if name == "all" else _QUEUE if name.startswith("queue:") else _OWN
    return f"{place}{kind[0]}:{name}"


def own_key(limit: Limitation, name: str) -> str:
    """Return the key of a task's own limit."""
    return f"{_OWN}{'c' if isinstance(limit, Concurrency) else 'r'}:{name}"


def key_name(key: str) -> tuple[str, str]:
    """Return kind and name of a limit as users call them."""
    if is_paused_type(key):
        return "pause", f"task:{key[len(PAUSED) :]}"
    return _KINDS.get(key[1:2], "?"), key[3:]


def is_rate(key: str) -> bool:
    return key[1:2] == "r"


def is_shared(key: str) -> bool:
    """Return whether a key is no task's own but of a queue or of everything."""
    return key[0] in (_ALL, _QUEUE)


def queue_of(key: str) -> str | None:
    """Return the queue that a key limits, None if it limits all of them."""
    return key[len("1c:queue:") :] if key[0] == _QUEUE else None


def matched(limits: Sequence[Limitation], keys: Iterable[str]) -> list[tuple[str, Limitation | None]]:
    """
    Return what limits each key of a stored task, None where the code has no such limit any more.

    By position among those of its kind; after a change of the code by how their keys begin.
    """
    by_kind = {
        is_a_rate: [limit for limit in limits if isinstance(limit, Rate) is is_a_rate] for is_a_rate in (False, True)
    }
    found: list[tuple[str, Limitation | None]] = []
    for is_a_rate, declared in by_kind.items():
        stored = [key for key in keys if is_rate(key) is is_a_rate]
        if len(stored) == len(declared):
            found += zip(stored, declared, strict=True)
            continue
        for key in stored:
            fit = [limit for limit in declared if key[3:].startswith(_fixed_part(limit))]
            found.append((key, max(fit, key=lambda limit: len(_fixed_part(limit)), default=None)))
    return found


def _fixed_part(limit: Limitation) -> str:
    if limit.key is None:
        return "task:"
    return limit.key.split("{", 1)[0] if isinstance(limit.key, str) else ""


# Counting


class Room:
    """One limit, locked: says whether another task fits, and takes note of what came and went."""

    __slots__ = (*LIMIT_FIELDS, "before")

    key: str
    held: int
    amount: int | None
    per_seconds: float | None
    burst: int | None
    tokens: float | None
    refilled_at: datetime | None
    waits: bool
    promised: int
    promised_at: datetime | None
    next_at: datetime | None
    used_at: datetime | None
    set_amount: int | None
    set_per_seconds: float | None
    set_burst: int | None
    set_until: datetime | None
    before: tuple[Any, ...]

    def __init__(self, *row: Any) -> None:
        # One by one and not in a loop: there is one of these for each key of each claim.
        (
            self.key,
            self.held,
            self.amount,
            self.per_seconds,
            self.burst,
            self.tokens,
            self.refilled_at,
            self.waits,
            self.promised,
            self.promised_at,
            self.next_at,
            self.used_at,
            self.set_amount,
            self.set_per_seconds,
            self.set_burst,
            self.set_until,
        ) = row
        self.before = self.changing

    @property
    def changing(self) -> tuple[Any, ...]:
        """What is written back, in the order of LIMIT_CHANGING."""
        return (
            self.held,
            self.amount,
            self.per_seconds,
            self.burst,
            self.tokens,
            self.refilled_at,
            self.waits,
            self.promised,
            self.promised_at,
            self.next_at,
            self.used_at,
        )

    @property
    def is_rate(self) -> bool:
        return is_rate(self.key)

    def is_set(self, now: datetime) -> bool:
        """Return whether what an operator set holds."""
        return self.set_amount is not None and (self.set_until is None or self.set_until > now)

    def declare(self, limit: Limitation | None, now: datetime) -> None:
        """Take note of what the code says; a bucket seen for the first time is full."""
        if limit is not None:
            if self.amount != limit.amount:
                self.amount = limit.amount
            if isinstance(limit, Rate) and (self.per_seconds, self.burst) != (limit.per_seconds, limit.burst):
                self.per_seconds, self.burst = limit.per_seconds, limit.burst
        if self.used_at is None or now - self.used_at > timedelta(hours=1):
            self.used_at = now

    def bound(self, now: datetime) -> tuple[int | None, float, int]:
        """Return amount (None: no bound), seconds per amount, and burst, as they hold now."""
        if not self.is_set(now):
            return self.amount, self.per_seconds or 1.0, self.burst or 1
        amount = self.set_amount or 0
        per = self.set_per_seconds or self.per_seconds or 1.0
        return amount, per, self.set_burst or default_burst(amount, per)

    def free(self, now: datetime, limit: Limitation | None = None) -> int:
        """Return how many more tasks may start; ``limit`` is what the asking task's own definition says."""
        amount, per, burst = self.bound(now)
        if not self.is_rate:
            if limit is not None and not self.is_set(now):
                amount = limit.amount
            return _MOST if amount is None else max(amount - self.held, 0)
        if amount is None:
            return _MOST
        if not amount:
            # Held by an operator: what was left in the bucket starts nothing either.
            return 0
        self._refill(now, amount, per, burst)
        return max(math.floor((self.tokens or 0.0) + _ALMOST), 0)

    def _refill(self, now: datetime, amount: int, per: float, burst: int) -> None:
        if self.tokens is None or self.refilled_at is None:
            self.tokens, self.refilled_at = float(burst), now
            return
        # A clock that was set back brings nothing, and takes nothing.
        passed = (now - self.refilled_at).total_seconds()
        self.tokens = min(self.tokens + max(passed, 0.0) * amount / per, float(burst))
        if passed > 0 or passed < -_SET_BACK_SECONDS:
            self.refilled_at = now

    def _comes_in(self, count: float, amount: int, per: float, now: datetime) -> datetime:
        """Return when so many starts will have come in, counted from the last look, which may lie ahead of ``now``."""
        since = now if self.refilled_at is None else max(now, self.refilled_at)
        return since + timedelta(seconds=max(count, 0.0) * per / amount)

    def take(self, count: int = 1) -> None:
        """Count tasks that start; ``free`` was asked before."""
        if self.is_rate:
            self.tokens = (self.tokens or 0.0) - count
        else:
            self.held += count

    def give_back(self, count: int) -> None:
        """Count tasks that ended; of a rate, those that never began."""
        if self.is_rate:
            self.tokens = (self.tokens or 0.0) + count
        else:
            self.held = max(self.held - count, 0)

    def releasable(self, now: datetime) -> int:
        """Return how many parked tasks may be sent back now."""
        if not self.waits:
            return 0
        if self.promised and self.promised_at is not None and not self._is_recent(now):
            # What was released before has not been claimed: cancelled, or in a queue that nobody serves.
            self.promised, self.promised_at = 0, None
        return max(self.free(now) - self.promised, 0)

    def is_as_new(self, now: datetime) -> bool:
        """Return whether a limit of the same bound that was made now would be no other."""
        if not self.is_rate:
            return self.held == 0
        _, _, burst = self.bound(now)
        return self.free(now) >= burst

    def _is_recent(self, now: datetime) -> bool:
        assert self.promised_at is not None
        return abs((now - self.promised_at).total_seconds()) < PROMISE_SECONDS

    def promise(self, count: int, now: datetime) -> None:
        """Take note that parked tasks were sent back."""
        if not count:
            return
        if not self.promised:
            # The oldest promise counts: else one that nobody claims would be renewed by each that somebody does.
            self.promised_at = now
        self.promised += count

    def forgo(self, count: int = 1) -> None:
        """Take note that released tasks need their promises no more: they start, or never will."""
        self.promised = max(self.promised - count, 0)
        if not self.promised:
            self.promised_at = None

    def plan(self, now: datetime) -> None:
        """Choose when somebody has to look at this limit again."""
        moments: list[datetime] = []
        if is_paused_type(self.key):
            # Nobody tells when a pause is over.
            moments += [now + timedelta(seconds=_AGAIN_SECONDS)] if self.waits else []
        elif self.waits:
            amount, per, _ = self.bound(now)
            if self.is_rate and amount:
                due = self._comes_in(1.0 + self.promised - (self.tokens or 0.0), amount, per, now)
                moments.append(max(due, now + timedelta(seconds=_LOOK_SECONDS)))
            if self.promised and self.promised_at is not None:
                moments.append(self.promised_at + timedelta(seconds=PROMISE_SECONDS))
            elif not self.is_rate and self.free(now) > 0:
                moments.append(now + timedelta(seconds=_AGAIN_SECONDS))
            if self.is_set(now) and self.set_until is not None:
                moments.append(self.set_until)
        self.next_at = min(moments, default=None)

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when a bucket without tokens has one again, None where no time can be told."""
        amount, per, _ = self.bound(now)
        if not self.is_rate:
            return None
        moments = [self.set_until] if self.is_set(now) and self.set_until is not None else []
        if amount:
            moments.append(self._comes_in(1.0 - (self.tokens or 0.0), amount, per, now))
        return min(moments, default=None)
