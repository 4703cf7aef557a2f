"""
Arguments and results as JSON text, and back.

What comes out equals what went in, except that tuples become lists and UTF-8
bytes become text (as ``django.tasks`` defines). Everything JSON would change
or lose silently is refused here, with the place, the value and a way out.
The text is pure ASCII: one character is one byte, so limits count either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

from django_taskq.exceptions import InvalidPayload, PayloadTooLarge

__all__ = ["decode_arguments", "decode_value", "encode_arguments", "encode_value"]

# json.loads recurses in C; far deeper data is refused by the reader, not the writer.
MAX_DEPTH = 200

_SCALARS = frozenset({str, int, float, bool, type(None)})
_HINTS: tuple[tuple[type, str], ...] = (
    (datetime, "pass value.isoformat() and parse it in the task"),
    (date, "pass value.isoformat() and parse it in the task"),
    (time, "pass value.isoformat() and parse it in the task"),
    (timedelta, "pass value.total_seconds()"),
    (Decimal, "pass str(value) and make a Decimal in the task"),
    (UUID, "pass str(value)"),
    (Enum, "pass value.value"),
    (set, "pass sorted(value) or list(value)"),
    (frozenset, "pass sorted(value) or list(value)"),
    (complex, "pass [value.real, value.imag]"),
)


def _hint(value: object) -> str:
    for kind, hint in _HINTS:
        if isinstance(value, kind):
            return hint
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        return "pass its primary key and load the row in the task"
    return "pass strings, numbers, booleans, None, and lists or dicts of them"


def _plain(value: Any, where: str, depth: int) -> Any:  # noqa: C901 - one test per kind of value
    """Return ``value`` made of JSON's own types only, or raise InvalidPayload."""
    kind = type(value)
    if kind is str:
        return _text(value, where)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise InvalidPayload(f"{where} is {value!r}, which JSON does not have; pass None or a string instead")
        return value
    if depth > MAX_DEPTH:
        raise InvalidPayload(f"{where} is nested deeper than {MAX_DEPTH} levels; pass a reference to stored data")
    if isinstance(value, Mapping):
        return _mapping(value, where, depth)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
    if isinstance(value, bytes):
        try:
            return _text(value.decode(), where)
        except UnicodeDecodeError:
            raise InvalidPayload(
                f"Unsupported type: {where} is bytes that are not UTF-8; pass base64.b64encode(value).decode()"
            ) from None
    if isinstance(value, Enum):
        raise InvalidPayload(f"Unsupported type {kind.__qualname__} at {where}; {_hint(value)}")
    if isinstance(value, str):
        return _text(str.__str__(value), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _plain(float(value), where, depth)
    raise InvalidPayload(f"Unsupported type {kind.__qualname__} at {where}; {_hint(value)}")


def _readable(value: Any, where: str) -> Any:
    """Return ``_plain`` of a value; what its own methods raise becomes InvalidPayload, too."""
    try:
        return _plain(value, where, 1)
    except InvalidPayload:
        raise
    except Exception as error:
        raise InvalidPayload(
            f"{where} cannot be read: {type(error).__name__} was raised by one of its values; "
            "pass plain strings, numbers, lists and dicts"
        ) from error


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidPayload(f"a keyword argument must have a str name, got one of type {type(name).__qualname__}")
    return _text(str.__str__(name), "the name of a keyword argument")


def _text(value: str, where: str) -> str:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidPayload(
            f"{where} holds a lone surrogate, which is not text; clean it with "
            "value.encode('utf-8', 'replace').decode() or pass base64"
        ) from None
    return value


def _mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidPayload(
                f"{where} has the key {key!r}; JSON would turn it into a string without a word. "
                "Use str keys, or pass a list of pairs"
            )
        plain[_text(str.__str__(key), f"a key of {where}")] = _plain(item, f"{where}[{key!r}]", depth + 1)
    return plain


# Made once: json.dumps makes an encoder each time it is given options.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _dump(value: Any, where: str) -> str:
    try:
        return _encode(value)
    except ValueError as error:
        # Integers beyond sys.get_int_max_str_digits(), mostly 4300 digits.
        raise InvalidPayload(f"{where} cannot be written as JSON: {error}; pass a string instead") from error


def _check_size(text: str, limit: int | None, where: str, setting: str) -> str:
    if limit is not None and len(text) > limit:
        raise PayloadTooLarge(
            f"{where} take {len(text)} bytes as JSON, {setting} allows {limit}; "
            "store the data and pass a reference, or raise the setting"
        )
    return text


_PLAIN_ARGS = '{"args":%s,"kwargs":{}}'


def encode_arguments(args: tuple[Any, ...] | list[Any], kwargs: Mapping[str, Any], *, limit: int | None) -> str:
    """
    Return ``{"args": […], "kwargs": {…}}`` as ASCII JSON text of at most ``limit`` bytes.

    Raise InvalidPayload for what JSON cannot hold, PayloadTooLarge beyond the limit.
    """
    for value in args:
        if type(value) not in _SCALARS or type(value) is float or (type(value) is str and not value.isascii()):
            args = [_readable(item, f"argument {at + 1}") for at, item in enumerate(args)]
            break
    if kwargs:
        named = {_name(name): _readable(item, f"argument {name!r}") for name, item in kwargs.items()}
        text = _dump({"args": args, "kwargs": named}, "the arguments")
    else:
        text = _PLAIN_ARGS % _dump(args, "the arguments")
    return _check_size(text, limit, "the arguments", "MAX_PAYLOAD_BYTES")


# The C scanner itself: json.loads adds two regular expressions, half of its time on small texts.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # documented nowhere, there since 2.7


def decode_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments from stored text. Raise InvalidPayload if it is not what we write."""
    try:
        data, end = _scan(text, 0)
        if end != len(text):
            data = json.loads(text)
        args, kwargs = data["args"], data["kwargs"]
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise TypeError("args must be a list, kwargs an object")
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError) as error:
        raise InvalidPayload(f"the stored arguments cannot be read: {type(error).__name__}: {error}") from error
    return args, kwargs


def encode_value(value: Any, *, limit: int | None, where: str = "the result") -> str | None:
    """Return a result or metadata as JSON text, None for None. Raise InvalidPayload or PayloadTooLarge."""
    if value is None:
        return None
    if type(value) not in _SCALARS or type(value) is float or type(value) is str:
        value = _readable(value, where)
    return _check_size(_dump(value, where), limit, where, "MAX_RESULT_BYTES")


def decode_value(text: str | None) -> Any:
    """Return what ``encode_value`` was given."""
    return None if text is None else cast(Any, json.loads(text))
