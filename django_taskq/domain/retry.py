"""
How long to wait before the next attempt.

A curve is a frozen value with ``delay(attempt, draw)``: seconds after attempt
number ``attempt`` (from 1) failed; ``draw`` is a random number in [0, 1).
Jitter only ever adds, so a wait is never shorter than the curve says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions

__all__ = ["Curve", "Exponential", "Fixed", "Steps", "curve_from_data", "curve_to_data"]

# Longer than any sane wait, short enough that no date overflows.
MAX_WAIT = 10 * 365 * 86400.0


@runtime_checkable
class Curve(Protocol):
    """Anything with ``delay(attempt, draw) -> seconds``."""

    def delay(self, attempt: int, draw: float) -> float: ...


def _seconds(given: object, field: str) -> float:
    value = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WAIT:
        raise InvalidOptions(
            f"{field} must be a number of seconds from 0 to {MAX_WAIT:.0f}, got {value!r}", field=field, code="range"
        )
    return float(value)


@lean
@dataclass(frozen=True, slots=True)
class Fixed:
    """Wait ``seconds`` after each failure."""

    seconds: float | timedelta

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", _seconds(self.seconds, "seconds"))

    def delay(self, attempt: int, draw: float) -> float:
        return float(self.seconds)  # type: ignore[arg-type]  # made a float above


@lean
@dataclass(frozen=True, slots=True, init=False)
class Steps:
    """Wait ``steps[0]`` after the first failure, ``steps[1]`` after the second, …, the last one for ever."""

    steps: tuple[float, ...]

    def __init__(self, *steps: float | timedelta) -> None:
        if not steps:
            raise InvalidOptions("Steps needs at least one wait, as in Steps(0, 30, 300)", field="steps", code="empty")
        object.__setattr__(self, "steps", tuple(_seconds(step, "steps") for step in steps))

    def delay(self, attempt: int, draw: float) -> float:
        return self.steps[min(max(attempt, 1), len(self.steps)) - 1]


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """
    Wait ``base * factor ** (attempt - 1)`` seconds, at most ``cap``, plus up to ``jitter`` of that on top.

    The default waits 5, 10, 20, 40, … seconds, at most 10 minutes, each up to
    a quarter longer so that tasks that failed together do not return together.
    """

    base: float | timedelta = 5.0
    factor: float = 2.0
    cap: float | timedelta = 600.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", _seconds(self.base, "base"))
        object.__setattr__(self, "cap", _seconds(self.cap, "cap"))
        for field, low in (("factor", 1.0), ("jitter", 0.0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 1000:
                raise InvalidOptions(
                    f"{field} must be between {low:g} and 1000, got {value!r}", field=field, code="range"
                )

    def delay(self, attempt: int, draw: float) -> float:
        base, cap = float(self.base), float(self.cap)  # type: ignore[arg-type]  # made floats above
        try:
            # A float: a whole number would be worked out to its last digit.
            wait = min(base * float(self.factor) ** (max(attempt, 1) - 1), cap)
        except OverflowError:
            wait = cap
        return min(wait * (1 + self.jitter * draw), MAX_WAIT)


def curve_to_data(curve: object) -> list[Any] | None:
    """Return a curve as JSON data, None for anything that is not one of the three curves."""
    match curve:
        case Fixed(seconds=seconds):
            return ["fixed", seconds]
        case Steps(steps=steps):
            return ["steps", *steps]
        case Exponential(base=base, factor=factor, cap=cap, jitter=jitter):
            return ["exponential", base, factor, cap, jitter]
    return None


def curve_from_data(data: Sequence[Any] | Mapping[str, Any] | float) -> Curve:
    """
    Return the curve that JSON data or a setting stands for.

    A number means Fixed, a list of numbers Steps, a mapping the keywords of Exponential.
    """
    if isinstance(data, int | float):
        return Fixed(data)
    if isinstance(data, Mapping):
        try:
            return Exponential(**data)
        except TypeError:
            known = "base, factor, cap, jitter"
            raise InvalidOptions(
                f"backoff takes {known}, got {', '.join(map(repr, data))}", field="backoff", code="unknown"
            ) from None
    match data:
        case ["fixed", seconds]:
            return Fixed(seconds)
        case ["steps", *steps]:
            return Steps(*steps)
        case ["exponential", base, factor, cap, jitter]:
            return Exponential(base=base, factor=factor, cap=cap, jitter=jitter)
    return Steps(*data)
