"""What a search promises: each match once, in order, without counting and without OFFSET."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import State
from django_taskq.exceptions import InvalidCursor
from django_taskq.models import FinishedTask, Task
from django_taskq.ops import search
from django_taskq.ops.search import TaskFilter
from tests.faces.rows import dead_task, dead_tasks, finished_task, id_at, live_task

pytestmark = pytest.mark.django_db

OPEN = TaskFilter(states=frozenset({State.DEAD}), discarded=False)


def _walk(find, wanted, *, limit):
    """Page from the first to the last; return the rows of each page."""
    pages, after = [], None
    while True:
        page = find("default", wanted, limit=limit, after=after)
        pages.append(page)
        after = page.older
        if after is None:
            return pages


def _ids(pages):
    return [row.pk for page in pages for row in page.rows]


def test_paging_shows_each_dead_letter_once_last_died_first() -> None:
    rows = dead_tasks(23)

    pages = _walk(search.finished, OPEN, limit=5)

    assert [len(page.rows) for page in pages] == [5, 5, 5, 5, 3]
    assert _ids(pages) == [row.pk for row in reversed(rows)]


def test_paging_keeps_rows_apart_that_ended_at_the_same_moment() -> None:
    rows = dead_tasks(11, finished_at=datetime(2026, 3, 1, tzinfo=UTC))

    pages = _walk(search.finished, OPEN, limit=2)

    assert _ids(pages) == [row.pk for row in reversed(rows)]


def test_the_way_back_shows_the_same_pages() -> None:
    dead_tasks(12)
    there = _walk(search.finished, OPEN, limit=5)

    back = search.finished("default", OPEN, limit=5, before=there[2].newer)
    first = search.finished("default", OPEN, limit=5, before=back.newer)

    assert _ids([back]) == _ids([there[1]])
    assert _ids([first]) == _ids([there[0]])
    assert first.newer is None
    assert back.older is not None


def test_the_way_back_into_a_page_that_filled_up_shows_the_first_page_whole() -> None:
    dead_tasks(4)
    second = search.finished("default", OPEN, limit=3, after=search.finished("default", OPEN, limit=3).older)
    FinishedTask.objects.filter(pk__in=[row.pk for row in search.finished("default", OPEN, limit=2).rows]).delete()

    page = search.finished("default", OPEN, limit=3, before=second.newer)

    assert len(page.rows) == 2
    assert page.newer is None


@pytest.mark.parametrize("count", [3, 4])
def test_a_page_that_is_just_full_has_no_older_one(count: int) -> None:
    dead_tasks(count)

    page = search.finished("default", OPEN, limit=3)

    assert (page.older is not None) is (count > 3)
    assert (page.count, page.more) == (count, False)


def test_a_count_stops_at_a_thousand() -> None:
    dead_tasks(1002)

    page = search.finished("default", OPEN, limit=50)

    assert (page.count, page.more) == (1000, True)


FORBIDDEN = re.compile(r"\b(COUNT|OFFSET|DISTINCT)\b", re.IGNORECASE)


@pytest.mark.parametrize(
    ("find", "wanted"),
    [
        (search.finished, OPEN),
        (search.finished, TaskFilter()),
        (search.finished, TaskFilter(queues=frozenset({"default"}))),
        (search.live, TaskFilter()),
        (search.live, TaskFilter(states=frozenset({State.READY}), queues=frozenset({"default"}))),
    ],
)
def test_no_search_counts_or_skips_or_sorts_out_doubles(find, wanted) -> None:
    dead_tasks(120)
    Task.objects.bulk_create(
        Task(id=row.pk, queue="default", name="x", created_at=row.created_at) for row in FinishedTask.objects.all()
    )

    with CaptureQueriesContext(connection) as queries:
        page = find("default", wanted, limit=50)
        second = find("default", wanted, limit=50, after=page.older)
        find("default", wanted, limit=50, before=second.newer)

    assert len(second.rows) == 50
    assert not [query["sql"] for query in queries if FORBIDDEN.search(query["sql"])]


def test_a_discarded_dead_letter_is_found_only_where_asked_for() -> None:
    open_ = dead_task()
    gone = dead_task(resolved_at=datetime(2026, 3, 1, tzinfo=UTC))
    dead = frozenset({State.DEAD})

    assert _ids([search.finished("default", OPEN)]) == [open_.pk]
    assert _ids([search.finished("default", TaskFilter(states=dead, discarded=True))]) == [gone.pk]
    assert _ids([search.finished("default", TaskFilter(states=dead))]) == [gone.pk, open_.pk]


def test_ready_tasks_of_one_queue_come_in_the_order_of_their_turn() -> None:
    low, high = live_task(rank=5), live_task(rank=-5)
    live_task(queue="other")
    live_task(State.SCHEDULED)

    page = search.live("default", TaskFilter(states=frozenset({State.READY}), queues=frozenset({"default"})))

    assert page.order is search.NEXT_TURN
    assert _ids([page]) == [high.pk, low.pk]


def test_scheduled_tasks_come_in_the_order_they_are_due() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    late, soon = (live_task(State.SCHEDULED, run_after=now + timedelta(hours=hours)) for hours in (2, 1))

    page = search.live("default", TaskFilter(states=frozenset({State.SCHEDULED})))

    assert _ids([page]) == [soon.pk, late.pk]


def test_running_tasks_come_by_worker_and_page_through_one_claim() -> None:
    rows = [live_task(State.RUNNING, lease=make_lease(worker, 1)) for worker in (2, 1, 1, 1)]
    live_task()

    pages = _walk(search.live, TaskFilter(states=frozenset({State.RUNNING})), limit=2)

    assert _ids(pages) == [rows[1].pk, rows[2].pk, rows[3].pk, rows[0].pk]


def test_an_id_is_found_by_its_beginning() -> None:
    row = dead_task()
    dead_tasks(1)

    for text in (str(row.pk), row.pk.hex, str(row.pk)[:14], str(row.pk).upper()[:20]):
        assert _ids([search.finished("default", TaskFilter(id=text))]) == [row.pk]


@pytest.mark.parametrize("text", ["", "12345", "xyzxyz", "0" * 33, "shop.tasks.send"])
def test_what_cannot_begin_an_id_is_none(text: str) -> None:
    assert search.id_span(text) is None


def test_the_created_window_is_read_off_the_ids() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    inside = live_task(id=id_at(moment))
    live_task(id=id_at(moment - timedelta(milliseconds=1)))
    live_task(id=id_at(moment + timedelta(hours=1)))

    page = search.live("default", TaskFilter(created_since=moment, created_until=moment + timedelta(hours=1)))

    assert _ids([page]) == [inside.pk]
    assert page.examined is None


def test_the_finished_window_has_a_start_and_an_end() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    inside = finished_task(finished_at=moment)
    finished_task(finished_at=moment - timedelta(microseconds=1))
    finished_task(finished_at=moment + timedelta(hours=1))

    page = search.finished("default", TaskFilter(finished_since=moment, finished_until=moment + timedelta(hours=1)))

    assert _ids([page]) == [inside.pk]


def test_a_filter_without_an_index_looks_at_a_bounded_number_of_rows_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(search, "WINDOW", 10)
    wanted = TaskFilter(states=frozenset({State.DEAD}), discarded=False, names=frozenset({"rare"}))
    rows = dead_tasks(25)
    FinishedTask.objects.filter(pk=rows[3].pk).update(name="rare")

    pages = _walk(search.finished, wanted, limit=5)

    assert [page.examined for page in pages] == [10, 10, 5]
    assert [page.more for page in pages] == [True, True, True]
    assert _ids(pages) == [rows[3].pk]
    assert pages[0].edge == rows[15].finished_at


def test_a_window_with_more_matches_than_a_page_goes_on_behind_the_last_one_shown(monkeypatch) -> None:
    monkeypatch.setattr(search, "WINDOW", 10)
    wanted = TaskFilter(queues=frozenset({"default"}))
    rows = dead_tasks(17)

    pages = _walk(search.finished, wanted, limit=4)

    assert _ids(pages) == [row.pk for row in reversed(rows)]


def test_the_way_back_through_windows_reaches_the_first_page(monkeypatch) -> None:
    monkeypatch.setattr(search, "WINDOW", 10)
    wanted = TaskFilter(queues=frozenset({"default"}))
    rows = dead_tasks(17)
    page = _walk(search.finished, wanted, limit=4)[-1]

    seen = _ids([page])
    while page.newer is not None:
        page = search.finished("default", wanted, limit=4, before=page.newer)
        seen = _ids([page]) + seen

    assert seen == [row.pk for row in reversed(rows)]


def test_a_list_does_not_fetch_what_may_be_a_megabyte() -> None:
    live_task(raw_args=json.dumps({"args": ["x" * 100_000], "kwargs": {}}))

    (row,) = search.live("default", TaskFilter()).rows

    assert "args" in row.get_deferred_fields()


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        "ä",
        "%00",
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
        base64.urlsafe_b64encode(b'["newest","018f0000-0000-7000-8000-000000000000"]').decode(),
        base64.urlsafe_b64encode(b'["ended","2026-01-01","x"]').decode(),
        base64.urlsafe_b64encode(b'["ended","2026-01-01T00:00:00","018f0000-0000-7000-8000-000000000000"]').decode(),
        base64.urlsafe_b64encode(
            b'["ended","0001-01-01T00:00:00+14:00","018f0000-0000-7000-8000-000000000000"]'
        ).decode(),
        base64.urlsafe_b64encode(b"[" * 50_000).decode(),
    ],
)
def test_a_cursor_that_no_page_made_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        search.finished("default", OPEN, after=cursor)


def test_a_number_beyond_its_column_is_refused_in_a_cursor() -> None:
    cursor = base64.urlsafe_b64encode(f'["turn","{10**30}","018f0000-0000-7000-8000-000000000000"]'.encode()).decode()

    with pytest.raises(InvalidCursor):
        search.live("default", TaskFilter(states=frozenset({State.READY}), queues=frozenset({"a"})), after=cursor)


def test_a_state_of_the_other_table_finds_nothing() -> None:
    live_task()
    dead_task()

    assert not search.live("default", TaskFilter(states=frozenset({State.DEAD}))).rows
    assert not search.finished("default", TaskFilter(states=frozenset({State.READY}))).rows
    assert Task.objects.count() == 1


def test_a_filter_that_many_rows_meet_stops_looking_when_the_page_is_full(monkeypatch) -> None:
    monkeypatch.setattr(search, "_STEP", 10)
    rows = dead_tasks(45)
    wanted = TaskFilter(queues=frozenset({"default"}))

    pages = _walk(search.finished, wanted, limit=4)

    assert pages[0].examined == 10
    assert _ids(pages) == [row.pk for row in reversed(rows)]
