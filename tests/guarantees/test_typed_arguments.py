"""Typed arguments: checked when a task is enqueued, rebuilt and checked again when it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_taskq import InvalidArguments, InvalidOptions, batch, chain, events, previous, result_of, task, workflow
from django_taskq.lifecycle import definitions
from django_taskq.models import FinishedTask, Task
from django_taskq.testing import record_tasks
from tests.engine import drain, outcomes_of, ready_task, row_of, running_worker, state_of, wait_for
from tests.guarantees import typed_tasks as tasks
from tests.guarantees.tasks import note, ran
from tests.guarantees.typed_tasks import ORDER, Item, Line, Order

pytestmark = pytest.mark.django_db(transaction=True)

ORDER_AS_JSON = {"number": 7, "placed": "2030-05-01", "lines": [{"sku": "a", "price": "1.50"}], "speed": "fast"}


def finished(result: Any) -> FinishedTask:
    row = row_of(result)
    assert isinstance(row, FinishedTask), state_of(result)
    return row


def result_after_a_run(definition: Any, *args: Any, **kwargs: Any) -> Any:
    """Enqueue a task, run it, and return its result."""
    result = definition.enqueue(*args, **kwargs)
    drain()
    result.refresh()
    return result


# At the enqueue


def test_arguments_are_stored_as_json_and_rebuilt_for_the_function() -> None:
    result = tasks.ship.enqueue(ORDER, express=True)
    row = row_of(result)
    assert isinstance(row, Task)
    assert row.arguments == ([ORDER_AS_JSON], {"express": True})
    assert (result.args, result.kwargs) == ([ORDER_AS_JSON], {"express": True})

    drain()

    assert ran == [(ORDER, True)]
    assert type(ran[0][0].lines[0].price) is Decimal


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((5,), {}, "argument order must be Order, got 5 (int)"),
        ((Order(1, date(2030, 5, 1), [Line("a", 1.5)]),), {}, "argument order.lines[0].price must be Decimal, got 1.5"),  # type: ignore[arg-type]
        ((ORDER,), {"express": "yes"}, "argument express must be bool, got 'yes' (str)"),
        ((), {}, "ship cannot be called so: missing a required argument: 'order'; its arguments are (order: "),
        ((ORDER, True), {}, "ship cannot be called so: too many positional arguments"),
        ((ORDER,), {"colour": 1}, "ship cannot be called so: got an unexpected keyword argument 'colour'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_database_is_asked(args: Any, kwargs: Any, message: str) -> None:
    told: list[Any] = []
    events.subscribe(events.EnqueueRejected, told.append)

    try:
        with CaptureQueriesContext(connection) as queries, pytest.raises(InvalidArguments) as found:
            tasks.ship.enqueue(*args, **kwargs)
    finally:
        events.unsubscribe(events.EnqueueRejected, told.append)

    assert str(found.value).startswith(message)
    assert not queries.captured_queries
    assert [event.error for event in told] == [found.value]


def test_every_way_to_enqueue_checks_and_stores_nothing_of_a_wrong_one() -> None:
    ways: list[Any] = [
        lambda: async_to_sync(tasks.ship.aenqueue)(5),
        lambda: tasks.ship.s(5).enqueue(),
        lambda: tasks.ship.using(delay=5).enqueue(5),
        lambda: tasks.ship.enqueue_many([(ORDER,), (5,)]),
        lambda: chain(tasks.ship.s(ORDER), tasks.ship.s(5)).enqueue(),
        lambda: batch([tasks.ship.s(ORDER)]).then(tasks.ship.s(5)).enqueue(),
    ]
    for enqueue in ways:
        with pytest.raises(InvalidArguments, match="argument order must be Order, got 5"):
            enqueue()

    assert not Task.objects.exists()


def test_many_calls_are_encoded_each() -> None:
    results = tasks.ship.enqueue_many([(ORDER,), {"order": ORDER, "express": True}, tasks.ship.s(ORDER)])
    drain()

    assert [result.args for result in results] == [[ORDER_AS_JSON], [], [ORDER_AS_JSON]]
    assert [express for _, express in ran] == [False, True, False]


def test_nothing_is_checked_unless_somebody_asks_for_it() -> None:
    result = result_after_a_run(note, "a", "b", "c")

    assert outcomes_of(result) == ["failed"]
    assert definitions.checks_of(note, definitions.conf.options()) is False


def test_the_setting_holds_for_tasks_that_say_nothing() -> None:
    with override_settings(TASKQ={"VALIDATE": True}):
        with pytest.raises(InvalidArguments, match="argument number must be int, got 'x'"):
            tasks.plain.enqueue("x")
        assert result_after_a_run(tasks.plain, 5).return_value == 5
        assert result_after_a_run(tasks.never, "x").return_value == "x"


def test_the_signature_alone_can_be_checked() -> None:
    assert result_after_a_run(tasks.by_signature, "no number").return_value == "no number"
    with pytest.raises(InvalidArguments, match="missing a required argument: 'number'"):
        tasks.by_signature.enqueue(extra=1)
    with (
        override_settings(TASKQ={"VALIDATE": "signature"}),
        pytest.raises(InvalidArguments, match="too many positional arguments"),
    ):
        tasks.plain.enqueue(1, 2)


def test_a_wrong_value_of_the_option_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="validate must be True, False or 'signature', got 'types'"):
        task(validate="types")(note.func)  # type: ignore[call-overload]
    with (
        pytest.raises(SystemCheckError, match="must be True, False or 'signature', got 1"),
        override_settings(TASKQ={"VALIDATE": 1}),
    ):
        call_command("check", "--tag", "django_taskq")


def test_an_annotation_that_cannot_be_checked_is_reported_by_check_and_at_the_enqueue() -> None:
    made = task(validate=True, name="tests.odd")(takes_something_odd)
    try:
        with pytest.raises(SystemCheckError, match=r"taskq.E009.*The arguments of tests.odd cannot be validated"):
            call_command("check", "--tag", "django_taskq")
        with pytest.raises(InvalidOptions, match="annotated with complex cannot be validated"):
            made.enqueue(1j)
    finally:
        definitions._registry.pop("tests.odd")


def takes_something_odd(number: complex) -> None:
    """Cannot be validated."""


def test_a_recorder_and_the_backends_without_rows_check_too() -> None:
    with record_tasks() as recorded:
        tasks.ship.enqueue(ORDER)
        with pytest.raises(InvalidArguments):
            tasks.ship.enqueue(5)  # type: ignore[arg-type]
    assert [found.args for found in recorded.tasks] == [[ORDER_AS_JSON]]

    for name, results in (("ImmediateBackend", [(ORDER, False)]), ("NullBackend", [])):
        ran.clear()
        with override_settings(TASKS={"default": {"BACKEND": f"django_taskq.backend.{name}", "QUEUES": []}}):
            tasks.ship.enqueue(ORDER)
            with pytest.raises(InvalidArguments):
                tasks.ship.enqueue(5)  # type: ignore[arg-type]
        assert ran == results


# At the execution


def test_coroutines_get_their_arguments_rebuilt_as_well() -> None:
    first = result_after_a_run(tasks.aship, ORDER, mode="air")
    second = tasks.aship.enqueue(None)
    with running_worker(async_slots=4):
        wait_for(lambda: state_of(second) == "succeeded")

    assert (first.return_value, finished(second).result_value) == ("9.90", "9.90")
    assert ran == [(ORDER, "air"), (None, "sea")]


def test_the_context_comes_first_and_is_no_argument_to_check() -> None:
    result = result_after_a_run(tasks.ship_all, ORDER, ORDER, due=date(2030, 5, 2))

    assert result.return_value == [7, 7]
    assert ran == [((ORDER, ORDER), {"due": date(2030, 5, 2)})]


@pytest.mark.slow
def test_a_process_of_its_own_rebuilds_them() -> None:
    result = tasks.ship.enqueue(ORDER)

    with running_worker(executor="processes", threads=1):
        wait_for(lambda: state_of(result) == "succeeded", 60)

    assert finished(result).result_value == ORDER_AS_JSON


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([{"number": 7, "lines": []}], "argument order.placed is missing"),
        ([], "missing a required argument: 'order'"),
        ([5], "argument order must be Order, got 5 (int)"),
    ],
    ids=["another shape", "another signature", "another kind"],
)
@pytest.mark.parametrize("definition", [tasks.ship, tasks.aship], ids=["plain", "coroutine"])
def test_what_fits_the_signature_no_more_is_dead_as_undecodable_without_a_retry(
    definition: Any, args: Any, message: str
) -> None:
    row = ready_task(definition, *args, max_attempts=5)

    drain()

    assert (finished(row).reason, outcomes_of(row), ran) == ("undecodable", ["undecodable"], [])
    assert finished(row).error_class == "django_taskq.exceptions.InvalidArguments"
    assert message in (finished(row).error_line or "")


def test_a_field_that_got_a_default_does_not_refuse_what_waits() -> None:
    row = ready_task(tasks.ship, {name: value for name, value in ORDER_AS_JSON.items() if name != "speed"})

    drain()

    assert state_of(row) == "succeeded"
    assert ran[0][0].speed is tasks.Speed.SLOW


def test_a_mistake_of_the_function_itself_is_an_ordinary_failure() -> None:
    result = result_after_a_run(tasks.enqueue_wrongly, 5)

    assert (finished(result).reason, outcomes_of(result)) == ("exhausted", ["failed"] * 3)
    assert ran == [5, 5, 5]


# Results


def test_a_result_may_be_a_dataclass_or_a_model_and_is_read_as_json() -> None:
    shipped, packed = result_after_a_run(tasks.ship, ORDER), result_after_a_run(tasks.pack, Item(name="a", count=1))

    assert shipped.return_value == ORDER_AS_JSON
    assert packed.return_value == {"name": "a", "count": 2}
    assert ran[1] == Item(name="a", count=1)


def test_a_result_that_json_has_no_form_for_is_undecodable_without_a_retry() -> None:
    result = result_after_a_run(tasks.return_something_else)

    assert (finished(result).reason, ran) == ("undecodable", ["returned"])
    assert "Unsupported type object at the result" in (finished(result).error_line or "")


def test_the_key_of_a_limit_is_made_of_what_is_stored_and_that_of_a_lock_of_what_the_function_gets() -> None:
    result = tasks.ship_in_turn.enqueue(ORDER)
    row = row_of(result)
    assert isinstance(row, Task)
    assert "order:7" in str(row.limits)

    drain()

    assert finished(result).result_value == "7"


# Between tasks


def test_a_result_that_is_passed_on_is_checked_when_it_is_there() -> None:
    chain(tasks.make_order.s(3), tasks.ship.s(previous, express=True)).enqueue()
    drain()
    assert ran == [(Order(3, date(2030, 5, 1), []), True)]

    flow = chain(tasks.make_nonsense.s(), tasks.ship.s(previous)).enqueue()
    drain()
    dead = FinishedTask.objects.get(reason="undecodable")
    assert str(dead.workflow_id) == flow.id
    assert "argument order must be Order, got 5 (int)" in (dead.error_line or "")


def test_results_by_name_inside_of_arguments_and_those_of_a_batch_work_too() -> None:
    flow = workflow()
    flow = flow.add("one", tasks.make_order.s(1)).add("two", tasks.make_order.s(2))
    flow.add("all", tasks.ship_each.s([result_of("one"), result_of("two")]), after=["one", "two"]).enqueue()
    batch(tasks.make_order.s(number) for number in (4, 5)).then(tasks.ship_each.s(previous)).enqueue()

    drain()

    assert sorted([[order.number for order in orders] for orders in ran]) == [[1, 2], [4, 5]]
    assert all(isinstance(order, Order) for orders in ran for order in orders)


# Without pydantic


def test_dataclasses_need_no_pydantic() -> None:
    program = """
import sys
sys.modules["pydantic"] = None
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_taskq"])
django.setup()
from dataclasses import dataclass
from django_taskq.domain.arguments import plain, shape_of
@dataclass
class Line:
    sku: str
shape = shape_of(list[Line])
assert shape.decode(shape.encode([Line("a")], "it"), "it") == [Line("a")]
print(plain(Line("b")))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (found.stdout, found.returncode) == ("{'sku': 'b'}\n", 0), found.stderr


def test_what_is_stored_is_plain_json() -> None:
    result = tasks.pack.enqueue(Item(name="ä", count=1))

    row = row_of(result)
    assert row is not None
    assert json.loads(row.args) == {"args": [{"name": "ä", "count": 1}], "kwargs": {}}
