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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from typing import Any

from django.db import OperationalError, transaction
from django.utils import timezone

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, Vendor
from django_taskq.store.vendors.on_conflict import add_stats_on_conflict

__all__ = ["SQLite"]

TASK = f'"{Task._meta.db_table}"'
FINISHED = f'"{FinishedTask._meta.db_table}"'

# How soon a waiting enqueue notices that it was given up.
_LOOK_SECONDS = 0.05

_CLAIMED = (
    'id, queue, "rank", attempt, max_attempts, ack, name, args, options, metadata,'
    " run_after, created_at, deadline_at, expires_at, cancel, workflow_id, role, lease"
)
_CLAIM = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s
WHERE id IN (
    SELECT id FROM {TASK} WHERE queue = %s AND state = {State.READY:d}
    ORDER BY "rank", id LIMIT %s)
RETURNING {_CLAIMED}
"""
_CLAIM_RESUMED = _CLAIM.replace("ORDER BY", 'AND ("rank", id) > (%s, %s)\n    ORDER BY')
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
UPDATE {TASK} SET state = CASE WHEN cancel THEN {State.READY:d} ELSE %s END, lease = NULL, attempt = attempt - %s,
    run_after = coalesce(%s, run_after), options = coalesce(%s, options)
WHERE id = %s AND +lease = %s RETURNING id
"""
_PROMOTE = f"""
UPDATE {TASK} SET state = {State.READY:d} WHERE id IN (
    SELECT id FROM {TASK} WHERE state = {State.SCHEDULED:d} AND run_after <= %s ORDER BY run_after LIMIT %s)
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
    " name, options, metadata, parent_id, args, workflow_id, role, waits_for, attempt, replays, cancel)"
    f" VALUES ({', '.join(['%s'] * 18)}, 0, 0, 0)"
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
        adapt = self._stored
        values = [
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
                row.role,
                row.waits_for,
            )
            for row in rows
        ]
        with self.connection.cursor() as cursor:
            if len(values) == 1:
                cursor.execute(_INSERT, values[0])
                return
        # executemany outside a transaction would commit row by row.
        with self.atomic(), self.connection.cursor() as cursor:
            cursor.executemany(_INSERT, values)

    # Claim

    def claim(
        self, queue: str, limit: int, *, lease: int, now: datetime, after: tuple[int, Any] | None = None
    ) -> list[Claim]:
        moment = self._moment
        with self.connection.cursor() as cursor:
            if after is None:
                cursor.execute(_CLAIM, (lease, self._stored(now), queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (lease, self._stored(now), queue, *after, limit))
            rows = [
                Claim(
                    *row[:10],
                    moment(row[10]),
                    moment(row[11]),
                    moment(row[12]),
                    moment(row[13]),
                    bool(row[14]),
                    *row[15:],
                )  # type: ignore[call-arg]  # a slice's length is unknown to it
                for row in cursor.fetchall()
            ]
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
