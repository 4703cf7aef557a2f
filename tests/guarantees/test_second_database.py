"""
Tasks in another database than the project's data: each step of their life happens there, and nothing in the first.

What is done is in tests/two_databases.py, run once for all of these tests in a process with two databases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import forget_parent
from tests.once import once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what became of each case: nothing, or a traceback."""
    own = tmp_path_factory.getbasetemp()
    found: dict[str, str] = json.loads(once("second_database", own if worker_id == "master" else own.parent, _run))
    return found


def _run() -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.two_databases import main; main()"],
        cwd=ROOT,
        env={**forget_parent(dict(os.environ)), "DJANGO_SETTINGS_MODULE": "tests.two_databases_settings"},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def holds(outcomes: dict[str, str]) -> Callable[[str], None]:
    def check(name: str) -> None:
        if outcomes[name]:
            pytest.fail(outcomes[name])

    return check


def test_a_task_is_stored_where_its_backend_says(holds: Callable[[str], None]) -> None:
    holds("a_task_is_stored_where_its_backend_says")


def test_a_task_belongs_to_the_transaction_of_its_own_database(holds: Callable[[str], None]) -> None:
    holds("a_task_belongs_to_the_transaction_of_its_own_database")


def test_on_commit_waits_for_the_tasks_own_database(holds: Callable[[str], None]) -> None:
    holds("on_commit_waits_for_the_tasks_own_database")


def test_a_worker_claims_runs_and_settles_there(holds: Callable[[str], None]) -> None:
    holds("a_worker_claims_runs_and_settles_there")


def test_an_atomic_task_is_atomic_with_its_own_database(holds: Callable[[str], None]) -> None:
    holds("an_atomic_task_is_atomic_with_its_own_database")


def test_the_tasks_of_a_lost_worker_are_rescued_there(holds: Callable[[str], None]) -> None:
    holds("the_tasks_of_a_lost_worker_are_rescued_there")


def test_a_result_cancels_its_task_there(holds: Callable[[str], None]) -> None:
    holds("a_result_cancels_its_task_there")


def test_an_operator_replays_discards_and_pauses_there(holds: Callable[[str], None]) -> None:
    holds("an_operator_replays_discards_and_pauses_there")


def test_the_command_line_reads_and_acts_there(holds: Callable[[str], None]) -> None:
    holds("the_command_line_reads_and_acts_there")


def test_the_admin_shows_and_acts_on_them_there(holds: Callable[[str], None]) -> None:
    holds("the_admin_shows_and_acts_on_them_there")


def test_everybody_looks_where_the_main_backend_says(holds: Callable[[str], None]) -> None:
    holds("everybody_looks_where_the_main_backend_says")


def test_a_router_is_enough(holds: Callable[[str], None]) -> None:
    holds("a_router_is_enough")


def test_upkeep_is_done_there(holds: Callable[[str], None]) -> None:
    holds("upkeep_is_done_there")


def test_a_schedule_ticks_there(holds: Callable[[str], None]) -> None:
    holds("a_schedule_ticks_there")


def test_a_member_of_another_database_is_refused_before_its_arguments(
    holds: Callable[[str], None],
) -> None:
    holds("a_member_of_another_database_is_refused_before_its_arguments")


def test_members_that_validate_go_where_the_main_backend_says(holds: Callable[[str], None]) -> None:
    holds("members_that_validate_go_where_the_main_backend_says")


def test_a_member_is_stored_by_the_rules_of_its_own_backend(holds: Callable[[str], None]) -> None:
    holds("a_member_is_stored_by_the_rules_of_its_own_backend")


def test_no_case_is_forgotten() -> None:
    """Each function of the program has a test here."""
    here = (ROOT / "tests" / "guarantees" / "test_second_database.py").read_text(encoding="utf-8")
    program = (ROOT / "tests" / "two_databases.py").read_text(encoding="utf-8")
    cases = [line.split("(")[0].removeprefix("def ") for line in program.splitlines() if line.startswith("def ")]

    forgotten = [name for name in cases if f"@case\ndef {name}(" in program and f'holds("{name}")' not in here]

    assert not forgotten
