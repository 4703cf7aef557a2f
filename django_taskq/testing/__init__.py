"""
What a project needs to test its tasks.

``drain`` runs stored tasks in the calling thread, inside the test's own transaction;
``tick_schedules`` lets schedules tick; ``record_tasks`` notes what would have been stored; ``stored_tasks`` asserts on
rows; ``travel`` moves the clock. ``plugin`` offers them as pytest fixtures. ``StoreContract`` and
``ExecutorContract`` hold a vendor or an executor of your own to what ours promise.

Its surprise: everything is loaded when first asked for, since pytest imports
this package before any settings are there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_taskq.testing.assertions import TaskAssertions, assert_state, stored_tasks
    from django_taskq.testing.clock import TestClock, travel
    from django_taskq.testing.draining import Drained, DrainedTask, DrainOverrun, adrain, drain
    from django_taskq.testing.executor_contract import ExecutorContract
    from django_taskq.testing.recording import RecordedTask, TaskRecorder, record_tasks
    from django_taskq.testing.store_contract import StoreContract
    from django_taskq.testing.ticking import tick_schedules
    from django_taskq.testing.workflows import RecordedWorkflow

__all__ = [
    "DrainOverrun",
    "Drained",
    "DrainedTask",
    "ExecutorContract",
    "RecordedTask",
    "RecordedWorkflow",
    "StoreContract",
    "TaskAssertions",
    "TaskRecorder",
    "TestClock",
    "adrain",
    "assert_state",
    "drain",
    "record_tasks",
    "stored_tasks",
    "tick_schedules",
    "travel",
]

_HOMES = {
    "assertions": ("TaskAssertions", "assert_state", "stored_tasks"),
    "clock": ("TestClock", "travel"),
    "draining": ("DrainOverrun", "Drained", "DrainedTask", "adrain", "drain"),
    "executor_contract": ("ExecutorContract",),
    "recording": ("RecordedTask", "TaskRecorder", "record_tasks"),
    "store_contract": ("StoreContract",),
    "ticking": ("tick_schedules",),
    "workflows": ("RecordedWorkflow",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
