"""
MySQL and MariaDB: claim in two steps at READ COMMITTED, ids as ``binary(16)``.

Its surprise: the claim names its index. Under FOR UPDATE a sort locks every
candidate, and SKIP LOCKED then hides all of them from the other workers.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from typing import Any

from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Stat, Task
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, STAT_COUNTERS, Vendor

__all__ = ["MySQL"]

TASK = f"`{Task._meta.db_table}`"
FINISHED = f"`{FinishedTask._meta.db_table}`"
STAT = f"`{Stat._meta.db_table}`"

_CLAIMED = (
    "id, queue, `rank`, attempt + 1, max_attempts, ack, name, args, options, metadata,"
    " run_after, created_at, deadline_at, expires_at, cancel, workflow_id, role"
)
_CLAIM = f"""
SELECT {_CLAIMED} FROM {TASK} FORCE INDEX (taskq_task_claim)
WHERE queue = %s AND state = {State.READY:d} ORDER BY `rank`, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
# Only within one rank: a comparison of pairs would make the optimizer sort, and so lock, the whole queue.
_CLAIM_RESUMED = _CLAIM.replace("ORDER BY", "AND `rank` = %s AND id > %s ORDER BY")
_TAKE = f"UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s WHERE id IN "
_MOVED = ", ".join(f"`{name}`" for name in CARRIED)
_HELD = f"SELECT id, lease FROM {TASK} WHERE id IN %s FOR UPDATE"
_FINISH = f"""
INSERT INTO {FINISHED} ({_MOVED}, state, attempt, started_at, finished_at,
    result, reason, error_class, error_line, fingerprint, delete_at)
SELECT {", ".join(f"t.`{name}`" for name in CARRIED)}, j.state, t.attempt - j.back,
    coalesce(j.started, t.started_at), j.finished, j.result, j.reason, j.kind, j.line, j.print, j.gone
FROM JSON_TABLE(%s, '$[*]' COLUMNS (
    h CHAR(32) PATH '$[0]', state SMALLINT PATH '$[1]', back SMALLINT PATH '$[2]', started DATETIME(6) PATH '$[3]',
    finished DATETIME(6) PATH '$[4]', result LONGTEXT PATH '$[5]', reason VARCHAR(20) PATH '$[6]',
    kind VARCHAR(200) PATH '$[7]', line VARCHAR(300) PATH '$[8]', print VARCHAR(16) PATH '$[9]',
    gone DATETIME(6) PATH '$[10]')) j
JOIN {TASK} t ON t.id = UNHEX(j.h)
"""
# lease + 0: by the key, as everybody else locks these rows, and not by the lease index.
_PUT_BACK = f"""
UPDATE {TASK} SET state = CASE WHEN cancel THEN {State.READY:d} ELSE %s END, lease = NULL, attempt = attempt - %s,
    run_after = coalesce(%s, run_after), options = coalesce(%s, options)
WHERE id = %s AND lease + 0 = %s
"""
_INSERT = (
    f"INSERT INTO {TASK} (id, queue, `rank`, state, max_attempts, ack, run_after, created_at, deadline_at, expires_at,"
    " name, options, metadata, parent_id, args, workflow_id, role, waits_for, attempt, replays, cancel) VALUES "
)
_ROW = f"({', '.join(['%s'] * 18)}, 0, 0, 0)"


# How long a transaction of the worker's own threads may stand still before the server ends it.
_IDLE_SECONDS = 10
_OWN_THREADS = frozenset({"taskq-claimer", "taskq-flusher", "taskq-heartbeat", "taskq-duties"})


class MySQL(Vendor):
    """MariaDB 10.6 and newer, MySQL 8.0.11 and newer."""

    name = "mysql"
    skip_locked = True
    poll_seconds = 0.015

    def key_of(self, public_id: str | uuid.UUID) -> bytes:
        return (public_id if isinstance(public_id, uuid.UUID) else uuid.UUID(public_id)).bytes

    def public_id(self, key: Any) -> str:
        return str(uuid.UUID(bytes=key) if isinstance(key, bytes) else key)

    def refuses_value(self, error: BaseException) -> bool:
        # Packet too large, wrong string, out of range, too long, no JSON (MySQL's and MariaDB's numbers for it).
        refused = (1153, 1264, 1366, 1406, 3140, 3141, 4037, 4038)
        return super().refuses_value(error) or (bool(error.args) and error.args[0] in refused)

    def takes(self, size: int) -> bool:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            most: int = cursor.fetchone()[0]
        # Quotes and backslashes are escaped twice on the way.
        return 2 * size < most

    def is_conflict(self, error: BaseException) -> bool:
        # Deadlock, lock wait timeout.
        return bool(error.args) and error.args[0] in (1213, 1205)

    def is_timeout(self, error: BaseException) -> bool:
        # MariaDB's max_statement_time; the two lock waits; MySQL's max_execution_time.
        return bool(error.args) and error.args[0] in (1969, 1205, 3024)

    def interrupter(self) -> Callable[[], None]:
        self.connection.ensure_connection()
        mine = self.connection
        thread_id: int = mine.connection.thread_id()

        def kill() -> None:
            # Made here: a connection belongs to the thread that made it.
            other = mine.copy()
            try:
                with other.cursor() as cursor:
                    cursor.execute(f"KILL QUERY {thread_id:d}")
            finally:
                other.close()

        return kill

    @contextmanager
    def atomic(self) -> Iterator[None]:
        self._limit_idle()
        with transaction.atomic(using=self.alias):
            yield

    def _limit_idle(self) -> None:
        """
        Let MariaDB end a transaction of the worker's own threads that stands still, because its process was suspended.

        It is a setting of the session: only where the session runs nothing but our statements.
        """
        connection: Any = self.connection
        if threading.current_thread().name not in _OWN_THREADS or connection.in_atomic_block:
            return
        if not getattr(connection, "mysql_is_mariadb", False):
            return
        connection.ensure_connection()
        raw = connection.connection
        if getattr(raw, "taskq_idle_limited", False):
            return
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION idle_write_transaction_timeout = %s", [_IDLE_SECONDS])
        raw.taskq_idle_limited = True

    @contextmanager
    def statement_limit(self, seconds: float) -> Iterator[None]:
        if getattr(self.connection, "mysql_is_mariadb", False):
            limits = {"max_statement_time": seconds}
        else:
            # MySQL limits the time of a SELECT only; what makes an INSERT wait is locks, counted in whole seconds.
            limits = dict.fromkeys(("innodb_lock_wait_timeout", "lock_wait_timeout"), max(math.ceil(seconds), 1))
        names = list(limits)
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}")
            before = cursor.fetchone()
            self._set_session(cursor, names, limits.values())
            try:
                yield
            finally:
                # Not undone by a rollback, so also after an error; on a lost connection there is nothing to put back.
                with suppress(InterfaceError, OperationalError):
                    self._set_session(cursor, names, before)

    def _set_session(self, cursor: Any, names: Sequence[str], values: Iterable[Any]) -> None:
        cursor.execute(f"SET {', '.join(f'SESSION {name} = %s' for name in names)}", list(values))

    def now(self) -> datetime:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT UTC_TIMESTAMP(6)")
            moment: datetime = cursor.fetchone()[0]
        return timezone.make_aware(moment, timezone.get_fixed_timezone(0))

    def _stored(self, moment: datetime | None) -> Any:
        return None if moment is None else self.connection.ops.adapt_datetimefield_value(moment)

    def _stored_timestamp(self, seconds: float | None) -> Any:
        return None if seconds is None else self._stored(clock.from_timestamp(seconds))

    def _moment(self, value: Any) -> datetime | None:
        return None if value is None else timezone.make_aware(value, self.connection.timezone)

    # Enqueue

    def insert(self, rows: Sequence[NewTask]) -> None:
        adapt = self._stored
        # All or none, however many statements it takes.
        whole = self.atomic() if len(rows) > 500 else nullcontext()
        with whole, self.connection.cursor() as cursor:
            for start in range(0, len(rows), 500):
                part = rows[start : start + 500]
                cursor.execute(
                    _INSERT + ", ".join([_ROW] * len(part)),
                    [
                        value
                        for row in part
                        for value in (
                            row.id.to_bytes(16),
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
                            None if row.parent_id is None else row.parent_id.to_bytes(16),
                            row.args,
                            None if row.workflow_id is None else row.workflow_id.to_bytes(16),
                            row.role,
                            row.waits_for,
                        )
                    ],
                )

    # Claim

    def claim(
        self, queue: str, limit: int, *, lease: int, now: datetime, after: tuple[int, Any] | None = None
    ) -> list[Claim]:
        return self.retrying(lambda: self._claim(queue, limit, lease, now, after))

    def _claim(self, queue: str, limit: int, lease: int, now: datetime, after: tuple[int, Any] | None) -> list[Claim]:
        moment = self._moment
        with self.atomic(), self.connection.cursor() as cursor:
            if after is None:
                cursor.execute(_CLAIM, (queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (queue, *after, limit))
            rows = cursor.fetchall()
            if not rows:
                return []
            keys = [row[0] for row in rows]
            cursor.execute(_TAKE + f"({', '.join(['%s'] * len(keys))})", [lease, self._stored(now), *keys])
        return [
            Claim(*row[:10], *map(moment, row[10:14]), bool(row[14]), *row[15:], lease)  # type: ignore[call-arg]  # a slice's length is unknown to it
            for row in rows
        ]

    # Settle

    def finish(self, endings: Sequence[Ending]) -> set[Any]:
        with self.connection.cursor() as cursor:
            # In key order, so that two settlements never lock crosswise.
            cursor.execute(_HELD, (tuple(sorted(ending.key for ending in endings)),))
            leases = dict(cursor.fetchall())
            held = [ending for ending in endings if leases.get(ending.key) == ending.lease]
            if not held:
                return set()
            stamp = self._stored_timestamp
            kept = [
                (
                    ending.key.hex(),
                    int(ending.state),
                    ending.attempt_back,
                    None if ending.started is None else str(stamp(ending.started)),
                    str(stamp(ending.finished)),
                    ending.result,
                    ending.reason,
                    ending.error_class,
                    ending.error_line,
                    ending.fingerprint,
                    None if ending.keep is None else str(stamp(ending.finished + ending.keep)),
                )
                for ending in held
                if ending.keep != 0
            ]
            if kept:
                cursor.execute(_FINISH, (json.dumps(kept),))
            keys = [ending.key for ending in held]
            cursor.execute(f"DELETE FROM {TASK} WHERE id IN ({', '.join(['%s'] * len(keys))})", keys)
        return set(keys)

    def put_back(self, rows: Sequence[Again]) -> set[Any]:
        kept: set[Any] = set()
        with self.connection.cursor() as cursor:
            for row in sorted(rows, key=lambda row: row.key):
                run_after = self._stored_timestamp(row.run_after)
                cursor.execute(
                    _PUT_BACK, (int(row.state), row.attempt_back, run_after, row.options, row.key, row.lease)
                )
                if cursor.rowcount:
                    kept.add(row.key)
        return kept

    def add_stats(self, sums: dict[tuple[datetime, str, str, int], list[int]]) -> None:
        columns = ", ".join(STAT_COUNTERS)
        added = ", ".join(f"{name} = {name} + VALUES({name})" for name in STAT_COUNTERS)
        marks = "(" + ", ".join(["%s"] * (4 + len(STAT_COUNTERS))) + ")"
        items = sorted(sums.items())
        with self.connection.cursor() as cursor:
            for start in range(0, len(items), 20):
                part = items[start : start + 20]
                cursor.execute(
                    f"INSERT INTO {STAT} (minute, queue, task, worker_id, {columns})"
                    f" VALUES {', '.join([marks] * len(part))} ON DUPLICATE KEY UPDATE {added}",
                    [value for (minute, *rest), values in part for value in (self._stored(minute), *rest, *values)],
                )
