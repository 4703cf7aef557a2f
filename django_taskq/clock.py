"""
The wall clock. Nothing else reads it, so a test freezes one place.

``time.monotonic()`` for waiting and for measuring spans is free to all.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["elapsed", "from_timestamp", "now", "now_ns", "timestamp"]


def now() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


def timestamp() -> float:
    """Return the present moment as seconds since 1970."""
    return time.time()


def now_ns() -> int:
    """Return the present moment as nanoseconds since 1970."""
    return time.time_ns()


def from_timestamp(seconds: float) -> datetime:
    """Return the aware moment that lies ``seconds`` after 1970."""
    return datetime.fromtimestamp(seconds, UTC)


if hasattr(time, "CLOCK_BOOTTIME"):

    def elapsed(_clock: int = time.CLOCK_BOOTTIME) -> float:
        """
        Return seconds on a clock that never jumps and goes on while the machine sleeps.

        Leases are judged by it: a laptop that slept for an hour must not
        believe that only a second has passed.
        """
        return time.clock_gettime(_clock)

else:  # pragma: no cover - only where the system has no such clock

    def elapsed(_clock: int = 0) -> float:
        """Return seconds on a clock that never jumps; a sleeping machine may stop it."""
        return time.monotonic()
