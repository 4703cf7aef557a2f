"""``taskq limits``: what it prints, what it does, and how it exits."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_taskq import clock, set_limit
from django_taskq.models import AuditEntry, Limit
from tests.faces.limits import ONE, ONE_NAME, one_at_once, paced, parked, running
from tests.faces.rows import registered
from tests.faces.test_commands import data, refusal, run

pytestmark = pytest.mark.django_db


def test_list_tells_bounds_holders_and_who_waits_and_pages() -> None:
    parked(one_at_once)
    parked(paced)
    set_limit("all", concurrency=100, actor="ana")

    records = data("limits", "list")

    assert [(record["limit"], record["kind"]) for record in records] == [
        ("all", "concurrency"),
        (ONE_NAME, "concurrency"),
        ("mail", "rate"),
    ]
    assert {name: records[1][name] for name in ("bound", "code", "is_set", "held", "is_full", "parked")} == {
        "bound": "1 at once",
        "code": "1 at once",
        "is_set": False,
        "held": 1,
        "is_full": True,
        "parked": 2,
    }
    assert (records[2]["per_seconds"], records[2]["next_start_at"] is not None) == (3600.0, True)
    assert [record["limit"] for record in data("limits", "list", "ma")] == ["mail"]
    assert "Next page: --after" in run("limits", "list", "--limit", "1")


def test_show_names_the_tasks_that_hold_slots() -> None:
    parked(one_at_once)

    (record,) = data("limits", "show", ONE_NAME)

    assert [holder["id"] for holder in record["holders"]] == [str(running().pk)]
    assert str(running().pk) in run("limits", "show", ONE_NAME, "--kind", "concurrency")
    assert refusal("limits", "show", ONE_NAME, "--kind", "rate").returncode == 3
    assert refusal("limits", "show", "smtp:9").returncode == 3


def test_set_and_reset_are_done_and_audited() -> None:
    registered("email")

    (record,) = data("limits", "set", "queue:email", "--rate", "10/m", "--burst", "4", "--until", "2h", "--reason", "x")
    row = Limit.objects.get()
    (reset,) = data("limits", "reset", "queue:email", "--actor", "bob", "--reason", "y")
    (again,) = data("limits", "reset", "queue:email")

    assert (record["bound"], record["is_set"], record["set_reason"]) == ("10 per 60 s, burst 4", True, "x")
    assert row.set_until is not None
    assert timedelta(minutes=119) < row.set_until - clock.now() <= timedelta(hours=2)
    assert (reset["outcome"], again["outcome"]) == ("reset", "not changed, nothing was set")
    assert list(AuditEntry.objects.order_by("id").values_list("action", "target", "reason")) == [
        ("set_limit", "queue:email", "x"),
        ("reset_limit", "queue:email", "y"),
    ]


def test_set_takes_a_moment_and_holds_everything() -> None:
    (record,) = data("limits", "set", "all", "--concurrency", "0", "--until", "2999-01-01T00:00:00Z")

    assert (record["amount"], record["is_full"], record["set_until"]) == (0, True, "2999-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("all",), 2, "one of them"),
        (("all", "--concurrency", "1", "--rate", "1/s"), 2, "one of them"),
        (("all", "--rate", "fast"), 2, "rate must be a number per time"),
        (("all", "--rate", "1/s", "--until", "1999-01-01"), 2, "until must be a moment ahead"),
        (("smtp:9", "--concurrency", "1"), 3, "no task has a concurrency limit"),
        (("queue:typo", "--concurrency", "1"), 3, "typo"),
    ],
)
def test_what_cannot_be_set_exits_with_its_code(arguments: tuple[str, ...], code: int, text: str) -> None:
    registered("email")

    error = refusal("limits", "set", *arguments)

    assert (error.returncode, text in str(error)) == (code, True)
    assert not Limit.objects.exists()


def test_a_limit_without_a_row_is_not_reset(capsys: pytest.CaptureFixture[str]) -> None:
    parked(one_at_once)

    assert "nothing was set" in run("limits", "reset", ONE_NAME)
    assert Limit.objects.filter(pk=ONE).exists()
