"""
What a task waits for while it is parked, and what it carries once it was released.

Apart from ``limits``, which most processes never load: the store has to know this.
"""

from __future__ import annotations

__all__ = ["PAUSED", "counted", "is_paused_type", "paused_type_key", "promise_mark", "promised_key"]

# Sorts behind the keys of limits, so that its rows are locked last.
PAUSED = "p:"
# Before the key of the limit that a task was released for, in a line of its own behind the task's slots.
_PROMISE = "!"


def paused_type_key(name: str) -> str:
    """Return what the tasks of a paused type are parked on."""
    return f"{PAUSED}{name}"


def is_paused_type(key: str) -> bool:
    return key.startswith(PAUSED)


def promise_mark(key: str) -> str | None:
    """Return what a task that is released for a limit carries until it is claimed; None where nothing is promised."""
    return None if is_paused_type(key) else f"{_PROMISE}{key}"


def promised_key(slots: str | None) -> str | None:
    """Return the key of the limit that a task was released for, None if it was for none."""
    last = "" if slots is None else slots[slots.rfind("\n") + 1 :]
    return last[1:] if last.startswith(_PROMISE) else None


def counted(slots: str) -> list[str]:
    """Return the keys of the limits that a task counts in."""
    return [key for key in slots.split("\n") if not key.startswith(_PROMISE)]
