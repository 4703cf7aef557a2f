"""Schedules in the admin: S4-71, S4-95, S4-106, S4-110."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from django_taskq.domain.schedules import TickKind
from django_taskq.lifecycle import schedules, tick
from django_taskq.models import AuditEntry, Schedule, ScheduleTick, Task
from django_taskq.testing import travel
from tests.faces.conftest import act_url, list_url, page_url
from tests.faces.schedules import MORNING, REPORT, in_code, made, rule

pytestmark = pytest.mark.django_db

ADD = "/admin/django_taskq/schedule/add/"
FORM = {
    "name": "daily",
    "task": REPORT,
    "cron": "0 9 * * MON-FRI",
    "timezone": "Europe/Rome",
    "overlap": "queue",
    "misfire": "once",
    "misfire_limit": "10",
    "misfire_grace": "60",
    "jitter": "0",
    "reason": "the board wants it",
}


@pytest.fixture(autouse=True)
def clock() -> Iterator[Any]:
    with travel(MORNING) as hands:
        yield hands


def text(response: Any) -> str:
    return response.content.decode()


def edit_url(row: Schedule) -> str:
    return reverse("admin:django_taskq_schedule_edit", args=[row.pk])


def act(client: Client, verb: str, *rows: Schedule, **data: Any) -> Any:
    values = {"id": [row.pk for row in rows], "confirmed": "1", "reason": "because", **data}
    return client.post(act_url("schedule", verb), values, follow=True)


def test_the_list_tells_rule_state_and_next_run_of_each(admin_client: Client) -> None:
    made("daily", rule=rule(cron="0 9 * * 1-5", timezone="Europe/Rome"))
    schedules.pause(made("other").name)
    in_code("failing", last_error="UnknownTask: <gone>")

    page = text(admin_client.get(list_url("schedule")))

    assert "at 09:00 on weekdays, Europe/Rome" in page
    assert "taskq-paused" in page
    assert "UnknownTask: &lt;gone&gt;" in page
    assert "in 1 h" in page


def test_the_list_of_many_asks_as_much_as_that_of_few(admin_client: Client, django_assert_max_num_queries: Any) -> None:
    for number in range(30):
        row = made(f"number {number}")
        Schedule.objects.filter(pk=row.pk).update(last_task_id=f"{number:032x}")

    with django_assert_max_num_queries(10):
        admin_client.get(list_url("schedule"))


def test_the_page_shows_the_next_five_runs_and_what_became_of_the_last(admin_client: Client) -> None:
    row = made("daily", rule=rule(cron="30 2 * * *", timezone="Europe/Rome"), args=["<b>"])
    Schedule.objects.filter(pk=row.pk).update(next_at=MORNING - timedelta(hours=6), due_at=MORNING - timedelta(hours=6))
    tick.tick_due("default", now=MORNING - timedelta(hours=6))

    page = text(admin_client.get(page_url("schedule", row.pk)))

    assert page.count("02:30:00 CET") >= 5
    assert page_url("task", Task.objects.get().pk) in page
    assert "made" in page
    assert "<b>" not in page


def test_the_preview_tells_where_clocks_are_set(admin_client: Client, clock: Any) -> None:
    clock.move_to(MORNING.replace(day=28))
    values = {**FORM, "cron": "30 2 * * *", "preview": "1"}

    page = text(admin_client.post(ADD, values))

    assert "Sun 2026-03-29 03:00:00 CEST" in page
    assert "clocks skip the time it names" in page
    assert not Schedule.objects.exists()


def test_a_preview_shows_five_runs_and_stores_nothing(admin_client: Client) -> None:
    """S4-106 PT test_cron_preview."""
    page = text(admin_client.post(ADD, {**FORM, "preview": "1"}))

    days = ["Tue 2026-03-10", "Wed 2026-03-11", "Thu 2026-03-12", "Fri 2026-03-13", "Mon 2026-03-16"]
    assert "at 09:00 on weekdays, Europe/Rome" in page
    assert all(f"{day} 09:00:00 CET" in page for day in days[1:])
    assert not Schedule.objects.exists()


def test_a_schedule_is_made_changed_and_deleted(admin_client: Client) -> None:
    """S4-71 PT test_admin_schedule_crud."""
    admin_client.post(ADD, {**FORM, "kwargs": '{"pages": 2}', "queue_name": "reports", "store": "1"})
    row = Schedule.objects.get()
    assert (row.rule, row.timezone, row.source) == ("0 9 * * MON-FRI", "Europe/Rome", "admin")
    assert row.arguments == ([], {"pages": 2})

    shown = text(admin_client.get(edit_url(row)))
    values = {**FORM, "cron": "", "every": "00:15:00", "args": '["x"]', "store": "1"}
    admin_client.post(edit_url(row), values)

    assert "0 9 * * MON-FRI" in shown
    row.refresh_from_db()
    assert (row.name, row.get_kind_display(), row.rule, row.arguments) == ("daily", "interval", "900", (["x"], {}))
    response = act(admin_client, "delete", row)
    assert response.status_code == 200
    assert not Schedule.objects.exists()
    entries = list(AuditEntry.objects.order_by("id").values_list("actor", "action", "reason"))
    assert entries == [
        ("admin", "schedule.create", "the board wants it"),
        ("admin", "schedule.change", "the board wants it"),
        ("admin", "schedule.delete", "because"),
    ]


def test_a_one_off_is_made_and_shown_in_the_form(admin_client: Client) -> None:
    admin_client.post(ADD, {**FORM, "cron": "", "at_0": "2026-05-01", "at_1": "10:00:00", "store": "1"})

    row = Schedule.objects.get()
    page = text(admin_client.get(edit_url(row)))

    assert row.get_kind_display() == "once"
    assert 'value="2026-05-01"' in page


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"cron": "61 * * * *"}, "no cron expression"),
        ({"cron": "0 0 30 2 *"}, "no cron expression"),
        ({"cron": ""}, "one of cron, every and at"),
        ({"every": "00:01:00"}, "one of cron, every and at"),
        ({"timezone": "Europe/Roma"}, "IANA name"),
        ({"task": "tests.faces.schedules.hidden"}, "Select a valid choice"),
        ({"args": "[1, 2, 3]"}, "does not take these arguments"),
        ({"kwargs": '{"color": 1}'}, "does not take these arguments"),
        ({"args": "{}"}, "must be a JSON list"),
        ({"args": "[oops"}, "valid JSON"),
        ({"priority": "1000"}, "less than or equal to 100"),
        ({"misfire_limit": "5000"}, "less than or equal to 100"),
        ({"jitter": "999999"}, "jitter must be"),
        ({"name": "tab\tinside"}, "printable"),
        ({"queue_name": "\x01"}, "queue_name"),
    ],
)
def test_what_cannot_run_is_refused_beside_its_field(
    admin_client: Client, values: dict[str, str], expected: str
) -> None:
    page = text(admin_client.post(ADD, {**FORM, **values, "store": "1"}))

    assert expected in page
    assert not Schedule.objects.exists()


def test_a_name_that_is_taken_is_refused(admin_client: Client) -> None:
    made("daily")

    page = text(admin_client.post(ADD, {**FORM, "store": "1"}))

    assert "already" in page
    assert Schedule.objects.count() == 1


def test_a_schedule_of_the_code_is_read_only_but_for_the_verbs(admin_client: Client) -> None:
    row = in_code()

    page = text(admin_client.get(page_url("schedule", row.pk)))

    assert "declared in code" in page
    assert edit_url(row) not in page
    assert admin_client.get(edit_url(row)).status_code == 403
    assert act_url("schedule", "delete") not in page
    assert "declared in code" in text(act(admin_client, "delete", row))
    assert Schedule.objects.filter(pk=row.pk).exists()
    assert act_url("schedule", "pause") in page


def test_each_verb_asks_first_and_is_done_and_audited_then(admin_client: Client) -> None:
    """S4-110 PT test_admin_schedule_actions."""
    row = in_code()
    asked = text(admin_client.post(act_url("schedule", "pause"), {"id": row.pk}))
    assert "Pause: nightly" in asked
    assert not AuditEntry.objects.exists()

    for verb in ("pause", "resume", "skip", "run", "disable", "enable"):
        response = act(admin_client, verb, row)
        assert "1 schedule." in text(response), verb

    actions = list(AuditEntry.objects.order_by("id").values_list("actor", "action", "reason"))
    verbs = ("pause", "resume", "skip", "run", "disable", "enable")
    assert actions == [("admin", f"schedule.{verb}", "because") for verb in verbs]
    assert Task.objects.count() == 1
    page = text(admin_client.get(page_url("schedule", row.pk)))
    assert "What operators did" in page
    assert "schedule.disable" in page
    assert page_url("schedule", row.pk) in text(admin_client.get(list_url("auditentry")))


def test_a_pause_can_end_by_itself(admin_client: Client) -> None:
    row = in_code()

    refused = text(act(admin_client, "pause", row, until_0="2020-01-01", until_1="10:00:00"))
    act(admin_client, "pause", row, until_0="2026-05-01", until_1="10:00:00")

    assert "moment ahead" in refused
    row.refresh_from_db()
    assert row.paused_until is not None
    assert row.paused_until.date().isoformat() == "2026-05-01"
    assert row.paused_by == "admin"


def test_a_second_run_now_is_refused_and_said_so(admin_client: Client) -> None:
    row = made()
    act(admin_client, "run", row)

    page = text(act(admin_client, "run", row))

    assert "can be run again 10 seconds later" in page
    assert Task.objects.count() == 1
    assert ScheduleTick.objects.get().kind == TickKind.MANUAL


def test_a_reason_is_needed(admin_client: Client) -> None:
    row = made()

    response = act(admin_client, "disable", row, reason="")

    assert "This field is required" in text(response)
    assert Schedule.objects.get().enabled


def test_a_selection_of_the_list_is_acted_on_after_a_question(admin_client: Client) -> None:
    first, second = made("a"), made("b")
    values = {"action": "pause_selected", "_selected_action": [first.pk, second.pk]}

    asked = text(admin_client.post(list_url("schedule"), values))
    act(admin_client, "pause", first, second)

    assert "2 schedules" in asked
    assert Schedule.objects.filter(paused_at__isnull=False).count() == 2


@pytest.mark.parametrize(
    "values",
    [
        {"action": "pause_selected", "_selected_action": ["1; DROP TABLE"]},
        {"action": "pause_selected", "_selected_action": ["1"], "select_across": "1"},
    ],
)
def test_a_selection_that_cannot_be_is_refused(admin_client: Client, values: dict[str, Any]) -> None:
    made()

    page = text(admin_client.post(list_url("schedule"), values, follow=True))

    assert "Nothing was changed" in page


@pytest.mark.parametrize("key", ["abc", "999999", "9" * 30])
def test_a_schedule_that_is_not_there_is_said_so(admin_client: Client, key: str) -> None:
    page = text(admin_client.get(page_url("schedule", key), follow=True))

    assert "There is no such schedule" in page


def test_each_verb_needs_its_permission(operator: Any) -> None:
    row = made()
    viewer = operator("view_schedule")
    runner = operator("view_schedule", "run_schedule")
    stranger = operator("view_task")

    page = text(viewer.get(page_url("schedule", row.pk)))

    assert act_url("schedule", "pause") not in page
    assert act(viewer, "pause", row).status_code == 403
    assert act(stranger, "pause", row).status_code == 403
    assert stranger.get(page_url("schedule", row.pk)).status_code == 403
    assert act(runner, "pause", row).status_code == 200
    assert act(runner, "delete", row).status_code == 403
    assert runner.get(edit_url(row)).status_code == 403
    assert runner.post(ADD, FORM).status_code == 403
    assert operator("view_schedule", "add_schedule").get(ADD).status_code == 200
    assert operator("view_schedule", "change_schedule").get(edit_url(row)).status_code == 200
    assert Schedule.objects.get().paused_by == "op1"


def test_get_changes_nothing(admin_client: Client) -> None:
    row = made()

    assert admin_client.get(act_url("schedule", "disable"), {"id": row.pk}).status_code == 405
    assert admin_client.post(act_url("schedule", "explode"), {"id": row.pk}).status_code == 404
    assert Schedule.objects.get().enabled


def test_a_damaged_row_does_not_hide_the_others(admin_client: Client) -> None:
    broken = made("broken")
    made("fine")
    Schedule.objects.filter(pk=broken.pk).update(timezone="Moon/Sea", rule="nonsense")

    page = text(admin_client.get(list_url("schedule")))

    assert "unreadable" in page
    assert "at 09:00 every day, UTC" in page
    assert admin_client.get(page_url("schedule", broken.pk)).status_code == 200


def test_the_page_of_a_task_names_its_schedule(admin_client: Client) -> None:
    made()
    task_id = schedules.run_now("daily")

    page = text(admin_client.get(page_url("task", task_id)))

    assert "Made by schedule" in page
    assert "daily, 2026-03-10" in page
