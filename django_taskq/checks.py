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

__all__ = [
    "check_annotations",
    "check_command",
    "check_contract",
    "check_database",
    "check_limits",
    "check_metrics",
    "check_middleware",
    "check_schedules",
    "check_settings",
    "check_time_zones",
]

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
def check_limits(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Tell where definitions share the key of a limit, but not its bound."""
    from django_taskq.lifecycle import definitions

    said: dict[tuple[Any, str], tuple[Any, str]] = {}
    found: list[CheckMessage] = []
    for name, task in sorted(definitions.known().items()):
        for limit in getattr(task, "limits", None) or ():
            # What a callable returns, nobody knows before it is called.
            if not isinstance(limit.key, str):
                continue
            first, where = said.setdefault((type(limit), limit.key), (limit, name))
            if first != limit:
                found.append(
                    checks.Warning(
                        f"{where} and {name} share the limit {limit.key!r}, but say {first!r} and {limit!r}",
                        hint="Say the same bound in both, or give one of them a key of its own.",
                        id="taskq.W006",
                    )
                )
    return found


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
def check_schedules(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Report schedules that could not be told apart, or whose task or time zone no worker would find."""
    from django_taskq.exceptions import InvalidOptions
    from django_taskq.lifecycle import declarations, definitions

    found: list[CheckMessage] = [
        checks.Error(
            f"Two schedules are called {name!r}: one of {paths[0]} and one of {paths[1]}; only the first would run",
            hint="Give each a name of its own: @schedule(name=...).",
            obj=name,
            id="taskq.E005",
        )
        for name, paths in declarations.conflicts().items()
    ]
    for name, made in declarations.declared().items():
        # Loaded by those who have schedules.
        from django_taskq.domain.schedules import check_zone

        stored = definitions.stored_name(made.definition)
        if definitions.find(stored) is None:
            found.append(
                checks.Error(
                    f"Schedule {name!r} is for the task {stored!r}, which leads to no task",
                    hint="Define the task at the top level of a module that can be imported.",
                    obj=name,
                    id="taskq.E006",
                )
            )
        try:
            check_zone(made.rule.timezone)
        except InvalidOptions as error:
            found.append(checks.Error(f"Schedule {name!r}: {error}", obj=name, id="taskq.E007"))
    return found


@checks.register(TAG)
def check_middleware(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Import every middleware, and look whether it fits the tasks that are known here."""
    if conf.problems():
        return []
    from django_taskq.lifecycle.fit import unfit_middleware

    hint = "docs/howto/use-middleware.md tells what may stand around which function."
    return [checks.Error(message, hint=hint, id="taskq.E008") for message in unfit_middleware()]


@checks.register(TAG)
def check_annotations(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Look whether arguments can be validated by their annotations where tasks ask for it."""
    if conf.problems():
        return []
    from django_taskq.lifecycle.fit import unfit_annotations

    hint = "docs/howto/type-your-tasks.md lists what can be."
    return [checks.Error(message, hint=hint, id="taskq.E009") for message in unfit_annotations()]


@checks.register(TAG)
def check_database(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Look at the database that each alias stores its tasks in."""
    from django.db import connections

    from django_taskq.lifecycle.databases import database_for

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
