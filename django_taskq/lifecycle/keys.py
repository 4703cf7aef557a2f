"""Make the keys of a task that is to be stored: of its limits and of its fair share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django_taskq.domain.keys import bound_key, fitted
from django_taskq.domain.limits import own_key

__all__ = ["fair_key_of", "limits_of"]

_LONGEST = 190
_FAIR_LONGEST = 64


def limits_of(task: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """
    Return the keys of a call's limits, one in a line; None if it has none.

    A callable that returns None as key takes the call out of its limit.
    """
    found: list[str] = []
    for limit in task.limits:
        text = f"task:{name}"
        if limit.key is not None:
            made = bound_key(task.func, task.takes_context, limit.key, args, kwargs)
            if made is None:
                continue
            text = made
        found.append(own_key(limit, fitted(text, _LONGEST)))
    return "\n".join(found) or None


def fair_key_of(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return whose turn a call counts as; None if a callable says nobody's."""
    if task.fair_key is None:
        return None
    made = bound_key(task.func, task.takes_context, task.fair_key, args, kwargs, field="fair_key")
    return None if made is None else fitted(made, _FAIR_LONGEST)
