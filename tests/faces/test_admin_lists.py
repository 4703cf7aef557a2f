"""The lists of the admin: every page opens, pages by key, never counts, and refuses what it does not understand."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin import AdminSite
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import chain, clock, reset_limit, set_limit
from django_taskq.admin import DeadTaskAdmin, TaskAdmin
from django_taskq.domain.schedules import Policy
from django_taskq.domain.states import State
from django_taskq.lifecycle import control, schedules
from django_taskq.lifecycle.arrange_queue import arrange
from django_taskq.models import AuditEntry, DeadTask, Duty, FinishedTask, Queue, Snapshot, Task, Worker
from django_taskq.ops import search
from tests.app.tasks import leave_effect
from tests.faces.conftest import list_url, page_url
from tests.faces.rows import NAME, dead_task, dead_tasks, finished_task, live_task, registered, worker
from tests.faces.schedules import REPORT, made, rule

pytestmark = pytest.mark.django_db

MODELS = [
    "task", "finishedtask", "deadtask", "queue", "worker", "tasktype", "auditentry", "duty", "workflow",
    "limit",
    "idempotencykey",
]  # fmt: skip
FORBIDDEN = re.compile(r"\bCOUNT\(|\bOFFSET\b|\bDISTINCT\b", re.IGNORECASE)


def _names(response) -> list[str]:
    return [row.pk for row in response.context["cl"].result_list]


def _links(response, rel: str) -> list[str]:
    return re.findall(rf'rel="{rel}" href="([^"]+)"', response.text if hasattr(response, "text") else _text(response))


def _text(response) -> str:
    return response.content.decode()


@pytest.fixture
def a_bit_of_everything() -> None:
    registered("default", "email")
    live_task()
    live_task(State.RUNNING)
    live_task(State.SCHEDULED)
    finished_task()
    dead_task()
    worker()
    Duty.objects.create(name="prune")
    leave_effect.using(idempotency_key="key").enqueue("c")
    Snapshot.objects.create(queue="default", at=clock.now(), ready=3, oldest_ready_at=clock.now())
    control.pause("email", actor="ana", reason="provider outage")
    chain(leave_effect.s("a"), leave_effect.s("b")).enqueue()
    set_limit("queue:email", rate="10/m", actor="ana", reason="provider slow")


@pytest.mark.parametrize("model", MODELS)
def test_every_list_opens_empty_and_filled(model: str, admin_client, request) -> None:
    empty = admin_client.get(list_url(model))
    request.getfixturevalue("a_bit_of_everything")
    filled = admin_client.get(list_url(model))

    assert empty.status_code == filled.status_code == 200
    assert 'class="taskq-empty"' in _text(empty)
    assert 'class="taskq-empty"' not in _text(filled)


@pytest.mark.parametrize("model", MODELS)
def test_no_list_counts_or_skips_and_each_needs_few_queries(model: str, admin_client, a_bit_of_everything) -> None:
    dead_tasks(120)
    admin_client.get(list_url(model))

    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(list_url(model))

    assert response.status_code == 200
    assert not [query["sql"] for query in queries if FORBIDDEN.search(query["sql"])]
    assert len(queries) <= 8


@pytest.mark.parametrize("model", ["task", "finishedtask", "deadtask"])
def test_the_number_of_queries_does_not_grow_with_the_rows(model: str, admin_client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as found:
            admin_client.get(list_url(model, "?per=200"))
        return len(found)

    def add(count: int) -> None:
        for _ in range(count):
            live_task()
            dead_task()

    add(2)
    few = queries()
    add(100)

    assert queries() == few


def test_a_dead_letters_list_pages_to_the_last_and_back(admin_client) -> None:
    rows = dead_tasks(60)

    first = admin_client.get(list_url("deadtask", "?per=25"))
    second = admin_client.get(list_url("deadtask", _links(first, "next")[0].replace("&amp;", "&")))
    third = admin_client.get(list_url("deadtask", _links(second, "next")[0].replace("&amp;", "&")))
    back = admin_client.get(list_url("deadtask", _links(third, "prev")[0].replace("&amp;", "&")))

    newest_first = [row.pk for row in reversed(rows)]
    assert _names(first) + _names(second) + _names(third) == newest_first
    assert _names(back) == _names(second)
    assert not _links(first, "prev")
    assert not _links(third, "next")


def test_a_count_is_exact_up_to_a_thousand_and_more_than_that_beyond(admin_client) -> None:
    dead_tasks(1000)
    exact = _text(admin_client.get(list_url("deadtask")))
    dead_task()
    beyond = _text(admin_client.get(list_url("deadtask")))

    assert "1,000 dead letters" in exact
    assert "more than 1,000 dead letters" not in exact
    assert "more than 1,000 dead letters" in beyond


# The traps of a keyset list inside Django's change list


def test_a_cursor_stays_out_of_every_other_link(admin_client) -> None:
    dead_tasks(60)
    first = admin_client.get(list_url("deadtask", "?per=25&queue=default"))
    second = admin_client.get(list_url("deadtask", _links(first, "next")[0].replace("&amp;", "&")))

    text = _text(second)
    without_pager = re.sub(r'rel="(next|prev)" href="[^"]*"', "", text)

    assert "after=" in text
    assert "after=" not in without_pager
    assert "before=" not in without_pager
    assert 'name="after"' not in text
    assert "_changelist_filters" not in text
    assert "after" not in second.context["cl"].get_query_string({"queue": "x"})


def test_nobody_is_offered_to_select_what_the_page_does_not_show(admin_client) -> None:
    dead_tasks(60)

    response = admin_client.get(list_url("deadtask", "?per=25"))

    assert not re.search(r"Select all \d", _text(response))
    assert response.context["cl"].result_count == 25


def test_a_selection_across_pages_is_refused(admin_client) -> None:
    rows = dead_tasks(3)

    response = admin_client.post(
        list_url("deadtask"),
        {"action": "replay_selected", "_selected_action": [rows[0].pk], "select_across": "1", "index": "0"},
        follow=True,
    )

    assert "Only what one page shows can be selected" in _text(response)
    assert Task.objects.count() == 0


@pytest.mark.parametrize("key", ["nonsense", "1", "\0", "018f-"])
def test_a_malformed_id_in_a_selection_is_refused_and_not_an_error(key: str, admin_client) -> None:
    response = admin_client.post(
        list_url("deadtask"), {"action": "replay_selected", "_selected_action": [key], "index": "0"}, follow=True
    )

    assert response.status_code == 200
    assert "One of the selected ids is none" in _text(response)


def test_the_search_bar_is_ours_and_says_no_total(admin_client) -> None:
    dead_tasks(3)

    text = _text(admin_client.get(list_url("deadtask", "?queue=default")))

    assert "taskq-bar" in text
    assert 'id="changelist-search"' not in text
    assert "Show all" not in text
    assert "results" not in re.sub(r'class="results"', "", text)


def test_there_are_no_facets(admin_client) -> None:
    dead_tasks(3)

    text = _text(admin_client.get(list_url("deadtask")))

    assert "Show counts" not in text
    assert "changelist-filter" not in text


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_an_action_without_its_permission_is_forbidden(verb: str, operator) -> None:
    row = dead_task()
    client = operator("view_task")

    page = client.get(list_url("deadtask"))
    response = client.post(
        list_url("deadtask"), {"action": f"{verb}_selected", "_selected_action": [row.pk], "index": "0"}
    )

    assert page.status_code == 200
    assert "_selected_action" not in _text(page)
    assert response.status_code == 403


@pytest.mark.parametrize("query", ["?o=1", "?o=-2.3", "?all=", "?p=5", "?_facets=True"])
def test_what_would_sort_or_skip_or_count_in_another_list_is_left_out_with_a_word(query: str, admin_client) -> None:
    dead_tasks(3)

    response = admin_client.get(list_url("deadtask", query), follow=True)

    assert response.status_code == 200
    assert "a filter that cannot be read" in _text(response)


@pytest.mark.parametrize(
    "query",
    ["?after=nonsense", "?before=%00", "?foo=1", "?created=yesterday", "?per=7", "?state=asleep", "?after=W10="],
)
def test_an_address_that_cannot_be_read_shows_the_whole_list_and_says_so(query: str, admin_client) -> None:
    live_task()

    response = admin_client.get(list_url("task", query), follow=True)

    assert response.status_code == 200
    assert "a filter that cannot be read" in _text(response)
    assert len(_names(response)) == 1


# Filters


def test_live_tasks_are_filtered_by_state_queue_task_and_age(admin_client) -> None:
    registered("default", "email", names=(NAME, "shop.mail"))
    wanted = live_task(queue="email", name="shop.mail")
    live_task(queue="email")
    live_task(name="shop.mail")
    live_task(State.SCHEDULED, queue="email", name="shop.mail")

    response = admin_client.get(list_url("task", "?state=ready&queue=email&task=shop.mail&created=24h"))

    assert _names(response) == [wanted.pk]
    assert "in the order they will be claimed" in _text(response)


def test_finished_tasks_are_filtered_by_state_reason_and_end(admin_client) -> None:
    wanted = dead_task(reason="expired")
    dead_task(reason="expired", finished_at=clock.now() - timedelta(days=2))
    dead_task()
    finished_task()

    response = admin_client.get(list_url("finishedtask", "?state=dead&reason=expired&finished=24h"))

    assert _names(response) == [wanted.pk]


def test_a_search_finds_a_task_by_the_beginning_of_its_id_and_by_its_whole_name(admin_client) -> None:
    wanted = live_task(name="shop.mail")
    live_task(name="shop.mail.more")

    assert wanted.pk in _names(admin_client.get(list_url("task", f"?q={str(wanted.pk)[:13]}")))
    assert _names(admin_client.get(list_url("task", "?q=shop.mail"))) == [wanted.pk]
    assert _names(admin_client.get(list_url("task", "?q=shop"))) == []


def test_a_whole_id_leads_to_the_task_in_whichever_table_it_is(admin_client) -> None:
    row = dead_task()

    response = admin_client.get(list_url("task", f"?q={row.pk}"))

    assert response.status_code == 302
    assert response["Location"] == page_url("deadtask", row.pk)


def test_discarded_dead_letters_are_hidden_until_asked_for(admin_client) -> None:
    open_ = dead_task()
    gone = dead_task(resolved_at=clock.now())

    assert _names(admin_client.get(list_url("deadtask"))) == [open_.pk]
    assert _names(admin_client.get(list_url("deadtask", "?discarded=yes"))) == [gone.pk]
    assert set(_names(admin_client.get(list_url("deadtask", "?discarded=all")))) == {open_.pk, gone.pk}


def test_dead_letters_with_the_same_error_have_a_list(admin_client) -> None:
    same = dead_task(fingerprint="a" * 16)
    dead_task(fingerprint="b" * 16)

    assert _names(admin_client.get(list_url("deadtask", f"?fingerprint={'a' * 16}"))) == [same.pk]


def test_a_search_that_stopped_says_how_far_it_looked_and_goes_on(admin_client, monkeypatch) -> None:
    monkeypatch.setattr(search, "WINDOW", 10)
    rows = dead_tasks(25)
    FinishedTask.objects.filter(pk=rows[3].pk).update(name="rare")

    first = admin_client.get(list_url("deadtask", "?q=rare"))
    second = admin_client.get(list_url("deadtask", _links(first, "next")[0].replace("&amp;", "&")))
    third = admin_client.get(list_url("deadtask", _links(second, "next")[0].replace("&amp;", "&")))

    assert "0 found among the 10 dead letters looked through" in _text(first)
    assert "Search on" in _text(first)
    assert _names(third) == [rows[3].pk]


def test_the_audit_log_is_filtered_by_actor_action_and_task(admin_client) -> None:
    row = dead_task()
    control.discard([row.pk], actor="ana", reason="known")
    control.pause("email", actor="ben")

    for query in ("?actor=ana", "?action=discard", f"?task={row.pk}", "?actor=ana&action=discard"):
        (entry,) = admin_client.get(list_url("auditentry", query)).context["cl"].result_list
        assert entry.actor == "ana"


def test_the_audit_log_can_be_filtered_by_whatever_is_done_to_queues_limits_keys_and_schedules(admin_client) -> None:
    registered("email")
    name = made().name
    arrange("email", weight=3)
    control.pause("email")
    control.resume("email")
    set_limit("queue:email", concurrency=1)
    reset_limit("queue:email")
    for verb in (schedules.pause, schedules.resume, schedules.skip_next, schedules.disable, schedules.enable):
        verb(name)
    schedules.run_now(name)
    schedules.change(name, task=REPORT, rule=rule(cron="0 10 * * *"), policy=Policy())
    schedules.delete(name)
    done = set(AuditEntry.objects.values_list("action", flat=True))

    for action in done:
        found = admin_client.get(list_url("auditentry", f"?action={action}")).context["cl"].result_list
        assert {entry.action for entry in found} == {action}
    assert len(done) == 14


# Who may see what


@pytest.mark.parametrize("model", MODELS)
def test_a_list_needs_its_permission(model: str, operator) -> None:
    assert operator("view_stat").get(list_url(model)).status_code == 403


@pytest.mark.parametrize("model", ["task", "finishedtask", "deadtask"])
def test_who_may_see_tasks_sees_them_in_every_table(model: str, operator) -> None:
    assert operator("view_task").get(list_url(model)).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_added_or_deleted(model: str, admin_client, a_bit_of_everything) -> None:
    from django.apps import apps

    rows = apps.get_model("django_taskq", model).objects
    row = rows.get(state=State.DEAD) if model == "deadtask" else rows.first()
    url = page_url(model, row.pk)

    assert admin_client.get(list_url(model) + "add/").status_code == 403
    assert admin_client.post(list_url(model) + "add/", {}).status_code == 403
    assert admin_client.post(url.replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    assert admin_client.get(url).status_code == 200


@pytest.mark.parametrize("model", ["worker", "tasktype", "auditentry", "duty"])
def test_a_row_cannot_be_edited(model: str, admin_client, a_bit_of_everything) -> None:
    from django.apps import apps

    kind = apps.get_model("django_taskq", model)
    row = kind.objects.first()
    before = kind.objects.filter(pk=row.pk).values().get()

    response = admin_client.post(page_url(model, row.pk), {"name": "changed", "actor": "changed", "count": "9"})

    assert response.status_code == 403
    assert kind.objects.filter(pk=row.pk).values().get() == before


def test_the_pages_work_on_another_site() -> None:
    site = AdminSite(name="ops")

    site.register(Task, TaskAdmin)
    site.register(DeadTask, DeadTaskAdmin)

    assert site.is_registered(Task)
    # Where a page is missing there is no link, and no error.
    assert site.get_model_admin(Task).link_to(Queue, "default") is None


# Other rows


def test_a_silent_worker_is_marked(admin_client) -> None:
    worker(name="fine")
    worker(name="quiet", beat_at=clock.now() - timedelta(seconds=31), lease_seconds=30)
    worker(name="gone", state=Worker.State.DEAD)

    text = _text(admin_client.get(list_url("worker")))

    assert text.count("taskq-silent") == 1
    assert "declared dead" in text


def test_a_queue_shows_the_depths_of_the_newest_snapshot_only(admin_client) -> None:
    registered("default")
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    Snapshot.objects.create(queue="default", at=now - timedelta(minutes=1), ready=11)
    Snapshot.objects.create(queue="default", at=now, ready=70_000, exact=False)

    text = _text(admin_client.get(list_url("queue")))

    assert "70,000+" in text
    assert ">11<" not in text


def test_hostile_names_are_escaped_in_lists(admin_client) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    registered(hostile, names=(hostile,))
    live_task(name=hostile, queue=hostile)
    dead_task(name=hostile, queue=hostile, error_line=hostile)
    worker(name=hostile, queues=hostile)
    AuditEntry.objects.create(at=clock.now(), actor=hostile, action="replay", target=hostile, reason=hostile)

    for model in ("task", "deadtask", "queue", "worker", "tasktype", "auditentry"):
        assert "<script>alert" not in _text(admin_client.get(list_url(model)))
