"""The schedules that ``@schedule`` declared in this process, by name. Every worker imports it, so it is small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_taskq.lifecycle.calls import Declared

__all__ = ["conflicts", "declare", "declared", "forget"]

_declared: dict[str, Declared] = {}
_conflicts: dict[str, tuple[str, str]] = {}


def declare(made: Declared) -> None:
    """Take note of a schedule. The first of a name counts; a system check tells of the second."""
    found = _declared.get(made.name)
    # A module that is loaded again makes its functions anew.
    if found is None or (found.path == made.path and found.definition.func is not made.definition.func):
        _declared[made.name] = made
    else:
        _conflicts[made.name] = (found.path, made.path)


def declared() -> Mapping[str, Declared]:
    """Return the declared schedules by name."""
    return _declared


def conflicts() -> Mapping[str, tuple[str, str]]:
    """Return names that were given twice, with the paths of both tasks."""
    return _conflicts


def forget(name: str) -> None:
    """Forget a declaration, as if its code were gone."""
    _declared.pop(name, None)
    _conflicts.pop(name, None)
