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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.utils import timezone

from django_taskq import clock
from django_taskq.domain.limit_columns import LIMIT_CHANGING
from django_taskq.domain.parking import promise_mark
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Limit, Stat, Task
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, STAT_COUNTERS, Holder, Vendor, by_fair_key, joined

__all__ = ["MySQL"]

TASK = f"`{Task._meta.db_table}`"
FINISHED = f"`{FinishedTask._meta.db_table}`"
LIMIT = f"`{Limit._meta.db_table}`"
STAT = f"`{Stat._meta.db_table}`"

_CLAIMED = (
    "id, queue, `rank`, attempt + 1, max_attempts, ack, name, args, options, metadata,"
    " run_after, created_at, deadline_at, expires_at, cancel, workflow_id, role, limits, slots"
)
_CLAIM = f"""
SELECT {_CLAIMED} FROM {TASK} FORCE INDEX (taskq_task_claim)
WHERE queue = %s AND state = {State.READY:d} ORDER BY `rank`, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
# Only within one rank: a comparison of pairs would make the optimizer sort, and so lock, the whole queue.
_CLAIM_RESUMED = _CLAIM.replace("ORDER BY", "AND `rank` = %s AND id > %s ORDER BY")
# A queue's tasks without a fair key, or of one, stand in the fair index in the order of the claim: nothing is sorted.
_FAIR = f"{TASK} FORCE INDEX (taskq_task_fair) WHERE queue = %s AND state = {State.READY:d}"
_CLAIM_BETWEEN = f"""
SELECT {_CLAIMED}, fair_key FROM {_FAIR} AND fair_key IS NULL ORDER BY `rank`, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
# Only within one rank: a comparison of pairs would make the optimizer sort, and so lock, all of them.
_CLAIM_WITHIN = _CLAIM_BETWEEN.replace("ORDER BY", "AND `rank` = %s AND id >= %s AND id <= %s ORDER BY")
# Behind every position.
_END = (32767, b"\xff" * 16)
_CLAIM_OF_KEY = (
    f"(SELECT {_CLAIMED}, fair_key FROM {_FAIR} AND fair_key = %s ORDER BY `rank`, id LIMIT %s FOR UPDATE SKIP LOCKED)"
)
_KEYS_MOST = 50
# One jump: answered from the index alone. In a recursive query MariaDB reads the whole range for each.
_NEXT_KEY = f"SELECT MIN(fair_key) FROM {_FAIR} AND fair_key > %s"
_HAS_KEYS = f"(SELECT queue FROM {_FAIR} AND fair_key > '' LIMIT 1)"
_FIRST_UNKEYED = f"SELECT `rank`, id FROM {_FAIR} AND fair_key IS NULL ORDER BY `rank`, id LIMIT 1"
_TAKE_KEYED = (
    f"UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s WHERE id IN "
)
_FREED = "unique_key = IF(LEFT(unique_key, 1) = '~', NULL, unique_key)"
_TAKE = _TAKE_KEYED.replace(" WHERE", f", {_FREED} WHERE")
# Unique keys stay: what is parked has not been started.
_TAKE_LIMITED = _TAKE_KEYED.replace("SET ", "SET slots = NULLIF(CONCAT_WS(CHAR(10), %s, limits, slots), ''), ", 1)
_PARK = f"""
UPDATE {TASK} t JOIN JSON_TABLE(%s, '$[*]' COLUMNS (h CHAR(32) PATH '$[0]', k VARCHAR(200) PATH '$[1]',
    p VARCHAR(201) PATH '$[2]')) j
ON t.id = UNHEX(j.h) SET state = IF(j.k IS NULL, {State.READY:d}, {State.PARKED:d}),
    started_at = CASE WHEN attempt > 1 THEN started_at END,
    lease = NULL, slots = j.p, attempt = attempt - 1, parked_on = j.k
WHERE t.lease + 0 = %s
"""
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
UPDATE {TASK} SET state = CASE WHEN cancel THEN {State.READY:d} ELSE %s END, lease = NULL, slots = NULL,
    attempt = attempt - %s, run_after = coalesce(%s, run_after), options = coalesce(%s, options)
WHERE id = %s AND lease + 0 = %s
"""
_INSERT = (
    f"INSERT INTO {TASK} (id, queue, `rank`, state, max_attempts, ack, run_after, created_at, deadline_at, expires_at,"
    " name, options, metadata, parent_id, args, workflow_id, role, waits_for, limits, fair_key, unique_key, attempt,"
    " replays, cancel) VALUES "
)
_ROW = f"({', '.join(['%s'] * 21)}, 0, 0, 0)"
_HOLDERS = f"SELECT unique_key, id, state, created_at FROM {TASK} WHERE unique_key IN %s ORDER BY unique_key"
_HELD_BY = f"""
SELECT unique_key, id, state, created_at FROM {TASK} FORCE INDEX (PRIMARY)
WHERE id IN %s AND unique_key IN %s ORDER BY id
"""
# MariaDB has no FOR SHARE, and MySQL 8 still reads this.
_LOCKS = {None: "", "share": " LOCK IN SHARE MODE", "update": " FOR UPDATE"}
# How long a key may take to be stored by somebody else, and how many keys are stored at once.
_TURN_SECONDS, _KEYS_AT_ONCE = 50, 100


# How long a transaction of the worker's own threads may stand still before the server ends it.
_IDLE_SECONDS = 10
_OWN_THREADS = frozenset({"taskq-claimer", "taskq-flusher", "taskq-heartbeat", "taskq-duties", "taskq-errand"})


_SAVE_HELD = f"""
UPDATE {LIMIT} l JOIN JSON_TABLE(%s, '$[*]' COLUMNS (
    k VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$[0]', h INT PATH '$[1]')) j
ON l.`key` = j.k SET l.held = j.h
"""
_SAVE_LIMITS = (
    f"INSERT INTO {LIMIT} (`key`, {', '.join(LIMIT_CHANGING)}, set_by, set_reason) VALUES %s"
    f" ON DUPLICATE KEY UPDATE {', '.join(f'{name} = VALUES({name})' for name in LIMIT_CHANGING)}"
)
_LIMIT_ROW = f"({', '.join(['%s'] * (1 + len(LIMIT_CHANGING)))}, '', '')"
_PARKED = f"""
SELECT id, queue FROM {TASK} FORCE INDEX (taskq_task_parked)
WHERE parked_on = %s AND state = {State.PARKED:d} ORDER BY `rank`, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
_UNPARK = f"UPDATE {TASK} SET state = {State.READY:d}, parked_on = NULL, slots = %s WHERE id IN "


def _with_each(values: Iterable[Any], other: object) -> list[Any]:
    return [item for value in values for item in (value, other)]


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
            # Not only of those that wrote: rows are locked by reading them, too.
            cursor.execute("SET SESSION idle_transaction_timeout = %s", [_IDLE_SECONDS])
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
                            *row[16:],
                        )
                    ],
                )

    def insert_unique(self, rows: Sequence[NewTask]) -> set[int]:
        made: set[int] = set()
        for start in range(0, len(rows), _KEYS_AT_ONCE):
            # Looked up without a lock first: whoever settles the task that holds a key would have to wait for ours.
            free = self._free(rows[start : start + _KEYS_AT_ONCE])
            if not free:
                continue
            # InnoDB locks the gap below a key for a transaction that waits for it, and so each insert of a task
            # without a key: two transactions that store a key and then a task end in a deadlock. So a key is waited
            # for by a look, which locks no gap, and inserted by one at a time. The index decides all the same.
            with self._turn([row.unique_key or "" for row in free]):
                made |= self._insert_free(self._free(free, lock="share"))
        return made

    def _free(self, rows: Sequence[NewTask], *, lock: Literal["share"] | None = None) -> list[NewTask]:
        # By the key, so that this waits for whoever has stored it and not committed.
        taken = self._holders(_HOLDERS + _LOCKS[lock], [tuple(row.unique_key or "" for row in rows)])
        return [row for row in rows if row.unique_key not in taken]

    def _insert_free(self, rows: Sequence[NewTask]) -> set[int]:
        """Insert rows whose keys are free, unless somebody was faster who does not wait for a turn: a replay."""
        if not rows:
            return set()
        try:
            self.insert(rows)
        except IntegrityError:
            # The statement left nothing; the transaction goes on.
            return set() if len(rows) == 1 else set().union(*(self._insert_free([row]) for row in rows))
        return {row.id for row in rows}

    @contextmanager
    def _turn(self, keys: Sequence[str]) -> Iterator[None]:
        """Hold the server's own locks for keys, in order. They belong to the connection and end with it."""
        place = f"{self.connection.settings_dict['NAME']} {TASK}"
        names = [f"taskq:{sha256(f'{place} {key}'.encode()).hexdigest()[:40]}" for key in sorted(keys)]
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(['GET_LOCK(%s, %s)'] * len(names))}", _with_each(names, _TURN_SECONDS))
            try:
                yield
            finally:
                # A connection that is lost has let go of them.
                with suppress(InterfaceError, OperationalError):
                    cursor.execute(f"SELECT {', '.join(['RELEASE_LOCK(%s)'] * len(names))}", names)

    def holders(self, keys: Sequence[str], *, lock: Literal["share", "update"] | None = None) -> dict[str, Holder]:
        found = self._holders(_HOLDERS, [tuple(keys)])
        if lock is None:
            return found
        # A claim and a settlement lock the row and then its key. A look by the key locks them the other way
        # round, and ends in a deadlock with them; so what is known is locked by its id.
        hidden = [key for key in keys if key not in found]
        if found:
            ids = tuple(sorted(holder.id.to_bytes(16) for holder in found.values()))
            found = self._holders(_HELD_BY + _LOCKS[lock], [ids, tuple(keys)])
        if hidden:
            # Gone, or newer than the caller's snapshot.
            found.update(self._holders(_HOLDERS + _LOCKS[lock], [tuple(hidden)]))
        return found

    def _holders(self, statement: str, values: Sequence[Any]) -> dict[str, Holder]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)
            rows = cursor.fetchall()
        return {
            key: Holder(int.from_bytes(number), state, timezone.make_aware(at, self.connection.timezone))
            for key, number, state, at in rows
        }

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
        return self.retrying(lambda: self._claim(queue, limit, lease, now, after, slots, limited=limited))

    def _claim(
        self,
        queue: str,
        limit: int,
        lease: int,
        now: datetime,
        after: tuple[int, Any] | None,
        slots: str | None,
        *,
        limited: bool,
    ) -> list[Claim]:
        whole = nullcontext() if self.connection.in_atomic_block else self.atomic()
        with whole, self.connection.cursor() as cursor:
            if after is None:
                cursor.execute(_CLAIM, (queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (queue, *after, limit))
            return self._take_rows(cursor, cursor.fetchall(), lease, now, slots, limited=limited)

    def _take_rows(
        self, cursor: Any, found: Iterable[Any], lease: int, now: datetime, slots: str | None, *, limited: bool
    ) -> list[Claim]:
        """Claim the rows that the transaction has locked."""
        rows = [row for row in found if limited or row[17] is None]
        if not rows:
            return []
        keys = [row[0] for row in rows]
        marks = f"({', '.join(['%s'] * len(keys))})"
        if limited:
            cursor.execute(_TAKE_LIMITED + marks, [slots, lease, self._stored(now), *keys])
        else:
            cursor.execute(_TAKE + marks, [lease, self._stored(now), *keys])
        return [
            Claim(  # type: ignore[call-arg]  # a slice's length is unknown to it
                *row[:10],
                *map(self._moment, row[10:14]),
                bool(row[14]),
                *row[15:17],
                joined(slots, row[17], row[18]) if limited else None,
                lease,
            )
            for row in rows
        ]

    def fair_queues(self, queues: Sequence[str]) -> set[str]:
        if not queues:
            return set()
        with self.connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join([_HAS_KEYS] * len(queues)), list(queues))
            return {queue for (queue,) in cursor.fetchall()}

    def fair_keys(self, queue: str, *, after: str, limit: int) -> list[str]:
        found: list[str] = []
        with self.connection.cursor() as cursor:
            while len(found) < limit:
                cursor.execute(_NEXT_KEY, (queue, after))
                key = cursor.fetchone()[0]
                if key is None:
                    break
                found.append(key)
                after = key
        return found

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
        return self.retrying(lambda: self._claim_fair(queue, shares, lease, now, slots, limited=limited))

    def _claim_fair(
        self,
        queue: str,
        shares: Sequence[tuple[str, int]],
        lease: int,
        now: datetime,
        slots: str | None,
        *,
        limited: bool,
    ) -> dict[str, list[Claim]]:
        whole = nullcontext() if self.connection.in_atomic_block else self.atomic()
        with whole, self.connection.cursor() as cursor:
            rows: list[Any] = []
            for start in range(0, len(shares), _KEYS_MOST):
                part = shares[start : start + _KEYS_MOST]
                wanted = [value for key, count in part for value in (queue, key, count)]
                cursor.execute(" UNION ALL ".join([_CLAIM_OF_KEY] * len(part)), wanted)
                rows += cursor.fetchall()
            key_of = {row[0]: row[-1] for row in rows}
            claims = self._take_rows(cursor, rows, lease, now, slots, limited=limited)
        return by_fair_key((key_of[claim.key], claim) for claim in claims)

    def unkeyed(
        self, queue: str, *, after: tuple[int, Any] | None, size: int
    ) -> tuple[tuple[int, Any] | None, tuple[int, Any] | None]:
        # The index has them in one place: there is nothing to look through.
        with self.connection.cursor() as cursor:
            cursor.execute(_FIRST_UNKEYED, (queue,))
            first = cursor.fetchone()
        return first, None if first is None else _END

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
        def work() -> list[Claim]:
            whole = nullcontext() if self.connection.in_atomic_block else self.atomic()
            with whole, self.connection.cursor() as cursor:
                if first[0] == last[0]:
                    cursor.execute(_CLAIM_WITHIN, (queue, *first, last[1], limit))
                else:
                    cursor.execute(_CLAIM_BETWEEN, (queue, limit))
                return self._take_rows(cursor, cursor.fetchall(), lease, now, slots, limited=limited)

        return self.retrying(work)

    def park(self, rows: Sequence[tuple[Claim, str | None, str | None]], *, lease: int) -> None:
        values = [
            (claim.key.hex(), key, None if promised is None else promise_mark(promised))
            for claim, key, promised in rows
        ]
        with self.connection.cursor() as cursor:
            cursor.execute(_PARK, (json.dumps(values), lease))

    # Limits

    def save_held(self, rows: Sequence[tuple[str, int]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(_SAVE_HELD, (json.dumps(rows),))

    def save_limits(self, rows: Sequence[tuple[Any, ...]]) -> None:
        values = [self._stored(value) if isinstance(value, datetime) else value for row in rows for value in row]
        with self.connection.cursor() as cursor:
            cursor.execute(_SAVE_LIMITS % ", ".join([_LIMIT_ROW] * len(rows)), values)

    def unpark(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        with self.connection.cursor() as cursor:
            for key, count in wanted:
                cursor.execute(_PARKED, (key, count))
                rows = cursor.fetchall()
                if rows:
                    marks = f"({', '.join(['%s'] * len(rows))})"
                    cursor.execute(_UNPARK + marks, [promise_mark(key), *(row[0] for row in rows)])
                    told += [(key, queue) for _, queue in rows]
        return told

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
