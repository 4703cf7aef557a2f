"""
Values: what frozen dataclasses share instead of each having it generated.

A dataclass gets methods of its own for comparing, showing and refusing changes, about
7 KiB of code each. With some fifty of them that is a third of a MiB in every process.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any, TypeVar

__all__ = ["lean"]

T = TypeVar("T")


def lean(kind: type[T]) -> type[T]:
    """
    Replace the generated methods of a frozen dataclass, but for ``__init__``, by ones that all of them share.

    They do the same, more slowly: not for values that are compared or hashed for each task.
    A method that the class wrote itself is replaced, too.
    """
    for name, method in _SHARED.items():
        setattr(kind, name, method)
    return kind


def _compared(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, item.name) for item in fields(value) if item.compare)


def _repr(self: Any) -> str:
    shown = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: object) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    return _compared(self) == _compared(other)


def _hash(self: Any) -> int:
    return hash((type(self), *_compared(self)))


def _setattr(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_SHARED = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash, "__setattr__": _setattr, "__delattr__": _delattr}
