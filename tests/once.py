"""
Do what takes seconds once for all processes of a test run.

pytest-xdist gives the tests of one file to whoever is idle, so what a module's fixture does is else done
by each process that gets one of them.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def once(name: str, folder: Path, make: Callable[[], str]) -> str:
    """Return what the first process that asked for this name made; the others wait for it. One that raises is none."""
    made = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_text(make())
        return made.read_text()
