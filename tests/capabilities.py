"""
What a test may ask of the database, in the words of docs/guarantees.md.

A test that cannot hold everywhere names the capability it needs instead of the
vendor it fails on: ``@requires("skip_locked")``.
"""

import pytest

from tests import databases

#: Capability, and the vendors (in Django's words; MariaDB is "mysql") that have it.
CAPABILITIES: dict[str, frozenset[str]] = {
    # Two transactions write at the same time.
    "concurrent_writers": frozenset({"postgresql", "mysql"}),
    # A claim passes over rows that somebody else has locked.
    "skip_locked": frozenset({"postgresql", "mysql"}),
    # An index holds only the rows that meet a condition.
    "partial_indexes": frozenset({"postgresql", "sqlite"}),
    # UPDATE and DELETE return the rows they changed.
    "update_returning": frozenset({"postgresql", "sqlite"}),
    # The database wakes a waiting worker.
    "listen_notify": frozenset({"postgresql"}),
    # The INSERT of a task is prepared once for a connection.
    "prepared_insert": frozenset({"postgresql"}),
    # The database has a clock of its own, and not just that of whoever asks.
    "server_clock": frozenset({"postgresql", "mysql"}),
    # Writers exclude each other: while one holds the file, all others wait.
    "one_writer": frozenset({"sqlite"}),
    # The server ends a transaction whose process stands still.
    "idle_limit": frozenset({"postgresql", "mysql"}),
    # That can be asked of one transaction, and not only of a session.
    "local_idle_limit": frozenset({"postgresql"}),
    # A server of the test's own can be crashed and started again: PostgreSQL comes as a wheel, MariaDB has to be here.
    "crash_restart": frozenset({"postgresql", "mysql"}),
    # The database says how many pages a statement read.
    "page_counts": frozenset({"postgresql"}),
    # A connection can be cut from outside, as a restart or a failover does.
    "server_connections": frozenset({"postgresql", "mysql"}),
}


def has(capability: str) -> bool:
    """Tell whether the database under test has the capability; refuse an unknown one."""
    if capability not in CAPABILITIES:
        raise pytest.UsageError(f"Unknown capability {capability!r}: use one of {', '.join(CAPABILITIES)}")
    return databases.vendor() in CAPABILITIES[capability]


def requires(*names: str) -> pytest.MarkDecorator:
    """Skip the test on a database without these capabilities."""
    for name in names:
        has(name)
    return pytest.mark.requires(*names)
