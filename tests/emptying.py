"""Empty the tables that a test filled, and leave the others alone."""

from functools import lru_cache
from typing import Any

from django.core.management.color import no_style
from django.db import connections, transaction

# Made by migrations, and the same for every test.
KEPT = {"django_migrations", "django_content_type", "auth_permission"}
# A larger table is truncated: what DELETE leaves behind would slow down the tests after it.
_LARGE_BYTES = 1_000_000


def empty_databases(case: Any) -> None:
    """Do what ``TransactionTestCase`` does after each test."""
    for alias in case._databases_names(include_mirrors=False):
        empty(alias)


def empty(alias: str) -> None:
    """Empty every table of a database that has rows, but for those that migrations filled."""
    connection = connections[alias]
    loose, linked = _tables(alias)
    filled = _filled(connection, (*loose, *linked))
    large = _large(connection, filled)
    # In any order: keys are looked at with the commit, and where they are not, not at all. To truncate tables with
    # keys takes all of them, and ten times as long.
    with connection.constraint_checks_disabled(), transaction.atomic(using=alias), connection.cursor() as cursor:
        for table in filled - large:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")
    rest = [table for table in loose if table in large]
    if large & set(linked):
        rest += linked
    if rest:
        statements = connection.ops.sql_flush(no_style(), rest, reset_sequences=False, allow_cascade=False)
        connection.ops.execute_sql_flush(statements)


@lru_cache
def _tables(alias: str) -> tuple[list[str], list[str]]:
    """Return the tables that no foreign key leads to or from, and the others."""
    connection = connections[alias]
    names = [
        name
        for name in connection.introspection.django_table_names(only_existing=True, include_views=False)
        if name not in KEPT
    ]
    with connection.cursor() as cursor:
        found = {name: connection.introspection.get_relations(cursor, name) for name in names}
    linked = {name for name, relations in found.items() if relations}
    linked |= {relation[1] for relations in found.values() for relation in relations.values()} & set(names)
    return [name for name in names if name not in linked], [name for name in names if name in linked]


def _filled(connection: Any, names: tuple[str, ...]) -> set[str]:
    """Return those of the tables that have rows."""
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {quote(name)})" for name in names)
        )
        return {name for (name,) in cursor.fetchall()}


def _large(connection: Any, names: set[str]) -> set[str]:
    if connection.vendor != "postgresql" or not names:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relname = ANY (%s) AND pg_relation_size(oid) > %s",
            [list(names), _LARGE_BYTES],
        )
        return {name for (name,) in cursor.fetchall()}
