"""
PostgreSQL: claim and settle in one statement each, COPY for bulk, LISTEN and NOTIFY to wake workers.

Its surprise: ``lease + 0`` in the settle statements. With a bare ``lease = …``
the planner takes the lease index and compares each task with each other of
the batch, 100 x 100 rows, 4 ms instead of 0.3 ms.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, Listener, Vendor
from django_taskq.store.vendors.on_conflict import add_stats_on_conflict

if TYPE_CHECKING:
    from django_taskq.store.vendors.prepared import Statement

__all__ = ["PostgreSQL"]

CHANNEL = "django_taskq"
# How long a request to end a statement may take to reach the server.
_INTERRUPT_SECONDS = 5.0
# How long a transaction of ours may stand still between two statements before the server ends it.
_IDLE_SECONDS = 10.0

TASK = f'"{Task._meta.db_table}"'
FINISHED = f'"{FinishedTask._meta.db_table}"'

_CLAIMED = (
    "id::text, queue, rank, attempt, max_attempts, ack, name, args, options, metadata,"
    " run_after, created_at, deadline_at, expires_at, cancel, lease"
)
_CLAIM = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {TASK} WHERE queue = %s AND state = {State.READY:d} %s
    ORDER BY rank, id LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING {_CLAIMED}
"""
_CLAIM_FROM_START = _CLAIM.replace("%s\n    ORDER", "\n    ORDER")
_CLAIM_RESUMED = _CLAIM.replace("%s\n    ORDER", "AND (rank, id) > (%s, %s::uuid)\n    ORDER")

_MOVED = ", ".join(CARRIED)
_ENDED = "state, attempt, started_at, finished_at, result, reason, error_class, error_line, fingerprint, delete_at"
_FINISH = f"""
WITH gone AS (
    DELETE FROM {TASK} t USING unnest(
        %s::uuid[], %s::bigint[], %s::smallint[], %s::smallint[], %s::float8[], %s::float8[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::float8[]
    ) f (f_id, f_lease, f_state, f_back, f_started, f_finished, f_result, f_reason, f_class, f_line, f_print, f_keep)
    WHERE t.id = f.f_id AND t.lease + 0 = f.f_lease
    RETURNING t.*, f.*
), moved AS (
    INSERT INTO {FINISHED} ({_MOVED}, {_ENDED})
    SELECT {_MOVED}, f_state, attempt - f_back, coalesce(to_timestamp(f_started), started_at), to_timestamp(f_finished),
        f_result, f_reason, f_class, f_line, f_print, to_timestamp(f_finished + f_keep)
    FROM gone WHERE f_keep IS DISTINCT FROM 0
)
SELECT f_id::text FROM gone
"""
# Successes without a result, the most frequent ending: four arrays instead of twelve.
_FINISH_PLAIN = f"""
WITH gone AS (
    DELETE FROM {TASK} t USING unnest(%s::uuid[], %s::bigint[], %s::float8[], %s::float8[])
        f (f_id, f_lease, f_started, f_finished)
    WHERE t.id = f.f_id AND t.lease + 0 = f.f_lease
    RETURNING t.*, f.*
), moved AS (
    INSERT INTO {FINISHED} ({_MOVED}, state, attempt, started_at, finished_at)
    SELECT {_MOVED}, {State.SUCCEEDED:d}, attempt, to_timestamp(f_started), to_timestamp(f_finished) FROM gone
)
SELECT f_id::text FROM gone
"""
_PUT_BACK = f"""
UPDATE {TASK} t SET state = CASE WHEN t.cancel THEN {State.READY:d} ELSE f.f_state END,
    lease = NULL, attempt = t.attempt - f.f_back,
    run_after = coalesce(to_timestamp(f.f_run_after), t.run_after), options = coalesce(f.f_options, t.options)
FROM unnest(%s::uuid[], %s::bigint[], %s::smallint[], %s::smallint[], %s::float8[], %s::text[])
    f (f_id, f_lease, f_state, f_back, f_run_after, f_options)
WHERE t.id = f.f_id AND t.lease + 0 = f.f_lease
RETURNING t.id::text
"""
_PROMOTE = f"""
UPDATE {TASK} SET state = {State.READY:d} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {TASK} WHERE state = {State.SCHEDULED:d} AND run_after <= %s
    ORDER BY run_after LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING queue
"""
# Jumps from one queue to the next in the claim index, however many tasks each holds.
_READY_QUEUES = f"""
WITH RECURSIVE q AS (
    (SELECT queue FROM {TASK} WHERE state = {State.READY:d} ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT t.queue FROM {TASK} t WHERE t.state = {State.READY:d} AND t.queue > q.queue ORDER BY t.queue LIMIT 1)
    FROM q WHERE q.queue IS NOT NULL
) SELECT queue FROM q WHERE queue IS NOT NULL
"""

INSERT_COLUMNS = (
    "id, queue, rank, state, max_attempts, ack, run_after, created_at, deadline_at, expires_at, name, options,"
    " metadata, parent_id, args, attempt, replays, cancel"
)
_INSERT = f"INSERT INTO {TASK} ({INSERT_COLUMNS}) VALUES ({', '.join(['%s'] * 15)}, 0, 0, false)"
# The columns of a task that is to run at once and has no options of its own; the first six are filled in by _compose.
_INSERT_PLAIN = (
    f"INSERT INTO {TASK} (queue, rank, state, max_attempts, ack, name, id, created_at, args, attempt, replays, cancel)"
    " VALUES ({}, {}, {}, {}, 0, 0, false)"
)
_STATEMENTS_MOST = 500
_COPY = f"COPY {TASK} ({INSERT_COLUMNS}) FROM STDIN"
# Below this a few INSERTs are as fast, and a COPY cannot be sent in a pipeline.
COPY_FROM = 20


def _uuid_text(number: int) -> str:
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _copy_text(value: object) -> str:
    """Return one value in the text form of COPY."""
    if value is None:
        return "\\N"
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    if "\\" in text or "\t" in text or "\n" in text or "\r" in text:
        text = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text


def _sqlstate(error: BaseException) -> str | None:
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def _array(values: Iterable[object]) -> str:
    """Return an array literal of ids or numbers: one string is cheaper to send than a list of values."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


class Notifications(Listener):
    """What one connection heard, whether it came while waiting or with the answer to a statement."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._raw = connection.connection
        self._pending: list[str] = []
        self._raw.add_notify_handler(lambda message: self._pending.append(message.payload))

    def fileno(self) -> int:
        with self._connection.wrap_database_errors:
            return int(self._raw.fileno())

    def heard(self) -> list[str]:
        with self._connection.wrap_database_errors:
            self._raw.pgconn.consume_input()
            while message := self._raw.pgconn.notifies():
                self._pending.append(message.extra.decode())
        heard, self._pending = self._pending, []
        return heard


class PostgreSQL(Vendor):
    """PostgreSQL 14 and newer, with psycopg 3; psycopg2 works, without COPY and without notifications."""

    name = "postgresql"
    skip_locked = True
    poll_seconds = 0.02

    @cached_property
    def has_psycopg3(self) -> bool:
        return bool(getattr(self.connection, "Database").__name__ == "psycopg")  # noqa: B009 - not in the stubs

    def key_of(self, public_id: str | uuid.UUID) -> str:
        return str(public_id if isinstance(public_id, uuid.UUID) else uuid.UUID(public_id))

    def public_id(self, key: Any) -> str:
        return str(key)

    def is_lost_connection(self, error: BaseException) -> bool:
        # The server ended a transaction that stood still, and the connection with it: an InternalError to the driver.
        return super().is_lost_connection(error) or _sqlstate(error) == "25P03"

    def is_conflict(self, error: BaseException) -> bool:
        return _sqlstate(error) in ("40001", "40P01")

    def is_timeout(self, error: BaseException) -> bool:
        # Cancelled on request has the same code; nobody but the limit ends our INSERT unless it is given up.
        return _sqlstate(error) in ("57014", "55P03")

    def interrupter(self) -> Callable[[], None]:
        self.connection.ensure_connection()
        raw = self.connection.connection
        if hasattr(raw, "cancel_safe"):
            return partial(raw.cancel_safe, timeout=_INTERRUPT_SECONDS)
        return raw.cancel  # type: ignore[no-any-return]  # psycopg2, and psycopg before 3.2

    @contextmanager
    def statement_limit(self, seconds: float) -> Iterator[None]:
        milliseconds = min(max(int(seconds * 1000), 1), 2**31 - 1)
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('statement_timeout'), set_config('statement_timeout', %s, true)",
                [str(milliseconds)],
            )
            before = cursor.fetchone()[0]
        yield
        # After an error the savepoint's or the transaction's end puts it back.
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [before])

    def now(self) -> datetime:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            moment: datetime = cursor.fetchone()[0]
        return moment

    @contextmanager
    def atomic(self) -> Iterator[None]:
        is_outermost = not self.connection.in_atomic_block
        with transaction.atomic(using=self.alias):
            if is_outermost:
                # A process that is stopped in here keeps its connection, and with it every lock: without
                # this limit those who rescue its tasks, or announce the same names, would wait for it.
                with self.connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = {int(_IDLE_SECONDS * 1000)}")
            yield

    # Enqueue

    def insert(self, rows: Sequence[NewTask]) -> None:
        if len(rows) >= COPY_FROM and self.has_psycopg3:
            self._copy(rows)
            return
        # All or none, however many statements it takes.
        whole = self.atomic() if len(rows) > 1 else nullcontext()
        connection = self.connection
        with whole, connection.cursor() as cursor:
            for row in rows:
                self._insert_one(connection, cursor, row)

    def _insert_one(self, connection: BaseDatabaseWrapper, cursor: Any, row: NewTask) -> None:
        """Insert one task; what all immediate calls of one definition share is written into the statement once."""
        is_plain = row.run_after is None and row.options is None and row.metadata is None and row.parent_id is None
        if is_plain and row.deadline_at is None and row.expires_at is None and hasattr(cursor, "mogrify"):
            shared = (row.queue, row.rank, int(row.state), row.max_attempts, int(row.ack), row.name)
            found = self._statements.get(shared)
            text, statement = self._compose(cursor, shared) if found is None else found
            if statement is not None:
                self._prepared.lend(connection, cursor, statement)
            cursor.execute(text, (_uuid_text(row.id), row.created_at, row.args))
            return
        parent = None if row.parent_id is None else _uuid_text(row.parent_id)
        cursor.execute(_INSERT, (_uuid_text(row.id), *row[1:13], parent, row.args))

    @cached_property
    def _prepared(self) -> Any:
        """The module of prepared statements, None with psycopg2."""
        return import_module("django_taskq.store.vendors.prepared") if self.has_psycopg3 else None

    @cached_property
    def _statements(self) -> dict[tuple[Any, ...], tuple[str, Statement | None]]:
        return {}

    def _compose(self, cursor: Any, shared: tuple[Any, ...]) -> tuple[str, Statement | None]:
        quoted = cursor.mogrify("%s, %s, %s, %s, %s, %s", shared)
        values = quoted.decode() if isinstance(quoted, bytes) else str(quoted)
        # The driver looks for placeholders again when the whole is executed.
        text = _INSERT_PLAIN.format(values.replace("%", "%%"), "%s", "%s", "%s")
        statement = None
        if self._prepared is not None:
            statement = self._prepared.statement_of(text, _INSERT_PLAIN.format(values, "$1", "$2", "$3"))
        if len(self._statements) >= _STATEMENTS_MOST:
            self._statements.clear()
        self._statements[shared] = text, statement
        return text, statement

    def _copy(self, rows: Sequence[NewTask]) -> None:
        shared: dict[tuple[Any, ...], str] = {}
        lines: list[str] = []
        for row in rows:
            middle = row[1:14]
            text = shared.get(middle)
            if text is None:
                parent = None if row.parent_id is None else _uuid_text(row.parent_id)
                text = "\t".join([_copy_text(value) for value in (*row[1:13], parent)])
                shared[middle] = text
            args = row.args.replace("\\", "\\\\") if "\\" in row.args else row.args
            lines.append(f"{row.id:032x}\t{text}\t{args}\t0\t0\tf\n")
        # Django wraps the errors of execute() only.
        with self.connection.cursor() as cursor, self.connection.wrap_database_errors, cursor.copy(_COPY) as copy:
            for start in range(0, len(lines), 2000):
                copy.write("".join(lines[start : start + 2000]))

    # Claim

    def claim(
        self, queue: str, limit: int, *, lease: int, now: datetime, after: tuple[int, Any] | None = None
    ) -> list[Claim]:
        with self.connection.cursor() as cursor:
            if after is None:
                cursor.execute(_CLAIM_FROM_START, (lease, now, queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (lease, now, queue, *after, limit))
            rows = [Claim._make(row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (row.rank, row.key))
        return rows

    def ready_queues(self) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_READY_QUEUES)
            return [queue for (queue,) in cursor.fetchall()]

    # Settle

    def finish(self, endings: Sequence[Ending]) -> set[Any]:
        keys, leases, states, back, started, finished, result, reason, kind, line, prints, keep = zip(
            *endings, strict=True
        )
        plain = (
            not any(back)
            and states.count(State.SUCCEEDED) == len(states)
            and result.count(None) == len(result)
            and keep.count(None) == len(keep)
            and None not in started
        )
        with self.connection.cursor() as cursor:
            if plain:
                cursor.execute(_FINISH_PLAIN, (_array(keys), _array(leases), _array(started), _array(finished)))
            else:
                cursor.execute(
                    _FINISH,
                    (
                        _array(keys),
                        _array(leases),
                        _array(map(int, states)),
                        _array(back),
                        _array(started),
                        _array(finished),
                        list(result),
                        list(reason),
                        list(kind),
                        list(line),
                        list(prints),
                        _array(keep),
                    ),
                )
            return {key for (key,) in cursor.fetchall()}

    def put_back(self, rows: Sequence[Again]) -> set[Any]:
        keys, leases, states, back, run_after, options = zip(*rows, strict=True)
        with self.connection.cursor() as cursor:
            cursor.execute(
                _PUT_BACK,
                (
                    _array(keys),
                    _array(leases),
                    _array(map(int, states)),
                    _array(back),
                    _array(run_after),
                    list(options),
                ),
            )
            return {key for (key,) in cursor.fetchall()}

    def add_stats(self, sums: dict[tuple[datetime, str, str, int], list[int]]) -> None:
        add_stats_on_conflict(self, sums)

    # Upkeep

    def promote(self, now: datetime, limit: int) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_PROMOTE, (now, limit))
            return [queue for (queue,) in cursor.fetchall()]

    # Wake-up

    def notify(self, queues: Iterable[str]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, ",".join(sorted(queues))[:7000]))

    def listen(self) -> Listener | None:
        if not self.has_psycopg3:
            return None
        self.connection.ensure_connection()
        listener = Notifications(self.connection)
        with self.connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")
        return listener
