"""Django's own suite for ``django.tasks`` holds for our backends, but for a short written list."""

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest

from tests import databases
from tests.conformance.exclusions import DO_NOT_APPLY
from tests.conformance.source import SourceMissing, folder_of_tests

pytestmark = pytest.mark.skipif(
    django.VERSION < (6, 1), reason="the suite of Django 6.1 is the contract; 6.0 and the backport lack parts of it"
)
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "django-tasks.md"


@pytest.fixture(scope="module")
def suite() -> Path:
    try:
        return folder_of_tests()
    except SourceMissing as error:
        if databases.on_ci():
            raise
        pytest.skip(f"{error} (the package index is needed once; CI=true makes this a failure)")


@pytest.mark.timeout(170)
def test_djangos_own_suite_passes_on_our_backends(suite: Path) -> None:
    variables = {**databases.forget_parent(dict(os.environ)), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.run", str(suite)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=160,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran " in done.stderr


def test_the_docs_list_every_test_that_does_not_apply() -> None:
    text = PAGE.read_text()

    missing = [name for name in DO_NOT_APPLY if f"`{name.removeprefix('tasks.')}`" not in text]

    assert not missing
