"""
pytest fixtures. Loaded by pytest itself, before any settings: nothing here may need Django until a fixture is used.

``taskq_drain`` runs stored tasks, ``taskq_recorder`` records instead of storing, ``taskq_clock``
stands still until moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_taskq.testing.clock import TestClock
    from django_taskq.testing.draining import Drained
    from django_taskq.testing.recording import TaskRecorder

__all__ = ["taskq_clock", "taskq_drain", "taskq_recorder"]

# So that a failing assert of a contract shows its values.
pytest.register_assert_rewrite("django_taskq.testing.store_contract", "django_taskq.testing.executor_contract")


@pytest.fixture
def taskq_drain(db: None) -> Callable[..., Drained]:
    """``drain``, with access to the database: in a transaction, unless the test asks for ``transactional_db``."""
    from django_taskq.testing.draining import drain

    return drain


@pytest.fixture
def taskq_recorder() -> Iterator[TaskRecorder]:
    """A recorder: for the length of the test nothing is stored."""
    from django_taskq.testing.recording import record_tasks

    with record_tasks() as recorder:
        yield recorder


@pytest.fixture
def taskq_clock() -> Iterator[TestClock]:
    """The engine's clock: it stands still at the present moment, until ``move_to`` or ``shift``."""
    from django_taskq.testing.clock import travel

    with travel() as hands:
        yield hands
