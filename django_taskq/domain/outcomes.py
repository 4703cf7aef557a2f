"""
How one attempt can end: one frozen value each.

``execute`` makes them, ``transitions.decide`` reads them. They hold only text
and numbers, so that they travel between processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from django_taskq.domain.values import lean

__all__ = [
    "BudgetOver",
    "Cancelled",
    "Crashed",
    "ErrorInfo",
    "Expired",
    "Failed",
    "GaveUp",
    "Interrupted",
    "Lost",
    "NotYet",
    "Outcome",
    "Skipped",
    "Snoozed",
    "Succeeded",
    "TimedOut",
    "Undecodable",
    "Unknown",
    "clean_text",
    "fingerprint",
]

MAX_LINE = 300
MAX_TRACEBACK = 64_000


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """What is kept of an exception: its class path, one line, its traceback, and a fingerprint to group by."""

    class_path: str
    message: str
    traceback: str
    fingerprint: str

    @property
    def line(self) -> str:
        """The first line of the message, at most 300 characters."""
        first = self.message.strip().split("\n", 1)[0]
        return first if len(first) <= MAX_LINE else first[: MAX_LINE - 1] + "…"


def clean_text(text: str, limit: int = MAX_TRACEBACK) -> str:
    """
    Return ``text`` so that every database stores it: no NUL, no lone surrogate, no more than ``limit`` characters.

    The middle is cut, since a traceback says most at its two ends.
    """
    if "\x00" in text:
        text = text.replace("\x00", "\\x00")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "backslashreplace").decode()
    # Last, since what stands for a character is longer than it.
    if len(text) > limit:
        half = (limit - 20) // 2
        text = f"{text[:half]}\n… cut …\n{text[-half:]}"
    return text


_VARYING = re.compile(
    r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|'[^']*'|\"[^\"]*\"|\d+",
)


def fingerprint(class_path: str, message: str, place: str) -> str:
    """
    Return 16 hex digits that are equal for errors of one cause.

    Numbers, ids, addresses and quoted values in the message are ignored;
    ``place`` is the innermost "file:function" of the traceback. The idea is Sentry's.
    """
    first = message.strip().split("\n", 1)[0][:MAX_LINE]
    text = "\n".join((class_path, place, _VARYING.sub("?", first)))
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


@lean
@dataclass(frozen=True, slots=True)
class Succeeded:
    """The function returned; ``result`` is the JSON text of its value, None for ``None``."""

    result: str | None = None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The function raised. ``retry_in`` is the wait that backoff chose, None: do not try again."""

    error: ErrorInfo
    retry_in: float | None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """The attempt's own time was over."""

    error: ErrorInfo
    retry_in: float | None


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """An error after which a retry would do harm: memory, recursion, SystemExit, listed types."""

    error: ErrorInfo


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The function raised GiveUp."""

    error: ErrorInfo


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Undecodable:
    """The stored arguments, or the returned value, are not what the task can take or give."""

    error: ErrorInfo


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOver:
    """The task's whole time was over, before or while it ran."""

    error: ErrorInfo | None = None


@lean
@dataclass(frozen=True, slots=True)
class Expired:
    """The task was still waiting for its first start when its time to start was over."""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """
    No definition has this name here.

    ``is_final``: the time to wait for a worker that knows it is over. ``since``: when it was first unknown.
    """

    is_final: bool
    retry_in: float
    since: float


@lean
@dataclass(frozen=True, slots=True)
class Snoozed:
    """The function raised Snooze: again in ``delay`` seconds, attempt given back."""

    delay: float


@lean
@dataclass(frozen=True, slots=True)
class Skipped:
    """The function, or what stands around it, raised Skip: a success without a result, and why."""

    reason: str


@lean
@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancel request was heard (``was_asked``), or the function raised Cancel of its own accord."""

    message: str = ""
    was_asked: bool = False


@lean
@dataclass(frozen=True, slots=True)
class Interrupted:
    """
    The worker stopped: hand the task back, attempt not used.

    ``started`` is False where the function had not been called, so that there is nothing to record.
    """

    started: bool = True


@lean
@dataclass(frozen=True, slots=True)
class NotYet:
    """The task was stored as ready by a machine whose clock is ahead: its time, ``run_after``, has not come."""

    run_after: datetime


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The worker that held the lease is gone."""

    error: ErrorInfo


Outcome = (
    Succeeded
    | Failed
    | TimedOut
    | Crashed
    | GaveUp
    | Undecodable
    | BudgetOver
    | Expired
    | Unknown
    | Skipped
    | Snoozed
    | Cancelled
    | Interrupted
    | NotYet
    | Lost
)
