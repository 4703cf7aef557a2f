"""What operators do through the admin: asked first, permitted, audited, and told exactly."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from django_taskq.domain.states import DeadReason, State, StepState
from django_taskq.lifecycle import control
from django_taskq.models import AuditEntry, FinishedTask, Pause, Queue, Step, Task
from tests.faces.conftest import act_url, list_url, page_url
from tests.faces.rows import dead_task, dead_tasks, finished_task, live_task, registered

pytestmark = pytest.mark.django_db


def _text(response) -> str:
    return response.content.decode()


def _act(client: Client, model: str, verb: str, ids, **data):
    return client.post(act_url(model, verb), {"id": list(ids), "confirmed": "1", **data}, follow=True)


def test_a_button_asks_first_and_changes_nothing(admin_client) -> None:
    row = dead_task()

    response = admin_client.post(act_url("deadtask", "replay"), {"id": [row.pk]})

    assert response.status_code == 200
    assert "Replay: 1 task" in _text(response)
    assert str(row.pk) in _text(response)
    assert FinishedTask.objects.filter(pk=row.pk).exists()
    assert not AuditEntry.objects.exists()


def test_a_confirmed_replay_sends_the_task_back_with_actor_reason_and_attempts(admin_client) -> None:
    row = dead_task(attempt=3, max_attempts=3)

    response = _act(
        admin_client, "deadtask", "replay", [row.pk], reason="fixed", attempts="2", back=page_url("deadtask", row.pk)
    )

    task = Task.objects.get(pk=row.pk)
    entry = AuditEntry.objects.get()
    assert (task.state, task.max_attempts) == (State.READY, 5)
    assert (entry.actor, entry.action, entry.reason, entry.task_id) == ("admin", "replay", "fixed", row.pk)
    assert "1 task was sent back and is ready." in _text(response)
    # The page it came from leads on to where the task is now.
    assert response.redirect_chain[-1][0] == page_url("task", row.pk)


@pytest.mark.parametrize(("ticked", "left", "detail"), [({}, 1, {}), ({"from_start": "on"}, 0, {"from_start": True})])
def test_a_replay_keeps_the_steps_unless_all_shall_run_again(
    ticked: dict[str, str], left: int, detail: dict[str, bool], admin_client
) -> None:
    """S3-24: a box on the page that asks."""
    row = dead_task()
    Step.objects.create(task_id=row.pk, name="parse", position=0, state=StepState.SUCCEEDED)

    _act(admin_client, "deadtask", "replay", [row.pk], **ticked)

    assert Step.objects.filter(task_id=row.pk).count() == left
    assert AuditEntry.objects.get().detail == detail


@pytest.mark.parametrize("attempts", ["0", "-1", "many", "1001"])
def test_attempts_that_make_no_sense_are_refused_and_nothing_is_done(attempts: str, admin_client) -> None:
    row = dead_task()

    response = _act(admin_client, "deadtask", "replay", [row.pk], attempts=attempts)

    assert "errorlist" in _text(response)
    assert FinishedTask.objects.filter(pk=row.pk).exists()


def test_a_discarded_dead_letter_stays_dead_and_leaves_the_list(admin_client) -> None:
    row = dead_task()

    response = _act(admin_client, "deadtask", "discard", [row.pk], reason="known")

    assert "1 dead letter was discarded." in _text(response)
    assert FinishedTask.objects.get(pk=row.pk).resolved_at is not None
    assert response.context["cl"].result_list == []


def test_a_waiting_task_is_cancelled_and_a_running_one_is_asked(admin_client) -> None:
    waiting, running = live_task(), live_task(State.RUNNING)

    response = _act(admin_client, "task", "cancel", [waiting.pk, running.pk], reason="wrong customer")

    assert "1 task was cancelled." in _text(response)
    assert "1 running task was asked to stop." in _text(response)
    assert FinishedTask.objects.get().state == State.CANCELLED
    assert Task.objects.get(pk=running.pk).cancel


def test_a_waiting_task_is_moved_to_the_dead_letters(admin_client) -> None:
    row = live_task()

    response = _act(admin_client, "task", "kill", [row.pk], reason="poison")

    dead = FinishedTask.objects.get(pk=row.pk)
    assert (dead.state, dead.reason, dead.error_line) == (State.DEAD, DeadReason.MOVED, "poison")
    assert "1 task was moved to the dead letters." in _text(response)


def test_a_result_says_what_was_skipped_and_why(admin_client) -> None:
    dead, done, unknown = dead_task(), finished_task(), dead_task(name="nobody.knows.me")
    gone = "018f0000-0000-7000-8000-000000000000"

    text = _text(_act(admin_client, "deadtask", "replay", [dead.pk, done.pk, unknown.pk, gone], reason="all"))

    assert "1 task was sent back and is ready." in text
    assert "3 tasks were skipped" in text
    assert f"{gone}: not found" in text
    assert "a succeeded task cannot be replayed" in text
    assert "no task is called" in text


def test_an_unknown_task_is_replayed_where_the_operator_insists(admin_client) -> None:
    row = dead_task(name="nobody.knows.me")

    _act(admin_client, "deadtask", "replay", [row.pk], force="on")

    assert Task.objects.filter(pk=row.pk).exists()


def test_the_same_confirmation_sent_twice_acts_once(admin_client) -> None:
    row = dead_task()

    _act(admin_client, "deadtask", "replay", [row.pk])
    second = _act(admin_client, "deadtask", "replay", [row.pk])

    assert "a ready task cannot be replayed" in _text(second)
    assert AuditEntry.objects.count() == 1


# A selection


@pytest.mark.parametrize(
    ("model", "verb", "make"),
    [
        ("deadtask", "replay", dead_task),
        ("deadtask", "discard", dead_task),
        ("finishedtask", "replay", dead_task),
        ("task", "cancel", live_task),
        ("task", "kill", live_task),
    ],
)
def test_a_selection_is_asked_for_a_reason_and_then_changed(model, verb, make, admin_client) -> None:
    rows = [make(), make()]
    keys = [str(row.pk) for row in rows]

    asked = admin_client.post(
        list_url(model, "?queue=default"),
        {
            "action": f"{verb}_selected",
            "_selected_action": keys,
            "index": "0",
            "back": list_url(model, "?queue=default"),
        },
    )
    without = _act(admin_client, model, verb, keys)
    done = _act(admin_client, model, verb, keys, reason="INC-88", back=list_url(model, "?queue=default"))

    assert ": 2 tasks" in _text(asked)
    assert f'action="{act_url(model, verb)}"' in _text(asked)
    assert "This field is required." in _text(without)
    assert set(AuditEntry.objects.values_list("task_id", "reason")) == {(row.pk, "INC-88") for row in rows}
    assert done.redirect_chain[0][0] == list_url(model, "?queue=default")


def test_a_selection_that_moved_on_meanwhile_is_reported_and_not_left_out(admin_client) -> None:
    kept, moved = dead_task(), dead_task()
    FinishedTask.objects.filter(pk=moved.pk).delete()

    asked = admin_client.post(
        list_url("deadtask"),
        {"action": "replay_selected", "_selected_action": [str(kept.pk), str(moved.pk)], "index": "0"},
    )
    done = _act(admin_client, "deadtask", "replay", asked.context["ids"], reason="x")

    assert f"{moved.pk}: not found" in _text(done)


def test_more_than_a_page_at_once_is_refused(admin_client) -> None:
    rows = dead_tasks(201)

    response = _act(admin_client, "deadtask", "replay", [row.pk for row in rows], reason="all of it")

    assert "At most 200 tasks at once." in _text(response)
    assert Task.objects.count() == 0


def test_nothing_selected_changes_nothing(admin_client) -> None:
    assert "No task was selected." in _text(_act(admin_client, "deadtask", "replay", []))


# Who, and how


@pytest.mark.parametrize("verb", ["replay", "cancel", "discard", "kill"])
@pytest.mark.parametrize("model", ["task", "finishedtask", "deadtask"])
def test_a_verb_needs_its_own_permission(model: str, verb: str, operator) -> None:
    row = dead_task()
    others = {f"{name}_task" for name in ("replay", "cancel", "discard", "kill")} - {f"{verb}_task"}
    client = operator("view_task", "change_task", "delete_task", *others)

    response = _act(client, model, verb, [row.pk], reason="x")

    assert response.status_code == 403
    assert not AuditEntry.objects.exists()


def test_a_verb_without_permission_to_see_is_forbidden(operator) -> None:
    assert _act(operator("replay_task"), "deadtask", "replay", [dead_task().pk]).status_code == 403


@pytest.mark.parametrize("path", [("deadtask", "replay"), ("task", "cancel"), ("queue", "pause")])
def test_looking_at_a_verbs_address_changes_nothing(path, admin_client) -> None:
    assert admin_client.get(act_url(*path)).status_code == 405


def test_an_unknown_verb_does_not_exist(admin_client) -> None:
    assert admin_client.post(act_url("task", "delete"), {"id": [live_task().pk]}).status_code == 404


def test_a_post_without_a_csrf_token_is_forbidden(admin_user) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    row = dead_task()

    assert _act(client, "deadtask", "replay", [row.pk]).status_code == 403
    assert FinishedTask.objects.filter(pk=row.pk).exists()


def test_who_is_not_logged_in_is_sent_to_the_login(client) -> None:
    response = client.post(act_url("deadtask", "replay"), {"id": [dead_task().pk], "confirmed": "1"})

    assert response.status_code == 302
    assert "/login/" in response["Location"]


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "evil"])
def test_the_way_back_stays_on_this_host(back: str, admin_client) -> None:
    response = _act(admin_client, "deadtask", "discard", [dead_task().pk], back=back)

    assert response.redirect_chain[0][0] == list_url("deadtask")


def test_the_actor_in_the_audit_log_is_the_user_who_did_it(operator) -> None:
    row = dead_task()
    client = operator("view_task", "discard_task")

    _act(client, "deadtask", "discard", [row.pk])

    assert AuditEntry.objects.get().actor == User.objects.get().get_username()


# Queues


def test_a_queue_is_paused_with_a_reason_and_resumed(admin_client) -> None:
    registered("email")
    url = act_url("queue", "pause")

    asked = admin_client.post(url, {"queue": "email"})
    without = admin_client.post(url, {"queue": "email", "confirmed": "1"})
    assert not Pause.objects.exists()

    paused = admin_client.post(url, {"queue": "email", "confirmed": "1", "reason": "provider outage"}, follow=True)
    pause = Pause.objects.get()
    assert (pause.name, pause.paused_by, pause.reason) == ("email", "admin", "provider outage")

    resumed = admin_client.post(act_url("queue", "resume"), {"queue": "email", "confirmed": "1"}, follow=True)
    assert not Pause.objects.exists()

    assert "Pause the queue email" in _text(asked)
    assert "This field is required." in _text(without)
    assert "The queue “email” is paused." in _text(paused)
    assert "The queue “email” goes on." in _text(resumed)
    assert list(AuditEntry.objects.order_by("id").values_list("action", "target")) == [
        ("pause", "email"),
        ("resume", "email"),
    ]


def test_pausing_twice_says_that_it_was_paused_already(admin_client) -> None:
    registered("email")
    control.pause("email", actor="ana")

    response = admin_client.post(
        act_url("queue", "pause"), {"queue": "email", "confirmed": "1", "reason": "again"}, follow=True
    )

    assert "was paused already" in _text(response)
    assert Pause.objects.get().paused_by == "ana"


def test_pausing_needs_its_permission(operator) -> None:
    registered("email")
    client = operator("view_queue", "change_queue")

    page = client.get(page_url("queue", "email"))
    response = client.post(act_url("queue", "pause"), {"queue": "email", "confirmed": "1", "reason": "x"})

    assert "/act/" not in _text(page)
    assert response.status_code == 403
    assert not Pause.objects.exists()


def test_a_queue_nobody_knows_cannot_be_paused(admin_client) -> None:
    response = admin_client.post(act_url("queue", "pause"), {"queue": "typo", "confirmed": "1", "reason": "x"})

    assert response.status_code == 404
    assert not Queue.objects.exists()
