"""
Find tasks, a page at a time, without counting and without OFFSET.

A page starts behind a key (a *cursor*) and reads one row more than it shows.
Each filter leads to one order that an index serves. What that index does not
serve is matched in a bounded window: at most ``WINDOW`` rows along the order
are looked at, and the page says so. So no search reads more than that many
rows, however many there are, and none hides that it stopped.
"""

from __future__ import annotations

import base64
import json
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import DateTimeField, Model, QuerySet
from django.utils.translation import gettext_lazy as _

from django_taskq import clock
from django_taskq.domain.states import FINAL, LIVE, State
from django_taskq.exceptions import InvalidCursor
from django_taskq.models import FinishedTask, Task
from django_taskq.store.tasks import to_uuid
from django_taskq.store.vendors.literal import Literal

__all__ = [
    "COUNT_CAP",
    "LONG_COLUMNS",
    "NEWEST",
    "WINDOW",
    "Order",
    "Page",
    "Reader",
    "TaskFilter",
    "finished",
    "first_id",
    "id_span",
    "live",
    "paged",
    "paged_by",
    "position_of",
]

COUNT_CAP = 1000
"""Beyond this many, a count is "more than"."""

WINDOW = 10_000
"""How many rows a search looks at, at most, where no index serves the filter."""

_STEP = 1000
_PREFIX_DIGITS = 6
LONG_COLUMNS = ("args", "result", "options", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order that an index serves. Its last column is unique, and all go the same way."""

    name: str
    label: Any
    columns: tuple[str, ...]
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    Up to ``limit`` rows, and where to go from here.

    ``older`` leads on along the order, ``newer`` back; None where nothing lies.
    ``count`` is of all matches, or at least that many with ``more``. ``examined``
    is the number of rows looked at where no index served the filter, else None:
    then ``count`` speaks of those only, ``edge`` is the last row looked at, and
    ``more`` says that there is more to look through.
    """

    rows: list[Any]
    order: Order
    older: str | None = None
    newer: str | None = None
    count: int = 0
    more: bool = False
    examined: int | None = None
    edge: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """
    What to look for; everything given must hold, and one of the values in a set is enough.

    ``id``: a whole id or at least its first six digits. The created window is read off the
    ids, which hold the time of enqueueing in milliseconds. ``discarded``: True for only those dead tasks that
    were given up, False for the others, None for both. ``parked_on``: the key of a limit that live tasks wait for.
    """

    id: str = ""
    states: frozenset[State] = frozenset()
    queues: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    fingerprint: str = ""
    discarded: bool | None = None
    parked_on: str = ""
    created_since: datetime | None = None
    created_until: datetime | None = None
    finished_since: datetime | None = None
    finished_until: datetime | None = None


NEWEST = Order(name="newest", label=_("newest first"), columns=("id",), descending=True)
BY_WORKER = Order(name="worker", label=_("by worker, oldest claim first"), columns=("lease", "id"))
NEXT_DUE = Order(name="due", label=_("next due first"), columns=("run_after", "id"))
NEXT_TURN = Order(name="turn", label=_("in the order they will be claimed"), columns=("rank", "id"))
LAST_ENDED = Order(name="ended", label=_("last ended first"), columns=("finished_at", "id"), descending=True)


def id_span(text: str) -> tuple[uuid.UUID, uuid.UUID] | None:
    """Return the lowest and the highest id that begin with ``text`` (six digits or more), None if none can."""
    digits = text.strip().replace("-", "").lower()
    if not _PREFIX_DIGITS <= len(digits) <= 32 or not set(digits) <= set(string.hexdigits):
        return None
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


def live(
    alias: str, wanted: TaskFilter, *, limit: int = 50, after: str | None = None, before: str | None = None
) -> Page:
    """Return a page of tasks that have not ended. Raise InvalidCursor."""
    states = wanted.states & LIVE if wanted.states else frozenset()
    base = Task.objects.using(alias).all()
    match_ = _Match(wanted)
    order = NEWEST
    if wanted.states and not states:
        return Page(rows=[], order=order)
    if wanted.id:
        base = _within_ids(base, wanted, match_)
    elif wanted.parked_on:
        base, order = base.filter(parked_on=wanted.parked_on), NEXT_TURN
    elif states == {State.RUNNING}:
        base, order = base.filter(lease__isnull=False), BY_WORKER
        match_.served |= {"states"}
    elif states == {State.SCHEDULED}:
        base, order = base.filter(state=Literal(State.SCHEDULED), run_after__isnull=False), NEXT_DUE
        match_.served |= {"states"}
    elif states == {State.READY} and len(wanted.queues) == 1:
        base, order = base.filter(queue=next(iter(wanted.queues)), state=Literal(State.READY)), NEXT_TURN
        match_.served |= {"states", "queues"}
    else:
        base = _within_ids(base, wanted, match_)
    return paged(base, order, limit=limit, after=after, before=before, keep=match_.keep(), columns=match_.columns())


def finished(
    alias: str, wanted: TaskFilter, *, limit: int = 50, after: str | None = None, before: str | None = None
) -> Page:
    """Return a page of tasks that have ended. Raise InvalidCursor."""
    states = wanted.states & FINAL if wanted.states else frozenset()
    base = FinishedTask.objects.using(alias).all()
    match_ = _Match(wanted)
    order = NEWEST
    if wanted.states and not states:
        return Page(rows=[], order=LAST_ENDED)
    if wanted.id:
        base = _within_ids(base, wanted, match_)
    elif wanted.fingerprint:
        base = _within_ids(base.filter(fingerprint=wanted.fingerprint), wanted, match_)
        match_.served |= {"fingerprint"}
    elif states == {State.DEAD} and wanted.discarded is False:
        base = base.filter(state=Literal(State.DEAD), resolved_at__isnull=True)
        base, order = _within_ends(base, wanted, match_), LAST_ENDED
        match_.served |= {"states", "discarded"}
    elif states == {State.DEAD} and wanted.finished_since is None and wanted.finished_until is None:
        base = _within_ids(base.filter(state=Literal(State.DEAD)), wanted, match_)
        match_.served |= {"states"}
    elif (wanted.created_since or wanted.created_until) and not (wanted.finished_since or wanted.finished_until):
        base = _within_ids(base, wanted, match_)
    else:
        base, order = _within_ends(base, wanted, match_), LAST_ENDED
    return paged(base, order, limit=limit, after=after, before=before, keep=match_.keep(), columns=match_.columns())


def _within_ids(base: QuerySet[Any], wanted: TaskFilter, match_: _Match) -> QuerySet[Any]:
    match_.served |= {"id", "created"}
    if wanted.id:
        span = id_span(wanted.id)
        base = base.none() if span is None else base.filter(pk__gte=span[0], pk__lte=span[1])
    if wanted.created_since is not None:
        base = base.filter(pk__gte=first_id(wanted.created_since))
    if wanted.created_until is not None:
        base = base.filter(pk__lt=first_id(wanted.created_until))
    return base


def _within_ends(base: QuerySet[Any], wanted: TaskFilter, match_: _Match) -> QuerySet[Any]:
    match_.served |= {"finished"}
    if wanted.finished_since is not None:
        base = base.filter(finished_at__gte=wanted.finished_since)
    if wanted.finished_until is not None:
        base = base.filter(finished_at__lt=wanted.finished_until)
    return base


def first_id(moment: datetime) -> uuid.UUID:
    """Return the lowest id that a task of this moment can have: ids begin with milliseconds since 1970."""
    milliseconds = max(0, int(moment.timestamp() * 1000))
    return uuid.UUID(int=min(milliseconds, (1 << 48) - 1) << 80)


@dataclass(slots=True)
class _Match:
    """The conditions of a filter that no index serves, as one test on a few columns."""

    wanted: TaskFilter
    served: set[str] = field(default_factory=set)

    def _tests(self) -> Iterator[tuple[str, Callable[[Any], bool]]]:
        wanted, served = self.wanted, self.served
        if wanted.states and "states" not in served:
            states = set(map(int, wanted.states))
            yield "state", lambda value: value in states
        if wanted.queues and "queues" not in served:
            yield "queue", lambda value: value in wanted.queues
        if wanted.names:
            yield "name", lambda value: value in wanted.names
        if wanted.reasons:
            yield "reason", lambda value: value in wanted.reasons
        if wanted.fingerprint and "fingerprint" not in served:
            yield "fingerprint", lambda value: value == wanted.fingerprint
        if wanted.parked_on and wanted.id:
            yield "parked_on", lambda value: value == wanted.parked_on
        if wanted.discarded is not None and "discarded" not in served:
            yield "resolved_at", lambda value: (value is not None) is wanted.discarded
        if (wanted.created_since or wanted.created_until) and "created" not in served:
            low = uuid.UUID(int=0) if wanted.created_since is None else first_id(wanted.created_since)
            high = None if wanted.created_until is None else first_id(wanted.created_until)
            yield "id", lambda value: value >= low and (high is None or value < high)
        if (wanted.finished_since or wanted.finished_until) and "finished" not in served:
            since, until = wanted.finished_since, wanted.finished_until
            yield (
                "finished_at",
                lambda value: (since is None or value >= since) and (until is None or value < until),
            )

    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, _test in self._tests())

    def keep(self) -> Callable[[Sequence[Any]], bool] | None:
        """Return a test on the values of ``columns()``, None where nothing is left to test."""
        tests = [test for _name, test in self._tests()]
        if not tests:
            return None
        return lambda values: all(test(value) for test, value in zip(tests, values, strict=True))


# Cursors


def _cursor(order: Order, values: Sequence[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    text = json.dumps([order.name, *(str(value) for value in plain)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def position_of(model: type[Model], order: Order, cursor: str) -> tuple[Any, ...]:
    """Return the key that a cursor stands for. Raise InvalidCursor for anything we did not make."""
    try:
        data = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        name, *texts = data
        if name != order.name or len(texts) != len(order.columns):
            raise InvalidCursor(f"the cursor belongs to another order than {order.name!r}")
        return tuple(_value(model, column, text) for column, text in zip(order.columns, texts, strict=True))
    except InvalidCursor:
        raise
    except (ValueError, TypeError, RecursionError, ValidationError) as error:
        raise InvalidCursor(f"the cursor cannot be read: {type(error).__name__}") from error


def _value(model: type[Model], column: str, text: Any) -> Any:
    if not isinstance(text, str) or "\0" in text:
        raise InvalidCursor("a cursor holds texts only")
    column_field: Any = model._meta.get_field(column)
    value = column_field.to_python(text)
    if value is None:
        raise InvalidCursor("a cursor holds no empty values")
    column_field.run_validators(value)
    if isinstance(column_field, DateTimeField) and (value.tzinfo is None or not 1970 <= value.year <= 9000):
        raise InvalidCursor("a cursor's moment lies between 1970 and 9000 and names its zone")
    return value


# Pages


def paged(
    base: QuerySet[Any],
    order: Order,
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    keep: Callable[[Sequence[Any]], bool] | None = None,
    columns: Sequence[str] = (),
) -> Page:
    """
    Return the page of ``base`` behind (``after``) or in front of (``before``) a cursor.

    ``base`` holds only conditions that the order's index serves; ``keep`` tests the values of
    ``columns`` for the rest. Raise InvalidCursor.
    """
    reader = Reader(base=base, order=order)
    return paged_by(reader, limit=limit, after=after, before=before, keep=keep, columns=columns)


def paged_by(
    reader: Reader,
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    keep: Callable[[Sequence[Any]], bool] | None = None,
    columns: Sequence[str] = (),
) -> Page:
    """Return the page that a reader finds behind or in front of a cursor; see ``paged``. Raise InvalidCursor."""
    forward = before is None
    cursor = after if forward else before
    position = None if not cursor else position_of(reader.base.model, reader.order, cursor)
    if keep is None:
        return _direct(reader, limit, position, forward)
    return _windowed(reader, limit, position, forward, keep, tuple(columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads rows along an order that an index serves, from a position on."""

    base: QuerySet[Any]
    order: Order

    def pieces(self, position: tuple[Any, ...] | None, *, forward: bool) -> list[QuerySet[Any]]:
        """
        Return what lies behind a position as ranges of the index, to be read one after the other.

        Two ranges instead of ``a > x OR (a = x AND b > y)``: every planner reads a range from its start.
        """
        down = self.order.descending == forward
        sorted_ = self.base.order_by(*(f"-{column}" if down else column for column in self.order.columns))
        if position is None:
            return [sorted_]
        beyond = "lt" if down else "gt"
        *leading, last = zip(self.order.columns, position, strict=True)
        ranges = []
        for count in range(len(leading), -1, -1):
            same = dict(leading[:count])
            column, value = (*leading, last)[count]
            ranges.append(sorted_.filter(**same, **{f"{column}__{beyond}": value}))
        return ranges

    def take(
        self, count: int, position: tuple[Any, ...] | None, *, forward: bool, columns: Sequence[str] = ()
    ) -> list[Any]:
        """Return up to ``count`` rows along the order, or tuples of ``columns``."""
        found: list[Any] = []
        for piece in self.pieces(position, forward=forward):
            piece = piece.values_list(*columns) if columns else _light(piece)  # noqa: PLW2901 - narrowed
            found += piece[: count - len(found)]
            if len(found) >= count:
                break
        return found

    def key(self, row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, column) for column in self.order.columns)

    def mark(self, key: Sequence[Any]) -> str:
        return _cursor(self.order, key)


def _light(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Leave out what may be a megabyte per row: a list shows none of it."""
    names = {column.attname for column in rows.model._meta.concrete_fields}
    return rows.defer(*(name for name in LONG_COLUMNS if name in names))


def _direct(reader: Reader, limit: int, position: tuple[Any, ...] | None, forward: bool) -> Page:
    rows = reader.take(limit + 1, position, forward=forward)
    if not forward and len(rows) <= limit:
        # The way back ends inside this page: show the first page whole.
        rows, position, forward = reader.take(limit + 1, None, forward=True), None, True
    beyond = len(rows) > limit
    rows = rows[:limit]
    if not forward:
        rows.reverse()
    older = bool(rows) and (beyond or not forward)
    newer = position is not None if forward else beyond
    count, more = _count(reader, rows, whole=position is None and not beyond)
    return Page(
        rows=rows,
        order=reader.order,
        older=reader.mark(reader.key(rows[-1])) if older else None,
        newer=reader.mark(reader.key(rows[0]) if rows else position or ()) if newer else None,
        count=count,
        more=more,
    )


def _count(reader: Reader, rows: Sequence[Any], *, whole: bool) -> tuple[int, bool]:
    if whole:
        return len(rows), False
    found = len(reader.take(COUNT_CAP + 1, None, forward=True, columns=reader.order.columns[-1:]))
    return min(found, COUNT_CAP), found > COUNT_CAP


def _windowed(
    reader: Reader,
    limit: int,
    position: tuple[Any, ...] | None,
    forward: bool,
    keep: Callable[[Sequence[Any]], bool],
    columns: tuple[str, ...],
) -> Page:
    width = len(reader.order.columns)
    hits: list[tuple[Any, ...]] = []
    last, looked_at, open_end = position, 0, True
    # In steps: a filter that many rows meet is done after one, and for 10,000
    # rows at once MariaDB would rather read and sort a table of 200,000.
    while open_end and looked_at < WINDOW and len(hits) <= limit:
        asked = min(_STEP, WINDOW - looked_at)
        keys = reader.take(asked, last, forward=forward, columns=(*reader.order.columns, *columns))
        hits += [key[:width] for key in keys if keep(key[width:])]
        looked_at, open_end = looked_at + len(keys), len(keys) == asked
        last = keys[-1][:width] if keys else last
    shown, more_hits = hits[:limit], len(hits) > limit
    # Where the next look starts: behind the last row shown, or behind everything this look covered.
    on = shown[-1] if more_hits else last if open_end else None
    back = None if position is None else shown[0] if shown else position
    if not forward:
        shown.reverse()
        # Going back looks from here towards the start; going on from here is always possible.
        on, back = (shown[-1] if shown else position), on
    return Page(
        rows=_rows(reader, shown),
        order=reader.order,
        older=None if on is None else reader.mark(on),
        newer=None if back is None else reader.mark(back),
        count=min(len(hits), COUNT_CAP),
        more=open_end or len(hits) > COUNT_CAP or position is not None,
        examined=looked_at,
        edge=None if last is None else _moment(last),
    )


def _rows(reader: Reader, keys: Sequence[tuple[Any, ...]]) -> list[Any]:
    ids = [key[-1] for key in keys]
    if not ids:
        return []
    found = _light(reader.base.model._default_manager.using(reader.base.db)).in_bulk(
        ids, field_name=reader.order.columns[-1]
    )
    # A row may have moved on between the two looks.
    return [found[key] for key in ids if key in found]


def _moment(key: Sequence[Any]) -> datetime | None:
    """Return the moment a key stands for: its own, or that of its id."""
    first = key[0]
    if isinstance(first, datetime):
        return first
    last = to_uuid(key[-1])
    return None if last is None else clock.from_timestamp((last.int >> 80) / 1000)
