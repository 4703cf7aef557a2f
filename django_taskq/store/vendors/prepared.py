"""
PostgreSQL: INSERTs of one task as prepared statements, where a connection leads to one session of the server.

Parsing and planning take the server a third of such an INSERT, and writing it
out takes the driver longer than sending it. Times: the first inserts of a
connection are ordinary ones, since a connection for one request would not earn
back the extra round trips; then the server is asked for its process number, and
the statement is prepared. A pooler gives each client a number of its own; where
the two differ, statements may meet other sessions, and nothing is prepared.

Failure cases: a statement that is gone (``DISCARD ALL``) is refused before
anything is stored, so the ordinary INSERT follows. Inside a transaction that
refusal would cost the caller's work, so there nothing is prepared. A statement
is named after its text: should a session be shared in spite of all, the name
leads to this very statement or nowhere.

Its surprise: it stands in for the driver's cursor inside Django's, so that
execute wrappers and whoever else watches Django's cursors see the INSERT.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import Cursor
from django.db.backends.utils import CursorWrapper
from psycopg import errors, generators, pq

__all__ = ["Statement", "lend", "statement_of"]

_AFTER = 5
# Each takes a session of the server some 20 KiB; what more definitions there are is inserted in the ordinary way.
_MOST = 100
# By the first two characters of its code: the statement, a table or a column is not what it was.
_OUTDATED = ("26", "42", "0A")

# Looked up once: these are members of an enum, and compared at each insert.
_IDLE = int(pq.TransactionStatus.IDLE)
_NO_PIPELINE = int(pq.PipelineStatus.OFF)
_DONE, _ROWS = int(pq.ExecStatus.COMMAND_OK), int(pq.ExecStatus.TUPLES_OK)


@dataclass(frozen=True, slots=True)
class Statement:
    """An INSERT with three parameters, key, moment and arguments: as Django takes it, and as the server does."""

    ordinary: str
    name: bytes
    prepared: bytes


def statement_of(ordinary: str, prepared: str) -> Statement | None:
    """Return the statement, or None if what it says depends on the encoding of a connection."""
    if not prepared.isascii():
        return None
    text = prepared.encode()
    return Statement(ordinary, b"django_taskq_" + sha256(text).hexdigest()[:16].encode(), text)


class _Session:
    """What is known of one connection: how often it has run each statement, and which are prepared."""

    __slots__ = ("_prepared", "_uses", "is_direct", "is_unfit")

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}
        self._prepared: set[bytes] = set()
        self.is_direct = False
        self.is_unfit = False

    def insert(self, connection: Any, statement: Statement, values: list[bytes]) -> bool:
        """Store a task and return True, or return False if it has to be stored in the ordinary way."""
        pgconn = connection.pgconn
        if (
            pgconn.transaction_status != _IDLE
            or not connection.autocommit
            or pgconn.pipeline_status != _NO_PIPELINE
            or (statement.name not in self._prepared and not self._prepare(connection, statement))
        ):
            return False
        with connection.lock:
            pgconn.send_query_prepared(statement.name, values)
            result = _answer(connection)
        if result.status == _DONE:
            return True
        error = errors.error_from_result(result)
        if not (error.sqlstate or "").startswith(_OUTDATED):
            raise error
        self.is_unfit = True
        return False

    def _prepare(self, connection: Any, statement: Statement) -> bool:
        uses = self._uses.get(statement.name, 0)
        if uses < _AFTER:
            if uses or len(self._uses) < _MOST:
                self._uses[statement.name] = uses + 1
            return False
        with connection.lock:
            if not self.is_direct:
                connection.pgconn.send_query(b"SELECT pg_backend_pid()")
                found = _answer(connection)
                self.is_direct = found.status == _ROWS and int(found.get_value(0, 0)) == connection.pgconn.backend_pid
            if self.is_direct:
                connection.pgconn.send_prepare(statement.name, statement.prepared)
                if _answer(connection).status == _DONE:
                    self._prepared.add(statement.name)
                    return True
        self.is_unfit = True
        return False


def _answer(connection: Any) -> Any:
    """Wait as the driver does: for a signal, too, and letting other greenlets run."""
    return connection.wait(generators.execute(connection.pgconn))[-1]


class _Cursor:
    """Runs one statement as the prepared one; is the driver's cursor in all else."""

    __slots__ = ("_cursor", "_session", "_statement", "rowcount")

    def __init__(self, cursor: Any, session: _Session, statement: Statement) -> None:
        self._cursor = cursor
        self._session = session
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, query: Any, params: Any = None) -> Any:
        # A wrapper that changed the statement, a comment for the server's log say, gets what it wrote.
        if query is self._statement.ordinary:
            key, moment, args = params
            # A list: psycopg before 3.2 takes nothing else.
            values = [key.encode(), moment.isoformat().encode(), args.encode()]
            if self._session.insert(self._cursor.connection, self._statement, values):
                self.rowcount = 1
                return self
        return self._cursor.execute(query, params)


_sessions: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()


def lend(connection: BaseDatabaseWrapper, cursor: Any, statement: Statement) -> None:
    """
    Let the cursor run ``statement.ordinary`` as the prepared one, if its connection can.

    A cursor that is not Django's own, because somebody logs or traces, is left alone.
    """
    if connection.in_atomic_block or type(cursor) is not CursorWrapper or type(cursor.cursor) is not Cursor:
        return
    raw: Any = connection.connection
    session = _sessions.get(raw)
    if session is None:
        session = _sessions[raw] = _Session()
    if not session.is_unfit:
        cursor.cursor = _Cursor(cursor.cursor, session, statement)
