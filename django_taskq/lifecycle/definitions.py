"""
Task definitions: from a stored name to the object that ``@task`` returned, and what it is configured with.

A stored name is the definition's own ``name`` where it has one, else the
dotted path of its function. Its surprise: importing a path that a row names is
how ``django.tasks`` works, so the row must lead to a task and to nothing else.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

from django_taskq import conf
from django_taskq.compat import contracts
from django_taskq.domain.payload import decode_value
from django_taskq.domain.retry import curve_from_data
from django_taskq.domain.states import Ack
from django_taskq.domain.values import lean

__all__ = [
    "Behaviour",
    "any_coroutines",
    "behaviour_of",
    "behaviour_of_claim",
    "checks_of",
    "find",
    "forget_all",
    "is_coroutine",
    "known",
    "known_as",
    "register",
    "stored_name",
]


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What holds for one task, from the call, the definition, the queue or the settings, in this order."""

    max_attempts: int
    backoff: Any
    timeout: float | None
    max_time: float | None
    expires: timedelta | None
    ack: Ack
    keep_result: float | None
    has_around: bool = False
    """Whether anything stands around the function: middleware, or the checks of its arguments."""


_registry: dict[str, Any] = {}
_behaviours: dict[tuple[str, str], tuple[Any, conf.Options, Behaviour]] = {}
_found: dict[str, Any] = {}
_missing: dict[str, float] = {}
_coroutines: set[str] = set()
# How long a path that led nowhere is not tried again: an import that fails is slow.
_RETRY_SECONDS = 5.0


def register(name: str, task: Any) -> None:
    """Let a stored name lead to this definition."""
    _registry[name] = task
    _note(name, task)
    _found.clear()
    _missing.clear()


def known_as(name: str) -> Any | None:
    """Return the definition registered under a name; imports nothing."""
    return _registry.get(name)


def known() -> dict[str, Any]:
    """Return each registered name with its definition."""
    return dict(_registry)


def forget_all() -> None:
    """Forget which paths were looked up; registered names stay."""
    _found.clear()
    _missing.clear()


def stored_name(task: Any) -> str:
    """Return the name under which tasks of this definition are stored."""
    name: str = getattr(task, "task_name", None) or task.module_path
    return name


def find(name: str) -> Any | None:
    """Return the definition that a stored name leads to, None if this process has none."""
    task = _registry.get(name) or _found.get(name)
    if task is not None:
        return task
    tried = _missing.get(name)
    if tried is not None and time.monotonic() - tried < _RETRY_SECONDS:
        return None
    task = _import(name)
    if task is None:
        _missing[name] = time.monotonic()
        return None
    _missing.pop(name, None)
    _found[name] = task
    _note(name, task)
    return task


def _note(name: str, task: Any) -> None:
    if is_coroutine(task):
        _coroutines.add(name)


def _import(path: str) -> Any | None:
    """Return the task object at a dotted path, which may lead into a class; None for anything else."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_path = ".".join(parts[:cut])
        try:
            found: Any = import_module(module_path)
        except ModuleNotFoundError as error:
            # Only "this module is not there" goes on; a missing import inside it is told.
            if error.name is not None and (module_path == error.name or module_path.startswith(f"{error.name}.")):
                continue
            raise
        except ValueError:
            return None
        except SystemExit as error:
            # Else it would end whoever looks: the claimer, the flusher, a view.
            raise ImportError(f"{module_path} exits while it is imported") from error
        for part in parts[cut:]:
            found = getattr(found, part, None)
            if found is None:
                return None
        return found if isinstance(found, tuple(contract.base.Task for contract in contracts())) else None
    return None


def any_coroutines() -> bool:
    """Return whether any definition known so far is a coroutine function."""
    return bool(_coroutines)


def is_coroutine(task: Any) -> bool:
    """Return whether the task's function is a coroutine function."""
    return _is_coroutine_function(task.func)


# Cached: inspect unwraps partials and methods, 3 µs a call.
_is_coroutine_function = lru_cache(maxsize=None)(inspect.iscoroutinefunction)


def _first(*values: Any) -> Any:
    for value in values:
        if value is not None:
            return value
    return None


def _seconds(span: Any) -> float | None:
    if span is None:
        return None
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def behaviour_of(task: Any, queue: str, options: conf.Options, overrides: dict[str, Any] | None = None) -> Behaviour:
    """
    Return what holds for a task on a queue.

    ``overrides`` is what the row carries of its call. A plain task of
    ``django.tasks`` has none of our options: queue and settings decide.
    """
    call = overrides or {}
    shared = options.queues.get(queue) or conf.QueueOptions()

    def option(name: str) -> Any:
        return _first(call.get(name), getattr(task, name, None), getattr(shared, name, None), getattr(options, name))

    backoff = call.get("backoff")
    return Behaviour(
        max_attempts=option("max_attempts"),
        backoff=option("backoff") if backoff is None else curve_from_data(backoff),
        timeout=_seconds(option("timeout")),
        max_time=_seconds(option("max_time")),
        expires=_first(getattr(task, "expires", None), shared.expires, options.expires),
        ack=_ack(_first(call.get("ack"), getattr(task, "ack", None), options.ack)),
        keep_result=_seconds(option("keep_result")),
        has_around=bool(options.middleware or getattr(task, "middleware", ()) or checks_of(task, options)),
    )


def checks_of(task: Any, options: conf.Options) -> Literal["signature"] | bool:
    """Return what is checked of a task's arguments: nothing, that they fit the signature, or their types, too."""
    own: Literal["signature"] | bool | None = getattr(task, "validate", None)
    return options.validate if own is None else own


def behaviour_of_claim(name: str, queue: str, stored: str | None, task: Any, options: conf.Options) -> Behaviour:
    """Return what holds for a claimed row; computed once per definition and queue if the row has no options."""
    if stored is not None:
        return behaviour_of(task, queue, options, decode_value(stored))
    cached = _behaviours.get((name, queue))
    if cached is not None and cached[0] is task and cached[1] is options:
        return cached[2]
    behaviour = behaviour_of(task, queue, options)
    _behaviours[name, queue] = (task, options, behaviour)
    return behaviour


def _ack(value: Any) -> Ack:
    return value if isinstance(value, Ack) else Ack[str(value).upper()]
