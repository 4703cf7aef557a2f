"""A real browser: the machine's own, driven by Playwright."""

import os
import shutil
from collections.abc import Generator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import databases

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Playwright's synchronous face runs an event loop in this thread; Django would
# take every query of the test for one made inside a coroutine.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"


def _executable() -> str:
    candidates = [os.environ.get("TASKQ_TEST_BROWSER"), *map(shutil.which, _NAMES)]
    found = next((path for path in candidates if path), None)
    if found is None:
        reason = "No browser: install chromium, or name one in TASKQ_TEST_BROWSER"
        if databases.on_ci():
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    """Yield one browser for the whole run; starting it is the slow part."""
    executable = _executable()
    with sync_playwright() as playwright:
        # Containers and CI run as root without the kernel features that the sandbox needs.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Generator[Page]:
    """Yield a page that shares nothing with the page of another test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def admin_page(page: Page, live_server, admin_user) -> Page:
    """Return a page that is logged in to the admin as a superuser."""
    page.goto(f"{live_server.url}/admin/login/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", "password")
    page.click("[type=submit]")
    page.wait_for_selector("#user-tools")
    return page
