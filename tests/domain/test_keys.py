"""Which calls have the same key, and what a user is told about keys that cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_taskq.domain.keys import arguments_digest, bound_key, check_key, fitted
from django_taskq.exceptions import InvalidOptions, InvalidPayload


def send(order_id: int, account: Any = "main", *tags: str, urgent: bool = False) -> None: ...
def in_context(context: Any, order_id: int) -> None: ...
def open_ended(order_id: int, **more: Any) -> None: ...


@dataclass(frozen=True)
class Order:
    pk: int


def key(template: Any, *args: Any, function: Any = send, takes_context: bool = False, **kwargs: Any) -> str | None:
    check_key(function, takes_context, template)
    return bound_key(function, takes_context, template, args, kwargs)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("order:{order_id}", "order:7"),
        ("{account}/{order_id:03}", "main/007"),
        ("{account!r}", "'main'"),
        ("all", "all"),
        ("{{{order_id}}}", "{7}"),
        ("urgent={urgent}", "urgent=False"),
        ("{tags}", "()"),
    ],
)
def test_a_template_is_filled_with_the_arguments_and_their_defaults(template: str, expected: str) -> None:
    assert key(template, 7) == expected
    assert key(template, order_id=7) == expected


def test_a_template_reads_items_and_attributes_of_an_argument() -> None:
    assert key("{account[id]}", 1, {"id": 5}) == "5"
    assert key("{tags[1]}", 1, "a", "x", "y") == "y"
    assert key("{account.pk}", 1, Order(pk=9)) == "9"
    assert key("{account}", 1, b"caf\xc3\xa9") == "caf\xe9"


def test_the_context_is_no_argument() -> None:
    assert key("{order_id}", 7, function=in_context, takes_context=True) == "7"
    with pytest.raises(InvalidOptions, match="names 'context', which is no parameter of in_context; it has: order_id"):
        check_key(in_context, True, "{context}")


def test_a_name_that_only_some_calls_have_is_asked_for_with_the_call() -> None:
    assert key("{tenant}", 1, function=open_ended, tenant="a") == "a"
    with pytest.raises(InvalidOptions, match=r"finds no \{tenant\} in the arguments of this call"):
        key("{tenant}", 1, function=open_ended)


@pytest.mark.parametrize(
    ("template", "code", "words"),
    [
        ("order:{order}", "unknown", "names 'order', which is no parameter of send; it has: order_id, account"),
        ("{}", "template", "needs the name of a parameter"),
        ("{0}", "template", "needs the name of a parameter"),
        ("{order_id", "template", "is no template"),
        ("{account.__class__}", "template", "private"),
        ("{order_id:{account}}", "template", "a format cannot hold another value"),
        ("", "characters", "must not be empty"),
        ("a\nb", "characters", "control characters"),
        (" a", "characters", "begin or end with a space"),
        (7, "type", "a template like"),
    ],
)
def test_a_key_that_no_call_could_have_is_refused_with_the_definition(template: Any, code: str, words: str) -> None:
    with pytest.raises(InvalidOptions, match=words) as caught:
        check_key(send, False, template, field="unique")

    assert (caught.value.field, caught.value.code) == ("unique", code)


@pytest.mark.parametrize(
    ("template", "value", "code"),
    [("{account}", None, "none"), ("{account[x]}", {}, "missing"), ("{account:d}", "text", "format")],
)
def test_a_call_that_makes_no_key_is_refused(template: str, value: Any, code: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        key(template, 1, value)

    assert caught.value.code == code


def test_a_callable_gets_the_arguments_and_may_say_that_there_is_no_key() -> None:
    def by_account(order_id: int, account: Any = None) -> str | None:
        return account and f"{account}-{order_id}"

    assert key(by_account, 1, account="a") == "a-1"
    assert key(by_account, 1) is None
    with pytest.raises(InvalidOptions, match="a text that is not empty"):
        key(lambda order_id: order_id, 5)


def test_arguments_that_do_not_fit_the_function_make_no_key() -> None:
    with pytest.raises(InvalidPayload, match="do not fit send"):
        key("{order_id}")
    with pytest.raises(InvalidPayload, match="do not fit send"):
        arguments_digest(send, False, (), {"wrong": 1})


def test_calls_that_mean_the_same_have_the_same_digest() -> None:
    def digest(*args: Any, **kwargs: Any) -> str:
        return arguments_digest(send, False, args, kwargs)

    same = {digest(1), digest(1, "main"), digest(order_id=1), digest(account="main", order_id=1, urgent=False)}
    others = {digest(2), digest("1"), digest(True), digest(1, None), digest(1, "main", "x"), digest(1, urgent=True)}

    assert len(same) == 1
    assert len(others) == 6
    assert not same & others
    assert digest(1, {"a": 1, "b": (2,)}) == digest(1, {"b": [2], "a": 1})


def test_a_key_that_fits_stays_as_it_is() -> None:
    assert fitted("order:7 of \xe9\U0001f600", 100) == "order:7 of \xe9\U0001f600"


@given(st.lists(st.text(st.characters(codec=None), max_size=60), min_size=2, max_size=6, unique=True))
def test_two_texts_never_become_one_key(texts: list[str]) -> None:
    keys = [fitted(text, 40) for text in texts]

    # What databases take for the same: MySQL compares without spaces at the end.
    assert len({key.rstrip(" ") for key in keys}) == len(texts)
    assert all(0 < len(key) <= 40 for key in keys)
    assert not any(character in key for key in keys for character in "\x00\n\r\t\x7f")


def test_a_long_key_stays_readable() -> None:
    assert (
        fitted("customer:" + "x" * 200, 50) == "customer:" + "x" * 24 + "#" + fitted("customer:" + "x" * 200, 50)[-16:]
    )
    assert fitted("a\nb", 50).startswith("a b#")
