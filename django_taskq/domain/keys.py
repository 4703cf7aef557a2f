"""
Keys made of a call's arguments: which tasks count as the same for uniqueness, limits and fair shares.

A key is a template like ``"order:{order_id}"``, a callable that gets the arguments, or nothing:
then it is a digest of all arguments. Defaults are filled in first, so that ``f(1)`` and
``f(1, retry=False)`` have one key where ``False`` is the default. The context is no argument.
"""

from __future__ import annotations

import inspect
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

from django_taskq.domain import payload
from django_taskq.exceptions import InvalidOptions, InvalidPayload

__all__ = ["Key", "arguments_digest", "bound_key", "check_key", "fitted", "short_digest"]

Key = str | Callable[..., str | None]
"""A template of the arguments' names, or a callable that gets the arguments and returns a text, or None for no key."""

_DIGEST = 16
_formatter = string.Formatter()


def check_key(function: Callable[..., Any], takes_context: bool, key: object, *, field: str = "key") -> None:
    """Raise InvalidOptions for a key that no call of the function could have."""
    if not isinstance(key, str):
        if not callable(key):
            raise InvalidOptions(
                f'{field} must be a template like "order:{{order_id}}" or a callable, got {key!r}',
                field=field,
                code="type",
            )
        return
    if not key or key != key.strip() or not _is_clean(key):
        raise InvalidOptions(
            f"{field} must not be empty, begin or end with a space, or hold control characters, got {key!r}",
            field=field,
            code="characters",
        )
    names, takes_any = _parameters(function, takes_context)
    for name in _names_in(key, field):
        if name not in names and not takes_any:
            known = ", ".join(names) or "none"
            raise InvalidOptions(
                f"{field} {key!r} names {name!r}, which is no parameter of {function.__qualname__}; it has: {known}",
                field=field,
                code="unknown",
            )


def bound_key(
    function: Callable[..., Any],
    takes_context: bool,
    key: Key,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    field: str = "key",
) -> str | None:
    """
    Return the key of one call, of any length; None if a callable says that this call has none.

    Raise InvalidPayload for arguments that do not fit the function, InvalidOptions for a template
    that meets None or lacks a value, and for a callable that returns no text.
    """
    if not isinstance(key, str):
        return _of_callable(key(*args, **kwargs), field)
    values = _bound(function, takes_context, args, kwargs)
    parts: list[str] = []
    for text, name, spec, conversion in _formatter.parse(key):
        parts.append(text)
        if name is not None:
            parts.append(_written(key, name, spec or "", conversion, values, field))
    return _of_callable("".join(parts), field)


def arguments_digest(
    function: Callable[..., Any], takes_context: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """
    Return a digest of all arguments: the same for calls that mean the same to the function.

    Raise InvalidPayload for arguments that do not fit the function.
    """
    values = _bound(function, takes_context, args, kwargs)
    plain = json.loads(payload.encode_arguments((), values, limit=None))
    return short_digest(json.dumps(plain["kwargs"], sort_keys=True, separators=(",", ":")), 32)


def fitted(text: str, most: int) -> str:
    """
    Return the text as a key of at most ``most`` characters that every database compares alike.

    What is too long, begins or ends with a space, or holds control characters becomes its readable
    part with a digest of the whole behind it: two texts never become one key.
    """
    if 0 < len(text) <= most and text == text.strip() and _is_clean(text):
        return text
    readable = "".join(character if _is_clean(character) else " " for character in text)
    digest = short_digest(text, _DIGEST)
    return f"{readable.strip()[: most - _DIGEST - 1].strip()}#{digest}"


def short_digest(text: str, length: int = _DIGEST) -> str:
    """Return the first hexadecimal digits of a text's SHA-256."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _is_clean(text: str) -> bool:
    """Return whether a text holds neither control characters nor halves of surrogate pairs."""
    return text.isprintable() or not any(
        ord(character) < 32 or 127 <= ord(character) < 160 or 0xD800 <= ord(character) <= 0xDFFF for character in text
    )


def _names_in(template: str, field: str) -> list[str]:
    """Return the parameters that a template names, in order."""
    found: list[str] = []
    try:
        for _, name, spec, _ in _formatter.parse(template):
            if name is None:
                continue
            first = re.split(r"[.\[]", name, maxsplit=1)[0]
            if not first.isidentifier():
                raise ValueError("each value needs the name of a parameter, as in {order_id}")
            if "._" in name:
                raise ValueError("attributes that begin with _ are private")
            if spec and ("{" in spec or "}" in spec):
                raise ValueError("a format cannot hold another value")
            found.append(first)
    except ValueError as error:
        raise InvalidOptions(f"{field} {template!r} is no template: {error}", field=field, code="template") from error
    return found


def _written(template: str, name: str, spec: str, conversion: str | None, values: Mapping[str, Any], field: str) -> str:
    try:
        value, _ = _formatter.get_field(name, (), values)
    except (LookupError, AttributeError, TypeError) as error:
        raise InvalidOptions(
            f"{field} {template!r} finds no {{{name}}} in the arguments of this call: {error!r}",
            field=field,
            code="missing",
        ) from error
    if value is None:
        raise InvalidOptions(
            f"{field} {template!r} meets None as {{{name}}}, and None is no part of a key; give a value, "
            "or make the key by a callable, which may return None where a call has no key",
            field=field,
            code="none",
        )
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    try:
        return format(_formatter.convert_field(value, conversion), spec)
    except (TypeError, ValueError) as error:
        raise InvalidOptions(
            f"{field} {template!r} cannot write {{{name}}}: {error}", field=field, code="format"
        ) from error


def _of_callable(found: object, field: str) -> str | None:
    if found is None:
        return None
    if not isinstance(found, str) or not found:
        raise InvalidOptions(
            f"{field} must come to a text that is not empty, or to None for no key; got {found!r}",
            field=field,
            code="type",
        )
    return found


@lru_cache(maxsize=1024)
def _signature(function: Callable[..., Any], takes_context: bool) -> inspect.Signature:
    """Return what ``enqueue`` takes: the function's signature without the context."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise InvalidOptions(
            f"{function!r} does not tell its parameters, so no key can be made of them; use a callable as key",
            field="key",
            code="signature",
        ) from error
    parameters = list(found.parameters.values())
    if takes_context and parameters and parameters[0].kind != inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    return found.replace(parameters=parameters)


def _parameters(function: Callable[..., Any], takes_context: bool) -> tuple[list[str], bool]:
    """Return the names of the parameters, and whether any other name is taken, too."""
    parameters = _signature(function, takes_context).parameters.values()
    names = [item.name for item in parameters if item.kind != inspect.Parameter.VAR_KEYWORD]
    return names, any(item.kind == inspect.Parameter.VAR_KEYWORD for item in parameters)


def _bound(
    function: Callable[..., Any], takes_context: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return each parameter with its value, defaults filled in, and what ``**kwargs`` takes by its own name."""
    signature = _signature(function, takes_context)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidPayload(
            f"the arguments do not fit {function.__qualname__}{signature}, so they make no key: {error}"
        ) from error
    bound.apply_defaults()
    values = dict(bound.arguments)
    for item in signature.parameters.values():
        if item.kind == inspect.Parameter.VAR_KEYWORD:
            values = {**values.pop(item.name), **values}
    return values
