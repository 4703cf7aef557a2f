"""One process with Django's own tasks and the backport: each task gets what is of its own kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
import pytest

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        (django.VERSION < (6, 0) or find_spec("django_tasks") is None) and not os.environ.get("TASKQ_TEST_BOTH"),
        reason="needs django.tasks and django-tasks together (tox env py312-django60-both-sqlite)",
    ),
]
ROOT = Path(__file__).parents[2]


def test_each_task_gets_what_is_of_its_own_kind() -> None:
    """Results, errors, context and signals; one process tells all of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faces.both_program"],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)

    kinds = {"theirs": "backport", "fails": "backport", "foreign": "backport", "ours": "core", "cores": "core"}
    assert {name: seen[name]["task"] for name in kinds} == kinds
    assert {name: seen[name]["result"] for name in kinds} == kinds
    assert seen["theirs"]["value"] == ["backport", "backport", "True", "None"]
    assert (seen["fails"]["state"], seen["fails"]["errors"]) == ("dead", ["backport"])
    assert (seen["ours"]["value"], seen["cores"]["value"], seen["foreign"]["value"]) == (1, 2, 3)
    assert all(seen[name]["pickles"] and seen[name]["found"] for name in kinds)
    names = {"theirs": "theirs", "ours": "ours", "cores": "cores", "foreign": "foreign"}
    assert [tuple(item) for item in seen["heard"]] == sorted(
        (kinds[name], signal, names[name])
        for name in names
        for signal in ("task_enqueued", "task_started", "task_finished")
    )
    assert seen["many"] == "theirs"
    same, theirs, ours = seen["handlers"]
    assert (same, theirs, ours) == (False, True, True), "each contract holds a backend object of its own"
    assert seen["caught"] == {
        f"{error} by {who}": [True, True] for error in ("invalid", "backend", "missing") for who in ("theirs", "ours")
    }
    assert seen["options"] == [True]
