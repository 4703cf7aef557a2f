"""
When two calls are one task: the rule that a definition or a call gives, and the key that is stored.

Stored keys begin with what keeps them apart: ``~`` while a task waits to be started (or, among the
keys with an expiry, for a time), nothing while it is live. Then comes the task's name and a colon,
or a colon alone for keys that all tasks share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from django_taskq.domain.keys import Key, arguments_digest, bound_key, check_key, fitted, short_digest
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions

__all__ = ["Unique", "debounce", "is_freed_by_start", "request_key", "throttle"]

Span = timedelta | float

# Of the columns that hold them.
UNIQUE_KEY_LENGTH, REQUEST_KEY_LENGTH = 100, 200
_UNTIL = ("finished", "started")
_ON_CONFLICT = ("return", "raise", "replace", "reschedule")
_SCOPES = ("task", "global")
# What changes the task that is there already. It can only be done to one that has not been started.
_CHANGING = ("replace", "reschedule")


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """
    Let no two tasks with one key be there at once.

    ``until``: "finished", as long as the task is live, or "started", until a worker claims it.
    ``period`` instead: for so long after the enqueue, whatever becomes of the task.
    ``key``: a template like ``"order:{order_id}"``, or a callable that gets the arguments and returns
    a text, or None for no key; by default all arguments are the key. Keys belong to the task's
    name; with ``scope="global"`` all tasks share them.

    ``on_conflict``: "return" the result of the task that is there, "raise" DuplicateTask, "replace"
    its arguments and options, or "reschedule" it to the time of this call. The last two change
    only what nobody has started; their ``until`` is "started" unless you say "finished".
    ``wait`` is the delay of a call that has none; ``max_wait`` bounds how long after its first
    enqueue a task can be rescheduled to. Raise InvalidOptions for what cannot be.
    """

    key: Key | None = None
    until: Literal["finished", "started"] | None = None
    period: Span | None = None
    on_conflict: Literal["return", "raise", "replace", "reschedule"] = "return"
    scope: Literal["task", "global"] = "task"
    wait: Span | None = None
    max_wait: Span | None = None

    def __post_init__(self) -> None:
        _check_choice("on_conflict", self.on_conflict, _ON_CONFLICT)
        _check_choice("scope", self.scope, _SCOPES)
        for field in ("period", "wait", "max_wait"):
            _check_span(field, getattr(self, field))
        if self.scope == "global" and self.key is None:
            _refuse("scope", 'scope="global" needs a key: the arguments of different tasks have nothing in common')
        if self.period is None:
            until = "started" if self.on_conflict in _CHANGING else "finished"
            object.__setattr__(self, "until", self.until or until)
            _check_choice("until", self.until, _UNTIL)
        elif self.until is not None:
            _refuse("period", "give either until or period: a period ends whatever becomes of the task")
        elif self.on_conflict in _CHANGING:
            _refuse("period", f'on_conflict="{self.on_conflict}" needs until: within a period the task may have ended')
        if self.max_wait is not None and self.on_conflict != "reschedule":
            _refuse("max_wait", 'max_wait bounds rescheduling, so it needs on_conflict="reschedule"')
        if self.max_wait is not None and self.wait is not None and _seconds(self.wait) > _seconds(self.max_wait):
            _refuse(
                "max_wait",
                f"max_wait must not be less than wait, got {self.max_wait!r} and {self.wait!r}: "
                "the first call would wait longer than all of them may",
            )

    @property
    def seconds(self) -> float | None:
        """The period in seconds."""
        return None if self.period is None else _seconds(self.period)

    def check(self, function: Callable[..., Any], takes_context: bool) -> None:
        """Raise InvalidOptions for a key that no call of the function could have."""
        if self.key is not None:
            check_key(function, takes_context, self.key, field="unique")

    def stored_key(
        self,
        name: str,
        function: Callable[..., Any],
        takes_context: bool,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> str | None:
        """Return the key of one call as it is stored, None for a call that is not unique."""
        if self.key is None:
            part: str | None = f"#{arguments_digest(function, takes_context, args, kwargs)}"
        else:
            part = bound_key(function, takes_context, self.key, args, kwargs, field="unique")
        if part is None:
            return None
        scope = "" if self.scope == "global" else _scope_of(name)
        mark = "" if self.until == "finished" else "~"
        most = UNIQUE_KEY_LENGTH if self.period is None else REQUEST_KEY_LENGTH
        return mark + fitted(f"{scope}:{part}", most - len(mark))


def debounce(
    wait: Span,
    *,
    key: Key | None = None,
    max_wait: Span | None = None,
    scope: Literal["task", "global"] = "task",
) -> Unique:
    """
    Return the rule that runs a task once, ``wait`` after the last of many calls.

    Each call puts the waiting task off again, but not beyond ``max_wait`` after the first of them.
    """
    return Unique(key=key, on_conflict="reschedule", wait=wait, max_wait=max_wait, scope=scope)


def throttle(period: Span, *, key: Key | None = None, scope: Literal["task", "global"] = "task") -> Unique:
    """Return the rule that stores the first of many calls, and none again until ``period`` is over."""
    return Unique(key=key, period=period, scope=scope)


def is_freed_by_start(stored: str | None) -> bool:
    """Return whether a stored key is free as soon as its task is claimed."""
    return stored is not None and stored.startswith("~")


def request_key(key: object) -> str:
    """Return an idempotency key as it is stored. Raise InvalidOptions unless it is a text that is not empty."""
    if not isinstance(key, str) or not key:
        raise InvalidOptions(
            f"idempotency_key must be a text that is not empty, got {key!r}", field="idempotency_key", code="type"
        )
    return f"#{short_digest(key, 32)}" if key.startswith("~") else fitted(key, REQUEST_KEY_LENGTH)


def _scope_of(name: str) -> str:
    # A name with a colon would let its first half and a key look like another task's.
    return f"#{short_digest(name)}" if ":" in name or name.startswith("~") else name


def _seconds(span: Span) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def _refuse(field: str, message: str) -> None:
    raise InvalidOptions(message, field=f"unique.{field}", code="conflict")


def _check_choice(field: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidOptions(
            f"{field} of Unique must be one of {', '.join(map(repr, known))}, got {value!r}",
            field=f"unique.{field}",
            code="unknown",
        )


def _check_span(field: str, value: object) -> None:
    if value is None:
        return
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e10:
        raise InvalidOptions(
            f"{field} of Unique must be a timedelta or a number of seconds, more than 0, got {value!r}",
            field=f"unique.{field}",
            code="range",
        )
