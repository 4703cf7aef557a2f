"""
Whether a claim that takes turns may have passed over tasks with limits.

Others fill it, so it does not come back short, which is what tells of them elsewhere.
"""

from __future__ import annotations

import time

from django_taskq.store.vendors import Vendor

__all__ = ["PassedOver"]

_ASK_SECONDS = 0.25
# Asking reads the queue up to the first task with limits; it takes at most a fiftieth of the time.
_ASK_SHARE = 50


class PassedOver:
    """Asks one queue, at most four times a second. Used by one thread."""

    def __init__(self, vendor: Vendor, queue: str) -> None:
        self.found = False
        self._vendor = vendor
        self._queue = queue
        self._ask_at = 0.0

    def ask(self) -> None:
        """Look whether the queue has ready tasks with limits, unless that was asked a moment ago."""
        began = time.monotonic()
        if began < self._ask_at:
            return
        self.found = self._vendor.has_limited(self._queue)
        took = time.monotonic() - began
        self._ask_at = began + max(_ASK_SECONDS, took * _ASK_SHARE)
