"""
Arguments by their annotations: checked and made JSON when a task is enqueued, rebuilt when it runs.

An annotation becomes a shape, which knows both ways. Standard library only: models of
pydantic are known by their methods. Its surprise: a union is only as good as its JSON, so a
value that JSON would give back as another of its members is refused when it is enqueued.
"""

from __future__ import annotations

import base64
import binascii
import collections.abc
import dataclasses
import inspect
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

from django_taskq.domain.workflows import Placeholder
from django_taskq.exceptions import InvalidArguments, InvalidOptions

__all__ = ["Shape", "Signature", "plain", "shape_of", "signature_of"]

_SHOWN = 60
_NONE = type(None)


def shown(value: Any) -> str:
    """Return a value as a message shows it, shortened, and its type."""
    try:
        text = reprlib.repr(value)
    except Exception as error:  # noqa: BLE001 - a value may do anything when it is looked at
        text = f"<{type(error).__name__} in repr()>"
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    return f"{text} ({type(value).__qualname__})"


def _refuse(path: str, rule: str, value: Any, *, cause: BaseException | None = None) -> InvalidArguments:
    error = InvalidArguments(f"{path} must be {rule}, got {shown(value)}", path=path, rule=rule)
    error.__cause__ = cause
    return error


class Shape:
    """What one annotation stands for. ``rule`` is how messages call it."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as JSON can hold it. Raise InvalidArguments if it is not of this shape."""
        raise NotImplementedError

    def decode(self, value: Any, path: str) -> Any:
        """Return the value that ``encode`` was given. Raise InvalidArguments for JSON of another shape."""
        raise NotImplementedError


class _Anything(Shape):
    def encode(self, value: Any, path: str) -> Any:
        return value

    decode = encode


class _Later(Shape):
    """What a name stands for that is part of itself, as in ``type Tree = list[Tree] | int``."""

    shape: Shape

    def encode(self, value: Any, path: str) -> Any:
        return self.shape.encode(value, path)

    def decode(self, value: Any, path: str) -> Any:
        return self.shape.decode(value, path)


class _Scalar(Shape):
    """JSON has it already."""

    def __init__(self, kind: type, rule: str) -> None:
        super().__init__(rule)
        self.kinds = (int, float) if kind is float else (kind,)
        self.refuses = bool if kind is float else ()
        self.kind = kind

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.kinds) or isinstance(value, self.refuses):
            raise _refuse(path, self.rule, value)
        return value.value if isinstance(value, Enum) else value

    def decode(self, value: Any, path: str) -> Any:
        found = self.encode(value, path)
        return float(found) if self.kind is float else found


class _Text(Shape):
    """JSON has it as text, or as a number."""

    def __init__(
        self, kind: type, rule: str, write: Callable[[Any], Any], read: Callable[[Any], Any], *, not_a: Any = ()
    ) -> None:
        super().__init__(rule)
        self.kind = kind
        self.write = write
        self.read = read
        self.not_a = not_a

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.kind) or isinstance(value, self.not_a):
            raise _refuse(path, self.rule, value)
        return self.write(value)

    def decode(self, value: Any, path: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _refuse(path, self.rule, value)
        try:
            return self.read(value)
        except (ValueError, TypeError, OverflowError, InvalidOperation, binascii.Error) as error:
            raise _refuse(path, self.rule, value, cause=error) from error


def _seconds(value: Any) -> timedelta:
    if isinstance(value, str) or not math.isfinite(value):
        raise ValueError("a number of seconds")
    return timedelta(seconds=value)


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value, validate=True)


_SCALARS: dict[Any, Shape] = {
    str: _Scalar(str, "str"),
    int: _Scalar(int, "int"),
    float: _Scalar(float, "float"),
    bool: _Scalar(bool, "bool"),
    _NONE: _Scalar(_NONE, "None"),
    datetime: _Text(datetime, "datetime", lambda value: value.isoformat(), datetime.fromisoformat),
    date: _Text(date, "date", lambda value: value.isoformat(), date.fromisoformat, not_a=datetime),
    time: _Text(time, "time", lambda value: value.isoformat(), time.fromisoformat),
    timedelta: _Text(timedelta, "timedelta", lambda value: value.total_seconds(), _seconds),
    Decimal: _Text(Decimal, "Decimal", str, lambda value: Decimal(value) if isinstance(value, str) else _no_text()),
    UUID: _Text(UUID, "UUID", str, lambda value: UUID(value) if isinstance(value, str) else _no_text()),
    bytes: _Text(bytes, "bytes", lambda value: base64.b64encode(value).decode(), _bytes),
}


def _no_text() -> Any:
    raise ValueError("text")


class _Enum(Shape):
    def __init__(self, kind: type[Enum]) -> None:
        super().__init__(f"a member of {kind.__qualname__}")
        self.kind = kind
        # By value where JSON has it, else by name.
        self.by_value = all(isinstance(item.value, str | int | float | None) for item in kind)

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.kind):
            raise _refuse(path, self.rule, value)
        return value.value if self.by_value else value.name

    def decode(self, value: Any, path: str) -> Any:
        try:
            return self.kind(value) if self.by_value else self.kind[value]
        except (ValueError, KeyError, TypeError) as error:
            raise _refuse(path, self.rule, value, cause=error) from None


class _Literal(Shape):
    def __init__(self, values: tuple[Any, ...]) -> None:
        super().__init__(f"one of {', '.join(repr(value) for value in values)}")
        self.values = values

    def encode(self, value: Any, path: str) -> Any:
        if not any(value == item and type(value) is type(item) for item in self.values):
            raise _refuse(path, self.rule, value)
        return value.value if isinstance(value, Enum) else value

    def decode(self, value: Any, path: str) -> Any:
        for item in self.values:
            stored = item.value if isinstance(item, Enum) else item
            if value == stored and type(value) is type(stored):
                return item
        raise _refuse(path, self.rule, value)


class _Items(Shape):
    """A list, a set or a tuple of one kind of item."""

    def __init__(self, kind: Any, made: Callable[[Any], Any], item: Shape, rule: str) -> None:
        super().__init__(rule)
        self.kind = kind
        self.made = made
        self.item = item

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.kind) or isinstance(value, str | bytes):
            raise _refuse(path, self.rule, value)
        found = [_encoded(self.item, item, f"{path}[{at}]") for at, item in enumerate(value)]
        if self.made in (set, frozenset):
            # The same set is the same JSON, however it was built.
            found.sort(key=lambda item: (type(item).__name__, json.dumps(item, sort_keys=True, default=str)))
        return found

    def decode(self, value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise _refuse(path, self.rule, value)
        found = [self.item.decode(item, f"{path}[{at}]") for at, item in enumerate(value)]
        try:
            return self.made(found)
        except TypeError as error:
            # Of a set, something that cannot be in one.
            raise _refuse(path, self.rule, value, cause=error) from error


class _Tuple(Shape):
    """A tuple of a fixed length, also one with names."""

    def __init__(self, items: Sequence[Shape], rule: str, kind: Any = tuple) -> None:
        super().__init__(rule)
        self.items = items
        self.kind = kind

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, self.kind) or len(value) != len(self.items):
            raise _refuse(path, self.rule, value)
        return [
            _encoded(shape, item, f"{path}[{at}]")
            for at, (shape, item) in enumerate(zip(self.items, value, strict=True))
        ]

    def decode(self, value: Any, path: str) -> Any:
        if not isinstance(value, list) or len(value) != len(self.items):
            raise _refuse(path, self.rule, value)
        found = [
            shape.decode(item, f"{path}[{at}]") for at, (shape, item) in enumerate(zip(self.items, value, strict=True))
        ]
        return tuple(found) if self.kind is tuple else self.kind(*found)


class _Dict(Shape):
    """A dict of one kind of key and value. JSON has text as keys, so numbers and dates become it."""

    def __init__(self, key: Shape, item: Shape, rule: str) -> None:
        super().__init__(rule)
        self.key = key
        self.item = item

    def encode(self, value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise _refuse(path, self.rule, value)
        found: dict[Any, Any] = {}
        for key, item in value.items():
            name = self.key.encode(key, f"a key of {path}")
            if isinstance(name, int) and not isinstance(name, bool) and self.key is not _ANYTHING:
                name = str(name)
            if isinstance(name, str) and self.key is not _ANYTHING:
                self._check_way_back(name, key, f"a key of {path}")
            found[name] = _encoded(self.item, item, f"{path}[{key!r}]")
        return found

    def decode(self, value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _refuse(path, self.rule, value)
        return {
            self._key(name, f"a key of {path}"): self.item.decode(item, f"{path}[{name!r}]")
            for name, item in value.items()
        }

    def _check_way_back(self, name: str, key: Any, path: str) -> None:
        back = self._key(name, path)
        if back != key:
            raise InvalidArguments(
                f"{path} is {self.key.rule}, and JSON, which has only text there, would give {shown(key)} back as "
                f"{shown(back)}; pass a list of pairs",
                path=path,
                rule=self.key.rule,
            )

    def _key(self, name: str, path: str) -> Any:
        try:
            return self.key.decode(name, path)
        except InvalidArguments:
            try:
                number = int(name)
            except ValueError:
                number = None
            if number is None:
                raise
        return self.key.decode(number, path)


class _Record(Shape):
    """What has named fields, each with a shape: a dataclass or a TypedDict."""

    def __init__(self, kind: Any, rule: str) -> None:
        super().__init__(rule)
        self.kind = kind
        # Filled once the record itself is known, since a field may be of the same kind.
        self.fields: dict[str, Shape] = {}
        self.required: frozenset[str] = frozenset()

    def _taken_apart(self, value: Any, path: str) -> Mapping[str, Any]:
        raise NotImplementedError

    def encode(self, value: Any, path: str) -> Any:
        found = self._taken_apart(value, path)
        self._check_names(found, path, value)
        return {name: _encoded(self.fields[name], item, f"{path}.{name}") for name, item in found.items()}

    def _check_names(self, found: Mapping[Any, Any], path: str, value: Any) -> None:
        for name in found:
            if name not in self.fields:
                raise InvalidArguments(
                    f"{path} must be {self.rule}, which has no {name!r}; got {shown(value)}", path=path, rule=self.rule
                )
        for name in self.fields:
            if name not in found and name in self.required:
                raise InvalidArguments(
                    f"{path}.{name} is missing: {path} must be {self.rule}; got {shown(value)}",
                    path=f"{path}.{name}",
                    rule=self.rule,
                )

    def _read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refuse(path, self.rule, value)
        self._check_names(value, path, value)
        return {name: self.fields[name].decode(item, f"{path}.{name}") for name, item in value.items()}


class _Dataclass(_Record):
    def _taken_apart(self, value: Any, path: str) -> Mapping[str, Any]:
        if type(value) is not self.kind:
            # An instance of a subclass would come back as less than it was.
            raise _refuse(path, self.rule, value)
        return {name: getattr(value, name) for name in self.fields}

    def decode(self, value: Any, path: str) -> Any:
        found = self._read(value, path)
        try:
            return self.kind(**found)
        except InvalidArguments:
            raise
        except Exception as error:
            raise InvalidArguments(
                f"{path} must be {self.rule}, which refuses {shown(value)}: {type(error).__name__}: {error}",
                path=path,
                rule=self.rule,
            ) from error


class _TypedDict(_Record):
    def _taken_apart(self, value: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise _refuse(path, self.rule, value)
        return value

    def decode(self, value: Any, path: str) -> Any:
        return self._read(value, path)


class _Model(Shape):
    """A model of pydantic, or whatever has its methods."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind.__qualname__)
        self.kind = kind

    def encode(self, value: Any, path: str) -> Any:
        if type(value) is not self.kind:
            # An instance of a subclass would come back as less than it was.
            raise _refuse(path, self.rule, value)
        found = _dumped(value)
        if found is None:
            raise InvalidArguments(
                f"{path} is {self.rule}, and JSON would not give {shown(value)} back: the model refuses or changes "
                "what it writes, under its aliases as well as under the names of its fields; give what is read "
                "and what is written the same alias, or pass another type",
                path=path,
                rule=self.rule,
            )
        return found[0]

    def decode(self, value: Any, path: str) -> Any:
        try:
            # As text: only so a strict model takes a date from a string.
            return self.kind.model_validate_json(json.dumps(value))
        except ValueError as error:
            lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in _details(error)]
            raise InvalidArguments(
                f"{path} must be {self.rule}, which refuses {shown(value)}: {'; '.join(lines) or error}",
                path=path,
                rule=self.rule,
            ) from error


def _dumped(model: Any) -> tuple[Any] | None:
    """Return a model of pydantic as the JSON that makes it anew; None if there is none."""
    for by_alias in (True, False):
        try:
            # Without what is computed, which a strict model takes for a mistake.
            found = model.model_dump(mode="json", by_alias=by_alias, round_trip=True)
            back = type(model).model_validate_json(json.dumps(found))
            if back.model_dump(mode="json", by_alias=by_alias, round_trip=True) == found:
                return (found,)
        except ValueError:
            continue
    return None


def _details(error: Any) -> list[dict[str, Any]]:
    return list(error.errors(include_url=False, include_input=False)) if hasattr(error, "errors") else []


class _Union(Shape):
    def __init__(self, members: Sequence[Shape], rule: str) -> None:
        super().__init__(rule)
        self.members = members
        self.has_none = _SCALARS[_NONE] in members
        self.others = [member for member in members if member is not _SCALARS[_NONE]]

    def encode(self, value: Any, path: str) -> Any:
        if value is None and self.has_none:
            return None
        if len(self.others) == 1:
            return self.others[0].encode(value, path)
        for member in self.others:
            try:
                found = member.encode(value, path)
            except InvalidArguments:
                continue
            self._check_way_back(found, value, path)
            return found
        raise _refuse(path, self.rule, value)

    def _check_way_back(self, found: Any, value: Any, path: str) -> None:
        if _has_placeholder(found):
            return
        back = self.decode(json.loads(json.dumps(found)) if isinstance(found, list | dict) else found, path)
        if back != value or (type(back) is not type(value) and not isinstance(value, int | float | str)):
            raise InvalidArguments(
                f"{path} is {self.rule}, and JSON would give {shown(value)} back as {shown(back)}: "
                "it is the first of them that fits; put the narrower kind first, or wrap the kinds in dataclasses",
                path=path,
                rule=self.rule,
            )

    def decode(self, value: Any, path: str) -> Any:
        if value is None and self.has_none:
            return None
        if len(self.others) == 1:
            return self.others[0].decode(value, path)
        for member in self.others:
            try:
                return member.decode(value, path)
            except InvalidArguments:
                continue
        raise _refuse(path, self.rule, value)


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_placeholder, value.values()))
    return any(map(_has_placeholder, value)) if isinstance(value, list) else isinstance(value, Placeholder)


def _encoded(shape: Shape, value: Any, path: str) -> Any:
    # The result of another task is not known yet; it is checked when it is.
    return value if isinstance(value, Placeholder) else shape.encode(value, path)


# From annotations to shapes

_ANYTHING = _Anything("anything")
_LISTS: set[Any] = {list, collections.abc.Sequence, collections.abc.MutableSequence}
_LISTS |= {collections.abc.Iterable, collections.abc.Collection}
_SETS = {set: set, collections.abc.Set: set, collections.abc.MutableSet: set, frozenset: frozenset}
# ReadOnly came with Python 3.13.
_QUALIFIERS = {typing.Annotated, typing.Required, typing.NotRequired, typing.Final, getattr(typing, "ReadOnly", None)}
_QUALIFIERS.discard(None)
_DICTS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


def _named(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


def shape_of(annotation: Any, known: dict[Any, Shape] | None = None) -> Shape:
    """Return the shape of an annotation. Raise InvalidOptions for one that JSON has no form for."""
    known = {} if known is None else known
    try:
        if annotation in known:
            return known[annotation]
    except TypeError:
        # A Literal of something that cannot be hashed; the error comes below.
        pass
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(annotation, typing.TypeVar):
        return _ANYTHING
    if annotation is None:
        return _SCALARS[_NONE]
    if isinstance(annotation, type) and annotation in _SCALARS:
        return _SCALARS[annotation]
    aliased = getattr(annotation, "__supertype__", None) or _alias_of(annotation)
    if aliased is not None:
        later = known[annotation] = _Later(_named(annotation))
        later.shape = shape_of(aliased, known)
        return later.shape
    found = _generic(annotation, known) or _class(annotation, known)
    if found is None:
        raise InvalidOptions(
            f"an argument annotated with {_named(annotation)} cannot be validated: JSON has no form for it. "
            "Known are str, int, float, bool, bytes, dates and times, Decimal, UUID, enums, Literal, lists, tuples, "
            "sets, dicts, unions, dataclasses, TypedDict, NamedTuple and models of pydantic; pass the primary key of "
            "a row, annotate with Any, or switch validate off for this task",
            field="validate",
            code="annotation",
        )
    return found


def _alias_of(annotation: Any) -> Any:
    """Return what ``type X = …`` stands for."""
    return annotation.__value__ if type(annotation).__name__ == "TypeAliasType" else None


def _generic(annotation: Any, known: dict[Any, Shape]) -> Shape | None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    rule = _named(annotation)
    if origin in _QUALIFIERS:
        return shape_of(arguments[0], known)
    if origin is typing.Union or origin is types.UnionType:
        return _Union([shape_of(item, known) for item in arguments], rule)
    if origin is typing.Literal:
        return _Literal(arguments)
    kind = origin or annotation
    if kind in _LISTS:
        return _Items(list | tuple, list, shape_of(arguments[0], known) if arguments else _ANYTHING, rule)
    if kind in _SETS:
        made: Any = _SETS[kind]
        item = shape_of(arguments[0], known) if arguments else _ANYTHING
        return _Items(set | frozenset if kind is collections.abc.Set else made, made, item, rule)
    if kind in _DICTS:
        key, item = (shape_of(part, known) for part in arguments) if arguments else (_ANYTHING, _ANYTHING)
        return _Dict(key, item, rule)
    if kind is tuple:
        if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return _Items(tuple, tuple, shape_of(arguments[0], known) if arguments else _ANYTHING, rule)
        return _Tuple([shape_of(part, known) for part in arguments if part != ()], rule)
    return None


def _class(annotation: Any, known: dict[Any, Shape]) -> Shape | None:
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Enum):
        return _Enum(kind)
    if hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump"):
        return _Model(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, known)
    # The second is that of typing_extensions.
    if typing.is_typeddict(kind) or hasattr(kind, "__required_keys__"):
        made = known[kind] = _TypedDict(kind, kind.__qualname__)
        hints = _hints(kind, include_extras=True)
        made.fields = {name: shape_of(item, known) for name, item in hints.items()}
        # Python itself does not see NotRequired in annotations that are text.
        said = {name: typing.get_origin(item) for name, item in hints.items()}
        required: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]  # what TypedDict makes has them
        made.required = frozenset(
            name
            for name, origin in said.items()
            if origin is typing.Required or (name in required and origin is not typing.NotRequired)
        )
        return made
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = _hints(kind)
        return _Tuple([shape_of(hints.get(name, Any), known) for name in kind._fields], kind.__qualname__, kind)
    return None


def _dataclass(kind: Any, known: dict[Any, Shape]) -> Shape:
    made = known[kind] = _Dataclass(kind, kind.__qualname__)
    hints = _hints(kind)
    taken = [item for item in dataclasses.fields(kind) if item.init]
    made.fields = {item.name: shape_of(hints[item.name], known) for item in taken}
    names = {item.name for item in taken}
    # InitVars: what was given for them is not kept, so nobody could give it again.
    lost = [
        item.name
        for item in inspect.signature(kind).parameters.values()
        if item.default is item.empty
        and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
        and item.name not in names
    ]
    if lost:
        raise InvalidOptions(
            f"an argument annotated with {kind.__qualname__} cannot be validated: it cannot be made without "
            f"{lost[0]!r}, which is none of its fields; give that a default, annotate with Any, or switch "
            "validate off for this task",
            field="validate",
            code="annotation",
        )
    missing = dataclasses.MISSING
    made.required = frozenset(
        item.name for item in taken if item.default is missing and item.default_factory is missing
    )
    return made


def _hints(kind: Any, *, include_extras: bool = False) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=include_extras)
    except NameError as error:
        raise _unknown_name(kind.__qualname__, error) from error


def _unknown_name(where: str, error: NameError) -> InvalidOptions:
    return InvalidOptions(
        f"the annotations of {where} name {error.name!r}, which is not there when the task runs; "
        "import it outside of `if TYPE_CHECKING:`, or switch validate off for this task",
        field="validate",
        code="annotation",
    )


# Signatures


class Signature:
    """The parameters of a task function, as a call has to fit them."""

    def __init__(self, function: Callable[..., Any], *, takes_context: bool) -> None:
        self.name = getattr(function, "__qualname__", repr(function))
        self._function = inspect.unwrap(function)
        found = inspect.signature(function)
        parameters = list(found.parameters.values())[1:] if takes_context else list(found.parameters.values())
        self._signature = found.replace(parameters=parameters, return_annotation=found.empty)
        self._parameters = parameters
        self._positional = [
            item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        ]
        self._shapes: dict[str, Shape] | None = None

    def _all_shapes(self) -> dict[str, Shape]:
        if self._shapes is None:
            # Not those of the context and of the result: their names may be there for type checkers only.
            noted = {
                item.name: item.annotation
                for item in self._parameters
                if item.annotation is not inspect.Parameter.empty
            }
            holder = types.SimpleNamespace(__annotations__=noted)
            try:
                hints = typing.get_type_hints(holder, globalns=self._function.__globals__, include_extras=True)
            except NameError as error:
                raise _unknown_name(self.name, error) from error
            self._shapes = {item.name: shape_of(hints.get(item.name, Any)) for item in self._parameters}
        return self._shapes

    def check_annotations(self) -> None:
        """Raise InvalidOptions for an annotation that cannot be validated."""
        self._all_shapes()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise InvalidArguments if the function cannot be called so."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(
                f"{self.name} cannot be called so: {error}; its arguments are {self._signature}",
                path="",
                rule=str(self._signature),
            ) from None

    def encode(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, types: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as JSON can hold them, as they were given. Raise InvalidArguments."""
        return self._each(args, kwargs, types=types, work=_encoded)

    def decode(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, types: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that ``encode`` was given. Raise InvalidArguments."""
        return self._each(args, kwargs, types=types, work=_decoded)

    def _each(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, types: bool, work: Callable[[Shape, Any, str], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.bind(args, kwargs)
        if not types:
            return tuple(args), dict(kwargs)
        shapes = self._all_shapes()
        rest = {item.kind: item for item in self._parameters}
        found = []
        for at, value in enumerate(args):
            is_rest = at >= len(self._positional)
            item = rest[inspect.Parameter.VAR_POSITIONAL] if is_rest else self._positional[at]
            path = f"{item.name}[{at - len(self._positional)}]" if is_rest else item.name
            found.append(work(shapes[item.name], value, f"argument {path}"))
        named = {
            name: work(
                shapes[name if name in shapes else rest[inspect.Parameter.VAR_KEYWORD].name], value, f"argument {name}"
            )
            for name, value in kwargs.items()
        }
        return tuple(found), named


def _decoded(shape: Shape, value: Any, path: str) -> Any:
    return shape.decode(value, path)


@cache
def signature_of(function: Callable[..., Any], *, takes_context: bool) -> Signature:
    """Return the signature of a task function, without its context."""
    return Signature(function, takes_context=takes_context)


def plain(value: Any) -> Any:
    """Return a result as JSON can hold it; what JSON has no form for stays, to be refused by whoever writes it."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "model_dump") and hasattr(value, "model_validate_json"):
        found = _dumped(value)
        return value.model_dump(mode="json") if found is None else found[0]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) and not isinstance(key, Enum) else plain(key): plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return _Items(object, type(value), _ANYTHING, "").encode([plain(item) for item in value], "")
    for kind in (datetime, date, time, timedelta, Decimal, UUID):
        if isinstance(value, kind):
            written: _Text = _SCALARS[kind]  # type: ignore[assignment]  # these are all of that kind
            return written.write(value)
    return value
