"""The pages of limits: who sees them, who sets them, what a task's page says of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_taskq import clock, set_limit
from django_taskq.models import AuditEntry, Limit, Task
from tests.faces.conftest import act_url, list_url, page_url
from tests.faces.limits import ONE, ONE_NAME, one_at_once, parked, running
from tests.faces.rows import live_task, registered

pytestmark = pytest.mark.django_db

GIVEN = {"confirmed": "1", "reason": "provider slow", "until": "1h"}


def _text(response) -> str:
    return response.content.decode()


def test_the_list_tells_bounds_holders_and_who_waits(admin_client) -> None:
    parked(one_at_once, waiting=3)
    set_limit("all", concurrency=0, actor="ana", until=timedelta(hours=1))

    response = admin_client.get(list_url("limit"))

    everything, task = (row.view for row in response.context["cl"].result_list)
    assert (everything.name, everything.is_set, task.name, task.held, task.parked) == ("all", True, ONE_NAME, 1, 3)
    text = _text(response)
    assert "1 at once" in text
    assert "ana, <time" in text
    assert ">full<" in text


def test_the_list_is_searched_by_how_names_begin(admin_client) -> None:
    for key in ("2c:smtp:1", "2r:smtp:2", "2c:other"):
        Limit.objects.create(key=key, amount=1)

    response = admin_client.get(list_url("limit", "?q=smtp:"))

    assert [row.pk for row in response.context["cl"].result_list] == ["2c:smtp:1", "2r:smtp:2"]


def test_the_page_of_a_limit_lists_its_holders_and_leads_to_who_waits(admin_client) -> None:
    row = parked(one_at_once)
    live_task()

    response = admin_client.get(page_url("limit", "2c_3A" + ONE[3:].replace(":", "_3A").replace("_at_", "_5Fat_5F")))
    text = _text(response)
    waiting = admin_client.get(response.context["parked_link"])

    assert str(running().pk) in text
    assert {task.pk for task in waiting.context["cl"].result_list} == set(
        Task.objects.filter(parked_on=ONE).values_list("pk", flat=True)
    )
    assert row.pk in {task.pk for task in waiting.context["cl"].result_list}


def test_the_page_of_a_task_leads_to_its_limits(admin_client) -> None:
    row = parked(one_at_once)

    waits = _text(admin_client.get(page_url("task", row.pk)))
    holds = _text(admin_client.get(page_url("task", running().pk)))

    assert "Parked on" in waits
    assert "are taken" in waits
    assert "Holds a slot of" in holds
    assert f"{ONE_NAME} (concurrency)" in holds
    assert "django_taskq/limit/2c_3Atask" in holds


def test_parked_tasks_are_filtered_by_state(admin_client) -> None:
    row = parked(one_at_once, waiting=1)

    response = admin_client.get(list_url("task", "?state=parked"))

    assert [task.pk for task in response.context["cl"].result_list] == [row.pk]


def test_a_limit_is_set_for_a_time_with_a_reason_and_reset(admin_client) -> None:
    parked(one_at_once)
    limit = {"name": ONE_NAME, "kind": "concurrency"}

    asked = admin_client.post(act_url("limit", "set"), limit)
    without = admin_client.post(act_url("limit", "set"), {**limit, **GIVEN, "concurrency": "3", "reason": ""})
    assert Limit.objects.get(pk=ONE).set_amount is None

    done = admin_client.post(act_url("limit", "set"), {**limit, **GIVEN, "concurrency": "3"}, follow=True)
    row = Limit.objects.get(pk=ONE)
    assert (row.set_amount, row.set_by, row.set_reason) == (3, "admin", "provider slow")
    assert row.set_until is not None
    assert timedelta(minutes=59) < row.set_until - clock.now() <= timedelta(hours=1)

    reset = admin_client.post(act_url("limit", "reset"), {**limit, **GIVEN}, follow=True)
    assert Limit.objects.get(pk=ONE).set_amount is None

    assert f"Set the limit {ONE_NAME}" in _text(asked)
    assert 'name="rate"' not in _text(asked)
    assert "This field is required" in _text(without)
    assert f"The limit “{ONE_NAME}” is set." in _text(done)
    assert f"The limit “{ONE_NAME}” is reset." in _text(reset)
    assert list(AuditEntry.objects.order_by("id").values_list("action", "actor")) == [
        ("set_limit", "admin"),
        ("reset_limit", "admin"),
    ]


def test_a_queue_that_is_known_gets_a_rate(admin_client) -> None:
    registered("email")
    given = {"name": "queue:email", "kind": "rate", **GIVEN, "until": ""}

    shown = _text(admin_client.get(list_url("limit")))
    wrong = admin_client.post(act_url("limit", "set"), {**given, "rate": "fast"})
    admin_client.post(act_url("limit", "set"), {**given, "rate": "10/m", "burst": "4"})

    assert '<option value="queue:email">' in shown
    assert "rate must be a number per time" in _text(wrong)
    row = Limit.objects.get()
    assert (row.pk, row.set_amount, row.set_per_seconds, row.set_burst, row.set_until) == (
        "1r:queue:email",
        10,
        60.0,
        4,
        None,
    )


def test_resetting_what_nobody_set_says_so(admin_client) -> None:
    parked(one_at_once)

    response = admin_client.post(
        act_url("limit", "reset"), {"name": ONE_NAME, "kind": "concurrency", **GIVEN}, follow=True
    )

    assert f"Nothing was set for the limit “{ONE_NAME}”." in _text(response)
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize(
    "limit",
    [
        {"name": "queue:typo", "kind": "rate"},
        {"name": "smtp:1", "kind": "rate"},
        {"name": "all", "kind": "speed"},
        {"name": "", "kind": "rate"},
        {},
    ],
)
def test_what_nobody_knows_cannot_be_set(limit, admin_client) -> None:
    response = admin_client.post(act_url("limit", "set"), {**limit, **GIVEN, "rate": "1/s", "concurrency": "1"})

    assert response.status_code == 404
    assert not Limit.objects.exists()


def test_who_may_only_look_sees_no_button_and_changes_nothing(operator) -> None:
    registered("email")
    Limit.objects.create(key="2c:smtp", amount=1)
    client = operator("view_limit")

    listed = _text(client.get(list_url("limit")))
    page = _text(client.get(page_url("limit", "2c_3Asmtp")))
    response = client.post(act_url("limit", "set"), {"name": "all", "kind": "concurrency", "concurrency": "1", **GIVEN})

    assert "act/set" not in listed + page
    assert response.status_code == 403
    assert operator("change_limit").post(act_url("limit", "set"), {}).status_code in (403, 404)
    assert operator().get(list_url("limit")).status_code == 403
    assert not Limit.objects.exclude(pk="2c:smtp").exists()


def test_looking_at_the_address_of_a_verb_changes_nothing_and_unknown_verbs_do_not_exist(admin_client) -> None:
    assert admin_client.get(act_url("limit", "set")).status_code == 405
    assert admin_client.post(act_url("limit", "delete"), {"name": "all", "kind": "rate"}).status_code == 404


def test_a_limit_that_is_gone_leads_back_to_the_list(admin_client) -> None:
    response = admin_client.get(page_url("limit", "2c_3Agone"), follow=True)

    assert response.redirect_chain[0][0] == list_url("limit")
    assert "No limit has the key" in _text(response)


def test_hostile_names_are_escaped(admin_client) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    Limit.objects.create(key=f"2c:{hostile}", amount=1, set_amount=1, set_by=hostile, set_reason=hostile)
    live_task(limits=f"2c:{hostile}")

    page = admin_client.get(page_url("limit", f"2c:{hostile}"), follow=True)

    for response in (admin_client.get(list_url("limit")), page):
        assert "<script>alert" not in _text(response)
    assert "<script>alert" not in _text(admin_client.get(page_url("task", Task.objects.get().pk)))
