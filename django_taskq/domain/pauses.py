"""What a pause stops: one queue, one task type, or everything."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["PauseScope"]


class PauseScope(IntEnum):
    """How far a pause reaches. The numbers are stored."""

    EVERYTHING = 0
    QUEUE = 1
    TASK = 2
