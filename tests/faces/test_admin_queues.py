"""The place of a queue among the others, and its bound, as operators see and set them in the admin."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse

from django_taskq.models import AuditEntry, Queue
from tests.faces.conftest import list_url, page_url
from tests.faces.rows import registered
from tests.faces.test_commands import data

pytestmark = pytest.mark.django_db

ARRANGE = "admin:django_taskq_queue_arrange"


def _text(response: Any) -> str:
    return str(response.content.decode())


def test_a_queue_is_arranged_with_a_reason_and_audited(admin_client: Any) -> None:
    registered("email")
    queue = {"queue": "email"}

    button = _text(admin_client.get(page_url("queue", "email")))
    asked = admin_client.post(reverse(ARRANGE), queue)
    without = admin_client.post(reverse(ARRANGE), {**queue, "confirmed": "1", "position": "-2", "weight": "3"})
    assert reverse(ARRANGE) in button
    assert 'name="weight" value="1"' in _text(asked)
    assert without.status_code == 200
    assert Queue.objects.get().weight == 1
    form = {**queue, "confirmed": "1", "position": "-2", "weight": "3", "reason": "launch"}
    done = admin_client.post(reverse(ARRANGE), form, follow=True)
    again = admin_client.post(reverse(ARRANGE), form, follow=True)

    row = Queue.objects.get()
    assert (row.position, row.weight) == (-2, 3)
    assert "is arranged." in _text(done)
    assert "was arranged so already" in _text(again)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target, entry.actor, entry.reason) == ("arrange", "email", "admin", "launch")
    assert entry.detail == {"position": -2, "weight": 3}
    assert "-2, 3" in _text(admin_client.get(list_url("queue")))


@pytest.mark.parametrize("given", [{"weight": "0"}, {"weight": ""}, {"weight": "9999999"}, {"position": "x"}])
def test_a_place_that_cannot_be_is_refused_beside_its_field(given: dict[str, str], admin_client: Any) -> None:
    registered("email")
    form = {"queue": "email", "confirmed": "1", "position": "0", "weight": "2", "reason": "x", **given}

    response = admin_client.post(reverse(ARRANGE), form)

    assert response.status_code == 200
    assert list(response.context["form"].errors) == list(given)
    assert Queue.objects.get().weight == 1


def test_arranging_needs_its_permission(operator: Any) -> None:
    registered("email")
    form = {"queue": "email", "confirmed": "1", "position": "0", "weight": "2", "reason": "x"}

    client, allowed = operator("view_queue", "pause_queue"), operator("view_queue", "change_queue")
    page = client.get(page_url("queue", "email"))
    response = client.post(reverse(ARRANGE), form)

    assert reverse(ARRANGE) not in _text(page)
    assert response.status_code == 403
    assert Queue.objects.get().weight == 1
    assert allowed.post(reverse(ARRANGE), form).status_code == 302
    assert Queue.objects.get().weight == 2


def test_looking_changes_nothing_and_a_queue_that_nobody_knows_is_not_arranged(admin_client: Any) -> None:
    form = {"queue": "typo", "confirmed": "1", "position": "0", "weight": "2", "reason": "x"}

    assert admin_client.get(reverse(ARRANGE)).status_code == 405
    assert admin_client.post(reverse(ARRANGE), form).status_code == 404
    assert admin_client.post(reverse(ARRANGE), {}).status_code == 404
    assert not Queue.objects.exists()


def test_the_bound_of_a_queue_is_shown_in_the_admin_and_on_the_command_line(admin_client: Any, settings: Any) -> None:
    registered("email")
    registered("free")
    settings.TASKQ = {"QUEUES": {"email": {"MAX_READY": 4711, "FULL_POLICY": "drop"}}}

    bounded, free = (_text(admin_client.get(page_url("queue", name))) for name in ("email", "free"))

    assert ("<dd>4711</dd>" in bounded, "<dd>drop</dd>" in bounded) == (True, True)
    assert "<dd>no bound</dd>" in free
    told = {queue["queue"]: (queue["max_ready"], queue["full_policy"]) for queue in data("queues")}
    assert told == {"email": (4711, "drop"), "free": (None, None)}
