"""The page of one task: all its facts, harmless whatever it holds, at an address that stays."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import clock
from django_taskq.admin.shown import MOST, clean, pretty, tail
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import State, StepState
from django_taskq.ids import uuid7
from django_taskq.lifecycle import control
from django_taskq.models import Attempt, FinishedTask, Progress, Step, Task
from tests.faces.conftest import list_url, page_url
from tests.faces.rows import dead_task, finished_task, live_task, registered, worker

pytestmark = pytest.mark.django_db


def _text(response) -> str:
    return response.content.decode()


def _attempt(row, number: int = 1, **facts) -> Attempt:
    now = clock.now()
    values = {
        "task_id": row.pk, "number": number, "worker_id": 7, "outcome": "failed", "started_at": now, "ended_at": now,
        "error_class": "builtins.ValueError", "message": "no such order", "traceback": "Traceback: here", **facts,
    }  # fmt: skip
    return Attempt.objects.create(**values)


# The address


def test_a_link_to_a_live_task_leads_on_when_it_has_died(admin_client) -> None:
    row = live_task()
    url = page_url("task", row.pk)
    control.kill([row.pk])

    response = admin_client.get(url)

    assert response["Location"] == page_url("deadtask", row.pk)


def test_a_link_to_a_live_task_leads_on_when_it_was_cancelled(admin_client) -> None:
    row = live_task()
    control.cancel([row.pk])

    assert admin_client.get(page_url("task", row.pk))["Location"] == page_url("finishedtask", row.pk)


@pytest.mark.parametrize("model", ["deadtask", "finishedtask"])
def test_a_link_to_a_dead_letter_leads_back_when_it_was_replayed(model: str, admin_client) -> None:
    row = dead_task()
    control.replay([row.pk])

    assert admin_client.get(page_url(model, row.pk))["Location"] == page_url("task", row.pk)


def test_a_dead_task_is_also_shown_among_the_finished_ones(admin_client) -> None:
    assert admin_client.get(page_url("finishedtask", dead_task().pk)).status_code == 200


@pytest.mark.parametrize("key", ["nonsense", "00000000-0000-7000-8000-000000000000", "<script>", "a/b"])
@pytest.mark.parametrize("model", ["task", "finishedtask", "deadtask"])
def test_an_id_that_leads_nowhere_leads_to_the_list_with_a_word(key: str, model: str, admin_client) -> None:
    response = admin_client.get(list_url(model) + f"{key}/change/", follow=True)

    assert response.status_code == 200
    assert "It never existed, or it was pruned." in _text(response)
    assert "“<script>" not in _text(response)


# The facts


def test_a_dead_letter_shows_error_attempts_arguments_and_what_operators_did(admin_client) -> None:
    row = dead_task(args=[81223], kwargs={"tenant": "acme"}, parent_id=uuid7(), replays=2)
    _attempt(row, traceback='File "shop/tasks.py", line 7\nValueError: no such order')
    control.discard([row.pk], actor="ana", reason="INC-88")

    text = _text(admin_client.get(page_url("deadtask", row.pk)))

    for expected in (
        "81223", "&quot;tenant&quot;: &quot;acme&quot;", "no such order", "shop/tasks.py", "INC-88", "ana",
        str(row.parent_id), "3 of 3", "Replayed", "2 times", f"fingerprint={row.fingerprint}", "It died",
    ):  # fmt: skip
        assert expected in text


def test_a_running_task_shows_its_worker_its_lease_and_its_progress(admin_client) -> None:
    holder = worker(name="web-3:811")
    row = live_task(State.RUNNING, lease=make_lease(holder.pk, 5))
    Progress.objects.create(task_id=row.pk, done=3, total=4, note="importing", at=clock.now())

    text = _text(admin_client.get(page_url("task", row.pk)))

    for expected in ("web-3:811", str(row.lease), "Lease until", 'value="75"', "importing", "It runs on web-3:811"):
        assert expected in text


def test_a_running_task_of_a_silent_worker_says_so(admin_client) -> None:
    holder = worker(beat_at=clock.now() - timedelta(minutes=5))
    row = live_task(State.RUNNING, lease=make_lease(holder.pk, 5))

    text = _text(admin_client.get(page_url("task", row.pk)))

    assert "has been silent for 5 min" in text
    assert "over: the worker is silent" in text


def test_a_task_with_steps_shows_where_each_stands(admin_client) -> None:
    """S3-02, S3-25: state, times, error and worker, harmless whatever a step is called."""
    row = dead_task()
    now = clock.now()
    done = {"attempt": 2, "worker_id": 4711, "started_at": now - timedelta(seconds=90), "finished_at": now}
    Step.objects.create(task_id=row.pk, name="<b>parse</b>", position=0, state=StepState.SUCCEEDED, **done)
    failed = {"state": StepState.FAILED, "error_class": "builtins.ValueError", "error_line": "no room"}
    Step.objects.create(task_id=row.pk, name="save", position=1, **failed, **done)
    Step.objects.create(task_id=row.pk, name="tell", position=2)

    text = _text(admin_client.get(page_url("deadtask", row.pk)))

    assert "<b>parse" not in text
    assert text.index("&lt;b&gt;parse&lt;/b&gt;") < text.index("<td>save</td>") < text.index("<td>tell</td>")
    for expected in (
        "taskq-succeeded",
        "taskq-failed",
        "taskq-pending",
        "4711",
        "1 min",
        "builtins.ValueError: no room",
    ):
        assert expected in text


def test_a_task_without_steps_shows_no_table_of_them(admin_client) -> None:
    assert "<h2>Steps</h2>" not in _text(admin_client.get(page_url("deadtask", dead_task().pk)))


def test_a_succeeded_task_shows_its_result(admin_client) -> None:
    row = finished_task(result='{"total": 12.5}')

    assert "&quot;total&quot;: 12.5" in _text(admin_client.get(page_url("finishedtask", row.pk)))


def test_only_the_newest_attempts_are_shown_and_the_page_says_so(admin_client) -> None:
    row = dead_task()
    for number in range(1, 23):
        _attempt(row, number)

    text = _text(admin_client.get(page_url("deadtask", row.pk)))

    assert "#22<" in text
    assert "#2<" not in text
    assert "Earlier attempts are not shown." in text


def test_a_page_needs_the_same_few_queries_whatever_the_task_went_through(admin_client) -> None:
    registered("default")
    holder = worker()

    def queries(row) -> int:
        with CaptureQueriesContext(connection) as found:
            assert admin_client.get(page_url("task", row.pk)).status_code == 200
        return len(found)

    plain = live_task(rank=5)
    eventful = live_task(rank=5)
    for number in range(1, 30):
        _attempt(eventful, number)
        live_task(rank=-1)
    control.cancel([live_task(State.RUNNING, lease=make_lease(holder.pk, 1)).pk], actor="ana")

    assert queries(plain) == queries(eventful) <= 13


# Hostile and damaged content

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def test_markup_in_what_a_task_holds_is_shown_and_not_obeyed(admin_client) -> None:
    row = dead_task(args=[HOSTILE], name=HOSTILE, queue=HOSTILE[:60], error_line=HOSTILE, error_class=HOSTILE)
    _attempt(row, message=HOSTILE, traceback=HOSTILE, error_class=HOSTILE, outcome=HOSTILE[:20])
    control.discard([row.pk], actor=HOSTILE, reason=HOSTILE)

    text = _text(admin_client.get(page_url("deadtask", row.pk)))

    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;" in text


def test_a_nul_a_lone_surrogate_and_a_turned_line_are_written_as_escapes(admin_client) -> None:
    row = live_task()
    # No client of ours writes these; whoever writes SQL can.
    Task.objects.filter(pk=row.pk).update(args='{"args":["a\\u0000b","\\ud800","\\u202egnp.exe"],"kwargs":{}}')

    response = admin_client.get(page_url("task", row.pk))

    assert response.status_code == 200
    for expected in ("a\\u0000b", "\\ud800", "\\u202egnp.exe"):
        assert expected in _text(response)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"args":' + "[" * 20_000, '{"n":' + "9" * 5000 + "}"])
def test_damaged_arguments_are_shown_as_they_stand(text: str, admin_client) -> None:
    row = live_task()
    Task.objects.filter(pk=row.pk).update(args=text)

    response = admin_client.get(page_url("task", row.pk))

    assert response.status_code == 200
    assert text[:100].replace('"', "&quot;") in _text(response)


def test_a_megabyte_is_cut_says_its_size_and_can_be_downloaded_whole(admin_client) -> None:
    stored = json.dumps({"args": ["x" * 1024 * 1024], "kwargs": {}})
    row = dead_task(raw_args=stored)

    page = admin_client.get(page_url("deadtask", row.pk))
    whole = admin_client.get(page_url("deadtask", row.pk).replace("/change/", "/raw/args/"))

    assert len(page.content) < 3 * MOST
    assert "The beginning of 1.0" in _text(page)
    assert f"/{row.pk}/raw/args/" in _text(page)
    assert whole.content.decode() == stored
    assert whole["Content-Type"] == "text/plain; charset=utf-8"
    assert whole["X-Content-Type-Options"] == "nosniff"
    assert whole["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize("column", ["error_class", "id", "pk", "__class__", "result"])
def test_only_stored_values_that_exist_can_be_downloaded(column: str, admin_client) -> None:
    row = dead_task()

    assert admin_client.get(page_url("deadtask", row.pk).replace("/change/", f"/raw/{column}/")).status_code == 404


def test_a_page_with_arguments_is_not_kept_by_caches(admin_client) -> None:
    assert "no-store" in admin_client.get(page_url("task", live_task().pk))["Cache-Control"]


def test_a_name_with_a_slash_and_a_quote_has_a_page_as_a_queue(admin_client) -> None:
    name = 'a/b"c_d act/pause'
    registered(name)

    link = next(row for row in admin_client.get(list_url("queue")).context["cl"].result_list)

    from django.contrib.admin.utils import quote

    assert admin_client.get(page_url("queue", quote(link.pk))).status_code == 200


def test_a_task_of_an_unknown_reason_or_acknowledgement_has_a_page(admin_client) -> None:
    row = dead_task()
    FinishedTask.objects.filter(pk=row.pk).update(reason="of_tomorrow", ack=99)

    assert "of_tomorrow" in _text(admin_client.get(page_url("deadtask", row.pk)))


# Permissions


def test_a_page_needs_permission_to_see_tasks(operator) -> None:
    row = dead_task()
    url = page_url("deadtask", row.pk)

    assert operator("view_queue").get(url).status_code == 403
    assert operator("view_queue").get(url.replace("/change/", "/raw/args/")).status_code == 403
    assert operator("view_task").get(url).status_code == 200


def test_what_operators_did_is_shown_to_those_who_may_read_the_audit_log(operator) -> None:
    row = dead_task()
    control.discard([row.pk], actor="ana", reason="INC-88")
    url = page_url("deadtask", row.pk)

    assert "INC-88" not in _text(operator("view_task").get(url))
    assert "INC-88" in _text(operator("view_task", "view_auditentry").get(url))


@pytest.mark.parametrize(
    ("verbs", "state", "shown"),
    [
        (("replay_task",), "dead", {"replay"}),
        (("discard_task",), "dead", {"discard"}),
        (("cancel_task", "kill_task", "replay_task"), "ready", {"cancel", "kill"}),
        (("cancel_task", "kill_task", "replay_task"), "running", {"cancel"}),
        (("cancel_task", "kill_task", "replay_task", "discard_task"), "succeeded", set()),
        ((), "dead", set()),
    ],
)
def test_a_button_is_there_for_what_fits_and_is_allowed(verbs, state, shown, operator) -> None:
    row = {
        "dead": dead_task,
        "succeeded": finished_task,
        "ready": live_task,
        "running": lambda: live_task(State.RUNNING),
    }[state]()
    model = {"dead": "deadtask", "succeeded": "finishedtask"}.get(state, "task")

    text = _text(operator("view_task", *verbs).get(page_url(model, row.pk)))

    assert {verb for verb in ("replay", "cancel", "discard", "kill") if f"/act/{verb}/" in text} == shown


# Texts


def test_json_is_indented_and_keeps_order_and_big_numbers() -> None:
    shown = pretty('{"b":12345678901234567890123,"a":1.10}')

    assert shown is not None
    assert shown.text == '{\n  "b": 12345678901234567890123,\n  "a": 1.1\n}'


def test_a_long_traceback_keeps_its_end() -> None:
    shown = tail("x" * MOST + "ValueError: at the end")

    assert shown.text.endswith("ValueError: at the end")
    assert shown.is_cut


def test_readable_text_of_any_language_stays_as_it_is() -> None:
    text = "Grüße\tan 東京\n🙂 عربي"

    assert clean(text) == text


def test_a_skipped_task_says_why_and_not_as_an_error(admin_client) -> None:
    row = finished_task(error_line="skipped: the shop is closed")

    text = _text(admin_client.get(page_url("finishedtask", row.pk)))

    assert "skipped: the shop is closed" in text
    assert 'class="taskq-error"' not in text
