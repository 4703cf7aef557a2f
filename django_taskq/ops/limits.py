"""
What limits allow, who holds their slots, and who waits for them. Reads only.

Its surprise: a key begins with where and what it limits ("1c:queue:email"), so the limits whose names begin with
a text lie in up to six ranges of the primary key, which are read one after the other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import connections
from django.db.models import Q, QuerySet

from django_taskq import clock
from django_taskq.domain.limit_columns import LIMIT_FIELDS
from django_taskq.domain.limits import Limitation, Room, is_shared, key_name, key_of
from django_taskq.lifecycle.databases import options_for
from django_taskq.lifecycle.limits import declared
from django_taskq.models import Limit, Task
from django_taskq.ops.search import COUNT_CAP, Order, Page, Reader, paged_by

__all__ = ["Bound", "Holder", "LimitView", "find", "find_key", "fixed", "full", "holders", "keys_of", "listed"]

BY_KEY = Order(name="key", label="everything first, then queues, then tasks", columns=("key",))
_PLACES = ("0c:", "0r:", "1c:", "1r:", "2c:", "2r:")
# How many running tasks are looked at to find those that hold a slot.
_MOST_RUNNING = 10_000
_LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """So many at once, or where ``per_seconds`` is given so many starts in that time, ``burst`` of them at once."""

    amount: int
    per_seconds: float | None = None
    burst: int | None = None

    def __str__(self) -> str:
        if self.per_seconds is None:
            return f"{self.amount} at once"
        return f"{self.amount} per {self.per_seconds:g} s, burst {self.burst}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """
    One limit as it stands.

    ``code`` is what the code says, ``by_hand`` what an operator set, ``bound`` what holds now; None for no bound.
    ``parked`` counts up to a cap; ``next_start_at`` is when a rate without tokens lets the next task start.
    """

    row: Limit
    kind: str
    name: str
    code: Bound | None
    by_hand: Bound | None
    bound: Bound | None
    held: int
    free: int
    tokens: float | None
    next_start_at: datetime | None
    parked: int = 0
    parked_is_capped: bool = False

    @property
    def is_set(self) -> bool:
        """Whether what an operator set is what holds."""
        return self.by_hand is not None and self.bound == self.by_hand

    @property
    def is_full(self) -> bool:
        """Whether no task may start now."""
        return self.free <= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A task that holds a slot."""

    id: uuid.UUID
    name: str
    since: datetime | None


def keys_of(row: Task) -> list[str]:
    """Return the keys of all limits that a live task may be kept back by, in the order in which they are asked."""
    shared = [key_of(kind, name) for name in ("all", f"queue:{row.queue}") for kind in ("concurrency", "rate")]
    own = row.limits
    return [*shared, *own.split("\n")] if own else shared


def find(alias: str, kind: str, name: str, *, now: datetime | None = None) -> LimitView | None:
    """Return a limit by what users call it, None if it has no row."""
    return find_key(alias, key_of(kind, name), now=now)


def find_key(alias: str, key: str, *, now: datetime | None = None) -> LimitView | None:
    """Return a limit by its key, None if it has no row."""
    found = _views(alias, Limit.objects.using(alias).filter(pk=key), now or clock.now())
    return _with_parked(alias, found[0]) if found else None


def full(alias: str, keys: Iterable[str], *, now: datetime | None = None) -> LimitView | None:
    """Return the first of some limits that lets nothing start now, None if each does."""
    order = {key: at for at, key in enumerate(keys)}
    rows = Limit.objects.using(alias).filter(pk__in=list(order))
    found = [view for view in _views(alias, rows, now or clock.now()) if view.is_full]
    return min(found, key=lambda view: order[view.row.key], default=None)


def listed(
    alias: str,
    prefix: str = "",
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    now: datetime | None = None,
) -> Page:
    """
    Return a page of limits whose names begin so, as ``LimitView``.

    One query more for each limit on it that tasks are parked on. Raise InvalidCursor.
    """
    reader = _ByName(base=Limit.objects.using(alias).all(), order=BY_KEY, prefix=prefix)
    page = paged_by(reader, limit=limit, after=after, before=before)
    views = _views(alias, page.rows, now or clock.now())
    return replace(page, rows=[_with_parked(alias, view) if view.row.waits else view for view in views])


def fixed(alias: str, *, limit: int, now: datetime | None = None) -> list[LimitView]:
    """
    Return up to ``limit`` limits of everything, of queues, and of whole definitions: as many as the code has.

    Keys made of arguments, which may be any number, are left out.
    """
    rows = Limit.objects.using(alias).order_by("key")
    parts = [rows.filter(key__gte="0", key__lt="2"), *(rows.filter(_begins(alias, f"2{kind}:task:")) for kind in "cr")]
    found: list[Limit] = []
    for part in parts:
        found += part[: limit - len(found)]
        if len(found) >= limit:
            break
    return [_with_parked(alias, view) if view.row.waits else view for view in _views(alias, found, now or clock.now())]


def holders(alias: str, key: str, *, limit: int = 20) -> list[Holder]:
    """Return up to ``limit`` tasks that hold a slot of a limit now. Looks at 10,000 running tasks at most."""
    running = Task.objects.using(alias).filter(lease__isnull=False, slots__isnull=False).order_by("lease")
    found: list[Holder] = []
    columns = running.values_list("id", "name", "started_at", "slots")
    for task_id, name, since, slots in columns[:_MOST_RUNNING].iterator(chunk_size=500):
        if key in (slots or "").split("\n"):
            found.append(Holder(id=task_id, name=name, since=since))
            if len(found) >= limit:
                break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByName(Reader):
    """Reads limits along their keys, a place after the other; those whose names begin with ``prefix``."""

    prefix: str

    def pieces(self, position: tuple[str, ...] | None, *, forward: bool) -> list[QuerySet[Limit]]:
        if not self.prefix:
            # All of them: one range, in front of the keys of paused types.
            every = Reader(base=self.base.filter(key__gte="0", key__lt="3"), order=self.order)
            return every.pieces(position, forward=forward)
        sorted_ = self.base.order_by("key" if forward else "-key")
        places = _PLACES if forward else _PLACES[::-1]
        beyond = "gt" if forward else "lt"
        found: list[QuerySet[Limit]] = []
        for place in places:
            rows = sorted_.filter(_begins(self.base.db, place + self.prefix))
            if position is not None:
                at = position[0][: len(place)]
                if places.index(at if at in places else places[0]) > places.index(place):
                    continue
                if at == place:
                    rows = rows.filter(**{f"key__{beyond}": position[0]})
            found.append(rows)
        return found


def _begins(alias: str, text: str) -> Q:
    begins = Q(key__startswith=text)
    if connections[alias].vendor == "postgresql":
        # Its order is that of the database's language; the index for prefixes is another one.
        return begins
    return begins & Q(key__gte=text, key__lt=text + _LAST)


def _views(alias: str, rows: Iterable[Limit], now: datetime) -> list[LimitView]:
    settings = declared(options_for(alias))
    return [_view(row, settings, now) for row in rows]


def _view(row: Limit, settings: dict[str, Limitation], now: datetime) -> LimitView:
    room = Room(*(getattr(row, name) for name in LIMIT_FIELDS))
    if is_shared(row.key):
        # What the settings have given up stays in the row until it is pruned, and holds nobody.
        room.amount = None
        if row.key in settings:
            room.declare(settings[row.key], now)
    kind, name = key_name(row.key)
    free = room.free(now)
    bound = _bound(room, *room.bound(now))
    return LimitView(
        row=row,
        kind=kind,
        name=name,
        code=_bound(room, room.amount, room.per_seconds, room.burst),
        by_hand=_bound(room, room.set_amount, room.set_per_seconds, room.set_burst),
        bound=bound,
        held=room.held,
        free=free,
        tokens=room.tokens if room.is_rate and bound is not None else None,
        next_start_at=room.opens_at(now) if free <= 0 else None,
    )


def _bound(room: Room, amount: int | None, per_seconds: float | None, burst: int | None) -> Bound | None:
    if amount is None:
        return None
    return Bound(amount=amount, per_seconds=per_seconds, burst=burst) if room.is_rate else Bound(amount=amount)


def _with_parked(alias: str, view: LimitView) -> LimitView:
    parked = Task.objects.using(alias).filter(parked_on=view.row.key).values_list("id", flat=True)[: COUNT_CAP + 1]
    count = len(parked)
    return replace(view, parked=min(count, COUNT_CAP), parked_is_capped=count > COUNT_CAP)
