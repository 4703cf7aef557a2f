"""What limits allow, who holds them, who waits for them, and the sentence that says so."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import Concurrency, Rate, clock, reset_limit, set_limit
from django_taskq.exceptions import InvalidCursor
from django_taskq.models import Limit, Task
from django_taskq.ops import limits
from django_taskq.ops.explain import explain
from tests.faces.limits import ONE, ONE_NAME, PACED, one_at_once, paced, parked, running
from tests.faces.rows import live_task, registered, worker

pytestmark = pytest.mark.django_db


def names(prefix: str = "", **options: object) -> list[str]:
    return [f"{view.kind} {view.name}" for view in limits.listed("default", prefix, **options).rows]  # type: ignore[arg-type]


# The list


def test_limits_are_listed_from_the_widest_to_the_narrowest_and_found_by_their_beginning() -> None:
    for key in ("0c:all", "1r:queue:email", "1c:queue:default", "2c:smtp:1", "2r:smtp:1", "2c:smtp_2", "p:shop.send"):
        Limit.objects.create(key=key, amount=1)

    assert names() == [
        "concurrency all",
        "concurrency queue:default",
        "rate queue:email",
        "concurrency smtp:1",
        "concurrency smtp_2",
        "rate smtp:1",
    ]
    assert names("smtp:") == ["concurrency smtp:1", "rate smtp:1"]
    assert names("smtp_") == ["concurrency smtp_2"]
    assert names("queue:e") == ["rate queue:email"]
    assert names("SMTP") == []
    assert names("%") == []


def test_pages_of_limits_lead_on_and_back_across_kinds() -> None:
    keys = [f"2{kind}:key{number:02}" for kind in "cr" for number in range(6)]
    Limit.objects.bulk_create([Limit(key=key, amount=1) for key in keys])

    first = limits.listed("default", "key", limit=5)
    second = limits.listed("default", "key", limit=5, after=first.older)
    third = limits.listed("default", "key", limit=5, after=second.older)
    back = limits.listed("default", "key", limit=5, before=second.newer)

    pages = [[view.row.key for view in page.rows] for page in (first, second, third)]
    assert pages == [keys[:5], keys[5:10], keys[10:]]
    assert third.older is None
    assert [view.row.key for view in back.rows] == keys[:5]
    with pytest.raises(InvalidCursor):
        limits.listed("default", after="x")


def test_a_page_of_many_limits_costs_few_queries_and_reads_few_rows() -> None:
    Limit.objects.bulk_create(
        [Limit(key=f"2{kind}:key:{number:06}", amount=1) for kind in "cr" for number in range(2_000)], batch_size=1000
    )

    with CaptureQueriesContext(connection) as context:
        page = limits.listed("default", "key:0019", limit=50)

    assert (len(page.rows), page.count) == (50, 200)
    assert len(context) <= 12  # six ranges for the rows, six for the capped count
    assert all("OFFSET" not in query["sql"] and "COUNT" not in query["sql"] for query in context.captured_queries)


def test_a_view_tells_the_bounds_of_code_and_operator_and_which_holds() -> None:
    parked(one_at_once)
    set_limit(ONE_NAME, concurrency=5, until=timedelta(hours=1), actor="ana", reason="catch up")

    view = limits.find("default", "concurrency", ONE_NAME)

    assert view is not None
    assert (str(view.code), str(view.by_hand), str(view.bound)) == ("1 at once", "5 at once", "5 at once")
    assert (view.is_set, view.held, view.free, view.parked, view.is_full) == (True, 1, 4, 2, False)
    later = limits.find("default", "concurrency", ONE_NAME, now=clock.now() + timedelta(hours=2))
    assert later is not None
    assert (str(later.bound), later.is_set, later.is_full) == ("1 at once", False, True)


def test_a_limit_of_a_queue_shows_what_the_settings_say_now(settings) -> None:
    Limit.objects.create(key="1c:queue:email", amount=9)
    settings.TASKQ = {"QUEUES": {"email": {"CONCURRENCY": 4, "RATE": Rate("10/s")}}}
    assert str(limits.find("default", "concurrency", "queue:email").bound) == "4 at once"  # type: ignore[union-attr]

    settings.TASKQ = {}

    gone = limits.find("default", "concurrency", "queue:email")
    assert gone is not None
    assert (gone.code, gone.bound, gone.is_full) == (None, None, False)


def test_the_count_of_parked_tasks_is_capped() -> None:
    Limit.objects.create(key=ONE, amount=1, waits=True)
    Task.objects.bulk_create([Task(state=5, parked_on=ONE, created_at=clock.now()) for _ in range(1002)])

    view = limits.find_key("default", ONE)

    assert view is not None
    assert (view.parked, view.parked_is_capped) == (1000, True)


def test_holders_are_those_that_run_with_a_slot_of_just_this_key() -> None:
    Task.objects.bulk_create(
        [
            Task(state=2, lease=1 << 32 | number, slots=slots, created_at=clock.now(), name=f"t{number}")
            for number, slots in enumerate(["2c:a", "2c:b", "1c:queue:default\n2c:a", "2c:ab", None])
        ]
    )

    assert [holder.name for holder in limits.holders("default", "2c:a")] == ["t0", "t2"]
    assert len(limits.holders("default", "2c:a", limit=1)) == 1


# Why a task does not run


def test_a_parked_task_names_its_limit_and_who_holds_it() -> None:
    row = parked(one_at_once)

    why = explain("default", row)

    assert f"“{ONE_NAME}” (1 at once)" in why
    assert str(running().pk) in why
    assert "An operator can raise it" in why


def test_a_task_parked_for_a_rate_says_when_the_next_may_start() -> None:
    row = parked(paced)

    why = explain("default", row, now=clock.now())

    assert "the rate limit “mail” (1 per 1 h" in why
    assert "due in 59 min" in why


def test_a_task_held_by_an_operator_names_who_and_why() -> None:
    row = parked(one_at_once)
    set_limit(ONE_NAME, concurrency=0, until=timedelta(hours=1), actor="ana", reason="provider down")

    why = explain("default", row)

    assert "lets nothing start" in why
    assert "set by ana for another" in why
    assert "(provider down)" in why
    assert "reset it" in why


def test_a_parked_task_whose_limit_has_room_says_that_it_is_about_to_go_back() -> None:
    row = parked(one_at_once)
    set_limit(ONE_NAME, concurrency=3)

    assert "has room" in explain("default", row)
    Limit.objects.all().delete()
    assert "is gone" in explain("default", row)


def test_a_task_parked_for_its_paused_type_says_so() -> None:
    assert "type were paused" in explain("default", Task(state=5, parked_on="p:shop.send", created_at=clock.now()))


def test_a_ready_task_of_a_full_queue_names_the_limit() -> None:
    registered("default")
    worker()
    row = live_task()
    assert "next of its queue" in explain("default", row)

    set_limit("all", rate="0/m", actor="ana")
    assert "“all” (0 per 1 min" in explain("default", row)
    reset_limit("all")
    set_limit("queue:default", concurrency=0)
    assert "“queue:default” (0 at once)" in explain("default", row)
    assert "next of its queue" in explain("default", live_task(queue="other")) or registered("other") is None


def test_a_ready_task_whose_own_limit_is_full_names_it() -> None:
    parked(one_at_once)
    registered("default", names=("tests.faces.limits.one_at_once",))
    one_at_once.enqueue(9)
    row = Task.objects.get(state=1)

    assert "are taken" in explain("default", row)


def test_definitions_keep_their_limits() -> None:
    assert (one_at_once.limits, paced.limits) == ((Concurrency(1),), (Rate("1/h", key="mail"),))
    assert PACED.endswith("mail")


@pytest.mark.stress
def test_a_page_of_a_hundred_thousand_limits_is_quick() -> None:
    now = clock.now()
    Limit.objects.bulk_create(
        [
            Limit(key=f"2{kind}:smtp:{number:05}", amount=1, used_at=now, waits=number % 7 == 0)
            for kind in "cr"
            for number in range(50_000)
        ],
        batch_size=2000,
    )

    def took(prefix: str, after: str | None) -> float:
        begin = time.perf_counter()
        limits.listed("default", prefix, after=after)
        return time.perf_counter() - begin

    for prefix in ("", "smtp:", "smtp:05", "task:", "nothing"):
        for after in (None, limits.listed("default", prefix).older):
            assert min(took(prefix, after) for _ in range(3)) < 0.2, (prefix, after)
