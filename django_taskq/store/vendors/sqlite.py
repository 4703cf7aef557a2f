"""
SQLite: every write transaction starts as one, so that it waits for its turn instead of failing half-way.

Its surprise: a transaction that reads first and writes later is refused with
"database is locked" at once, whatever the timeout, when another wrote in
between. So each transaction of ours begins with BEGIN IMMEDIATE.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db import OperationalError, transaction
from django.utils import timezone

from django_taskq import clock
from django_taskq.domain.limit_columns import LIMIT_CHANGING
from django_taskq.domain.parking import promise_mark
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Limit, Task
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, Vendor, by_fair_key
from django_taskq.store.vendors.on_conflict import FREED, INSERT_UNIQUE, add_stats_on_conflict

__all__ = ["SQLite"]

TASK = f'"{Task._meta.db_table}"'
LIMIT = f'"{Limit._meta.db_table}"'
FINISHED = f'"{FinishedTask._meta.db_table}"'

# How soon a waiting enqueue notices that it was given up.
_LOOK_SECONDS = 0.05

_CLAIMED = (
    'id, queue, "rank", attempt, max_attempts, ack, name, args, options, metadata,'
    " run_after, created_at, deadline_at, expires_at, cancel, workflow_id, role, slots, lease"
)
_CLAIM = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s,
    unique_key = {FREED}
WHERE id IN (
    SELECT id FROM {TASK} WHERE queue = %s AND state = {State.READY:d}
    ORDER BY "rank", id LIMIT %s) AND limits IS NULL
RETURNING {_CLAIMED}
"""
_CLAIM_RESUMED = _CLAIM.replace("ORDER BY", 'AND ("rank", id) > (%s, %s)\n    ORDER BY')


# Tasks without a fair key, in a part of the queue: no index leaves those with a key out.
_CLAIM_BETWEEN = _CLAIM.replace(
    "ORDER BY",
    'AND fair_key IS NULL\n    AND ("rank", id) >= (%s, %s) AND ("rank", id) <= (%s, %s)\n    ORDER BY',
)
_OF_KEY = (
    f"SELECT id FROM (SELECT id FROM {TASK} WHERE queue = %s AND state = {State.READY:d} AND fair_key = %s"
    ' ORDER BY "rank", id LIMIT %s)'
)
# A compound SELECT takes 500 parts by default.
_KEYS_MOST = 100


def _with_limits(statement: str) -> str:
    """
    Return a claim that also takes tasks with limits, and writes down which limits each counts in.

    Unique keys stay: what is parked has not been started.
    """
    taken = statement.replace(" AND limits IS NULL", "").replace(f",\n    unique_key = {FREED}", "")
    slots = "CASE WHEN limits IS NULL THEN s.keys WHEN s.keys IS NULL THEN limits ELSE s.keys || char(10) || limits END"
    # Behind them the promise of a task that was released, which has limits.
    own = f"({slots.replace('s.keys', '%s')}) || coalesce(char(10) || slots, '')"
    return taken.replace("SET ", f"SET slots = {own}, ", 1)


_CLAIM_LIMITED, _CLAIM_LIMITED_RESUMED = map(_with_limits, (_CLAIM, _CLAIM_RESUMED))
_CLAIM_BETWEEN_LIMITED = _with_limits(_CLAIM_BETWEEN)


@lru_cache(maxsize=2 * _KEYS_MOST)
def _claim_fair(keys: int, *, limited: bool) -> str:
    """Return the claim from so many fair keys at once."""
    one_each = "\n    UNION ALL ".join([_OF_KEY] * keys)
    statement = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s,
    unique_key = {FREED}
WHERE id IN (
    {one_each}) AND limits IS NULL
RETURNING {_CLAIMED}, fair_key
"""
    return _with_limits(statement) if limited else statement


_FAIR_QUEUES = f"""
SELECT q.value FROM json_each(%s) q WHERE EXISTS (
    SELECT 1 FROM {TASK} t WHERE t.queue = q.value AND t.state = {State.READY:d} AND t.fair_key IS NOT NULL)
"""
_FAIR_KEYS = f"""
WITH RECURSIVE k (fair_key) AS (
    SELECT * FROM (SELECT fair_key FROM {TASK} WHERE queue = %s AND state = {State.READY:d} AND fair_key > %s
        ORDER BY fair_key LIMIT 1)
    UNION ALL
    SELECT (SELECT t.fair_key FROM {TASK} t WHERE t.queue = %s AND t.state = {State.READY:d}
        AND t.fair_key > k.fair_key ORDER BY t.fair_key LIMIT 1)
    FROM k WHERE k.fair_key IS NOT NULL
) SELECT fair_key FROM k WHERE fair_key IS NOT NULL LIMIT %s
"""
_UNKEYED = f"""
WITH w ("rank", id, fair_key) AS MATERIALIZED (
    SELECT "rank", id, fair_key FROM {TASK} WHERE queue = %s AND state = {State.READY:d}
    AND ("rank", id) > (%s, %s) ORDER BY "rank", id LIMIT %s
) SELECT 1, "rank", id FROM (SELECT "rank", id FROM w WHERE fair_key IS NULL ORDER BY "rank", id LIMIT 1)
UNION ALL SELECT 0, "rank", id FROM (SELECT "rank", id FROM w ORDER BY "rank" DESC, id DESC LIMIT 1)
"""
# Before every position: ranks are small integers, and no id is empty.
_EDGE = (-32768, "")
_MOVED = ", ".join(f'"{name}"' for name in CARRIED)
_HELD = f"SELECT id, lease FROM {TASK} WHERE id IN (SELECT value FROM json_each(%s))"
_FINISH = f"""
INSERT INTO {FINISHED} ({_MOVED}, state, attempt, started_at, finished_at,
    result, reason, error_class, error_line, fingerprint, delete_at)
SELECT {", ".join(f't."{name}"' for name in CARRIED)}, j.value ->> 1, t.attempt - (j.value ->> 2),
    coalesce(j.value ->> 3, t.started_at), j.value ->> 4, j.value ->> 5, j.value ->> 6, j.value ->> 7,
    j.value ->> 8, j.value ->> 9, j.value ->> 10
FROM json_each(%s) j CROSS JOIN {TASK} t WHERE t.id = j.value ->> 0
"""
_DELETE = f"DELETE FROM {TASK} WHERE id IN (SELECT value FROM json_each(%s))"
_PUT_BACK = f"""
UPDATE {TASK} SET state = CASE WHEN cancel THEN {State.READY:d} ELSE %s END, lease = NULL, slots = NULL,
    attempt = attempt - %s, run_after = coalesce(%s, run_after), options = coalesce(%s, options)
WHERE id = %s AND +lease = %s RETURNING id
"""
_PROMOTE = f"""
UPDATE {TASK} SET state = {State.READY:d} WHERE id IN (
    SELECT id FROM {TASK} WHERE state = {State.SCHEDULED:d} AND run_after <= %s ORDER BY run_after LIMIT %s)
RETURNING queue
"""
_SAVE_HELD = f"UPDATE {LIMIT} SET held = %s WHERE key = %s"
_SAVE_LIMITS = f"UPDATE {LIMIT} SET {', '.join(f'{name} = %s' for name in LIMIT_CHANGING)} WHERE key = %s"
_UNPARK = f"""
UPDATE {TASK} SET state = {State.READY:d}, parked_on = NULL, slots = %s WHERE id IN (
    SELECT id FROM {TASK} WHERE parked_on = %s AND state = {State.PARKED:d} ORDER BY "rank", id LIMIT %s)
RETURNING queue
"""
_READY_QUEUES = f"""
WITH RECURSIVE q (queue) AS (
    SELECT * FROM (SELECT queue FROM {TASK} WHERE state = {State.READY:d} ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT t.queue FROM {TASK} t WHERE t.state = {State.READY:d} AND t.queue > q.queue ORDER BY t.queue LIMIT 1)
    FROM q WHERE q.queue IS NOT NULL
) SELECT queue FROM q WHERE queue IS NOT NULL
"""
_INSERT = (
    f'INSERT INTO {TASK} (id, queue, "rank", state, max_attempts, ack, run_after, created_at, deadline_at, expires_at,'
    " name, options, metadata, parent_id, args, workflow_id, role, waits_for, limits, fair_key, unique_key, attempt,"
    f" replays, cancel) VALUES ({', '.join(['%s'] * 21)}, 0, 0, 0)"
)

# The arrow operators came with 3.38; Django itself allows 3.31 and newer.
if sqlite3.sqlite_version_info < (3, 38):  # pragma: no cover - depends on the machine's library
    import re

    _FINISH = re.sub(r"j\.value ->> (\d+)", r"json_extract(j.value, '$[\1]')", _FINISH)


class SQLite(Vendor):
    """SQLite 3.35 and newer."""

    name = "sqlite"
    poll_seconds = 0.005

    def key_of(self, public_id: str | uuid.UUID) -> str:
        return (public_id if isinstance(public_id, uuid.UUID) else uuid.UUID(public_id)).hex

    def public_id(self, key: Any) -> str:
        text = str(key)
        return text if len(text) == 36 else f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def is_conflict(self, error: BaseException) -> bool:
        code = getattr(error.__cause__, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_timeout(self, error: BaseException) -> bool:
        # The whole code: SQLITE_BUSY_SNAPSHOT is no wait that was too long.
        return getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY

    @contextmanager
    def bounded(self, seconds: float | None, *, given_up: Callable[[], bool]) -> Iterator[None]:
        if self.connection.in_atomic_block:
            limit = nullcontext() if seconds is None else self.statement_limit(seconds)
            with limit, transaction.atomic(using=self.alias):
                yield
            return
        # What waits is BEGIN, and nothing can interrupt it. So it is asked again and again, with a short patience.
        patience = self._busy_timeout() / 1000 if seconds is None else seconds
        until = time.monotonic() + patience
        with ExitStack() as opened:
            with self.statement_limit(min(patience, _LOOK_SECONDS)):
                while True:
                    try:
                        opened.enter_context(self.atomic())
                        break
                    except OperationalError as error:
                        if not self.is_timeout(error) or given_up() or time.monotonic() >= until:
                            raise
            yield

    @contextmanager
    def statement_limit(self, seconds: float) -> Iterator[None]:
        with self.connection.cursor() as cursor:
            before = self._busy_timeout()
            cursor.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            try:
                yield
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {before}")

    def _busy_timeout(self) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout")
            milliseconds: int = cursor.fetchone()[0]
        return milliseconds

    @contextmanager
    def atomic(self) -> Iterator[None]:
        connection: Any = self.connection
        connection.ensure_connection()
        before = connection.transaction_mode
        connection.transaction_mode = "IMMEDIATE"
        try:
            with transaction.atomic(using=self.alias):
                yield
        finally:
            connection.transaction_mode = before

    def _stored(self, moment: datetime | None) -> Any:
        return None if moment is None else self.connection.ops.adapt_datetimefield_value(moment)

    def _stored_timestamp(self, seconds: float | None) -> Any:
        return None if seconds is None else self._stored(clock.from_timestamp(seconds))

    def _moment(self, value: Any) -> datetime | None:
        if value is None:
            return None
        if not isinstance(value, datetime):
            value = datetime.fromisoformat(value)
        return timezone.make_aware(value, self.connection.timezone) if value.tzinfo is None else value

    # Enqueue

    def insert(self, rows: Sequence[NewTask]) -> None:
        values = self._values(rows)
        with self.connection.cursor() as cursor:
            if len(values) == 1:
                cursor.execute(_INSERT, values[0])
                return
        # executemany outside a transaction would commit row by row.
        with self.atomic(), self.connection.cursor() as cursor:
            cursor.executemany(_INSERT, values)

    def insert_unique(self, rows: Sequence[NewTask]) -> set[int]:
        made: set[int] = set()
        with self.connection.cursor() as cursor:
            for row, values in zip(rows, self._values(rows), strict=True):
                cursor.execute(_INSERT + INSERT_UNIQUE, values)
                if cursor.rowcount:
                    made.add(row.id)
        return made

    def _values(self, rows: Sequence[NewTask]) -> list[tuple[Any, ...]]:
        adapt = self._stored
        return [
            (
                f"{row.id:032x}",
                row.queue,
                row.rank,
                int(row.state),
                row.max_attempts,
                int(row.ack),
                adapt(row.run_after),
                adapt(row.created_at),
                adapt(row.deadline_at),
                adapt(row.expires_at),
                row.name,
                row.options,
                row.metadata,
                None if row.parent_id is None else f"{row.parent_id:032x}",
                row.args,
                None if row.workflow_id is None else f"{row.workflow_id:032x}",
                *row[16:],
            )
            for row in rows
        ]

    # Claim

    def claim(
        self,
        queue: str,
        limit: int,
        *,
        lease: int,
        now: datetime,
        after: tuple[int, Any] | None = None,
        limited: bool = False,
        slots: str | None = None,
    ) -> list[Claim]:
        with self.connection.cursor() as cursor:
            if limited:
                statement = _CLAIM_LIMITED if after is None else _CLAIM_LIMITED_RESUMED
                first = (slots, slots, slots, lease, self._stored(now), queue)
                cursor.execute(statement, (*first, *(after or ()), limit))
            elif after is None:
                cursor.execute(_CLAIM, (lease, self._stored(now), queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (lease, self._stored(now), queue, *after, limit))
            rows = [self._claimed(row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (row.rank, row.key))
        return rows

    def _claimed(self, row: Sequence[Any]) -> Claim:
        return Claim(*row[:10], *map(self._moment, row[10:14]), bool(row[14]), *row[15:19])  # type: ignore[call-arg]  # a slice's length is unknown to it

    def fair_queues(self, queues: Sequence[str]) -> set[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_FAIR_QUEUES, (json.dumps(list(queues)),))
            return {queue for (queue,) in cursor.fetchall()}

    def fair_keys(self, queue: str, *, after: str, limit: int) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_FAIR_KEYS, (queue, after, queue, limit))
            return [key for (key,) in cursor.fetchall()]

    def claim_fair(
        self,
        queue: str,
        shares: Sequence[tuple[str, int]],
        *,
        lease: int,
        now: datetime,
        after: Mapping[str, tuple[int, Any]] | None = None,
        limited: bool = False,
        slots: str | None = None,
    ) -> dict[str, list[Claim]]:
        found: list[tuple[str, Claim]] = []
        # All or none, however many statements it takes: no claim is lost to an error of the next.
        whole = self.atomic() if len(shares) > _KEYS_MOST else nullcontext()
        with whole, self.connection.cursor() as cursor:
            for start in range(0, len(shares), _KEYS_MOST):
                part = shares[start : start + _KEYS_MOST]
                own = (slots, slots, slots) if limited else ()
                wanted = [value for key, count in part for value in (queue, key, count)]
                cursor.execute(_claim_fair(len(part), limited=limited), (*own, lease, self._stored(now), *wanted))
                found += [(row[-1], self._claimed(row)) for row in cursor.fetchall()]
        return by_fair_key(found)

    def unkeyed(
        self, queue: str, *, after: tuple[int, Any] | None, size: int
    ) -> tuple[tuple[int, Any] | None, tuple[int, Any] | None]:
        with self.connection.cursor() as cursor:
            cursor.execute(_UNKEYED, (queue, *(after or _EDGE), size))
            found = {is_first: (rank, key) for is_first, rank, key in cursor.fetchall()}
        return found.get(1), found.get(0)

    def claim_between(
        self,
        queue: str,
        limit: int,
        *,
        first: tuple[int, Any],
        last: tuple[int, Any],
        lease: int,
        now: datetime,
        limited: bool = False,
        slots: str | None = None,
    ) -> list[Claim]:
        given = (lease, self._stored(now), queue, *first, *last, limit)
        with self.connection.cursor() as cursor:
            if limited:
                cursor.execute(_CLAIM_BETWEEN_LIMITED, (slots, slots, slots, *given))
            else:
                cursor.execute(_CLAIM_BETWEEN, given)
            rows = [self._claimed(row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (row.rank, row.key))
        return rows

    def ready_queues(self) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_READY_QUEUES)
            return [queue for (queue,) in cursor.fetchall()]

    # Settle

    def finish(self, endings: Sequence[Ending]) -> set[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(_HELD, (json.dumps([ending.key for ending in endings]),))
            leases = dict(cursor.fetchall())
            held = [ending for ending in endings if leases.get(ending.key) == ending.lease]
            stamp = self._stored_timestamp
            kept = [
                (
                    ending.key,
                    int(ending.state),
                    ending.attempt_back,
                    stamp(ending.started),
                    stamp(ending.finished),
                    ending.result,
                    ending.reason,
                    ending.error_class,
                    ending.error_line,
                    ending.fingerprint,
                    None if ending.keep is None else stamp(ending.finished + ending.keep),
                )
                for ending in held
                if ending.keep != 0
            ]
            if kept:
                cursor.execute(_FINISH, (json.dumps(kept),))
            keys = [ending.key for ending in held]
            cursor.execute(_DELETE, (json.dumps(keys),))
        return set(keys)

    def put_back(self, rows: Sequence[Again]) -> set[Any]:
        kept: set[Any] = set()
        with self.connection.cursor() as cursor:
            for row in rows:
                run_after = self._stored_timestamp(row.run_after)
                cursor.execute(
                    _PUT_BACK, (int(row.state), row.attempt_back, run_after, row.options, row.key, row.lease)
                )
                kept.update(key for (key,) in cursor.fetchall())
        return kept

    def add_stats(self, sums: dict[tuple[datetime, str, str, int], list[int]]) -> None:
        add_stats_on_conflict(self, sums)

    # Limits

    def save_held(self, rows: Sequence[tuple[str, int]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(_SAVE_HELD, [(held, key) for key, held in rows])

    def save_limits(self, rows: Sequence[tuple[Any, ...]]) -> None:
        values = [[self._stored_value(value) for value in (*row[1:], row[0])] for row in rows]
        with self.connection.cursor() as cursor:
            cursor.executemany(_SAVE_LIMITS, values)

    def _stored_value(self, value: Any) -> Any:
        return self._stored(value) if isinstance(value, datetime) else value

    def unpark(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        with self.connection.cursor() as cursor:
            for key, count in wanted:
                cursor.execute(_UNPARK, (promise_mark(key), key, count))
                told += [(key, queue) for (queue,) in cursor.fetchall()]
        return told

    # Upkeep

    def promote(self, now: datetime, limit: int) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_PROMOTE, (self._stored(now), limit))
            return [queue for (queue,) in cursor.fetchall()]

    # Wake-up

    def change_mark(self) -> int | None:
        with self.connection.cursor() as cursor:
            cursor.execute("PRAGMA data_version")
            mark: int = cursor.fetchone()[0]
        return mark
