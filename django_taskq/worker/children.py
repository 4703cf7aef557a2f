"""
What runs first in a child process: Django is set up, then the work begins.

Children are spawned, never forked: nothing of the parent's connections, threads
and locks comes along. Its surprise: this module imports nothing of the package,
since it is loaded before Django is; what it gets from its parent comes as bytes.
"""

from __future__ import annotations

import os
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["serve_slot", "serve_worker", "spawn"]


def spawn(
    target: Any, settings: str | None, message: bytes, *, name: str, daemon: bool
) -> tuple[BaseProcess, Connection]:
    """Start a child that runs ``target(settings, message, pipe)``; return it and the parent's end of the pipe."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(settings, message, theirs), name=name, daemon=daemon)
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        # While the parent held this end, the child's death would not be heard.
        theirs.close()
    return process, ours


def _begin(settings: str | None) -> None:
    if settings is not None:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", settings)
    import django

    django.setup()


def serve_worker(settings: str | None, message: bytes, control: Connection) -> None:
    """Be one worker of a supervisor."""
    _begin(settings)
    from django_taskq.worker.supervisor import serve_child

    serve_child(message, control)


def serve_slot(settings: str | None, message: bytes, pipe: Connection) -> None:
    """Be one slot of a process executor."""
    _begin(settings)
    from django_taskq.worker.executors.processes import serve

    serve(message, pipe)
