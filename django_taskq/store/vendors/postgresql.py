"""
PostgreSQL: claim and settle in one statement each, COPY for bulk, LISTEN and NOTIFY to wake workers.

Its surprise: ``lease + 0`` in the settle statements. With a bare ``lease = …``
the planner takes the lease index and compares each task with each other of
the batch, 100 x 100 rows, 4 ms instead of 0.3 ms.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_taskq.domain.limit_columns import LIMIT_CHANGING, LIMIT_FIELDS
from django_taskq.domain.parking import promise_mark
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Limit, Task, Workflow
from django_taskq.store.rows import Again, Claim, Ending, NewTask
from django_taskq.store.vendors.base import CARRIED, Holder, Listener, Vendor, by_fair_key
from django_taskq.store.vendors.on_conflict import FREED, INSERT_UNIQUE, add_stats_on_conflict

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
LIMIT = f'"{Limit._meta.db_table}"'
WORKFLOW = f'"{Workflow._meta.db_table}"'

_CLAIMED = (
    "id::text, queue, rank, attempt, max_attempts, ack, name, args, options, metadata,"
    " run_after, created_at, deadline_at, expires_at, cancel, workflow_id::text, role, slots, lease"
)
_CLAIM = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s,
    unique_key = {FREED}
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {TASK} WHERE queue = %s AND state = {State.READY:d} %s
    ORDER BY rank, id LIMIT %s FOR UPDATE SKIP LOCKED)) AND limits IS NULL
RETURNING {_CLAIMED}
"""
_CLAIM_FROM_START = _CLAIM.replace("%s\n    ORDER", "\n    ORDER")
_CLAIM_RESUMED = _CLAIM.replace("%s\n    ORDER", "AND (rank, id) > (%s, %s::uuid)\n    ORDER")


# Tasks without a fair key, in a part of the queue: no index leaves those with a key out.
_CLAIM_BETWEEN = _CLAIM.replace(
    "%s\n    ORDER",
    "AND fair_key IS NULL\n    AND (rank, id) >= (%s, %s::uuid) AND (rank, id) <= (%s, %s::uuid)\n    ORDER",
)
_CLAIM_FAIR = f"""
UPDATE {TASK} SET state = {State.RUNNING:d}, attempt = attempt + 1, lease = %s, started_at = %s,
    unique_key = {FREED}
WHERE ctid = ANY (ARRAY(
    SELECT f.ctid FROM unnest(%s::text[], %s::int[], %s::int[], %s::uuid[]) s (s_key, s_limit, s_rank, s_id)
    CROSS JOIN LATERAL (
        SELECT ctid FROM {TASK} WHERE queue = %s AND state = {State.READY:d} AND fair_key = s.s_key
        AND (rank, id) > (s.s_rank, s.s_id)
        ORDER BY rank, id LIMIT s.s_limit FOR UPDATE SKIP LOCKED) f)) AND limits IS NULL
RETURNING {_CLAIMED}, fair_key
"""


def _with_limits(statement: str) -> str:
    """
    Return a claim that also takes tasks with limits, and writes down which limits each counts in.

    Unique keys stay: what is parked has not been started.
    """
    taken = statement.replace(" AND limits IS NULL", "").replace(f",\n    unique_key = {FREED}", "")
    return taken.replace("SET ", "SET slots = nullif(concat_ws(E'\\n', %s::text, limits, slots), ''), ", 1)


_CLAIM_LIMITED, _CLAIM_LIMITED_RESUMED = map(_with_limits, (_CLAIM_FROM_START, _CLAIM_RESUMED))
_CLAIM_BETWEEN_LIMITED, _CLAIM_FAIR_LIMITED = map(_with_limits, (_CLAIM_BETWEEN, _CLAIM_FAIR))
_FAIR_QUEUES = f"""
SELECT q FROM unnest(%s::text[]) q WHERE EXISTS (
    SELECT 1 FROM {TASK} t WHERE t.queue = q AND t.state = {State.READY:d} AND t.fair_key IS NOT NULL)
"""
# Jumps from one key to the next in the index of fair shares, however many tasks each has.
_FAIR_KEYS = f"""
WITH RECURSIVE k AS (
    (SELECT fair_key FROM {TASK} WHERE queue = %s AND state = {State.READY:d} AND fair_key > %s
        ORDER BY fair_key LIMIT 1)
    UNION ALL
    SELECT (SELECT t.fair_key FROM {TASK} t WHERE t.queue = %s AND t.state = {State.READY:d}
        AND t.fair_key > k.fair_key ORDER BY t.fair_key LIMIT 1)
    FROM k WHERE k.fair_key IS NOT NULL
) SELECT fair_key FROM k WHERE fair_key IS NOT NULL LIMIT %s
"""
_UNKEYED = f"""
WITH w AS MATERIALIZED (
    SELECT rank, id, fair_key FROM {TASK} WHERE queue = %s AND state = {State.READY:d}
    AND (rank, id) > (%s, %s::uuid) ORDER BY rank, id LIMIT %s
) (SELECT true, rank, id::text FROM w WHERE fair_key IS NULL ORDER BY w.rank, w.id LIMIT 1)
UNION ALL (SELECT false, rank, id::text FROM w ORDER BY w.rank DESC, w.id DESC LIMIT 1)
"""
# Before every position: ranks are small integers, and no id is all zeros.
_EDGE = (-32768, "00000000-0000-0000-0000-000000000000")
_PARK = f"""
UPDATE {TASK} t SET state = CASE WHEN p.p_key IS NULL THEN {State.READY:d} ELSE {State.PARKED:d} END,
    lease = NULL, slots = p.p_promised, attempt = attempt - 1, parked_on = p.p_key,
    started_at = CASE WHEN attempt > 1 THEN started_at END
FROM unnest(%s::uuid[], %s::text[], %s::text[]) p (p_id, p_key, p_promised) WHERE t.id = p.p_id AND t.lease + 0 = %s
"""

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
    lease = NULL, slots = NULL, attempt = t.attempt - f.f_back,
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
_LIMIT_COLUMNS = ", ".join(LIMIT_FIELDS)
_LOCK_LIMITS = f"SELECT {_LIMIT_COLUMNS} FROM {LIMIT} WHERE key = ANY(%s) ORDER BY key FOR UPDATE"
_SAVE_HELD = (
    f"UPDATE {LIMIT} l SET held = f.f_held FROM unnest(%s::text[], %s::int[]) f (f_key, f_held) WHERE key = f_key"
)
_KINDS = {"int4": "held amount burst promised", "float8": "per_seconds tokens", "bool": "waits"}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_SAVE_LIMITS = f"""
UPDATE {LIMIT} l SET {", ".join(f"{name} = f.f_{name}" for name in LIMIT_CHANGING)}
FROM unnest(%s::text[], {", ".join(f"%s::{_KIND_OF.get(name, 'timestamptz')}[]" for name in LIMIT_CHANGING)})
    f (f_key, {", ".join(f"f_{name}" for name in LIMIT_CHANGING)})
WHERE l.key = f.f_key
"""
_UNPARK = f"""
UPDATE {TASK} SET state = {State.READY:d}, parked_on = NULL, slots = k_mark FROM (
    SELECT p.at, k_key, k_mark FROM unnest(%s::text[], %s::int[], %s::text[]) k (k_key, k_count, k_mark)
    CROSS JOIN LATERAL (
        SELECT ctid AS at FROM {TASK} WHERE parked_on = k_key AND state = {State.PARKED:d}
        ORDER BY rank, id LIMIT k_count FOR UPDATE SKIP LOCKED) p
) found WHERE ctid = found.at
RETURNING k_key, queue
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
    " metadata, parent_id, workflow_id, role, waits_for, limits, fair_key, unique_key, args, attempt, replays, cancel"
)
_INSERT = f"INSERT INTO {TASK} ({INSERT_COLUMNS}) VALUES ({', '.join(['%s'] * 21)}, 0, 0, false)"
_INSERT_UNIQUE = _INSERT + INSERT_UNIQUE
# IS NOT NULL, since a planner that is given the keys as a parameter does not know that they are none.
_HOLDERS = f"""
SELECT unique_key, id, state, created_at FROM {TASK}
WHERE unique_key = ANY(%s) AND unique_key IS NOT NULL ORDER BY unique_key
"""
_LOCKS = {None: "", "share": " FOR SHARE", "update": " FOR UPDATE"}
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


def _optional_uuid(number: int | None) -> str | None:
    return None if number is None else _uuid_text(number)


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
                self.limit_idle()
            yield

    def limit_idle(self) -> None:
        # A process that is stopped in a transaction keeps its connection, and with it every lock: without
        # this limit those who rescue its tasks, or announce the same names, would wait for it.
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = {int(_IDLE_SECONDS * 1000)}")

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
        is_plain = is_plain and row.deadline_at is None and row.expires_at is None and row.workflow_id is None
        is_plain = is_plain and row.limits is None and row.fair_key is None and row.unique_key is None
        if is_plain and hasattr(cursor, "mogrify"):
            shared = (row.queue, row.rank, int(row.state), row.max_attempts, int(row.ack), row.name)
            found = self._statements.get(shared)
            text, statement = self._compose(cursor, shared) if found is None else found
            if statement is not None:
                self._prepared.lend(connection, cursor, statement)
            cursor.execute(text, (_uuid_text(row.id), row.created_at, row.args))
            return
        cursor.execute(_INSERT, self._values(row))

    def _values(self, row: NewTask) -> tuple[Any, ...]:
        parent, workflow = _optional_uuid(row.parent_id), _optional_uuid(row.workflow_id)
        return (_uuid_text(row.id), *row[1:13], parent, workflow, *row[16:], row.args)

    def insert_unique(self, rows: Sequence[NewTask]) -> set[int]:
        made: set[int] = set()
        with self.connection.cursor() as cursor:
            for row in rows:
                cursor.execute(_INSERT_UNIQUE, self._values(row))
                if cursor.rowcount:
                    made.add(row.id)
        return made

    def holders(self, keys: Sequence[str], *, lock: Literal["share", "update"] | None = None) -> dict[str, Holder]:
        with self.connection.cursor() as cursor:
            cursor.execute(_HOLDERS + _LOCKS[lock], [list(keys)])
            return {key: Holder(number.int, state, at) for key, number, state, at in cursor.fetchall()}

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
            middle = (*row[1:14], *row[15:])
            text = shared.get(middle)
            if text is None:
                ids = _optional_uuid(row.parent_id), _optional_uuid(row.workflow_id)
                values = (*row[1:13], *ids, *row[16:])
                text = "\t".join([_copy_text(value) for value in values])
                shared[middle] = text
            args = row.args.replace("\\", "\\\\") if "\\" in row.args else row.args
            lines.append(f"{row.id:032x}\t{text}\t{args}\t0\t0\tf\n")
        # Django wraps the errors of execute() only.
        with self.connection.cursor() as cursor, self.connection.wrap_database_errors, cursor.copy(_COPY) as copy:
            for start in range(0, len(lines), 2000):
                copy.write("".join(lines[start : start + 2000]))

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
                cursor.execute(statement, (slots, lease, now, queue, *(after or ()), limit))
            elif after is None:
                cursor.execute(_CLAIM_FROM_START, (lease, now, queue, limit))
            else:
                cursor.execute(_CLAIM_RESUMED, (lease, now, queue, *after, limit))
            rows = [Claim._make(row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (row.rank, row.key))
        return rows

    def fair_queues(self, queues: Sequence[str]) -> set[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_FAIR_QUEUES, (list(queues),))
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
        keys, counts = zip(*shares, strict=True)
        ranks, ids = zip(*((after or {}).get(key, _EDGE) for key in keys), strict=True)
        given = (lease, now, list(keys), _array(counts), _array(ranks), _array(ids), queue)
        with self.connection.cursor() as cursor:
            if limited:
                cursor.execute(_CLAIM_FAIR_LIMITED, (slots, *given))
            else:
                cursor.execute(_CLAIM_FAIR, given)
            return by_fair_key((row[-1], Claim._make(row[:-1])) for row in cursor.fetchall())

    def unkeyed(
        self, queue: str, *, after: tuple[int, Any] | None, size: int
    ) -> tuple[tuple[int, Any] | None, tuple[int, Any] | None]:
        with self.connection.cursor() as cursor:
            cursor.execute(_UNKEYED, (queue, *(after or _EDGE), size))
            found = {is_first: (rank, key) for is_first, rank, key in cursor.fetchall()}
        return found.get(True), found.get(False)

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
        given = (lease, now, queue, *first, *last, limit)
        with self.connection.cursor() as cursor:
            if limited:
                cursor.execute(_CLAIM_BETWEEN_LIMITED, (slots, *given))
            else:
                cursor.execute(_CLAIM_BETWEEN, given)
            rows = [Claim._make(row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (row.rank, row.key))
        return rows

    def park(self, rows: Sequence[tuple[Claim, str | None, str | None]], *, lease: int) -> None:
        claims, keys, promised = zip(*rows, strict=True)
        marks = [None if key is None else promise_mark(key) for key in promised]
        with self.connection.cursor() as cursor:
            cursor.execute(_PARK, (_array(claim.key for claim in claims), list(keys), marks, lease))

    # Limits

    def lock_limits(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(_LOCK_LIMITS, (list(keys),))
            return list(cursor.fetchall())

    def save_held(self, rows: Sequence[tuple[str, int]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(_SAVE_HELD, ([key for key, _ in rows], _array(held for _, held in rows)))

    def save_limits(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(_SAVE_LIMITS, [list(column) for column in zip(*rows, strict=True)])

    def unpark(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        with self.connection.cursor() as cursor:
            keys = [key for key, _ in wanted]
            cursor.execute(_UNPARK, (keys, _array(count for _, count in wanted), [promise_mark(key) for key in keys]))
            return [(key, queue) for key, queue in cursor.fetchall()]

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
            # Only a success that was skipped says why.
            and line.count(None) == len(line)
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

    def save_workflows(self, rows: Sequence[Any], names: Sequence[str]) -> None:
        statement = self._save_workflows(tuple(names))
        columns = [[getattr(row, name) for row in rows] for name in names]
        with self.connection.cursor() as cursor:
            cursor.execute(statement, [_array(row.pk for row in rows), *columns])

    def _save_workflows(self, names: tuple[str, ...]) -> str:
        kinds = [Workflow._meta.get_field(name).db_type(self.connection) for name in names]
        arrays = ", ".join(f"%s::{kind}[]" for kind in ("uuid", *kinds))
        changes = ", ".join(f"{name} = f.f_{name}" for name in names)
        given = ", ".join(f"f_{name}" for name in ("id", *names))
        return f"UPDATE {WORKFLOW} w SET {changes} FROM unnest({arrays}) f ({given}) WHERE w.id = f.f_id"

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
