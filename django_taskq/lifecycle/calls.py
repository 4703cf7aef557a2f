"""What declarations and forms of schedules share: whether a call fits its task, and how the options are stored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from django_taskq import conf
from django_taskq.compat import contracts
from django_taskq.domain import payload
from django_taskq.domain.schedules import Policy, Rule
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import definitions

__all__ = [
    "NAME_LENGTH",
    "Declared",
    "call_text",
    "check_call",
    "check_name",
    "check_option",
    "check_overlap",
    "options_text",
    "typed_arguments",
]

NAME_LENGTH = 100


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A schedule as the code has it: its rule, and the columns of its row that the code decides."""

    name: str
    definition: Any
    rule: Rule
    args: str
    options: str

    @property
    def path(self) -> str:
        """Where its task function is."""
        path: str = self.definition.module_path
        return path


def check_name(name: object) -> str:
    """Return the name of a schedule. Raise InvalidOptions for one that cannot be shown or stored."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or name != name.strip() or not name.isprintable():
        raise InvalidOptions(
            f"name must have 1 to {NAME_LENGTH} printable characters, with no space at either end, got {name!r}",
            field="name",
            code="length",
        )
    return name


def check_call(definition: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise InvalidOptions if the task function does not take these arguments."""
    context = (None,) if definition.takes_context else ()
    try:
        inspect.signature(definition.func).bind(*context, *args, **kwargs)
    except TypeError as error:
        raise InvalidOptions(
            f"{definition.func.__name__} does not take these arguments: {error}", field="args", code="signature"
        ) from error


def _typed(definition: Any) -> Any:
    """Return the signature that a task's arguments are checked and rebuilt by, None where none is."""
    backend = definition.backend
    options = conf.options(backend if backend in conf.aliases() else conf.main_alias())
    if definitions.checks_of(definition, options) is not True:
        return None
    from django_taskq.domain.arguments import signature_of

    return signature_of(definition.func, takes_context=definition.takes_context)


def call_text(definition: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """
    Return as JSON text a call that the code declares, made of the values that the task function takes.

    Raise InvalidArguments for those that do not fit a task with ``validate=True``, InvalidPayload for what is no JSON.
    """
    signature = _typed(definition) if args or kwargs else None
    if signature is not None:
        args, kwargs = signature.encode(args, kwargs, types=True)
    return payload.encode_arguments(tuple(args), kwargs, limit=None)


def typed_arguments(
    definition: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return a stored call as it would be given to an enqueue. Raise InvalidArguments where it does not fit."""
    signature = _typed(definition)
    return (args, kwargs) if signature is None else signature.decode(args, kwargs, types=True)


def check_overlap(definition: Any, policy: Policy) -> None:
    """Raise InvalidOptions where a new task could not be made beside the one that it replaces."""
    unique = getattr(definition, "unique", None)
    if policy.overlap == "replace" and unique and unique.until != "started":
        raise InvalidOptions(
            f"overlap='replace' does not go with the unique key of {definition.func.__name__}, which a running task "
            "keeps although it is asked to stop, so that the tick would make none; use overlap='skip', or "
            "Unique(until='started')",
            field="overlap",
            code="conflict",
        )


def check_option(definition: Any, option: str, value: object) -> None:
    """Raise InvalidOptions if tasks of this definition cannot have this value of an option; None is what they have."""
    if value is None:
        return
    try:
        definition.using(**{option: value})
    except tuple(contract.error("InvalidTask") for contract in contracts()) as error:
        raise InvalidOptions(str(error), field=option, code="invalid") from error


def options_text(policy: Policy, *, queue_name: str | None, priority: int | None) -> str:
    """Return as JSON text what a schedule says beside its rule: only what differs from the defaults."""
    usual = Policy()
    found: dict[str, Any] = {
        item.name: value
        for item in fields(Policy)
        if (value := getattr(policy, item.name)) != getattr(usual, item.name)
    }
    if queue_name is not None:
        found["queue_name"] = queue_name
    if priority is not None:
        found["priority"] = priority
    return payload.encode_value(found, limit=None) or "{}"
