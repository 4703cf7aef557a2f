"""Backoff curves, leases, ids, and the texts kept of an error."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from dataclasses import FrozenInstanceError, dataclass, field, replace
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_taskq import clock
from django_taskq.domain import lease as leases
from django_taskq.domain.outcomes import MAX_TRACEBACK, ErrorInfo, clean_text, fingerprint
from django_taskq.domain.retry import MAX_WAIT, Exponential, Fixed, Steps, curve_from_data, curve_to_data
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidOptions
from django_taskq.ids import TaskIds, task_ids, uuid7
from django_taskq.testing import travel

SPANS = st.floats(0, MAX_WAIT)
CURVES = st.one_of(
    st.builds(Fixed, SPANS),
    st.lists(SPANS, min_size=1, max_size=5).map(lambda steps: Steps(*steps)),
    st.builds(Exponential, base=SPANS, factor=st.floats(1, 1000), cap=SPANS, jitter=st.floats(0, 1000)),
)


@given(CURVES, st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_negative_endless_or_shorter_than_without_jitter(
    curve: object, attempt: int, draw: float
) -> None:
    wait, plain = curve.delay(attempt, draw), curve.delay(attempt, 0.0)  # type: ignore[attr-defined]

    assert 0 <= plain <= wait <= MAX_WAIT
    assert clock.from_timestamp(0) + timedelta(seconds=wait)


@given(CURVES)
def test_a_curve_survives_being_stored(curve: object) -> None:
    data = curve_to_data(curve)

    assert data is not None
    assert curve_from_data(data) == curve


def test_the_default_doubles_up_to_ten_minutes() -> None:
    curve = Exponential()

    assert [curve.delay(attempt, 0.0) for attempt in range(1, 10)] == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert curve.delay(1, 0.999) == pytest.approx(6.25, abs=0.01)


def test_jitter_comes_on_top_of_the_cap() -> None:
    assert Exponential(base=100, cap=100, jitter=0.5).delay(9, 0.5) == 125


def test_a_factor_that_overflows_is_capped() -> None:
    assert Exponential(base=1, factor=1000, cap=60, jitter=0).delay(10**6, 0.0) == 60


def test_steps_stay_at_the_last() -> None:
    curve = Steps(0, 30, timedelta(minutes=5))

    assert [curve.delay(attempt, 0.9) for attempt in (0, 1, 2, 3, 4, 99)] == [0, 0, 30, 300, 300, 300]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(-1),
        lambda: Fixed(float("nan")),
        lambda: Fixed(float("inf")),
        lambda: Fixed(True),
        lambda: Fixed("5"),  # type: ignore[arg-type]
        lambda: Fixed(timedelta(days=4000)),
        Steps,
        lambda: Steps(1, -1),
        lambda: Exponential(factor=0.5),
        lambda: Exponential(jitter=-0.1),
        lambda: Exponential(jitter=float("nan")),
        lambda: curve_from_data({"bse": 5}),
    ],
    ids=range(12),
)
def test_a_value_outside_its_rule_is_refused(make: object) -> None:
    with pytest.raises(InvalidOptions):
        make()  # type: ignore[operator]


def test_settings_may_say_a_curve_by_number_list_or_mapping() -> None:
    assert curve_from_data(5) == Fixed(5)
    assert curve_from_data([1, 2]) == Steps(1, 2)
    assert curve_from_data({"base": 1, "cap": 9}) == Exponential(base=1, cap=9)
    assert curve_to_data(len) is None


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**32 - 1))
def test_a_lease_tells_its_worker_and_lies_in_its_span(worker: int, number: int) -> None:
    lease = leases.make_lease(worker, number)
    low, high = leases.span_of(worker)

    assert leases.worker_of(lease) == worker
    assert low <= lease <= high
    assert lease < 2**63
    assert high < leases.span_of(worker + 1)[0]


@pytest.mark.parametrize(("worker", "number"), [(0, 1), (-1, 1), (2**31, 1), (1, -1), (1, 2**32)])
def test_what_fits_no_lease_is_refused(worker: int, number: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        leases.make_lease(worker, number)


@given(st.text(st.characters()), st.integers(40, 200))
@example("\x00" * 200, 200)
@example("\ud800" * 41, 40)
def test_clean_text_fits_every_database(text: str, limit: int) -> None:
    found = clean_text(text, limit)

    found.encode()
    assert "\x00" not in found
    assert len(found) <= limit
    if len(text) <= limit and text.isprintable() and text.isascii():
        assert found == text


def test_a_long_traceback_keeps_both_ends() -> None:
    found = clean_text("begin" + "x" * 100_000 + "end")

    assert found.startswith("begin")
    assert found.endswith("end")
    assert "cut" in found
    assert len(found) <= MAX_TRACEBACK


@pytest.mark.parametrize("length", [299, 300, 301, 5000])
def test_the_line_of_an_error_has_at_most_300_characters(length: int) -> None:
    line = ErrorInfo(class_path="", message="\n " + "\U0001f600" * length + "\nmore", traceback="", fingerprint="").line

    assert len(line) == min(length, 300)
    assert line.endswith("…" if length > 300 else "\U0001f600")


def test_errors_of_one_cause_have_one_fingerprint() -> None:
    def found(message: str, path: str = "a.B", place: str = "f.py:g") -> str:
        return fingerprint(path, message, place)

    assert found("order 17 of 'x' failed at 0xdeadbeef") == found("order 9 of 'yy' failed at 0x1")
    assert found("first line 1\nsecond") == found("first line 2\nother")
    assert len({found("a"), found("b"), found("a", "a.C"), found("a", "a.B", "f.py:h")}) == 4
    assert all(len(print_) == 16 for print_ in (found(""), found("\ud800")))


# Ids


def test_ids_ascend_and_are_unique_one_by_one_and_many_at_once() -> None:
    made = [task_ids.one() for _ in range(5000)] + task_ids.many(5000) + [task_ids.one()]

    assert made == sorted(set(made))


def test_an_id_is_a_version_7_uuid_of_its_moment() -> None:
    with travel(clock.from_timestamp(4_000_000_000.123456)):
        made = [TaskIds().one(), TaskIds().many(1)[0]]

    for number in made:
        found = uuid.UUID(int=number)
        assert (found.version, found.variant) == (7, uuid.RFC_4122)
        assert number >> 80 == 4_000_000_000_123
        assert (number >> 64 & 4095) == 456 * 4096 // 1000


def test_ids_ascend_though_the_clock_goes_back() -> None:
    ids = TaskIds()
    with travel(clock.from_timestamp(2_000_000_000)) as hands:
        first = ids.one()
        hands.shift(-3600)
        second = [ids.one(), *ids.many(3)]

    assert sorted([first, *second]) == [first, *second]


def test_threads_never_make_the_same_id() -> None:
    ids, made, start = TaskIds(), [[] for _ in range(8)], threading.Barrier(8)

    def make(into: list[int]) -> None:
        start.wait(10)
        for _ in range(500):
            into.append(ids.one())
            into += ids.many(3)

    threads = [threading.Thread(target=make, args=[into]) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    every = [number for into in made for number in into]
    assert len(set(every)) == 8 * 500 * 4
    assert all(into == sorted(into) for into in made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_makes_other_ids_than_its_parent() -> None:
    ids = TaskIds()
    ids.one()
    read, write = os.pipe()

    # The same clock in both, so that only the random part can tell them apart.
    with travel(clock.from_timestamp(2_000_000_000)):
        child = os.fork()
        if child == 0:
            os.write(write, b"".join(ids.one().to_bytes(16, "big") for _ in range(100)))
            os._exit(0)
        mine = {ids.one() for _ in range(100)}
    os.waitpid(child, 0)
    text = os.read(read, 1600)
    os.close(read)
    os.close(write)

    theirs = {int.from_bytes(text[at : at + 16], "big") for at in range(0, 1600, 16)}
    assert len(theirs) == 100
    assert mine.isdisjoint(theirs)
    assert {number >> 64 for number in mine} == {number >> 64 for number in theirs}


def test_a_fork_while_the_lock_is_held_leaves_the_child_a_free_one() -> None:
    ids = TaskIds()
    with ids._lock:
        ids._after_fork()

    assert ids.one()


def test_uuid7_is_the_default_of_task_ids() -> None:
    first, second = uuid7(), uuid7()

    assert first < second
    assert first.version == 7


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Lean:
    number: int
    hidden: str = field(default="", repr=False)
    aside: str = field(default="", compare=False)


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class LeanChild(Lean):
    more: int = 0


def test_a_lean_value_compares_and_shows_itself_by_its_fields() -> None:
    value = Lean(number=1, hidden="a", aside="x")

    assert repr(value) == "Lean(number=1, aside='x')"
    assert value == Lean(number=1, hidden="a", aside="y")
    assert hash(value) == hash(Lean(number=1, hidden="a", aside="y"))
    assert value != Lean(number=1, hidden="b")
    assert value != LeanChild(number=1, hidden="a")
    assert value != 1


def test_a_lean_value_cannot_be_changed_but_replaced_and_sent() -> None:
    value = LeanChild(number=1, more=2)

    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'number'"):
        value.number = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'more'"):
        del value.more  # type: ignore[misc]
    assert replace(value, number=3) == LeanChild(number=3, more=2)
    assert pickle.loads(pickle.dumps(value)) == value
