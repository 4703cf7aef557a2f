"""
Who opens transactions in a worker's threads: the vendors only.

One that Django opens by itself, for a ``delete()`` or ``update_or_create()``, is not ended by the server when its
process is suspended in the middle, and keeps its locks from everybody for as long as that lasts.
"""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import transaction

import django_taskq

__all__ = ["unguarded", "watch"]

_OURS = str(Path(django_taskq.__file__).parent)
# The vendors' two; and what opens the task's own, and limits it from where it has rows of ours under lock.
_GUARDED = {"atomic", "bounded", "run_atomic"}

#: Where a worker's thread let Django open a transaction.
unguarded: list[str] = []


def watch(patch: pytest.MonkeyPatch) -> None:
    """Note each such place from now on."""
    enter = transaction.Atomic.__enter__

    def noting_enter(self: transaction.Atomic) -> Any:
        is_inner = transaction.get_connection(self.using).in_atomic_block
        if not is_inner and threading.current_thread().name.startswith("taskq-"):
            unguarded.extend(_places(sys._getframe(1)))
        return enter(self)

    patch.setattr(transaction.Atomic, "__enter__", noting_enter)


def _places(frame: FrameType | None) -> list[str]:
    """Return where we asked for a transaction, nothing if it was a vendor or somebody else's code."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(_OURS):
            return [] if name in _GUARDED else [f"{file}:{frame.f_lineno}"]
        if "/django/" not in file and "contextlib" not in file:
            return []
        frame = frame.f_back
    return []
