"""System checks: everything that ``manage.py check`` can say before a task is lost or a worker waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.checks import CheckMessage
from django.core.management import get_commands

from django_taskq import conf

__all__ = ["check_command", "check_contract", "check_database", "check_metrics", "check_settings", "check_time_zones"]

TAG = "django_taskq"


@checks.register(TAG)
def check_settings(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Report every wrong key and value of TASKQ and of our backends' OPTIONS at once."""
    return [
        checks.Error(problem.message, hint=problem.hint or None, obj=problem.setting, id="taskq.E001")
        for problem in conf.problems()
    ]


@checks.register(TAG)
def check_time_zones(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Require aware moments: naive ones name two different times when the clock is set back."""
    if conf.uses_time_zones():
        return []
    return [
        checks.Error(
            'django_taskq needs USE_TZ = True; without it "in an hour" is ambiguous when the clock is set back',
            hint="Set USE_TZ = True. TIME_ZONE may stay as it is.",
            id="taskq.E002",
        )
    ]


@checks.register(TAG)
def check_contract(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Ask for the backport's app where the backport is in use."""
    from django_taskq.compat import HAS_CORE_TASKS

    if HAS_CORE_TASKS or conf.installed("django_tasks"):
        return []
    return [
        checks.Warning(
            "On this Django the tasks framework comes from django-tasks, which is not in INSTALLED_APPS",
            hint="Add 'django_tasks' to INSTALLED_APPS.",
            id="taskq.W001",
        )
    ]


@checks.register(TAG)
def check_command(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Tell when another app's ``runworker`` stands before ours."""
    owner: Any = get_commands().get("runworker")
    name = owner.name if isinstance(owner, AppConfig) else owner
    if name in (None, "django_taskq"):
        return []
    return [
        checks.Warning(
            f"`manage.py runworker` is the command of {name!r}, which stands before 'django_taskq' in INSTALLED_APPS",
            hint="Use `manage.py taskq worker`, or put 'django_taskq' first.",
            id="taskq.W002",
        )
    ]


@checks.register(TAG)
def check_metrics(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Ask for the library where metrics are wanted."""
    if not conf.wants_metrics() or find_spec("prometheus_client") is not None:
        return []
    return [
        checks.Error(
            "METRICS is True, but the package prometheus-client is not installed",
            hint="pip install 'django-taskq-db[prometheus]', or set METRICS to False.",
            id="taskq.E004",
        )
    ]


@checks.register(TAG)
def check_database(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Look at the database that each alias stores its tasks in."""
    from django.db import connections

    from django_taskq.lifecycle.enqueue import database_for

    if conf.problems():
        return []
    found: list[CheckMessage] = []
    for alias in conf.aliases():
        options = conf.options(alias)
        database = database_for(options)
        if database not in connections:
            found.append(
                checks.Error(
                    f"DATABASE of the tasks backend {alias!r} is {database!r}, which DATABASES does not have",
                    hint=f"Known are {', '.join(sorted(connections))}.",
                    id="taskq.E003",
                )
            )
            continue
        if database != "default":
            found.append(
                checks.Warning(
                    f"The tasks backend {alias!r} stores its tasks in {database!r}: an enqueue inside "
                    "transaction.atomic() of another database is not undone with it",
                    hint="Open transaction.atomic(using=...) on the same database around the enqueue, enqueue in a "
                    "transaction.on_commit of the other database, or silence this check.",
                    id="taskq.W003",
                )
            )
        if connections[database].timezone_name != "UTC" and not connections[database].features.supports_timezones:
            found.append(
                checks.Warning(
                    f"The database {database!r} stores times of {connections[database].timezone_name}: where clocks "
                    "are set back, an hour occurs twice, and a task of that hour can start up to an hour early",
                    hint=f"Leave TIME_ZONE out of DATABASES[{database!r}], so that times are stored in UTC.",
                    id="taskq.W005",
                )
            )
        if connections[database].vendor == "sqlite":
            mode = conf.database_engine(database).get("OPTIONS", {}).get("transaction_mode")
            if mode != "IMMEDIATE":
                found.append(
                    checks.Warning(
                        f"The SQLite database {database!r} has no transaction_mode: a request that reads, then "
                        'enqueues, can fail with "database is locked" while a worker writes',
                        hint="Set OPTIONS = {'transaction_mode': 'IMMEDIATE', 'timeout': 20, "
                        "'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;'}.",
                        id="taskq.W004",
                    )
                )
    return found
