"""Each worker test starts with closed gates and short leases."""

from collections.abc import Iterator
from typing import Any

import pytest

from django_taskq.worker import loop
from tests.worker import tasks


@pytest.fixture(autouse=True)
def gates() -> Iterator[None]:
    tasks.gate.clear()
    while tasks.entered.acquire(blocking=False):
        pass
    yield
    tasks.gate.set()


@pytest.fixture
def quick(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let leases, heartbeats and waits for a refusing database be as short as they may."""
    settings.TASKQ = {"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.2}
    monkeypatch.setattr(loop, "_BACKOFF_FIRST", 0.01)
