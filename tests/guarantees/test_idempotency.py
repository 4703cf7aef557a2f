"""Idempotency keys: a request that is repeated gets the task it made, and another request with its key an error."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models.signals import post_delete, pre_delete

from django_taskq import IdempotencyConflict, InvalidOptions, InvalidWorkflow, Unique, chain, conf, events, throttle
from django_taskq.domain.states import State
from django_taskq.duties import prune
from django_taskq.models import FinishedTask, IdempotencyKey, Task
from django_taskq.testing import travel
from tests.app.models import Effect
from tests.engine import (
    ALIAS,
    claim_one,
    db_now,
    drain,
    in_a_loop,
    in_threads,
    run,
    run_and_settle,
    state_of,
    with_another_before,
)
from tests.guarantees.tasks import note, ran
from tests.guarantees.unique_tasks import charge, pay, pay_once

pytestmark = pytest.mark.django_db(transaction=True)


def request(key: str, *args: Any, **options: Any) -> Any:
    """Enqueue a payment under a key, as a view does with the key of a request."""
    return pay.using(idempotency_key=key, **options).enqueue(*args)


# Keys


def test_a_request_that_is_repeated_gets_the_task_it_made() -> None:
    first = request("payment-17", 17, 100)
    second = request("payment-17", 17, 100)
    same = pay.using(idempotency_key="payment-17").enqueue(order_id=17, amount=100)

    assert (first.is_duplicate, second.is_duplicate, same.is_duplicate) == (False, True, True)
    assert first.id == second.id == same.id
    assert Task.objects.count() == 1


def test_a_key_outlives_its_task() -> None:
    first = request("payment-17", 17)
    drain()
    ended = request("payment-17", 17)
    FinishedTask.objects.all().delete()
    pruned = request("payment-17", 17)

    assert (ended.id, ended.status, ended.return_value) == (first.id, "SUCCESSFUL", "paid 17")
    assert (pruned.id, pruned.is_duplicate) == (first.id, True)
    assert pruned.enqueued_at == IdempotencyKey.objects.get().created_at
    assert ran == [(17, 0)]


def test_a_key_with_other_arguments_or_for_another_task_is_a_conflict() -> None:
    first = request("payment-17", 17, 100)

    for other in (pay.using(idempotency_key="payment-17"), note.using(idempotency_key="payment-17")):
        with pytest.raises(IdempotencyConflict) as caught:
            other.enqueue(18)
        assert (caught.value.task_id, caught.value.key) == (first.id, "payment-17")

    assert Task.objects.count() == 1
    assert IdempotencyKey.objects.count() == 1


def test_a_conflict_leaves_the_callers_transaction_usable() -> None:
    request("payment-17", 17)
    with transaction.atomic():
        before = note.enqueue("before")
        with pytest.raises(IdempotencyConflict):
            request("payment-17", 18)
        after = note.enqueue("after")

    assert (state_of(before), state_of(after)) == ("ready", "ready")


def test_a_key_is_free_again_when_its_time_is_over() -> None:
    with travel() as clock:
        first = request("payment-17", 17, idempotency_for=timedelta(minutes=5))
        clock.shift(299)
        within = request("payment-17", 17)
        clock.shift(1)
        after = request("payment-17", 18)
        again = request("payment-17", 18)

    assert within.id == first.id
    assert not after.is_duplicate
    assert again.id == after.id
    assert IdempotencyKey.objects.count() == 1


def test_a_key_is_kept_for_a_day_unless_a_call_or_the_settings_say_otherwise(settings: Any) -> None:
    def kept() -> timedelta:
        row = IdempotencyKey.objects.order_by("-created_at", "-key").first()
        assert row is not None
        return row.expires_at - row.created_at

    request("a", 1)
    assert kept() == timedelta(days=1)
    settings.TASKQ = {"IDEMPOTENCY_FOR": 3600}
    request("b", 1)
    assert kept() == timedelta(hours=1)
    request("c", 1, idempotency_for=60)
    assert kept() == timedelta(minutes=1)


def test_a_rolled_back_request_leaves_no_key() -> None:
    with transaction.atomic():
        request("payment-17", 17)
        transaction.set_rollback(True)

    assert not IdempotencyKey.objects.exists()
    assert not request("payment-17", 18).is_duplicate


def test_upkeep_deletes_keys_whose_time_is_over() -> None:
    with travel() as clock:
        request("short", 1, idempotency_for=60)
        request("long", 2)
        prune.run_once(ALIAS, conf.options("default"), clock.shift(61))

    assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["long"]


@pytest.mark.slow
@pytest.mark.parametrize("listener", [None, post_delete, pre_delete], ids=["plain", "post_delete", "pre_delete"])
def test_a_key_that_is_taken_anew_while_its_time_ends_is_kept(listener: Any) -> None:
    """At whichever moment, and also where somebody listens to all that is deleted: Django does that in two steps."""
    made: list[Any] = []

    def over() -> None:
        IdempotencyKey.objects.update(expires_at=db_now() - timedelta(seconds=60))

    def work() -> None:
        prune.run_once(ALIAS, conf.options("default"), db_now())

    if listener is not None:
        listener.connect(_hear)
    try:
        for moment in itertools.count(1):
            request("payment-17", moment)
            over()
            if not with_another_before(moment, work, lambda at=moment: made.append(request("payment-17", -at))):
                break
            assert IdempotencyKey.objects.get().task_id == uuid.UUID(made[-1].id), moment
            assert not made[-1].is_duplicate
            IdempotencyKey.objects.all().delete()
    finally:
        if listener is not None:
            listener.disconnect(_hear)

    assert moment > 3


def _hear(**_: Any) -> None:
    """Any receiver will do."""


@pytest.mark.parametrize("key", ["x" * 1000, "tab\there", " spaces ", "~tilde", "\xe9\U0001f600", "Case"])
def test_whatever_a_client_sends_is_a_key_of_its_own(key: str) -> None:
    others = [key + "x", key.strip() + "#", key.swapcase(), "plain"]
    first = request(key, 1)
    results = [request(other, 1) for other in others if other != key]

    assert request(key, 1).id == first.id
    assert not any(result.is_duplicate for result in results)


# Races


def test_of_eight_that_repeat_a_request_at_once_one_stores_the_task() -> None:
    for turn in range(5):
        results = in_threads(*[lambda turn=turn: request(f"payment-{turn}", turn)] * 8)

        assert len({result.id for result in results}) == 1
        assert sorted(result.is_duplicate for result in results) == [False] + [True] * 7
        assert Task.objects.count() == IdempotencyKey.objects.count() == turn + 1


def test_of_eight_requests_with_one_key_at_once_one_is_accepted() -> None:
    def body(at: int) -> str | None:
        try:
            with transaction.atomic():
                note.enqueue(at)
                return str(request("payment", at).id)
        except IdempotencyConflict as conflict:
            return conflict.task_id

    accepted = in_threads(*[lambda at=at: body(at) for at in range(8)])

    assert len(set(accepted)) == 1
    assert Task.objects.filter(name=pay.module_path).count() == 1
    assert Task.objects.filter(name=note.module_path).count() == 1


def test_of_eight_that_want_a_key_whose_time_is_over_one_gets_it() -> None:
    for turn in range(5):
        request(f"payment-{turn}", 1)
        IdempotencyKey.objects.update(expires_at=db_now() - timedelta(seconds=1))
        Task.objects.all().delete()

        results = in_threads(*[lambda turn=turn: request(f"payment-{turn}", 2)] * 8)

        assert len({result.id for result in results}) == 1
        assert [str(key) for key in Task.objects.values_list("pk", flat=True)] == [results[0].id]


# With the rest


async def _repeat() -> list[Any]:
    task = pay.using(idempotency_key="payment-17")
    return list(await asyncio.gather(*[task.aenqueue(17) for _ in range(4)]))


def test_coroutines_get_the_same_task() -> None:
    results = in_a_loop(_repeat())

    assert len({result.id for result in results}) == 1
    assert Task.objects.count() == 1


def test_a_key_leads_to_the_unique_task_that_was_there() -> None:
    held = charge.enqueue(7)
    task = charge.using(idempotency_key="request-1")
    first = task.enqueue(7)
    drain()

    assert first.id == held.id
    assert task.enqueue(7).id == held.id
    assert not charge.enqueue(7).is_duplicate


def test_a_repeated_request_does_not_begin_a_new_period() -> None:
    task = charge.using(unique=throttle(60, key="{order_id}"))
    with travel() as clock:
        first = task.using(idempotency_key="request-1").enqueue(7)
        clock.shift(61)
        repeated = task.using(idempotency_key="request-1").enqueue(7)
        other = task.enqueue(7)

    assert repeated.id == first.id
    assert not other.is_duplicate


def test_a_unique_task_that_is_refused_leaves_no_key() -> None:
    charge.enqueue(7)
    task = charge.using(unique=Unique(key="order:{order_id}", on_conflict="raise"), idempotency_key="request-1")

    with pytest.raises(Exception, match="has the unique key"):
        task.enqueue(7)

    assert not IdempotencyKey.objects.exists()


def test_a_repeated_request_is_told_as_a_duplicate() -> None:
    heard: list[Any] = []
    events.subscribe(events.EnqueueDeduplicated, heard.append)
    try:
        first = request("payment-17", 17)
        request("payment-17", 17)
    finally:
        events.unsubscribe(events.EnqueueDeduplicated, heard.append)

    assert [(event.task_id, event.key, event.how) for event in heard] == [(first.id, "payment-17", "returned")]


def test_a_key_belongs_to_one_call() -> None:
    with pytest.raises(InvalidOptions, match="belongs to one call, and enqueue_many got 2"):
        pay.using(idempotency_key="a").enqueue_many([(1,), (2,)])
    with pytest.raises(InvalidOptions, match="a text that is not empty"):
        pay.using(idempotency_key="")
    with pytest.raises(InvalidOptions, match="give that, too"):
        pay.using(idempotency_for=5)
    with pytest.raises(InvalidWorkflow, match="idempotency key"):
        chain(pay.using(idempotency_key="a").s(1), pay.s(2)).enqueue()
    with pytest.raises(TypeError, match="no option 'idempotency_key'"):
        note_with_key()

    assert not Task.objects.exists()


def note_with_key() -> Any:
    from django_taskq import task

    return task(idempotency_key="a")(pay.func)  # type: ignore[call-overload]


# Effects


def test_a_payment_is_made_once_under_a_forced_second_delivery() -> None:
    """S0-44, S0-48: the effect is committed, the settlement lost; the task's id makes the second run harmless."""
    task = pay_once.enqueue(17)
    lost = claim_one()
    run(lost)
    assert Effect.objects.filter(key=f"payment-{task.id}").count() == 1

    Task.objects.update(lease=None, state=State.READY)
    again = claim_one()
    run_and_settle(again)

    task.refresh()
    assert ran == [(17, 1), (17, 2)]
    assert Effect.objects.filter(key=f"payment-{task.id}").count() == 1
    assert (task.status, task.return_value) == ("SUCCESSFUL", False)
