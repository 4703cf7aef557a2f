"""
Settings: the dict ``TASKQ``, and the same keys under ``TASKS[alias]["OPTIONS"]`` where an alias wants its own.

The only reader of Django's settings. Parsed once into frozen values, parsed
again when a test changes them. Nothing has to be set.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from django_taskq.domain.retry import Curve, Exponential, curve_from_data
from django_taskq.domain.states import Ack
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions

__all__ = [
    "Options",
    "Problem",
    "QueueOptions",
    "Retention",
    "WorkerOptions",
    "aliases",
    "database_engine",
    "has_backend",
    "installed",
    "is_debug",
    "language",
    "names_backends",
    "options",
    "problems",
    "settings_module",
    "task_settings",
    "time_zone",
    "uses_time_zones",
    "wants_metrics",
    "worker_option",
]

BACKEND_PATHS = ("django_taskq.backend.DatabaseBackend",)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long finished rows are kept, None: for ever."""

    succeeded: timedelta | None = timedelta(days=1)
    cancelled: timedelta | None = timedelta(days=7)
    dead: timedelta | None = None
    statistics: timedelta | None = timedelta(days=35)
    snapshots: timedelta | None = timedelta(days=7)
    workers: timedelta | None = timedelta(days=1)
    audit: timedelta | None = None
    ticks: timedelta | None = timedelta(days=35)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What ``runworker`` does where its command line says nothing."""

    queues: str = ""
    processes: int = 1
    threads: int = 4
    async_slots: int = 50
    executor: str = "threads"
    grace: timedelta = timedelta(seconds=25)
    kill_grace: timedelta = timedelta(seconds=5)
    max_tasks: int | None = None
    max_memory: int | None = None
    max_age: timedelta | None = None
    poll: timedelta = timedelta(seconds=1)
    batch: int = 500
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    duties: bool = True
    name: str = ""
    burst: bool = False
    reload: bool = False


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """What holds for the tasks of one queue that do not say otherwise."""

    max_attempts: int | None = None
    backoff: Any = None
    timeout: timedelta | None = None
    max_time: timedelta | None = None
    expires: timedelta | None = None
    keep_result: timedelta | None = None
    concurrency: Any = None
    rate: Any = None
    age_step: timedelta | None = None
    max_ready: int | None = None
    full_policy: str = "raise"
    reject_when_paused: bool = False


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything one backend alias is configured with."""

    database: str | None = None
    max_attempts: int = 3
    backoff: Any = field(default_factory=Exponential)
    timeout: timedelta | None = None
    max_time: timedelta | None = None
    expires: timedelta | None = None
    ack: Ack = Ack.LATE
    keep_result: timedelta | None = None
    enqueue_on_commit: bool = False
    idempotency_for: timedelta = timedelta(days=1)
    max_payload_bytes: int = 1024 * 1024
    max_result_bytes: int = 1024 * 1024
    crash_exceptions: tuple[str, ...] = ()
    lease_seconds: int = 30
    heartbeat_seconds: float = 5.0
    unknown_task_grace: timedelta = timedelta(hours=1)
    concurrency: Any = None
    rate: Any = None
    notify: bool = True
    metrics: bool | None = None
    capture: tuple[str, ...] = ("language", "timezone")
    middleware: tuple[str, ...] = ()
    enqueue_middleware: tuple[str, ...] = ()
    validate: Literal["signature"] | bool = False
    queues: Mapping[str, QueueOptions] = field(default_factory=dict)
    retention: Retention = field(default_factory=Retention)
    worker: WorkerOptions = field(default_factory=WorkerOptions)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in the settings: where, what, and what to do."""

    setting: str
    message: str
    hint: str = ""


# Parsers: each returns the value, or raises ValueError with rule and value.


def _span(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        span = value
    else:
        try:
            span = timedelta(seconds=_finite(value))
        except (ValueError, OverflowError):
            raise ValueError(f"must be a timedelta or a number of seconds, got {value!r}") from None
    if span < timedelta(0):
        raise ValueError(f"must not be negative, got {value!r}")
    return span


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def _span_above_zero(value: Any) -> timedelta:
    span = _span(value)
    if not span:
        raise ValueError("must be more than 0 seconds, got 0")
    return span


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            limits = f"from {low} to {high}" if high is not None else f"of {low} or more"
            raise ValueError(f"must be a whole number {limits}, got {value!r}")
        return value

    return parse


def _number(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, got {value!r}")
        return float(value)

    return parse


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {value!r}")
    return value


def _full_policy(value: Any) -> str:
    if value not in ("raise", "block", "drop"):
        raise ValueError(f"must be 'raise', 'block' or 'drop', got {value!r}")
    return str(value)


def _queue_list(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(_text(item) for item in value)


def _paths(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"must be a list of strings, got {value!r}")
    return tuple(_text(item) for item in value)


def _ack(value: Any) -> Ack:
    try:
        return Ack[str(value).upper()]
    except KeyError:
        raise ValueError(f"must be one of 'late', 'now', 'first', 'atomic', got {value!r}") from None


def _backoff(value: Any) -> Any:
    if isinstance(value, str):
        value = import_string(value)
    if isinstance(value, Curve) or callable(value):
        return value
    try:
        return curve_from_data(value)
    except (InvalidOptions, TypeError) as error:
        raise ValueError(str(error)) from error


def _concurrency(value: Any) -> Any:
    """Return how many tasks may run at once: a whole number, or Concurrency without a key."""
    # Loaded by those who set a limit.
    from django_taskq.domain.limits import Concurrency

    return _without_key(value if isinstance(value, Concurrency) else _limit(Concurrency, value))


def _rate(value: Any) -> Any:
    """Return how often tasks may start: "100/m", or Rate without a key."""
    from django_taskq.domain.limits import Rate

    return _without_key(value if isinstance(value, Rate) else _limit(Rate, value))


def _limit(kind: Any, value: Any) -> Any:
    try:
        return kind(value)
    except InvalidOptions as error:
        raise ValueError(f"is not a limit: {error}") from error


def _without_key(limit: Any) -> Any:
    if limit.key is not None:
        raise ValueError(f"must have no key, for it counts all tasks there are; got {limit!r}")
    return limit


def _executor(value: Any) -> str:
    if value not in ("threads", "processes", "asyncio", "inline") and "." not in _text(value):
        raise ValueError(
            f"must be 'threads', 'processes', 'asyncio', 'inline' or the dotted path of an Executor, got {value!r}"
        )
    return str(value)


def _validate(value: Any) -> Any:
    if value not in (True, False, "signature") or (isinstance(value, int) and not isinstance(value, bool)):
        raise ValueError(f"must be True, False or 'signature', got {value!r}")
    return value


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


_RETENTION: dict[str, Callable[[Any], Any]] = {item.name: _optional(_span) for item in fields(Retention)}

_WORKER: dict[str, Callable[[Any], Any]] = {
    "queues": _queue_list,
    "processes": _whole(1, 1000),
    "threads": _whole(1, 10_000),
    "async_slots": _whole(0, 100_000),
    "executor": _executor,
    "grace": _span,
    "kill_grace": _span,
    "max_tasks": _optional(_whole(1)),
    "max_memory": _optional(_whole(1)),
    "max_age": _optional(_span_above_zero),
    "poll": _span_above_zero,
    "batch": _whole(1, 5000),
    "health_port": _optional(_whole(0, 65535)),
    "health_host": _text,
    "duties": _flag,
    "name": _text,
    "burst": _flag,
    "reload": _flag,
}

_QUEUE: dict[str, Callable[[Any], Any]] = {
    "max_attempts": _optional(_whole(1)),
    "backoff": _optional(_backoff),
    "timeout": _optional(_span_above_zero),
    "max_time": _optional(_span_above_zero),
    "expires": _optional(_span_above_zero),
    "keep_result": _optional(_span),
    "concurrency": _optional(_concurrency),
    "rate": _optional(_rate),
    "age_step": _optional(_span_above_zero),
    "max_ready": _optional(_whole(1, 1_000_000)),
    "full_policy": _full_policy,
    "reject_when_paused": _flag,
}

_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "database": _optional(_text),
    "max_attempts": _whole(1),
    "backoff": _backoff,
    "timeout": _optional(_span_above_zero),
    "max_time": _optional(_span_above_zero),
    "expires": _optional(_span_above_zero),
    "ack": _ack,
    "keep_result": _optional(_span),
    "enqueue_on_commit": _flag,
    "idempotency_for": _span_above_zero,
    "max_payload_bytes": _whole(32),
    "max_result_bytes": _whole(32),
    "crash_exceptions": _paths,
    "lease_seconds": _whole(2, 86400),
    "heartbeat_seconds": _number(0.1, 3600),
    "unknown_task_grace": _span,
    "concurrency": _optional(_concurrency),
    "rate": _optional(_rate),
    "notify": _flag,
    "metrics": _optional(_flag),
    "capture": _paths,
    "middleware": _paths,
    "enqueue_middleware": _paths,
    "validate": _validate,
}


def _parse(
    given: Any,
    parsers: Mapping[str, Callable[[Any], Any]],
    where: str,
    found: list[Problem],
    *,
    extra: tuple[str, ...] = (),
) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        found.append(Problem(setting=where, message=f"{where} must be a dict, got {given!r}"))
        return {}
    known = [name.upper() for name in (*parsers, *extra)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).lower()
        if key not in known:
            near = difflib.get_close_matches(str(key).upper(), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."
            found.append(Problem(setting=f"{where}[{key!r}]", message=f"{where} has no key {key!r}", hint=hint))
        elif name in parsers:
            try:
                values[name] = parsers[name](value)
            except (ValueError, ImportError) as error:
                found.append(Problem(setting=f"{where}[{key!r}]", message=f"{where}[{key!r}] {error}"))
    return values


_NESTED = ("queues", "retention", "worker")


def _build(base: Options, given: Any, where: str, found: list[Problem]) -> Options:
    values = _parse(given, _OPTIONS, where, found, extra=_NESTED)
    if isinstance(given, Mapping):
        if "RETENTION" in given:
            parsed = _parse(given["RETENTION"], _RETENTION, f"{where}['RETENTION']", found)
            values["retention"] = replace(base.retention, **parsed)
        if "WORKER" in given:
            parsed = _parse(given["WORKER"], _WORKER, f"{where}['WORKER']", found)
            values["worker"] = replace(base.worker, **parsed)
        if "QUEUES" in given:
            queues = dict(base.queues)
            at = f"{where}['QUEUES']"
            if isinstance(given["QUEUES"], Mapping):
                for name, item in given["QUEUES"].items():
                    queues[str(name)] = QueueOptions(**_parse(item, _QUEUE, f"{at}[{name!r}]", found))
                values["queues"] = queues
            else:
                found.append(
                    Problem(setting=at, message=f"{at} must be a dict of queue names, got {given['QUEUES']!r}")
                )
    built = replace(base, **values)
    # Told where it was set, not again for each alias that inherits it.
    sets_lease = isinstance(given, Mapping) and not {"LEASE_SECONDS", "HEARTBEAT_SECONDS"}.isdisjoint(given)
    if sets_lease and built.heartbeat_seconds * 2 > built.lease_seconds:
        found.append(
            Problem(
                setting=f"{where}['LEASE_SECONDS']",
                message=f"LEASE_SECONDS ({built.lease_seconds}) must be at least twice HEARTBEAT_SECONDS "
                f"({built.heartbeat_seconds:g}), or one late heartbeat costs every running task its lease",
            )
        )
    return built


_cache: dict[str | None, tuple[Options, list[Problem]]] = {}


def _read(alias: str | None) -> tuple[Options, list[Problem]]:
    if alias not in _cache:
        found: list[Problem] = []
        if alias is None:
            built = _build(Options(), getattr(settings, "TASKQ", {}), "TASKQ", found)
        else:
            shared, _ = _read(None)
            own = task_settings().get(alias, {}).get("OPTIONS", {}) if has_backend(alias) else {}
            built = _build(shared, own, f"TASKS[{alias!r}]['OPTIONS']", found)
        _cache[alias] = (built, found)
    return _cache[alias]


def options(alias: str | None = None) -> Options:
    """
    Return the options of a backend alias, or those of ``TASKQ`` alone without one.

    Raise ImproperlyConfigured that lists everything wrong at once.
    """
    built, found = _read(alias)
    shared = _read(None)[1] if alias is not None else []
    if found or shared:
        lines = [f"{problem.message}. {problem.hint}".strip() for problem in (*shared, *found)]
        raise ImproperlyConfigured("\n".join(lines))
    return built


def problems() -> list[Problem]:
    """Return everything wrong in the settings of this app."""
    found = list(_read(None)[1])
    for alias in aliases():
        found += _read(alias)[1]
    return found


def task_settings() -> Mapping[str, Any]:
    """Return the TASKS setting where the project made one, else an empty mapping."""
    # Django's own default names the immediate backend, which nobody chose.
    if not settings.is_overridden("TASKS"):
        return {}
    return getattr(settings, "TASKS", None) or {}


def names_backends() -> bool:
    """Return whether the project has a TASKS setting; without one our backend is implied."""
    return bool(settings.is_overridden("TASKS"))


def has_backend(alias: str) -> bool:
    """Return whether the project's TASKS setting names a backend for this alias."""
    return alias in task_settings()


def aliases() -> list[str]:
    """Return the aliases that store tasks with this app; "default" where TASKS says nothing."""
    named = task_settings()
    if not named:
        return ["default"]
    return [alias for alias, params in named.items() if is_ours(params.get("BACKEND", ""))]


def main_alias() -> str | None:
    """Return "default" where that stores tasks with this app, else the first alias that does, None where none does."""
    found = aliases()
    return "default" if "default" in found else next(iter(found), None)


def is_ours(path: str) -> bool:
    """Return whether a dotted path names the database backend of this app, or a subclass of it."""
    if path in BACKEND_PATHS:
        return True
    if path.startswith(("django.tasks.", "django_tasks.")):
        return False
    try:
        found = import_string(path)
    except ImportError:
        return False
    return getattr(found, "stores_tasks_in_database", False) is True


def settings_module() -> str | None:
    """Return the module the settings were read from, None where a program configured them by hand."""
    return getattr(settings, "SETTINGS_MODULE", None)


def worker_option(name: str, value: Any) -> Any:
    """Return the value of one of the worker's options, parsed by its setting's rule. Raise ValueError that tells it."""
    return _WORKER[name](value)


def installed(app: str) -> bool:
    """Return whether the project lists this app."""
    return any(name == app or name.startswith(f"{app}.") for name in settings.INSTALLED_APPS)


def wants_metrics() -> bool:
    """Return whether the project wants Prometheus metrics: METRICS, or whether django-prometheus is installed."""
    wanted = _read(None)[0].metrics
    return installed("django_prometheus") if wanted is None else wanted


def is_debug() -> bool:
    """Return whether the project runs in debug mode."""
    return bool(settings.DEBUG)


def language() -> str:
    """Return the language that is active where nobody chose one."""
    return str(settings.LANGUAGE_CODE)


def time_zone() -> str:
    """Return the name of the project's own time zone."""
    return str(settings.TIME_ZONE)


def uses_time_zones() -> bool:
    """Return whether moments are aware."""
    return bool(settings.USE_TZ)


def database_engine(alias: str) -> Mapping[str, Any]:
    """Return the settings of one database."""
    found: Mapping[str, Any] = settings.DATABASES[alias]
    return found


@receiver(setting_changed)
def _reset(*, setting: str, **kwargs: Any) -> None:
    if setting in ("TASKQ", "TASKS"):
        _cache.clear()
