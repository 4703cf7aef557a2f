"""Payloads: what goes in comes out, limits are exact, damaged rows are dead and hold nobody up."""

import json
from typing import Any

import pytest
from django.test import override_settings

from django_taskq.exceptions import InvalidPayload, PayloadTooLarge
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import claim_one, drain, ready_task, row_of, run_burst, running_worker, state_of, wait_for
from tests.guarantees import hostile
from tests.guarantees.tasks import note, ran, return_this

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_large_payload_makes_the_round_trip() -> None:
    """S0-107: 128 KiB of JSON, there and back."""
    value = {"text": "Grüße 🚀 " * 8000, "list": list(range(5000)), "deep": [[[{"a": None}]]]}
    assert len(json.dumps(value)) > 128 * 1024
    task = return_this.enqueue(value)

    run_burst(threads=1)

    task.refresh()
    assert task.return_value == value


def test_a_payload_just_below_the_default_limit_makes_the_round_trip() -> None:
    """S0-106: a megabyte."""
    value = "x" * (1024 * 1024 - 100)
    task = return_this.enqueue(value)

    run_burst(threads=1)

    task.refresh()
    assert task.return_value == value


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_the_limit_of_arguments_is_exact(over: int, fits: bool) -> None:
    """S0-108: just below, at, just above; counted in bytes of the stored text, refused before the database is asked."""
    empty = len('{"args":[""],"kwargs":{}}')
    with override_settings(TASKQ={"MAX_PAYLOAD_BYTES": 1000}):
        text = "x" * (1000 - empty + over)
        if fits:
            note.enqueue(text)
        else:
            with pytest.raises(PayloadTooLarge, match=f"take {1000 + over} bytes.*MAX_PAYLOAD_BYTES allows 1000"):
                note.enqueue(text)

    assert Task.objects.count() == int(fits)


@pytest.mark.parametrize(("over", "state"), [(-1, "succeeded"), (0, "succeeded"), (1, "dead")])
def test_the_limit_of_results_is_exact(over: int, state: str) -> None:
    """S0-108: too large a result is a dead letter that says so; the work was done."""
    task = hostile.return_much.enqueue(1000 - 2 + over)

    with override_settings(TASKQ={"MAX_RESULT_BYTES": 1000}):
        drain()

    row = row_of(task)
    assert isinstance(row, FinishedTask)
    assert state_of(task) == state
    if state == "dead":
        assert row.reason == "undecodable"
        assert "MAX_RESULT_BYTES" in (row.error_line or "")


@pytest.mark.slow
def test_many_large_results_at_once_are_written() -> None:
    """S0-107: by weight, since a statement has a limit of its own (16 MiB on MariaDB and MySQL)."""
    tasks = [hostile.return_much.enqueue(1024 * 1024 - 2) for _ in range(24)]

    with running_worker(threads=4):
        wait_for(lambda: FinishedTask.objects.count() == 24, 90)

    assert {state_of(task) for task in tasks} == {"succeeded"}


@pytest.mark.slow
def test_many_long_tracebacks_at_once_are_written() -> None:
    """S0-107: an outage of some service makes hundreds of them."""
    hostile.raise_chain.enqueue(100)
    for _ in range(300):
        hostile.raise_text.enqueue("x" * 100, 600)

    with running_worker(threads=4):
        wait_for(lambda: FinishedTask.objects.count() == 301, 90)

    assert set(FinishedTask.objects.values_list("reason", flat=True)) == {"exhausted"}


@pytest.mark.parametrize(
    "args",
    ids=range(12),
    argvalues=[
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"args":[]}',
        '{"args":{},"kwargs":{}}',
        '{"args":[],"kwargs":[]}',
        '{"args":[1],"kwargs":{}',
        "[" * 100_000,
        "\ufeff{}",
    ],
)
def test_damaged_arguments_are_a_dead_letter_and_the_next_task_runs(args: str) -> None:
    """S0-111: permanent, at once, and nobody waits."""
    damaged = ready_task(note, args="{}", rank=-1, max_attempts=5)
    Task.objects.filter(pk=damaged.pk).update(args=args)
    other = note.enqueue("other")

    drain()

    row = row_of(damaged)
    assert isinstance(row, FinishedTask)
    assert (row.reason, row.attempt) == ("undecodable", 1)
    assert (state_of(other), ran) == ("succeeded", ["other"])


@pytest.mark.parametrize("column", ["options", "metadata"])
@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "7", "[" * 100_000], ids=range(5))
def test_damaged_options_and_metadata_are_a_dead_letter_too(column: str, text: str) -> None:
    """S0-111: every text of the row may be damaged."""
    damaged = ready_task(note, rank=-1, max_attempts=5, **{column: text})
    other = note.enqueue("other")

    run_burst(threads=1)

    row = row_of(damaged)
    assert isinstance(row, FinishedTask)
    assert row.reason == "undecodable"
    assert state_of(other) == "succeeded"


def test_damaged_options_of_an_unknown_task_end_it_too() -> None:
    """S0-111: both at once."""
    damaged = ready_task("shop.tasks.never", options="{")
    other = note.enqueue("other")

    run_burst(threads=1)

    assert state_of(damaged) == "dead"
    assert state_of(other) == "succeeded"


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1: "int key"}, object(), "\ud800", b"\xff", {1, 2}, 10**5000],
    ids=["nan", "infinity", "int key", "object", "surrogate", "bytes", "set", "5000 digits"],
)
def test_what_json_would_change_or_lose_is_refused_at_once(value: Any) -> None:
    """S0-106: with a sentence that says how to do it; no row is left."""
    with pytest.raises(InvalidPayload):
        note.enqueue(value)

    assert not Task.objects.exists()


@pytest.mark.parametrize(
    "value", ["nul \x00 inside", "\u2028 \\u0000 \\", 2**70, -(2**70), 1e308, [], {}, ["a", None]], ids=range(8)
)
def test_what_json_holds_comes_out_as_it_went_in(value: Any) -> None:
    """S0-113: on every database, NUL and huge numbers too."""
    task = return_this.enqueue(value)

    drain()

    task.refresh()
    assert task.return_value == value


def test_the_wrong_number_of_arguments_is_an_ordinary_failure() -> None:
    """S0-42: the function says so itself; a deploy may mend it before the next attempt."""
    task = ready_task(note, 1, 2, 3, max_attempts=2)

    engine.run_and_settle(claim_one())

    assert state_of(task) == "scheduled"
    assert engine.outcomes_of(task) == ["failed"]
