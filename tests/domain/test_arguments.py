"""Arguments by their annotations: JSON on the way in, the same values on the way out, and errors that say where."""

from __future__ import annotations

import json
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field
from typing_extensions import TypeAliasType
from typing_extensions import TypedDict as OlderTypedDict

from django_taskq.domain.arguments import Signature, plain, shape_of, signature_of
from django_taskq.domain.workflows import Placeholder
from django_taskq.exceptions import InvalidArguments, InvalidOptions, InvalidPayload

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Mood(StrEnum):
    GOOD = "good"


class Odd(Enum):
    PAIR = (1, 2)


@dataclass
class Line:
    sku: str
    price: Decimal
    count: int = 1


@dataclass(frozen=True)
class Order:
    number: int
    lines: list[Line]
    placed: datetime
    note: str | None = None
    parent: Order | None = None
    total: int = field(init=False, default=0)


@dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError("must be positive")


@dataclass
class Cat:
    name: str


@dataclass
class Dog:
    name: str


class Address(TypedDict):
    street: str
    zip: NotRequired[int]


class Loose(TypedDict, total=False):
    street: Required[str]
    zip: int


class Older(OlderTypedDict):
    street: str


Numbers = TypeAliasType("Numbers", list[int])


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Item(BaseModel):
    name: str
    price: Decimal = Field(gt=0)
    day: date | None = None


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date


AT = datetime(2030, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)
ORDER = Order(7, [Line("a", Decimal("1.50")), Line("b", Decimal(2), 3)], AT, parent=Order(6, [], AT, note="x"))

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (str, "ä\n"),
    (int, 2**70),
    (int, True),
    (float, 1.5),
    (bool, False),
    (None, None),
    (bytes, b"\x00\xff"),
    (datetime, AT),
    (datetime, datetime(2030, 5, 1)),
    (date, date(2030, 5, 1)),
    (time, time(12, 30, tzinfo=UTC)),
    (timedelta, timedelta(days=-3, microseconds=1)),
    (Decimal, Decimal("1.50")),
    (Decimal, Decimal("-Infinity")),
    (UUID, UUID(int=5)),
    (Colour, Colour.RED),
    (Size, Size.SMALL),
    (Mood, Mood.GOOD),
    (Odd, Odd.PAIR),
    (Literal["a", 1, Colour.RED], Colour.RED),
    (Literal["a", 1], 1),
    (UserId, 5),
    (Annotated[int, "meters"], 5),
    (Any, {"a": [1]}),
    (object, "x"),
    (list[int], [1, 2]),
    (list, [1, "x"]),
    (Sequence[date], [date(2030, 5, 1)]),
    (Iterable[str], ["a"]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple, (1, "a")),
    (tuple[()], ()),
    (set[UUID], {UUID(int=1), UUID(int=2)}),
    (frozenset[int], frozenset({3, 1})),
    (dict[str, Decimal], {"a": Decimal("0.1")}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[UUID, list[date]], {UUID(int=1): [date(2030, 5, 1)]}),
    (Mapping[str, Any], {"a": 1}),
    (dict, {"a": 1}),
    (int | None, None),
    (typing.Optional[int], 3),  # noqa: UP045
    (typing.Union[int, str, None], "x"),  # noqa: UP007
    (int | str, 5),
    (datetime | int, AT),
    (Line, Line("a", Decimal("1.50"))),
    (Order, ORDER),
    (list[Order], [ORDER]),
    (Address, {"street": "x"}),
    (Address, {"street": "x", "zip": 5}),
    (Loose, {"street": "x"}),
    (Older, {"street": "x"}),
    (Numbers, [1, 2]),
    (Point, Point(1, 2.5)),
    (Item, Item(name="a", price=Decimal("0.10"), day=date(2030, 5, 1))),
    (Strict, Strict(day=date(2030, 5, 1))),
    (dict[str, list[Item]], {"a": [Item(name="a", price=Decimal(1))]}),
    (Item | Line, Line("a", Decimal(1))),
]


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=lambda value: str(value)[:40])
def test_what_comes_out_is_what_went_in(annotation: Any, value: Any) -> None:
    shape = shape_of(annotation)

    found = shape.decode(json.loads(json.dumps(shape.encode(value, "it"), allow_nan=False)), "it")

    assert found == value
    assert type(found) is type(value)


def test_a_number_without_a_fraction_may_stand_for_a_float() -> None:
    shape = shape_of(float)

    assert (shape.encode(3, "it"), shape.decode(3, "it"), type(shape.decode(3, "it"))) == (3, 3.0, float)


def test_a_moment_keeps_its_instant_and_not_the_name_of_its_zone() -> None:
    shape = shape_of(datetime)
    rome = datetime(2030, 5, 1, 12, tzinfo=ZoneInfo("Europe/Rome"))

    found = shape.decode(shape.encode(rome, "it"), "it")

    assert found == rome
    assert found.utcoffset() == timedelta(hours=2)


def test_a_text_choice_counts_as_the_text_it_is() -> None:
    assert shape_of(str).encode(Mood.GOOD, "it") == "good"
    assert type(shape_of(str).encode(Mood.GOOD, "it")) is str


def test_the_same_set_is_the_same_json() -> None:
    shape = shape_of(set[str])

    assert shape.encode({"b", "a", "c"}, "it") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (str, 5, "it must be str, got 5 (int)"),
        (int, "5", "it must be int, got '5' (str)"),
        (int, 5.0, "it must be int, got 5.0 (float)"),
        (float, True, "it must be float, got True (bool)"),
        (bool, 1, "it must be bool, got 1 (int)"),
        (date, AT, "it must be date, got "),
        (datetime, date(2030, 5, 1), "it must be datetime, got "),
        (Colour, "red", "it must be a member of Colour, got 'red' (str)"),
        (Literal["a", "b"], "c", "it must be one of 'a', 'b', got 'c' (str)"),
        (Literal[1], True, "it must be one of 1, got True (bool)"),
        (list[int], (1, "x"), "it[1] must be int, got 'x' (str)"),
        (list[int], "12", "it must be list[int], got '12' (str)"),
        (tuple[int, str], (1,), "it must be tuple[int, str], got (1,) (tuple)"),
        (set[int], [1], "it must be set[int], got [1] (list)"),
        (dict[str, int], {"a": None}, "it['a'] must be int, got None (NoneType)"),
        (dict[str, int], {1: 1}, "a key of it must be str, got 1 (int)"),
        (int | None, "x", "it must be int, got 'x' (str)"),
        (int | str, 1.5, "it must be int | str, got 1.5 (float)"),
        (Order, Order(1, [Line("a", "1")], AT), "it.lines[0].price must be Decimal, got '1' (str)"),  # type: ignore[arg-type]
        (Line, {"sku": "a"}, "it must be Line, got {'sku': 'a'} (dict)"),
        (Address, {"zip": 1}, "it.street is missing: it must be Address; got {'zip': 1} (dict)"),
        (Loose, {}, "it.street is missing: it must be Loose; got {} (dict)"),
        (Address, {"street": "x", "city": "y"}, "it must be Address, which has no 'city'; got "),
        (Item, {"name": "x"}, "it must be Item, got {'name': 'x'} (dict)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_of_another_kind_is_refused_with_place_rule_and_value(
    annotation: Any, value: Any, message: str
) -> None:
    with pytest.raises(InvalidArguments) as found:
        shape_of(annotation).encode(value, "it")

    assert str(found.value).startswith(message)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Decimal, "abc", "it must be Decimal, got 'abc' (str)"),
        (Decimal, 1.5, "it must be Decimal, got 1.5 (float)"),
        (UUID, "abc", "it must be UUID, got 'abc' (str)"),
        (datetime, "soon", "it must be datetime, got 'soon' (str)"),
        (timedelta, "1", "it must be timedelta, got '1' (str)"),
        (bytes, "ä", "it must be bytes, got "),
        (Colour, "green", "it must be a member of Colour, got 'green' (str)"),
        (Line, {"sku": "a"}, "it.price is missing"),
        (Line, {"sku": "a", "price": "1", "colour": "x"}, "it must be Line, which has no 'colour'"),
        (Line, [1], "it must be Line, got [1] (list)"),
        (
            Positive,
            {"value": -1},
            "it must be Positive, which refuses {'value': -1} (dict): ValueError: must be positive",
        ),
        (
            Item,
            {"name": "a", "price": "-1"},
            "it must be Item, which refuses {'name': 'a', 'price': '-1'} (dict): price: ",
        ),
        (list[set[int]], [[1, "x"]], "it[0][1] must be int, got 'x' (str)"),
        (set[Any], [[1]], "it must be set[Any], got [[1]] (list)"),
        (dict[int, str], {"a": "b"}, "a key of it must be int, got 'a' (str)"),
        (tuple[int, ...], {"a": 1}, "it must be tuple[int, ...], got {'a': 1} (dict)"),
        (Point, [1], "it must be Point, got [1] (list)"),
        (Cat | Dog, {"nme": "x"}, "it must be "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_of_another_shape_is_refused_when_it_is_read(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(InvalidArguments) as found:
        shape_of(annotation).decode(value, "it")

    assert str(found.value).startswith(message)


def test_a_field_added_with_a_default_does_not_break_what_was_stored_before() -> None:
    assert shape_of(Line).decode({"sku": "a", "price": "1"}, "it") == Line("a", Decimal(1), 1)


@pytest.mark.parametrize(("annotation", "value"), [(str | date, date(2030, 5, 1)), (Cat | Dog, Dog("x"))])
def test_a_member_of_a_union_that_json_would_make_another_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"and JSON would give .* back as .*: it is the first of them that fits"):
        shape_of(annotation).encode(value, "it")


def test_a_text_that_a_narrower_member_would_take_is_refused_too() -> None:
    shape = shape_of(date | str)

    assert shape.decode(shape.encode(date(2030, 5, 1), "it"), "it") == date(2030, 5, 1)
    assert shape.encode("tomorrow", "it") == "tomorrow"
    with pytest.raises(InvalidArguments, match=r"back as datetime.date"):
        shape.encode("2030-05-01", "it")


def test_an_instance_of_a_subclass_is_refused_as_it_would_come_back_as_less() -> None:
    @dataclass
    class More(Cat):
        age: int = 3

    with pytest.raises(InvalidArguments, match="it must be Cat, got"):
        shape_of(Cat).encode(More("x"), "it")


class Renamed(BaseModel):
    count: int = Field(alias="Count")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int

    @computed_field
    def twice(self) -> int:
        return self.count * 2


class WrittenOtherwise(BaseModel):
    count: int = Field(default=0, serialization_alias="Count")


class Unreadable(BaseModel):
    count: int = Field(validation_alias="given", serialization_alias="taken")


class Larger(Computed):
    more: int = 1


@pytest.mark.parametrize("value", [Renamed(Count=3), Computed(count=3), WrittenOtherwise(count=3)])
def test_a_model_comes_back_whatever_its_aliases_and_computed_fields(value: Any) -> None:
    shape = shape_of(type(value))

    assert shape.decode(json.loads(json.dumps(shape.encode(value, "x"))), "x") == value
    assert shape.decode(plain(value), "x") == value


@pytest.mark.parametrize(("annotation", "value"), [(Unreadable, Unreadable(given=3)), (Computed, Larger(count=3))])
def test_a_model_that_would_not_come_back_is_refused_when_it_is_written(annotation: Any, value: Any) -> None:
    with pytest.raises(InvalidArguments, match=annotation.__name__):
        shape_of(annotation).encode(value, "x")


@pytest.mark.parametrize(
    ("annotation", "value"), [(dict[Size, str], {Size.SMALL: "s"}), (dict[int | None, str], {1: "one"})]
)
def test_keys_that_are_numbers_come_back(annotation: Any, value: Any) -> None:
    shape = shape_of(annotation)

    assert shape.decode(json.loads(json.dumps(shape.encode(value, "x"))), "x") == value


def test_a_key_that_would_come_back_as_another_is_refused() -> None:
    with pytest.raises(InvalidArguments, match=r"1 \(int\) back as '1' \(str\)"):
        shape_of(dict[str | int, str]).encode({1: "one"}, "x")


def test_a_name_that_is_part_of_itself_is_known_once() -> None:
    class TypeAliasType:
        # As ``type Tree = list[Tree] | int`` makes it, from Python 3.12.
        @property
        def __value__(self) -> Any:
            return list[self] | int  # type: ignore[valid-type]

    shape = shape_of(TypeAliasType())

    assert shape.decode(shape.encode([1, [2, [3]]], "x"), "x") == [1, [2, [3]]]
    with pytest.raises(InvalidArguments):
        shape.encode([1, ["2"]], "x")


def test_a_dataclass_that_cannot_be_made_of_its_fields_is_refused_as_an_annotation() -> None:
    @dataclass
    class Priced:
        price: int
        rate: InitVar[int]

    with pytest.raises(InvalidOptions, match="without 'rate'"):
        shape_of(Priced)


@pytest.mark.parametrize("annotation", [deque, Callable[[], int], list[Callable[[], int]], complex, type])
def test_an_annotation_that_json_has_no_form_for_is_refused_with_a_way_out(annotation: Any) -> None:
    with pytest.raises(InvalidOptions, match=r"cannot be validated: JSON has no form for it.*switch validate off"):
        shape_of(annotation)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InvalidArguments) as found:
        shape_of(int).encode("x" * 10_000, "it")

    assert len(str(found.value)) < 120
    assert (found.value.path, found.value.rule) == ("it", "int")
    assert isinstance(found.value, InvalidPayload)


def test_a_value_that_fails_when_it_is_shown_is_refused_all_the_same() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(InvalidArguments, match="it must be int, got <"):
        shape_of(int).encode(Hostile(), "it")


SCALARS = st.one_of(st.integers(), st.text(), st.booleans(), st.none())
LINES = st.builds(Line, st.text(), st.decimals(allow_nan=False), st.integers())


@given(st.dictionaries(st.text(), st.lists(st.tuples(st.dates(), st.one_of(st.none(), LINES)))))
def test_nested_values_of_any_kind_survive(value: Any) -> None:
    shape = shape_of(dict[str, list[tuple[date, Line | None]]])

    assert shape.decode(json.loads(json.dumps(shape.encode(value, "it"))), "it") == value


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_json_of_whatever_shape_is_read_or_refused_and_nothing_else(value: Any) -> None:
    for annotation in (Order, Item, Address, Point, set[UUID], dict[int, Colour], Literal["a"], Cat | Dog | date):
        with suppress(InvalidArguments):
            shape_of(annotation).decode(value, "it")


# Signatures


def bare(a, b=2, *rest, c, **more):  # type: ignore[no-untyped-def]  # noqa: ANN
    """Have no annotations."""


def typed(context: Unknown, order: Order, /, *rest: date, mode: Literal["a", "b"] = "a", **more: Decimal) -> Unknown2:  # type: ignore[name-defined]  # noqa: F821
    """Name things that are there for type checkers only, where that does not matter."""


def names_nothing(order: Nothing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Name something that is not there."""


def test_arguments_keep_the_way_they_were_given() -> None:
    signature = Signature(typed, takes_context=True)
    args, kwargs = (ORDER, date(2030, 5, 1)), {"mode": "b", "tax": Decimal("0.2")}

    found = signature.encode(args, kwargs, types=True)

    assert found[0][1] == "2030-05-01"
    assert found[1] == {"mode": "b", "tax": "0.2"}
    assert signature.decode(json.loads(json.dumps(found[0])), found[1], types=True) == (args, kwargs)


def test_the_place_of_a_wrong_argument_is_named() -> None:
    signature = Signature(typed, takes_context=True)

    with pytest.raises(InvalidArguments, match=r"argument rest\[1\] must be date, got 3"):
        signature.encode((ORDER, date(2030, 5, 1), 3), {}, types=True)
    with pytest.raises(InvalidArguments, match="argument tax must be Decimal, got 3"):
        signature.encode((ORDER,), {"tax": 3}, types=True)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"c": 1}, "missing a required argument: 'a'"),
        ((1,), {}, "missing a required.* argument: 'c'"),
        ((1,), {"a": 1, "c": 1}, "multiple values for argument 'a'"),
    ],
)
def test_a_call_that_does_not_fit_the_signature_is_refused(args: Any, kwargs: Any, message: str) -> None:
    signature = Signature(bare, takes_context=False)

    with pytest.raises(InvalidArguments, match=rf"bare cannot be called so: {message}; its arguments are \(a, b=2"):
        signature.encode(args, kwargs, types=False)


def test_without_annotations_everything_passes_as_it_is() -> None:
    value = object()

    assert Signature(bare, takes_context=False).encode((value,), {"c": value}, types=True) == ((value,), {"c": value})


def test_a_name_that_is_there_for_type_checkers_only_is_told() -> None:
    with pytest.raises(InvalidOptions, match="names_nothing name 'Nothing', which is not there when the task runs"):
        signature_of(names_nothing, takes_context=False).check_annotations()


def test_what_is_not_known_yet_passes_unchecked_and_is_checked_when_it_is() -> None:
    signature = Signature(typed, takes_context=True)
    coming = Placeholder("parse")
    inner = Order(1, [coming], AT)  # type: ignore[list-item]

    assert signature.encode((coming,), {}, types=True) == ((coming,), {})
    [found], _ = signature.encode((inner,), {}, types=True)
    assert found["lines"] == [coming]
    with pytest.raises(InvalidArguments, match="argument order must be Order, got None"):
        signature.decode((None,), {}, types=True)


# Results


def test_a_result_becomes_what_json_has() -> None:
    value = {
        "order": ORDER,
        "item": Item(name="a", price=Decimal("0.10")),
        Colour.RED: [Colour.BLUE, AT, date(2030, 5, 1), timedelta(seconds=1), UUID(int=1), {3, 1}],
        "none": None,
    }

    found = plain(value)

    assert json.loads(json.dumps(found)) == found
    assert found["order"]["lines"][0] == {"sku": "a", "price": "1.50", "count": 1}
    assert found["item"] == {"name": "a", "price": "0.10", "day": None}
    assert found["red"] == ["blue", "2030-05-01T12:30:15.123456+00:00", "2030-05-01", 1.0, str(UUID(int=1)), [1, 3]]


def test_a_result_that_json_has_no_form_for_stays_to_be_refused() -> None:
    value = object()

    assert plain([value]) == [value]
