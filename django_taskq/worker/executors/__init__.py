"""Where a task runs: one file per executor, found by name or by dotted path."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from django_taskq.worker.executors.base import Executor, Host

__all__ = ["Executor", "Host", "make_executor"]

_PATHS = {
    "threads": "django_taskq.worker.executors.threads.ThreadExecutor",
    "processes": "django_taskq.worker.executors.processes.ProcessExecutor",
    "asyncio": "django_taskq.worker.executors.aio.AsyncExecutor",
    "inline": "django_taskq.worker.executors.inline.InlineExecutor",
}


def make_executor(name: str, host: Host, slots: int, **options: Any) -> Executor:
    """Return an executor by its name or dotted path. It has not started yet."""
    kind: type[Executor] = import_string(_PATHS.get(name, name))
    return kind(host, slots, **options)
