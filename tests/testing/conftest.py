from collections.abc import Iterator

import pytest

from tests.testing import tasks


@pytest.fixture(autouse=True)
def _nothing_ran_yet() -> Iterator[None]:
    tasks.ran.clear()
    yield
    tasks.ran.clear()
