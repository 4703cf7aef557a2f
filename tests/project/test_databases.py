"""The suite finds its database, and a child process meets the same one."""

import os
import subprocess
import sys

import pytest
from django.db import connection

from tests import databases
from tests.app.models import Effect


def test_the_database_is_the_chosen_one() -> None:
    assert connection.vendor == databases.vendor()


@pytest.mark.django_db(transaction=True)
def test_a_child_process_sees_committed_rows() -> None:
    Effect.objects.create(key="committed")
    code = "import django; django.setup(); from tests.app.models import Effect; print(Effect.objects.get().key)"

    variables = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    child = subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True)

    assert child.stdout.strip() == "committed"


def test_a_test_process_started_for_itself_gets_its_own_database() -> None:
    variables = {databases.NAME_VARIABLE: "test_taskq_1", "PATH": "x"}

    assert databases.forget_parent(variables) == {"PATH": "x"}
