"""An operator's day in the admin, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from django_taskq.domain.states import State
from django_taskq.models import AuditEntry, FinishedTask, Pause, Task
from tests.faces.rows import dead_task, dead_tasks, live_task, registered

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

TASKS = "/admin/django_taskq"


@pytest.fixture
def console(admin_page: Page) -> Page:
    """Return a logged-in page that fails the test on an error in a script."""
    errors: list[str] = []
    admin_page.on("pageerror", lambda error: errors.append(str(error)))
    yield admin_page
    assert not errors


def _rows(page: Page):
    return page.locator("#result_list tbody tr")


def test_an_operator_pages_to_older_dead_letters_and_back(console: Page, live_server) -> None:
    dead_tasks(60)
    console.goto(f"{live_server.url}/admin/")
    console.get_by_role("link", name="Dead letters").first.click()

    expect(_rows(console)).to_have_count(50)
    expect(_rows(console).first).to_contain_text("error 59")
    expect(console.get_by_role("status").first).to_contain_text("60 dead letters")

    console.locator("a[rel=next]").click()
    expect(_rows(console)).to_have_count(10)
    expect(_rows(console).last).to_contain_text("error 0")

    console.locator("a[rel=prev]").click()
    expect(_rows(console)).to_have_count(50)
    expect(console.locator("a[rel=prev]")).to_have_count(0)


def test_an_operator_replays_a_dead_letter_with_a_reason_and_finds_it_among_the_live(
    console: Page, live_server
) -> None:
    registered("default")
    row = dead_task()
    console.goto(f"{live_server.url}{TASKS}/deadtask/")
    _rows(console).first.get_by_role("link").first.click()
    expect(console.get_by_text("no such order").first).to_be_visible()

    console.get_by_role("button", name="Replay…").click()
    expect(console.get_by_role("heading", name="Replay: 1 task")).to_be_visible()
    console.get_by_label("Reason").fill("order was restored")
    console.get_by_label("Attempts").fill("2")
    console.get_by_role("button", name="Replay: 1 task").click()

    expect(console.locator(".messagelist")).to_contain_text("1 task was sent back and is ready.")
    expect(console.get_by_text("order was restored")).to_be_visible()
    console.goto(f"{live_server.url}{TASKS}/task/")
    expect(_rows(console)).to_have_count(1)
    expect(_rows(console).first).to_contain_text("ready")
    assert Task.objects.get().pk == row.pk


def test_an_operator_discards_a_selection_and_looks_at_it_again(console: Page, live_server) -> None:
    dead_tasks(3)
    console.goto(f"{live_server.url}{TASKS}/deadtask/")
    for number in (0, 1):
        _rows(console).nth(number).get_by_role("checkbox").check()
    console.get_by_label("Action:").select_option(label="Discard…")
    console.get_by_role("button", name=re.compile("^(Run|Go)$")).click()

    expect(console.get_by_role("heading", name="Discard: 2 tasks")).to_be_visible()
    console.get_by_label("Reason").fill("INC-88, provider")
    console.get_by_role("button", name="Discard: 2 tasks").click()

    expect(console.locator(".messagelist")).to_contain_text("2 dead letters were discarded.")
    expect(_rows(console)).to_have_count(1)
    console.get_by_label("Show").select_option(label="discarded ones")
    console.get_by_role("button", name="Search").click()
    expect(_rows(console)).to_have_count(2)


def test_an_operator_takes_the_way_back_and_nothing_has_changed(console: Page, live_server) -> None:
    row = live_task()
    console.goto(f"{live_server.url}{TASKS}/task/{row.pk}/change/")

    console.get_by_role("button", name="Cancel…").click()
    console.get_by_role("link", name="No, take me back").click()

    expect(console.get_by_role("button", name="Cancel…")).to_be_visible()
    assert Task.objects.get().state == State.READY
    assert not AuditEntry.objects.exists()


def test_an_operator_cancels_a_waiting_task(console: Page, live_server) -> None:
    row = live_task()
    console.goto(f"{live_server.url}{TASKS}/task/{row.pk}/change/")

    console.get_by_role("button", name="Cancel…").click()
    console.get_by_label("Reason").fill("wrong customer")
    console.get_by_role("button", name="Cancel: 1 task").click()

    expect(console.locator(".messagelist")).to_contain_text("1 task was cancelled.")
    # The page went along from the live tasks to the finished ones.
    expect(console).to_have_url(re.compile(f"/finishedtask/{row.pk}/"))
    assert FinishedTask.objects.get().state == State.CANCELLED


def test_an_operator_pauses_a_queue_and_resumes_it(console: Page, live_server) -> None:
    registered("email")
    console.goto(f"{live_server.url}{TASKS}/queue/")
    console.get_by_role("link", name="email", exact=True).click()

    console.get_by_role("button", name="Pause the queue…").click()
    console.get_by_label("Reason").fill("provider outage")
    console.get_by_role("button", name="Pause the queue email").click()
    expect(console.locator(".messagelist")).to_contain_text("is paused")
    expect(console.locator(".taskq-paused")).to_be_visible()
    assert Pause.objects.get().reason == "provider outage"

    console.get_by_role("button", name="Resume the queue…").click()
    console.get_by_role("button", name="Resume the queue email").click()
    expect(console.locator(".messagelist")).to_contain_text("goes on")
    assert not Pause.objects.exists()


def test_no_page_scrolls_sideways_on_a_narrow_screen(console: Page, live_server) -> None:
    row = dead_task(error_line="x" * 300, args=["y" * 500])
    console.set_viewport_size({"width": 360, "height": 740})

    for path in (f"deadtask/{row.pk}/change/", "queue/"):
        console.goto(f"{live_server.url}{TASKS}/{path}")
        too_wide = console.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert too_wide <= 0, path


def test_the_pages_of_ours_obey_a_strict_content_policy(console: Page, live_server) -> None:
    row = dead_task()
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'"
    refused: list[str] = []
    console.on("console", lambda message: refused.append(message.text) if "Content Security" in message.text else None)

    def answer(route) -> None:
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": policy})

    console.route(re.compile(f"{TASKS}/"), answer)
    for path in ("deadtask/", f"deadtask/{row.pk}/change/", "task/", "queue/", "worker/"):
        console.goto(f"{live_server.url}{TASKS}/{path}")
    console.goto(f"{live_server.url}{TASKS}/deadtask/{row.pk}/change/")
    console.get_by_role("button", name="Replay…").click()

    expect(console.get_by_role("heading", name="Replay: 1 task")).to_be_visible()
    assert not refused
