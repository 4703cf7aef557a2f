"""Pauses as operators see and make them: in the admin, on the command line, and in the answer to "why not?"."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.management import CommandError, call_command

from django_taskq import clock
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import State
from django_taskq.lifecycle import control
from django_taskq.models import AuditEntry, Pause, Task
from django_taskq.ops.explain import explain
from tests.faces.conftest import act_url, list_url, page_url
from tests.faces.rows import NAME, live_task, registered, worker

pytestmark = pytest.mark.django_db


def _text(response: Any) -> str:
    return response.content.decode()


def run(*args: str) -> str:
    out = io.StringIO()
    call_command("taskq", *args, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def data(*args: str) -> Any:
    return json.loads(run(*args, "--json"))["data"]


# The admin


def test_a_task_type_is_paused_and_resumed_from_its_page(admin_client) -> None:
    registered("email")
    page = admin_client.get(page_url("tasktype", NAME))
    asked = admin_client.post(act_url("tasktype", "pause"), {"task": NAME})

    done = admin_client.post(
        act_url("tasktype", "pause"), {"task": NAME, "confirmed": "1", "reason": "poison"}, follow=True
    )
    shown = admin_client.get(page_url("tasktype", NAME))
    pause = Pause.objects.get()
    resumed = admin_client.post(act_url("tasktype", "resume"), {"task": NAME, "confirmed": "1"}, follow=True)

    assert "Pause the task type…" in _text(page)
    assert f"Pause the task type {NAME}" in _text(asked)
    assert (pause.scope, pause.name, pause.paused_by, pause.reason) == (PauseScope.TASK, NAME, "admin", "poison")
    assert pause.rejects is None
    assert f"Tasks called “{NAME}” are paused." in _text(done)
    assert "poison" in _text(shown)
    assert "Resume the task type…" in _text(shown)
    assert f"Tasks called “{NAME}” go on." in _text(resumed)
    assert not Pause.objects.exists()


def test_everything_is_paused_from_the_list_and_every_list_says_so(admin_client) -> None:
    """S4-14, S4-74: with a banner and the way back."""
    registered("email")
    before = admin_client.get(list_url("queue"))
    form = {"everything": "1", "confirmed": "1", "reason": "incident 7"}
    done = admin_client.post(act_url("queue", "pause"), form, follow=True)
    lists = [_text(admin_client.get(list_url(model))) for model in ("queue", "tasktype")]
    page = _text(admin_client.get(page_url("queue", "email")))
    admin_client.post(act_url("queue", "resume"), {"everything": "1", "confirmed": "1"})

    assert "Pause everything…" in _text(before)
    assert "Everything is paused." in _text(done)
    for text in (*lists, page):
        assert re.search(r"Everything is paused.*admin.*incident 7", text, re.DOTALL)
    for text in lists:
        assert "Resume everything…" in text
    # A queue's own button is about its own pause.
    assert "Pause the queue…" in page
    assert list(AuditEntry.objects.values_list("action", "detail")) == [
        ("pause", {"scope": "everything"}),
        ("resume", {"scope": "everything"}),
    ]


def test_a_pause_may_have_an_end_and_refuse_new_tasks(admin_client) -> None:
    registered("email")
    ends = (clock.now() + timedelta(hours=2)).replace(second=0, microsecond=0)
    form = {"queue": "email", "confirmed": "1", "reason": "outage", "reject": "on"}

    past = admin_client.post(act_url("queue", "pause"), {**form, "until": "2020-01-01T10:00"})
    refused = Pause.objects.exists()
    admin_client.post(act_url("queue", "pause"), {**form, "until": f"{ends:%Y-%m-%dT%H:%M}"})
    page = _text(admin_client.get(page_url("queue", "email")))

    assert "This moment has passed." in _text(past)
    assert not refused
    assert (Pause.objects.get().until, Pause.objects.get().rejects) == (ends, True)
    assert f"until {ends:%Y-%m-%d %H:%M}" in page
    assert "refusing new tasks" in page


@pytest.mark.parametrize(("model", "names"), [("queue", ["email", "slow"]), ("tasktype", [NAME, "shop.other"])])
def test_selected_rows_are_paused_together(model: str, names: list[str], admin_client) -> None:
    registered("email", "slow", names=(NAME, "shop.other"))
    asked = admin_client.post(list_url(model), {"action": "pause_selected", ACTION_CHECKBOX_NAME: names})
    fields = dict.fromkeys(re.findall(r'name="(queue|task)" value', _text(asked)))
    admin_client.post(act_url(model, "pause"), {next(iter(fields)): names, "confirmed": "1", "reason": "night"})

    assert Pause.objects.count() == 2
    resumed = admin_client.post(list_url(model), {"action": "resume_selected", ACTION_CHECKBOX_NAME: names})
    assert "Resume" in _text(resumed)
    # Asking changes nothing.
    assert Pause.objects.count() == 2


@pytest.mark.parametrize("model", ["queue", "tasktype"])
def test_pausing_needs_its_permission_wherever_it_is_asked(model: str, operator) -> None:
    registered("email")
    client = operator("view_queue", "view_tasktype", "change_queue")
    target = {"queue": {"queue": "email"}, "tasktype": {"task": NAME}}[model]

    listed = client.get(list_url(model))
    for given in (target, {"everything": "1"}):
        response = client.post(act_url(model, "pause"), {**given, "confirmed": "1", "reason": "x"})
        assert response.status_code == 403
    assert "Pause" not in re.sub(r"<script.*?</script>", "", _text(listed), flags=re.DOTALL)
    assert not Pause.objects.exists()


def test_what_nobody_knows_cannot_be_paused(admin_client) -> None:
    registered("email")

    for model, given in (("tasktype", {"task": "typo"}), ("queue", {"queue": ["email", "typo"]}), ("queue", {})):
        response = admin_client.post(act_url(model, "pause"), {**given, "confirmed": "1", "reason": "x"})
        assert response.status_code == 404
    assert admin_client.get(act_url("queue", "pause")).status_code == 405
    assert admin_client.post(act_url("queue", "stop"), {"queue": "email"}).status_code == 404
    assert admin_client.get(page_url("tasktype", "typo"), follow=True).status_code == 200
    assert not Pause.objects.exists()


def test_a_running_task_is_sent_back_by_a_box_on_the_page_that_asks(admin_client) -> None:
    """S4-24."""
    running, ready = live_task(State.RUNNING), live_task()
    form = {"id": [running.pk, ready.pk], "confirmed": "1", "reason": "wrong node", "requeue": "on"}

    response = admin_client.post(act_url("task", "cancel"), form, follow=True)

    assert "1 running task was asked to stop." in _text(response)
    assert "only a running task can be stopped and sent back" in _text(response)
    assert Task.objects.get(pk=ready.pk).state == State.READY
    assert AuditEntry.objects.get().detail == {"requeue": True}


# The command line


def test_types_and_everything_are_paused_listed_and_resumed() -> None:
    registered("email")

    done = data("pause", "email", "--task", NAME, "--all", "--reason", "outage", "--until", "2h", "--reject")
    listed = data("pauses")
    queues = data("queues")
    back = data("resume", "email", "--task", NAME, "--all")
    nothing = data("resume", "--all")

    assert [(record["scope"], record["name"], record["outcome"]) for record in done] == [
        ("queue", "email", "paused"),
        ("task", NAME, "paused"),
        ("everything", "", "paused"),
    ]
    assert [(record["scope"], record["rejects"], record["reason"]) for record in listed] == [
        ("everything", True, "outage"),
        ("queue", True, "outage"),
        ("task", True, "outage"),
    ]
    assert all(record["until"] for record in listed)
    assert (queues[0]["paused"], queues[0]["pause_reason"], bool(queues[0]["paused_until"])) == (True, "outage", True)
    assert {record["outcome"] for record in back} == {"resumed"}
    assert nothing[0]["outcome"] == "not changed, was resumed already"
    assert "Nothing is paused." in run("pauses")


def test_a_pause_takes_the_place_of_another_only_when_asked() -> None:
    registered("email")
    run("pause", "email", "--reason", "short", "--until", "1h")

    kept = data("pause", "email", "--reason", "long")
    replaced = data("pause", "email", "--reason", "long", "--replace", "--no-reject")

    assert kept[0]["outcome"] == "not changed, was paused already"
    assert replaced[0]["outcome"] == "paused"
    assert Pause.objects.values_list("reason", "until", "rejects").get() == ("long", None, False)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("pause",), 2, "say what to pause"),
        (("resume",), 2, "say what to resume"),
        (("pause", "--task", "shop.task.other"), 3, "did you mean"),
        (("pause", "--all", "--until", "2020-01-01T10:00Z"), 2, "must lie ahead"),
    ],
    ids=range(4),
)
def test_a_pause_that_cannot_be_says_why(args: tuple[str, ...], code: int, says: str) -> None:
    registered("email", names=("shop.tasks.other",))

    with pytest.raises(CommandError, match=says) as caught:
        run(*args)

    assert caught.value.returncode == code
    assert not Pause.objects.exists()


def test_cancel_sends_running_tasks_back_when_asked() -> None:
    """S4-24."""
    running = live_task(State.RUNNING)

    record = data("cancel", str(running.pk), "--requeue", "--reason", "wrong node")[0]

    assert record["outcome"] == "asked"
    assert Task.objects.get().option_values == {"requeue": True}


# Why is it not running?


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"queue": "default"}, "The queue “default” is paused by ana"),
        ({"task": NAME}, f"Tasks called “{NAME}” are paused by ana"),
        ({"everything": True}, "Everything is paused by ana"),
    ],
    ids=["queue", "task", "everything"],
)
@pytest.mark.parametrize("state", [State.READY, State.PARKED])
def test_a_paused_task_says_what_is_paused_by_whom_why_and_how_long(
    target: dict[str, Any], says: str, state: State
) -> None:
    registered("default")
    worker()
    row = live_task(state, queue="default")
    control.pause(**target, actor="ana", reason="provider outage", until=timedelta(hours=2))

    why = explain("default", row)

    assert says in why
    assert "for another 1 h 59 min" in why
    assert "provider outage" in why


def test_a_pause_that_is_over_or_of_something_else_is_not_the_reason() -> None:
    registered("default")
    worker()
    now = clock.now()
    Pause.objects.create(scope=PauseScope.QUEUE, name="default", paused_at=now, until=now - timedelta(seconds=1))
    control.pause("mail")
    control.pause(task="shop.other")

    assert "paused" not in explain("default", live_task(queue="default"))
