"""
What differs between Django 5.2, 6.0 and 6.1; the only place that asks.

``django.tasks`` came with Django 6.0. For 5.2 the backport ``django_tasks``
offers the same contract under its own names, and both may be imported in one
process: then a task made by one of them gets results, errors and signals of its own kind.
Its surprise: the exceptions raised here belong to every contract that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import django
from django.core.exceptions import ImproperlyConfigured

from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions, TaskNotFound

__all__ = [
    "ADMIN_BREADCRUMBS_ARE_A_LIST",
    "HAS_CORE_TASKS",
    "BaseTaskBackend",
    "Contract",
    "TaskBase",
    "TaskContextBase",
    "TaskResultBase",
    "contract_named",
    "contract_of",
    "contracts",
    "invalid_backend",
    "invalid_task",
    "primary",
    "result_not_found",
]

HAS_CORE_TASKS = django.VERSION >= (6, 0)
# 6.1 made <ol class="breadcrumbs"> of what was a <div> with separators in the text.
ADMIN_BREADCRUMBS_ARE_A_LIST = django.VERSION >= (6, 1)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The names of one implementation of the contract: Django's own, or the backport's."""

    name: str
    base: ModuleType
    backends: ModuleType
    signals: ModuleType
    errors: ModuleType
    normalize_json: Callable[[Any], Any]

    @property
    def handler(self) -> Any:
        """The object that holds the backends, by alias and for each thread its own."""
        return import_module(self.name).task_backends

    def error(self, name: str) -> type[Exception]:
        """Return an exception class; the backport spelled some of them with "Error" at the end."""
        found: type[Exception] | None = getattr(self.errors, name, None)
        return found or getattr(self.errors, f"{name}Error")


def _load(name: str, json_module: str) -> Contract:
    return Contract(
        name=name,
        base=import_module(f"{name}.base"),
        backends=import_module(f"{name}.backends.base"),
        signals=import_module(f"{name}.signals"),
        errors=import_module(f"{name}.exceptions"),
        normalize_json=import_module(json_module).normalize_json,
    )


@cache
def _core() -> Contract | None:
    return _load("django.tasks", "django.utils.json") if HAS_CORE_TASKS else None


@cache
def _backport() -> Contract | None:
    return _load("django_tasks", "django_tasks.utils") if find_spec("django_tasks") else None


def _required() -> Contract:
    contract = _core() or _backport()
    if contract is None:
        raise ImproperlyConfigured(
            f"django_taskq on Django {django.get_version()} needs the package django-tasks; "
            "install it with: pip install 'django-taskq-db[django52]'"
        )
    return contract


primary = _required()


def contracts() -> list[Contract]:
    """Return each contract this process uses, Django's own first. The backport counts once somebody imported it."""
    if _core() is None or "django_tasks" not in sys.modules:
        return [primary]
    backport = _backport()
    return [primary] if backport is None else [primary, backport]


def contract_of(task: object) -> Contract:
    """Return the contract whose kind of task this is."""
    if isinstance(task, primary.base.Task):
        return primary
    for contract in contracts():
        if isinstance(task, contract.base.Task):
            return contract
    return primary


def contract_named(name: str) -> Contract:
    """Return the contract of this name, the primary one where that is not in this process."""
    return next((contract for contract in contracts() if contract.name == name), primary)


if TYPE_CHECKING:
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task as TaskBase
    from django.tasks.base import TaskContext as TaskContextBase
    from django.tasks.base import TaskResult as TaskResultBase
else:

    class _AsInTheStubs:
        # The stubs have type parameters, Django's own class takes none.
        def __getitem__(self, parameters: object) -> type:
            return primary.base.Task

    BaseTaskBackend = primary.backends.BaseTaskBackend
    TaskBase = _AsInTheStubs()
    TaskContextBase = primary.base.TaskContext
    TaskResultBase = primary.base.TaskResult


def _bases(name: str) -> tuple[type[Exception], ...]:
    """Return the exception class of each installed contract, so that either spelling of "except" catches ours."""
    found = [contract for contract in (_core(), _installed_backport()) if contract is not None]
    return tuple(dict.fromkeys(contract.error(name) for contract in found))


def _installed_backport() -> Contract | None:
    # Importing it patches Django's classes (django_stubs_ext) and logs through
    # its own logger, so with a core contract it is left alone until imported.
    if _core() is None or "django_tasks" in sys.modules:
        return _backport()
    return None


@cache
def _raised(name: str, bases: tuple[type[Exception], ...]) -> type[Any]:
    made = type(name, bases, {"__module__": __name__, "__doc__": f"{name} of every contract in this process."})
    # Where pickle looks for it: errors travel between processes.
    globals()[name] = made
    return made


def invalid_task(message: str) -> Exception:
    """Return the error for a task the backend cannot take; caught as InvalidTask of either contract."""
    raised: Exception = _raised("InvalidTask", _bases("InvalidTask"))(message)
    return raised


def invalid_backend(message: str) -> Exception:
    """Return the error for an alias without a usable backend; caught as InvalidTaskBackend of either contract."""
    kind = _raised("InvalidTaskBackend", (InvalidOptions, *_bases("InvalidTaskBackend")))
    raised: Exception = kind(message, field="backend", code="unknown")
    return raised


def result_not_found(message: str) -> Exception:
    """Return the error for an unknown id; caught as TaskResultDoesNotExist of either contract and as TaskNotFound."""
    raised: Exception = _raised("ResultNotFound", (TaskNotFound, *_bases("TaskResultDoesNotExist")))(message)
    return raised
