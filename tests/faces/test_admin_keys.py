"""The page of idempotency keys, the unique key on a task's page, and what the command line says of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.core.management.base import CommandError
from django.urls import reverse

from django_taskq import clock, replay
from django_taskq.models import AuditEntry, IdempotencyKey
from tests.engine import drain
from tests.faces.conftest import list_url, page_url
from tests.guarantees.unique_tasks import charge, fail_with_key, pay

pytestmark = pytest.mark.django_db(transaction=True)


def forget_url(key: str) -> str:
    return reverse("admin:django_taskq_key_forget", args=[quote(key)])


def text_of(response: Any) -> str:
    return str(response.content.decode())


def inspect(*args: str) -> dict[str, Any]:
    out = io.StringIO()
    call_command("taskq", "inspect", *args, "--json", stdout=out)
    [record] = json.loads(out.getvalue())["data"]
    return dict(record)


def test_keys_are_listed_with_their_tasks_and_found_by_their_beginning(admin_client: Any) -> None:
    first = pay.using(idempotency_key="order-17").enqueue(17)
    second = pay.using(idempotency_key="refund-17").enqueue(17)

    everything = text_of(admin_client.get(list_url("idempotencykey")))
    found = text_of(admin_client.get(list_url("idempotencykey") + "?key=refund"))

    assert first.id in everything
    assert second.id in everything
    assert second.id in found
    assert first.id not in found


@pytest.mark.parametrize("key", ["order-17", "a/b c?d=e&f", "\u00e9<b>"])
def test_a_key_is_forgotten_with_a_reason_and_audited(admin_client: Any, key: str) -> None:
    first = pay.using(idempotency_key=key).enqueue(17)

    asked = admin_client.get(forget_url(key))
    without = admin_client.post(forget_url(key), {"confirmed": "1", "reason": ""})
    assert asked.status_code == without.status_code == 200
    assert IdempotencyKey.objects.count() == 1
    done = admin_client.post(forget_url(key), {"confirmed": "1", "reason": "INC-7"})

    assert done.status_code == 302
    assert not IdempotencyKey.objects.exists()
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target, entry.reason) == ("forget", key, "INC-7")
    assert pay.using(idempotency_key=key).enqueue(17).id != first.id


def test_forgetting_a_key_needs_its_permission(operator: Any) -> None:
    pay.using(idempotency_key="order-17").enqueue(17)
    client = operator("view_idempotencykey")

    page = client.get(list_url("idempotencykey"))
    response = client.post(forget_url("order-17"), {"confirmed": "1", "reason": "x"})

    assert page.status_code == 200
    assert "forget" not in text_of(page)
    assert response.status_code == 403
    assert IdempotencyKey.objects.count() == 1


def test_a_key_that_is_gone_cannot_be_forgotten(admin_client: Any) -> None:
    assert admin_client.post(forget_url("gone"), {"confirmed": "1", "reason": "x"}).status_code == 404


def test_the_page_of_a_task_shows_its_unique_key(admin_client: Any) -> None:
    result = charge.enqueue(7)

    assert "unique_tasks.charge:order:7" in text_of(admin_client.get(page_url("task", result.id)))


def test_the_admin_says_why_a_task_whose_key_is_taken_was_not_replayed(admin_client: Any) -> None:
    dead = fail_with_key.enqueue("a")
    drain()
    live = fail_with_key.enqueue("a")

    response = admin_client.post(
        reverse("admin:django_taskq_deadtask_act", args=["replay"]),
        {"id": dead.id, "confirmed": "1", "reason": "again"},
        follow=True,
    )

    assert f"task {live.id} has its unique key" in text_of(response)
    assert replay([dead.id]).skipped


def test_inspect_finds_the_task_that_holds_a_unique_key() -> None:
    result = charge.enqueue(7)
    key = "tests.guarantees.unique_tasks.charge:order:7"

    assert inspect("--unique-key", key)["id"] == result.id
    assert inspect(result.id)["unique_key"] == key
    with pytest.raises(CommandError, match="no live task has the unique key"):
        inspect("--unique-key", "another")
    with pytest.raises(CommandError, match="either the id of a task or --unique-key"):
        inspect()


# The command line


def told(*args: str) -> list[dict[str, Any]]:
    out = io.StringIO()
    call_command("taskq", "keys", *args, "--json", stdout=out)
    return list(json.loads(out.getvalue())["data"])


def test_the_command_line_lists_keys_with_their_tasks_a_page_at_a_time() -> None:
    first = pay.using(idempotency_key="order-17").enqueue(17)
    second = pay.using(idempotency_key="refund-17").enqueue(17)
    IdempotencyKey.objects.filter(key="refund-17").update(expires_at=clock.now())

    found = told("list")

    assert [(record["key"], record["task_id"], record["is_over"]) for record in found] == [
        ("order-17", first.id, False),
        ("refund-17", second.id, True),
    ]
    assert [record["key"] for record in told("list", "refund")] == ["refund-17"]
    out = io.StringIO()
    call_command("taskq", "keys", "list", "--limit", "1", stdout=out)
    assert "Next page: --after" in out.getvalue()


def test_the_command_line_forgets_keys_audited_and_names_those_that_are_not_there() -> None:
    first = pay.using(idempotency_key="order-17").enqueue(17)

    assert told("forget", "order-17", "order-17", "--why", "INC-7", "--actor", "ana") == [
        {"key": "order-17", "outcome": "forgotten"}
    ]

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target, entry.reason, entry.actor) == ("forget", "order-17", "INC-7", "ana")
    assert pay.using(idempotency_key="order-17").enqueue(17).id != first.id
    with pytest.raises(CommandError, match="1 of 1 keys were not found") as gone:
        told("forget", "gone")
    with pytest.raises(CommandError, match="1 of 2 keys were not found") as partly:
        told("forget", "gone", "order-17")
    assert (gone.value.returncode, partly.value.returncode) == (3, 5)
