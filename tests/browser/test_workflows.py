"""An operator finds a chain that failed, follows its links, cancels and replays."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from django_taskq import batch, chain
from django_taskq.models import AuditEntry, Workflow
from tests.faces import flows
from tests.faces.flows import say

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

WORKFLOWS = "/admin/django_taskq/workflow"


def _rows(page: Page):
    return page.locator("#result_list tbody tr")


def test_an_operator_finds_what_failed_and_replays_it(admin_page: Page, live_server) -> None:
    flows.nested()
    flows.failed()
    admin_page.goto(f"{live_server.url}/admin/")
    admin_page.get_by_role("link", name="Workflows").first.click()
    expect(_rows(admin_page)).to_have_count(3)
    admin_page.get_by_label("State").select_option("failed")
    admin_page.get_by_role("button", name="Search").click()
    expect(_rows(admin_page)).to_have_count(1)
    _rows(admin_page).first.get_by_role("link").first.click()

    expect(admin_page.get_by_role("status")).to_contain_text("1 member is dead")
    admin_page.get_by_role("button", name="Replay what failed…").click()
    expect(admin_page.get_by_role("heading", name="Replay what failed: 1 workflow")).to_be_visible()
    admin_page.get_by_label("Reason").fill("the disk has room again")
    admin_page.get_by_role("button", name="Replay what failed: 1 workflow").click()

    expect(admin_page.locator(".messagelist")).to_contain_text("1 workflow runs again.")
    expect(admin_page.get_by_role("status").last).to_contain_text("3 of its 3 members have not ended.")
    expect(admin_page.get_by_text("the disk has room again")).to_be_visible()


def test_an_operator_follows_the_links_and_cancels(admin_page: Page, live_server) -> None:
    handle = flows.nested()
    admin_page.goto(f"{live_server.url}{WORKFLOWS}/{handle.id}/change/")
    admin_page.locator("#members").get_by_role("link", name="batch middle").click()
    expect(admin_page.get_by_role("status")).to_contain_text("The turn of batch middle (waiting) has not come")
    admin_page.locator("#members").get_by_role("link").first.click()
    admin_page.get_by_role("link", name="batch middle").click()
    admin_page.get_by_role("link", name="chain month end").click()

    admin_page.get_by_role("button", name="Cancel…").click()
    admin_page.get_by_role("button", name="Cancel: 1 workflow").click()

    expect(admin_page.locator(".messagelist")).to_contain_text("1 workflow was cancelled.")
    assert not Workflow.objects.exclude(state=4).exists()
    assert AuditEntry.objects.get().actor == "admin"


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(width: int, admin_page: Page, live_server) -> None:
    handle = (
        chain(say.s("a"), batch(say.s("b"), say.s("c")).name("x" * 200), say.s("d"))
        .name("y" * 200)
        .then(say.s("t"))
        .enqueue()
    )
    admin_page.set_viewport_size({"width": width, "height": 900})

    admin_page.goto(f"{live_server.url}{WORKFLOWS}/{handle.id}/change/")

    wide = admin_page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width + 1, wide
