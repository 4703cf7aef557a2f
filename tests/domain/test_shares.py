"""Shares by weight: exact over time, whatever the size of a batch, and without saving up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_taskq.domain.shares import Shares

WEIGHTS = {"a": 6, "b": 3, "c": 1}


def served(shares: Shares, batches: list[int], stock: Counter[str] | None = None) -> Counter[str]:
    """Return what each queue gave over some batches; a queue that is not in ``stock`` never runs dry."""
    stock = stock or Counter()
    total: Counter[str] = Counter()
    for size in batches:
        left, dry = size, set()
        while left and len(dry) < len(WEIGHTS):
            for name, count in shares.divide(left, [name for name in WEIGHTS if name not in dry]).items():
                gave = min(count, stock[name]) if name in stock else count
                if name in stock:
                    stock[name] -= gave
                if gave < count:
                    dry.add(name)
                shares.took(name, gave)
                total[name] += gave
                left -= gave
        shares.keep_up(name for name in WEIGHTS if name not in dry)
    return total


@given(st.lists(st.integers(min_value=1, max_value=500), min_size=1, max_size=60), st.floats(0, 0.99))
def test_each_gets_its_share_of_all_batches_to_two_tasks(batches: list[int], start: float) -> None:
    total = served(Shares(WEIGHTS, lambda: start), batches)

    assert total.total() == sum(batches)
    for name, weight in WEIGHTS.items():
        assert abs(total[name] - sum(batches) * weight / 10) <= 2


@pytest.mark.parametrize("size", [1, 3, 50])
def test_what_a_dry_queue_leaves_is_shared_by_weight(size: int) -> None:
    total = served(Shares(WEIGHTS, lambda: 0.0), [size] * 400, Counter(a=0))

    assert total["a"] == 0
    assert abs(total["b"] - size * 300) <= max(2, size // 20)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_queue_that_was_dry_saved_nothing_up(size: int) -> None:
    shares = Shares(WEIGHTS, lambda: 0.0)
    served(shares, [size] * 400, Counter(a=0))

    after = served(shares, [size] * 10)

    assert abs(after["a"] - size * 6) <= 2 + size // 10
    assert abs(after["c"] - size) <= 2 + size // 10


def test_the_others_have_no_debt_for_what_they_were_given_in_place_of_a_dry_queue() -> None:
    shares = Shares(WEIGHTS, lambda: 0.0)
    served(shares, [100] * 50, Counter(a=0, b=0))

    after = served(shares, [10])

    assert after == Counter(a=6, b=3, c=1)


def test_workers_that_start_begin_with_each_queue_as_often_as_it_weighs() -> None:
    phases = [at / 1000 for at in range(1000)]

    first = Counter(
        next(iter(Shares({"a": 3, "b": 1}, iter([x, y]).__next__).divide(1, ["a", "b"])))
        for x in phases[::50]
        for y in phases[::50]
    )

    # With a stride of 1/3 and of 1, "b" is before "a" in a sixth of all cases, and never left out.
    assert 0.1 < first["b"] / first.total() < 0.25


def test_nobody_to_ask_gives_nothing() -> None:
    assert Shares(WEIGHTS, lambda: 0.0).divide(5, []) == {}
