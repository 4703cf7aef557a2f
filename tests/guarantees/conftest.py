"""Every guarantee test starts with nothing run, and leaves nobody waiting."""

import threading
from collections.abc import Iterator

import pytest

from tests.guarantees import tasks


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    tasks.forget()
    yield
    # The thread of a task that hears nothing else would be met by the next tests.
    for gate in list(tasks.gates.values()):
        gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith(("taskq-slot", "taskq-plain")):
            thread.join(5)
