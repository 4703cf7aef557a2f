import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_an_operator_logs_in_to_the_admin(admin_page: Page) -> None:
    expect(admin_page).to_have_title("Site administration | Django site admin")
