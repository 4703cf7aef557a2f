"""Every guarantee test starts with nothing run."""

import pytest

from tests.guarantees import tasks


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    tasks.forget()
