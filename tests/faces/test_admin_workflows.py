"""Chains, batches and workflows in the admin: lists, pages, and what operators do to them."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import batch, chain
from django_taskq.domain.states import State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.models import AuditEntry, FinishedTask, Task, Workflow
from tests.faces import flows
from tests.faces.conftest import act_url, list_url, page_url
from tests.faces.flows import say

pytestmark = pytest.mark.django_db

GONE = "018f0000-0000-7000-8000-000000000000"


def _text(response) -> str:
    return response.content.decode()


def _shown(response) -> list[str]:
    return [str(row.pk) for row in response.context["cl"].result_list]


def _act(client, verb: str, *ids, **data):
    return client.post(act_url("workflow", verb), {"id": ids, "confirmed": "1", **data}, follow=True)


# The list


def test_the_list_narrows_by_state_kind_name_and_place(admin_client) -> None:
    outer = flows.nested()
    ended = flows.failed()
    other = batch(say.s("x")).name("pictures").enqueue()
    inner = str(Workflow.objects.get(parent_id=outer.id).pk)

    def found(query: str) -> set[str]:
        return set(_shown(admin_client.get(list_url("workflow", query))))

    assert found("") == {outer.id, inner, ended.id, other.id}
    assert found("?state=failed") == {ended.id}
    assert found("?state=waiting") == {inner}
    assert found("?kind=batch") == {inner, other.id}
    assert found("?kind=batch&inside=no") == {other.id}
    assert found("?q=pictures") == {other.id}
    assert found(f"?q={other.id[:14]}") >= {other.id}
    assert found("?created=1h&kind=chain&state=running") == {outer.id}


def test_a_list_shows_kind_state_and_how_many_members_have_ended(admin_client) -> None:
    flows.failed()

    text = " ".join(_text(admin_client.get(list_url("workflow"))).split())

    assert "3 / 3 · 3 without success" in text
    assert 'class="taskq-state taskq-failed"' in text
    assert 'class="field-kind_column">chain<' in text


def test_the_list_pages_by_key(admin_client) -> None:
    ids = [batch(say.s(str(number))).enqueue().id for number in range(30)]

    first = admin_client.get(list_url("workflow", "?per=25"))
    (address,) = re.findall(r'rel="next" href="([^"]+)"', _text(first))
    second = admin_client.get(list_url("workflow", address.replace("&amp;", "&")))

    assert _shown(first) + _shown(second) == ids[::-1]


def test_a_whole_id_leads_to_its_page(admin_client) -> None:
    handle = flows.nested()

    response = admin_client.get(list_url("workflow", f"?q={handle.id}"))

    assert response["Location"] == page_url("workflow", handle.id)


# The page


def test_a_page_shows_callbacks_members_and_ways_to_all_of_them(admin_client) -> None:
    handle = flows.nested()
    inner = Workflow.objects.get(parent_id=handle.id)
    first, last = Task.objects.filter(workflow_id=handle.id).order_by("pk")

    text = _text(admin_client.get(page_url("workflow", handle.id)))

    assert "chain month end" in text
    assert "3 of its 3 members have not ended." in text
    for link in (page_url("task", first.pk), page_url("task", last.pk), page_url("workflow", inner.pk)):
        assert f'href="{link}"' in text
    assert text.count("not called yet") == 3
    assert f'href="{page_url("workflow", handle.id)}"' in _text(admin_client.get(page_url("workflow", inner.pk)))


def test_a_page_links_what_was_called_and_says_what_was_not(admin_client) -> None:
    handle = flows.failed()
    caught = Task.objects.get(role=3)

    text = _text(admin_client.get(page_url("workflow", handle.id)))

    assert f'href="{page_url("task", caught.pk)}"' in text
    assert "1 member is dead" in text
    assert "for a test" in text
    assert "then" not in re.findall(r"<tr><td>(\w+)</td>", text)


def test_a_tasks_page_leads_to_its_workflow_and_to_what_it_waits_for(admin_client) -> None:
    handle = flows.nested()
    inner = Workflow.objects.get(parent_id=handle.id)
    last = Task.objects.filter(workflow_id=handle.id).order_by("pk").last()

    text = _text(admin_client.get(page_url("task", last.pk)))

    assert f'href="{page_url("workflow", handle.id)}"' in text
    assert f'href="{page_url("workflow", inner.pk)}"' in text
    assert "It waits for batch middle (waiting)." in text


def test_a_callbacks_page_says_who_called_it_and_as_what(admin_client) -> None:
    handle = flows.failed()
    task = Task.objects.get(role=4)

    text = _text(admin_client.get(page_url("task", task.pk)))

    assert "Called by" in text
    assert f'href="{page_url("workflow", handle.id)}"' in text
    assert "It is called finally: it waits until what was called before it has ended" in text


def test_members_beyond_two_hundred_are_on_the_next_page_and_cost_no_more_queries(admin_client) -> None:
    def look(address: str) -> tuple[str, int]:
        with CaptureQueriesContext(connection) as queries:
            text = _text(admin_client.get(address))
        return text, len(queries)

    few = batch(say.s("a"), batch(say.s("b"))).enqueue()
    many = batch([say.s(str(number)) for number in range(205)]).enqueue()

    _, cheap = look(page_url("workflow", few.id))
    first, dear = look(page_url("workflow", many.id))
    (address,) = re.findall(r'rel="next" href="([^"#]+)', first)
    second, _ = look(page_url("workflow", many.id) + address)

    assert dear <= cheap <= 16
    assert first.count(">ready<") == 200
    assert second.count(">ready<") == 5
    assert 'rel="next"' not in second


@pytest.mark.parametrize("key", [GONE, "nonsense", "%00"])
def test_an_unknown_id_leads_to_the_list_with_a_word(key: str, admin_client) -> None:
    response = admin_client.get(page_url("workflow", key), follow=True)

    assert response.redirect_chain[-1][0] == list_url("workflow")
    assert "No workflow has the id" in _text(response)


def test_hostile_names_are_escaped(admin_client) -> None:
    handle = chain(say.s("a")).name("<b>x</b>\u202e").enqueue()

    for address in (list_url("workflow"), page_url("workflow", handle.id)):
        text = _text(admin_client.get(address))
        assert "<b>x" not in text
        assert "\u202e" not in text


# Acting


def test_a_button_asks_first_and_changes_nothing(admin_client) -> None:
    handle = flows.nested()

    response = admin_client.post(act_url("workflow", "cancel"), {"id": [handle.id]})

    assert "Cancel: 1 workflow" in _text(response)
    assert "chain month end" in _text(response)
    assert handle.refresh().status == "running"
    assert admin_client.get(act_url("workflow", "cancel")).status_code == 405
    assert admin_client.post(act_url("workflow", "explode"), {"id": [handle.id]}).status_code == 404


def test_a_cancelled_workflow_ends_with_all_inside_it_and_is_audited_once(admin_client) -> None:
    handle = flows.nested()

    response = _act(admin_client, "cancel", handle.id, reason="wrong month", back=page_url("workflow", handle.id))

    assert set(Workflow.objects.values_list("state", flat=True)) == {WorkflowState.CANCELLED}
    assert "1 workflow was cancelled." in _text(response)
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.action, entry.reason, str(entry.task_id)) == (
        "admin",
        "cancel",
        "wrong month",
        handle.id,
    )
    assert "wrong month" in _text(response)
    assert f'href="{page_url("workflow", handle.id)}"' in _text(admin_client.get(list_url("auditentry")))


def test_a_workflow_in_which_something_runs_is_being_cancelled(admin_client) -> None:
    handle = chain(say.s("a"), say.s("b")).enqueue()
    Task.objects.filter(state=State.READY).update(state=State.RUNNING, lease=1, attempt=1)

    response = _act(admin_client, "cancel", handle.id)

    assert "1 workflow is being cancelled: it ends when nothing in it runs." in _text(response)
    text = _text(admin_client.get(page_url("workflow", handle.id)))
    assert "It is being cancelled" in text
    assert act_url("workflow", "cancel") not in text


def test_what_failed_is_replayed_with_more_attempts(admin_client) -> None:
    handle = flows.failed()

    response = _act(admin_client, "replay", handle.id, reason="mended", attempts="7")

    first = Task.objects.filter(workflow_id=handle.id, role=1).order_by("pk")[0]
    assert "1 workflow runs again." in _text(response)
    assert handle.refresh().status == "running"
    assert (first.state, first.max_attempts - first.attempt) == (State.READY, 7)
    assert AuditEntry.objects.filter(action="replay", reason="mended").count() == 1


def test_a_completed_workflow_is_only_replayed_from_the_start(admin_client) -> None:
    handle = batch().then(say.s("then")).enqueue()

    page = _text(admin_client.get(page_url("workflow", handle.id)))
    refused = _text(_act(admin_client, "replay", handle.id))
    done = _text(_act(admin_client, "restart", handle.id))

    assert act_url("workflow", "restart") in page
    assert act_url("workflow", "replay") not in page
    assert "1 workflow was skipped" in refused
    assert "a completed workflow cannot be replayed" in refused
    assert "1 workflow runs again." in done


def test_a_selection_needs_a_reason_and_tells_what_was_skipped(admin_client) -> None:
    one, two, ended = flows.nested(), flows.nested(), flows.failed()
    keys = [one.id, two.id, ended.id]

    asked = admin_client.post(
        list_url("workflow"), {"action": "cancel_selected", "_selected_action": keys, "index": "0"}
    )
    without = _text(_act(admin_client, "cancel", *keys))
    done = _text(_act(admin_client, "cancel", *keys, GONE, reason="INC-9"))

    assert "Cancel: 3 workflows" in _text(asked)
    assert "This field is required." in without
    assert "2 workflows were cancelled." in done
    assert "2 workflows were skipped" in done
    assert f"{GONE}: not found" in done


def test_select_across_and_malformed_ids_are_refused(admin_client) -> None:
    handle = flows.nested()

    for data in (
        {"action": "cancel_selected", "_selected_action": [handle.id], "select_across": "1"},
        {"action": "cancel_selected", "_selected_action": ["nonsense"]},
    ):
        response = admin_client.post(list_url("workflow"), data, follow=True)
        assert "Nothing was changed." in _text(response)
    assert handle.refresh().status == "running"


# Who may


def test_whoever_may_see_tasks_may_see_workflows_and_do_nothing_to_them(operator) -> None:
    handle = flows.nested()
    client = operator("view_task")

    page = client.get(page_url("workflow", handle.id))

    assert client.get(list_url("workflow")).status_code == 200
    assert act_url("workflow", "cancel") not in _text(page)
    for verb in ("cancel", "replay", "restart"):
        assert client.post(act_url("workflow", verb), {"id": [handle.id], "confirmed": "1"}).status_code == 403
    assert (
        client.post(list_url("workflow"), {"action": "cancel_selected", "_selected_action": [handle.id]}).status_code
        == 403
    )
    assert handle.refresh().status == "running"


@pytest.mark.parametrize(("permission", "verb"), [("cancel_workflow", "cancel"), ("replay_workflow", "restart")])
def test_each_verb_has_a_permission_of_its_own(permission: str, verb: str, operator) -> None:
    handle = flows.nested() if verb == "cancel" else flows.failed()
    client = operator("view_workflow", permission)

    page = _text(client.get(page_url("workflow", handle.id)))
    response = client.post(act_url("workflow", verb), {"id": [handle.id], "confirmed": "1"})

    assert act_url("workflow", verb) in page
    assert response.status_code == 302
    assert AuditEntry.objects.count() == (1 if verb == "cancel" else 2)


@pytest.mark.parametrize("codenames", [(), ("cancel_workflow", "replay_workflow"), ("view_queue",)])
def test_whoever_may_not_look_is_refused(codenames, operator) -> None:
    handle = flows.nested()
    client = operator(*codenames)

    for address in (list_url("workflow"), page_url("workflow", handle.id)):
        assert client.get(address).status_code == 403
    assert client.post(act_url("workflow", "cancel"), {"id": [handle.id], "confirmed": "1"}).status_code == 403
    assert not FinishedTask.objects.exists()
