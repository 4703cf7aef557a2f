"""``taskq workflows``: what it prints, what it does, and how it exits."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import batch, chain
from django_taskq.domain.states import State
from django_taskq.models import AuditEntry, Task, Workflow
from tests.faces import flows
from tests.faces.flows import say
from tests.faces.test_commands import ROOT, UNKNOWN, data, refusal, run

pytestmark = pytest.mark.django_db


def test_list_narrows_by_state_kind_and_name_and_pages() -> None:
    outer, ended = flows.nested(), flows.failed()
    inner = str(Workflow.objects.get(parent_id=outer.id).pk)

    def found(*args: str) -> list[str]:
        return [record["id"] for record in data("workflows", "list", *args)]

    assert found() == [ended.id, inner, outer.id]
    assert found("--state", "failed") == [ended.id]
    assert found("--state", "failed", "--state", "running") == [ended.id, outer.id]
    assert found("--kind", "batch") == [inner]
    assert found("--outermost") == [ended.id, outer.id]
    assert found("--name", "month end") == [outer.id]
    assert found("--since", "1h", "--limit", "1") == [ended.id]
    assert "Next page: --after" in run("workflows", "list", "--limit", "1")


def test_list_tells_counts() -> None:
    flows.failed()

    (record,) = data("workflows", "list")

    assert {name: record[name] for name in ("kind", "state", "total", "open", "failed", "cancelled", "may_fail")} == {
        "kind": "chain",
        "state": "failed",
        "total": 3,
        "open": 0,
        "failed": 1,
        "cancelled": 2,
        "may_fail": 0,
    }


def test_show_tells_why_callbacks_and_members() -> None:
    handle = flows.failed()

    (record,) = data("workflows", "show", handle.id)
    text = run("workflows", "show", handle.id)

    assert record["why"].startswith("It failed")
    assert [(call["callback"], call["state"]) for call in record["callbacks"]] == [
        ("finally", "waiting"),
        ("catch", "ready"),
    ]
    assert [member["state"] for member in record["members"]] == ["dead", "cancelled", "cancelled"]
    assert not record["members_are_capped"]
    assert record["members"][0]["error"] == "for a test"
    assert "dead        " + record["members"][0]["id"] in text
    assert "catch     ready" in text


def test_show_says_how_many_members_it_left_out() -> None:
    handle = batch([say.s(str(number)) for number in range(9)]).enqueue()

    assert "... 6 more" in run("workflows", "show", handle.id, "--limit", "3")
    (record,) = data("workflows", "show", handle.id, "--limit", "3")
    assert record["members_are_capped"]


def test_a_tree_shows_what_is_inside_what() -> None:
    handle = flows.nested()

    text = run("workflows", "show", handle.id, "--tree")
    tree = text[text.index("\ntree\n") :].splitlines()[2:]

    name = "tests.app.tasks.leave_effect"
    assert tree == [
        "  chain month end  running 0/3",
        f"    {name}  ready",
        "    batch middle  waiting 0/2",
        f"      {name}  waiting",
        f"      {name}  waiting",
        f"    {name}  waiting",
    ]
    (record,) = data("workflows", "show", handle.id, "--tree")
    assert [branch["depth"] for branch in record["tree"]] == [0, 1, 1, 2, 2, 1]


def test_a_tree_of_many_is_cut_and_costs_three_queries_a_level(monkeypatch) -> None:
    from django_taskq.ops import workflows

    handle = batch(chain(say.s("a"), say.s("b")) for _ in range(20)).enqueue()
    row = Workflow.objects.get(pk=handle.id)

    with CaptureQueriesContext(connection) as queries:
        whole = workflows.tree("default", row)
    cut = workflows.tree("default", row, limit=30)

    assert len(queries) <= 9
    assert len(whole) == 61
    assert len([branch for branch in cut if branch.member]) == 31
    assert sum(branch.more for branch in cut) == 30


def test_a_graph_names_its_nodes_and_the_signal_it_waits_for() -> None:
    handle = flows.graph()
    gate = Task.objects.get(workflow_id=handle.id, name="django_taskq.gates.received")

    assert "ship: tests.app.tasks.leave_effect" in run("workflows", "show", handle.id)
    (record,) = data("inspect", str(gate.pk))
    assert record["why"] == "It waits for the signal “approval”."
    assert (record["workflow_id"], record["workflow_role"]) == (handle.id, "member")


def test_cancel_ends_all_and_is_audited() -> None:
    handle = flows.nested()

    (record,) = data("workflows", "cancel", handle.id, "--reason", "wrong month", "--actor", "ana")

    assert (record["id"], record["outcome"]) == (handle.id, "cancelled")
    assert handle.refresh().status == "cancelled"
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.reason, entry.target) == ("ana", "wrong month", f"workflow {handle.id}")


def test_cancel_of_one_that_runs_asks() -> None:
    handle = chain(say.s("a"), say.s("b")).enqueue()
    Task.objects.filter(state=State.READY).update(state=State.RUNNING, lease=1, attempt=1)

    (record,) = data("workflows", "cancel", handle.id)

    assert record["outcome"] == "asked"


def test_a_dry_run_changes_nothing() -> None:
    handle, ended = flows.nested(), flows.failed()

    cancelled = run("workflows", "cancel", handle.id, "--dry-run")
    replayed = data("workflows", "replay", ended.id, "--dry-run")

    assert "Would cancel 1 workflows; nothing was changed." in cancelled
    assert replayed[0]["outcome"] == "planned"
    assert (handle.refresh().status, ended.refresh().status) == ("running", "failed")


def test_replay_brings_back_what_failed_or_everything() -> None:
    ended, empty = flows.failed(), batch().enqueue()

    assert data("workflows", "replay", ended.id)[0]["outcome"] == "replayed"
    assert ended.refresh().status == "running"
    assert refusal("workflows", "replay", empty.id).returncode == 4
    assert data("workflows", "replay", empty.id, "--from-start")[0]["outcome"] == "replayed"


def test_exit_codes() -> None:
    handle, ended = flows.nested(), flows.failed()

    assert refusal("workflows", "show", UNKNOWN).returncode == 3
    assert refusal("workflows", "cancel", UNKNOWN).returncode == 3
    assert refusal("workflows", "cancel", UNKNOWN, "--dry-run").returncode == 3
    assert refusal("workflows", "show", "nonsense").returncode == 2
    assert refusal("workflows", "list", "--after", "nonsense").returncode == 2
    assert refusal("workflows", "cancel", ended.id).returncode == 4
    assert refusal("workflows", "cancel", handle.id, ended.id).returncode == 5


def test_every_record_key_is_in_the_reference() -> None:
    handle, ended = flows.nested(), flows.failed()
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    commands = [("list",), ("show", handle.id, "--tree"), ("cancel", handle.id), ("replay", ended.id)]
    records = [record for args in commands for record in data("workflows", *args)]
    keys = {key for record in records for key in record}
    keys |= {
        key
        for record in records
        for found in record.values()
        if isinstance(found, list)
        for one in found
        for key in one
    }

    assert not {key for key in keys if f"`{key}`" not in text}
