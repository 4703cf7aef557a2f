"""
The kinds of column and index that the tables are made of.

Migrations import this file and nothing else of the package, so what stands
here is never removed. Its surprise: one index may look different per database.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

__all__ = ["LiveIndex", "NameField", "TaskIdField", "reset_storage", "set_storage"]


if TYPE_CHECKING:
    UUIDFieldBase = models.UUIDField[uuid.UUID | str | None, uuid.UUID]
else:
    UUIDFieldBase = models.UUIDField


class TaskIdField(UUIDFieldBase):
    """
    A UUID column: ``uuid`` on PostgreSQL, ``binary(16)`` on MySQL and MariaDB, ``char(32)`` on SQLite.

    Django's ``char(32)`` costs 1.5 to 1.7 times the CPU of ``binary(16)`` in a
    drain on MySQL, and MariaDB's own ``uuid`` type before 10.11.5 reorders the
    bytes of version 7, which would break first in, first out (MDEV-29959).
    """

    def get_internal_type(self) -> str:
        # Not "UUIDField": MySQL's converter for that name expects char(32) and runs before ours.
        return "TaskIdField"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        if connection.vendor == "mysql":
            return "binary(16)"
        return "uuid" if connection.features.has_native_uuid_field else "char(32)"

    def rel_db_type(self, connection: BaseDatabaseWrapper) -> str:
        return self.db_type(connection)

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        if connection.vendor != "mysql":
            return super().get_db_prep_value(value, connection, prepared)
        value = self.to_python(value)
        return None if value is None else value.bytes

    def to_python(self, value: Any) -> uuid.UUID | None:
        if isinstance(value, bytes) and len(value) == 16:
            return uuid.UUID(bytes=value)
        found: uuid.UUID | None = super().to_python(value)
        return found

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> uuid.UUID | None:
        if value is None or isinstance(value, uuid.UUID):
            return value
        if isinstance(value, bytes):
            return uuid.UUID(bytes=value)
        return uuid.UUID(value)


if TYPE_CHECKING:
    CharFieldBase = models.CharField[str, str]
else:
    CharFieldBase = models.CharField


class NameField(CharFieldBase):
    """
    A name that is compared to the letter on every database.

    MySQL and MariaDB compare text regardless of case and accents by default, so a worker of the
    queue "email" would take the tasks of "Email", and two functions would share one row of statistics.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, str | None]:
        found: dict[str, str | None] = super().db_parameters(connection)
        if connection.vendor == "mysql":
            found["collation"] = "utf8mb4_bin"
        return found


class LiveIndex(models.Index):
    """
    A partial index where the database has them, and a plain one over other columns where not.

    ``fields`` are what every database can index (MySQL and MariaDB build
    that); ``partial`` are the columns and ``where`` the condition used by the
    others. Django alone would build nothing on MySQL, silently. ``unique``: no two rows may
    have the same values in ``fields``; rows in which one is null do not count.
    """

    def __init__(
        self,
        *,
        name: str,
        fields: Sequence[str],
        partial: Sequence[str] = (),
        where: models.Q | None = None,
        unique: bool = False,
    ) -> None:
        super().__init__(fields=list(fields), name=name)
        self.partial = list(partial)
        self.where = where
        self.unique = unique

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        path, args, kwargs = super().deconstruct()
        if self.partial:
            kwargs["partial"] = self.partial
        if self.unique:
            kwargs["unique"] = True
        return path, args, {**kwargs, "where": self.where}

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            index = models.Index(fields=self.partial or self.fields, condition=self.where, name=self.name)
        else:
            index = models.Index(fields=self.fields, name=self.name)
        statement = index.create_sql(model, schema_editor, using, **kwargs)
        if self.unique and statement is not None:
            # Nulls are no duplicates of each other on any of our databases.
            statement.template = statement.template.replace("CREATE INDEX", "CREATE UNIQUE INDEX", 1)
        return statement


def set_storage(model_name: str, /, **parameters: object) -> Any:
    """Return a function for RunPython that sets a table's storage parameters on PostgreSQL, and nothing elsewhere."""
    return _alter_storage(model_name, "SET", [f"{name} = {value}" for name, value in parameters.items()])


def reset_storage(model_name: str, /, *parameters: str) -> Any:
    """Return the reverse of ``set_storage``."""
    return _alter_storage(model_name, "RESET", parameters)


def _alter_storage(model_name: str, verb: str, parameters: Sequence[str]) -> Any:
    def apply(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
        if schema_editor.connection.vendor == "postgresql":
            table = schema_editor.quote_name(apps.get_model("django_taskq", model_name)._meta.db_table)
            schema_editor.execute(f"ALTER TABLE {table} {verb} ({', '.join(parameters)})")

    return apply
