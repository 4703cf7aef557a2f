"""What arguments and results may hold, and what a user is told about the rest."""

from __future__ import annotations

import enum
import json
import math
import sys
import uuid
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_taskq.domain import payload
from django_taskq.exceptions import InvalidPayload, PayloadTooLarge, TaskqError
from tests.app.models import Effect

FITS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**100), max_value=10**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=20,
)


def encode(*args: Any, limit: int | None = None, **kwargs: Any) -> str:
    return payload.encode_arguments(args, kwargs, limit=limit)


@given(args=st.lists(FITS, max_size=4), kwargs=st.dictionaries(st.text(min_size=1, max_size=5), FITS, max_size=3))
@example(args=["\x00", "\u2028", "\U0001f600", -0.0, 5e-324, 1.7976931348623157e308], kwargs={})
def test_what_json_can_hold_comes_back_equal(args: list[Any], kwargs: dict[str, Any]) -> None:
    kwargs = {name: value for name, value in kwargs.items() if not any("\ud800" <= char <= "\udfff" for char in name)}

    text = payload.encode_arguments(tuple(args), kwargs, limit=None)

    assert text.isascii()
    assert payload.decode_arguments(text) == (args, kwargs)


@given(FITS)
def test_a_result_comes_back_equal(value: Any) -> None:
    text = payload.encode_value(value, limit=None)

    assert payload.decode_value(text) == value
    assert (text is None) == (value is None)


def test_tuples_become_lists_and_bytes_text() -> None:
    assert payload.decode_arguments(encode((1, (2,)), b"caf\xc3\xa9", k={"t": (3,)})) == (
        [[1, [2]], "caf\u00e9"],
        {"k": {"t": [3]}},
    )


def test_subclasses_of_the_plain_types_lose_their_class_only() -> None:
    class Text(str):  # noqa: SLOT000 - as users write it
        def __str__(self) -> str:
            return "something else"

    class Number(int):
        pass

    class Real(float):
        pass

    found, _ = payload.decode_arguments(encode(Text("t"), Number(5), Real(0.5), OrderedDict(a=1), UserDict(b=2)))

    assert found == ["t", 5, 0.5, {"a": 1}, {"b": 2}]
    assert encode(MappingProxyType({"a": 1})) == encode({"a": 1})


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class HasNoText:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({1: "a"}, "has the key 1; JSON would turn it into a string without a word. Use str keys"),
        ({None: 1}, "has the key None"),
        ({(1, 2): 1}, "has the key (1, 2)"),
        ({b"k": 1}, "has the key b'k'"),
        (math.nan, "is nan, which JSON does not have; pass None or a string instead"),
        (math.inf, "is inf, which JSON does not have"),
        (-math.inf, "is -inf, which JSON does not have"),
        ("a\ud800", "holds a lone surrogate, which is not text"),
        ({"\udfff": 1}, "a key of argument 1 holds a lone surrogate"),
        (Decimal("1.1"), "Unsupported type Decimal at argument 1; pass str(value) and make a Decimal in the task"),
        (datetime(2030, 1, 1, tzinfo=UTC), "pass value.isoformat() and parse it in the task"),
        (date(2030, 1, 1), "pass value.isoformat()"),
        (time(1, 2), "pass value.isoformat()"),
        (timedelta(1), "pass value.total_seconds()"),
        (uuid.UUID(int=1), "pass str(value)"),
        (Colour.RED, "Unsupported type Colour at argument 1; pass value.value"),
        (Level.LOW, "pass value.value"),
        (Word.YES, "pass value.value"),
        ({1, 2}, "pass sorted(value) or list(value)"),
        (frozenset(), "pass sorted(value) or list(value)"),
        (1j, "pass [value.real, value.imag]"),
        (b"\xff", "is bytes that are not UTF-8; pass base64.b64encode(value).decode()"),
        (Effect(pk=1, key="x"), "pass its primary key and load the row in the task"),
        (object(), "pass strings, numbers, booleans, None, and lists or dicts of them"),
        (HasNoText(), "Unsupported type HasNoText at argument 1"),
        (iter([]), "Unsupported type list_iterator"),
        (10**5000, "cannot be written as JSON"),
        (print, "Unsupported type builtin_function_or_method"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_would_change_or_lose_is_refused_with_a_way_out(value: Any, told: str) -> None:
    for refused in (lambda: encode(value), lambda: encode(0, [value]), lambda: encode(k=value)):
        with pytest.raises(InvalidPayload):
            refused()
    with pytest.raises(InvalidPayload) as caught:
        encode(value)
    assert told in str(caught.value)
    with pytest.raises(InvalidPayload):
        payload.encode_value([value], limit=None)


def test_the_place_of_a_bad_value_is_told() -> None:
    with pytest.raises(InvalidPayload, match=r"argument 2\['a'\]\[1\]"):
        encode(1, {"a": [0, Decimal(1)]})
    with pytest.raises(InvalidPayload, match=r"argument 'k'\[0\]"):
        encode(k=[object()])


def test_an_error_is_a_type_error_and_a_value_error() -> None:
    """Django's own backends raise TypeError; who catches that catches ours."""
    for kind in (TypeError, ValueError, TaskqError):
        with pytest.raises(kind):
            encode(object())


def test_integers_up_to_pythons_limit_are_kept() -> None:
    digits = sys.get_int_max_str_digits()
    value = 10 ** (digits - 1)

    assert payload.decode_arguments(encode(value))[0] == [value]
    with pytest.raises(InvalidPayload, match="cannot be written as JSON"):
        encode(10**digits)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_the_deepest_nesting_is_known() -> None:
    assert payload.decode_arguments(encode(nested(payload.MAX_DEPTH)))[0] == [nested(payload.MAX_DEPTH)]
    with pytest.raises(InvalidPayload, match="nested deeper than 200 levels"):
        encode(nested(payload.MAX_DEPTH + 1))


def test_what_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    belt: dict[str, Any] = {}
    belt["k"] = [belt]

    for value in (ring, belt):
        with pytest.raises(InvalidPayload, match="nested deeper"):
            encode(value)


def test_the_size_limit_holds_to_the_byte() -> None:
    size = len(encode("x"))

    assert encode("x", limit=size + 1) == encode("x", limit=size) == encode("x")
    with pytest.raises(PayloadTooLarge, match=rf"take {size} bytes as JSON, MAX_PAYLOAD_BYTES allows {size - 1}"):
        encode("x", limit=size - 1)


def test_the_size_limit_of_results_holds_to_the_byte() -> None:
    text = payload.encode_value("\u00e9", limit=8)

    assert text == '"\\u00e9"'
    assert len(text) == 8
    with pytest.raises(PayloadTooLarge, match=r"the result take.? 8 bytes as JSON, MAX_RESULT_BYTES allows 7"):
        payload.encode_value("\u00e9", limit=7)


class Hostile(Mapping[Any, Any]):
    """A mapping that fails where it can."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _fail(self, where: str) -> None:
        if self.where == where:
            raise RuntimeError(where)

    def __getitem__(self, key: Any) -> Any:
        self._fail("getitem")
        return 1

    def __iter__(self) -> Iterator[Any]:
        self._fail("iter")
        return iter([HasNoText()] if self.where == "key" else ["a"])

    def __len__(self) -> int:
        self._fail("len")
        return 1


class HostileList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("iter")


class HostileText(str):  # noqa: SLOT000
    def encode(self, *args: Any) -> bytes:  # type: ignore[override]
        raise RuntimeError("encode")

    def isascii(self) -> bool:
        raise RuntimeError("isascii")


class HostileNumber(int):
    def __int__(self) -> int:
        raise RuntimeError("int")


class HostileReal(float):
    def __float__(self) -> float:
        raise RuntimeError("float")


class HostileAttributes:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class HostileClass:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("class")


HOSTILE: dict[str, Callable[[], Any]] = {
    "a mapping that cannot be read": lambda: Hostile("getitem"),
    "a mapping that cannot be walked": lambda: Hostile("iter"),
    "a mapping with a key without repr": lambda: Hostile("key"),
    "a list that cannot be walked": lambda: HostileList([1]),
    "text that cannot be encoded": lambda: HostileText("x"),
    "a number without int": lambda: HostileNumber(1),
    "a real number without float": lambda: HostileReal(1.0),
    "attributes that raise": HostileAttributes,
    "a class that raises": HostileClass,
    "a key without repr": lambda: {HasNoText(): 1},
    "a value without repr": lambda: {"k": HasNoText()},
}


# By name: pytest itself cannot show some of these.
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_but_our_errors_comes_out_whatever_goes_in(name: str) -> None:
    value = HOSTILE[name]()
    for work in (
        lambda: encode(value),
        lambda: encode([value]),
        lambda: encode(k=value),
        lambda: payload.encode_value(value, limit=None),
    ):
        try:
            text = work()
        except InvalidPayload:
            pass
        else:
            assert isinstance(json.loads(text), list | dict | str | int | float)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | st.fractions()
    | st.builds(HasNoText)
    | st.sampled_from([Colour.RED, Level.LOW, Word.YES, object, print, ..., NotImplemented, range(3)]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.none() | st.integers() | st.text(st.characters()) | st.binary(), inner, max_size=4)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=15,
)


@given(st.lists(ANYTHING, max_size=3), st.dictionaries(st.text(st.characters()), ANYTHING, max_size=2))
def test_anything_is_either_kept_or_refused(args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        text = payload.encode_arguments(tuple(args), kwargs, limit=10_000)
    except InvalidPayload:
        return

    assert text.isascii()
    again_args, again_kwargs = payload.decode_arguments(text)
    # What was accepted is stable: written once more it is the same text.
    assert payload.encode_arguments(tuple(again_args), again_kwargs, limit=None) == text


def test_names_of_keyword_arguments_are_text() -> None:
    with pytest.raises(InvalidPayload, match="a keyword argument must have a str name, got one of type int"):
        payload.encode_arguments((), {1: 2}, limit=None)  # type: ignore[dict-item]
    with pytest.raises(InvalidPayload, match="lone surrogate"):
        payload.encode_arguments((), {"\ud800": 2}, limit=None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"x"',
        "{}",
        '{"args":[]}',
        '{"args":{},"kwargs":{}}',
        '{"args":[],"kwargs":[]}',
        "[" * 10**5,
    ],
    ids=range(11),
)
def test_damaged_arguments_are_told_as_such(text: str) -> None:
    with pytest.raises(InvalidPayload, match="the stored arguments cannot be read"):
        payload.decode_arguments(text)


@given(st.text(st.characters()))
def test_any_text_is_either_arguments_or_refused(text: str) -> None:
    try:
        args, kwargs = payload.decode_arguments(text)
    except InvalidPayload:
        return
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
