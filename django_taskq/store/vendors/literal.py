"""A whole number that stands in the statement itself, not in its parameters."""

from __future__ import annotations

from typing import Any

from django.db.models import Expression, IntegerField

__all__ = ["Literal"]


class Literal(Expression):
    """
    A constant the planner always sees.

    A prepared statement under a generic plan knows no parameters, and so
    cannot tell that ``state = %s`` fits a partial index.
    """

    def __init__(self, value: int) -> None:
        super().__init__(output_field=IntegerField())
        self.value = int(value)

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[str | int, ...]]:
        return str(self.value), ()
