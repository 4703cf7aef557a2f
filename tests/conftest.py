"""
What every test run shares: its database, its skips, and the second database.

A plain ``pytest`` runs on SQLite and then once more, with the same arguments, on
PostgreSQL: there only what asks the database. With TASKQ_TEST_DB set it runs on that one only, as tox does.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Generator

import hypothesis
import pytest
import pytest_django
from django.db import connection, connections
from django.test import TransactionTestCase

from tests import capabilities, databases, emptying, transactions

hypothesis.settings.register_profile("ci", max_examples=50, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_RUN_BOTH = "TASKQ_TEST_DB" not in os.environ
_SECOND_RUN = databases.QUICK_VARIABLE
_FIRST_ONLY = {"executors", "faces", "observability", "project", "testing", "worker"}
_IS_SECOND_RUN = _SECOND_RUN in os.environ


def pytest_configure(config: pytest.Config) -> None:
    if databases.missing and databases.on_ci():
        raise pytest.UsageError(databases.missing)


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Generator[None]:
    """
    Empty after a test only the tables that it filled, and make content types and permissions once.

    Django truncates all tables and makes those anew each time, which took half of the suite's time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", emptying.empty_databases)
        yield


@pytest.fixture(scope="session", autouse=True)
def watched_transactions() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        transactions.watch(patch)
        yield


@pytest.fixture(autouse=True)
def guarded_transactions() -> Generator[None]:
    """Whatever a worker opens a transaction for, its server may end it when it stands still."""
    transactions.unguarded.clear()
    yield
    assert not transactions.unguarded, "opened without vendor_for(alias).atomic()"


@pytest.fixture(autouse=True)
def log_levels() -> Generator[None]:
    """Put the levels of our loggers back: a worker that shows its progress on a terminal is quieter, for good."""
    loggers = [logging.getLogger(name) for name in ("django_taskq", "django_taskq.tasks")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Let two processes share a processor, since most tests wait for something; single files are quicker alone."""
    named = [argument for argument in config.option.file_or_dir if ".py" in argument]
    return 0 if named else 2 * (os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what hostile tasks log fit to travel between processes: a lone surrogate is no text."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_report_header() -> str:
    if databases.missing:
        return f"database: none. {databases.missing}"
    settings = connection.settings_dict
    server = settings.get("HOST") or settings["NAME"]
    driver = getattr(connection, "Database", None)
    return f"database: {databases.vendor()} at {server}, driver {getattr(driver, '__name__', 'unknown')}"


def _asks_the_database(item: pytest.Item) -> bool:
    if item.get_closest_marker("any_database") is not None:
        return False
    # What these ask, they ask in the ORM's words; plans are the database's own. tox has all of it on each database.
    if _FIRST_ONLY & set(item.path.parts) and "plans" not in item.path.stem:
        return False
    fixtures = {"db", "transactional_db", "live_server"}
    return item.get_closest_marker("django_db") is not None or bool(fixtures & set(getattr(item, "fixturenames", ())))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _IS_SECOND_RUN:
        rest = [item for item in items if not _asks_the_database(item)]
        items[:] = [item for item in items if _asks_the_database(item)]
        config.hook.pytest_deselected(items=rest)
    for item in items:
        if databases.missing:
            item.add_marker(pytest.mark.skip(reason=databases.missing))
        for marker in item.iter_markers("requires"):
            lacking = [name for name in marker.args if not capabilities.has(name)]
            if lacking:
                reason = f"{databases.vendor()} has no {', '.join(lacking)} (docs/guarantees.md)"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    # Outermost, so that the first run has printed its summary by now.
    result = yield
    if _RUN_BOTH and _may_go_on(session):
        session.exitstatus = _worse(int(session.exitstatus), _run_on_postgresql(session.config))
    return result


def _may_go_on(session: pytest.Session) -> bool:
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return False
    if session.shouldstop or session.shouldfail:
        return False
    return session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}


def _run_on_postgresql(config: pytest.Config) -> int:
    command = [sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)]
    # What never asks the database has said all it can say.
    variables = {**databases.forget_parent(dict(os.environ)), "TASKQ_TEST_DB": "postgresql", _SECOND_RUN: "1"}
    print("\n\nThe same tests again, on PostgreSQL:\n", flush=True)
    return subprocess.run(command, env=variables, cwd=config.invocation_params.dir, check=False).returncode


def _worse(first: int, second: int) -> int:
    """Merge two exit statuses: "nothing collected" counts only if it holds for both."""
    empty = int(pytest.ExitCode.NO_TESTS_COLLECTED)
    if empty in {first, second}:
        return max({first, second} - {empty}, default=empty)
    return max(first, second)


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix() -> None:
    """Leave the names alone: each process has a database of its own name already."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: pytest_django.DjangoDbBlocker) -> Generator[None]:
    """Let child processes find the test database, and let nothing keep it from being dropped."""
    os.environ[databases.NAME_VARIABLE] = str(connection.settings_dict["NAME"])
    yield
    del os.environ[databases.NAME_VARIABLE]
    connections.close_all()
    if connection.vendor == "postgresql":
        with django_db_blocker.unblock():
            _disconnect_everybody()


def _disconnect_everybody() -> None:
    # A worker that a failed test left behind would make DROP DATABASE fail.
    with connection._nodb_cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [connection.settings_dict["NAME"]],
        )
