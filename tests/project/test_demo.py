"""
The demo does what it says: real processes, real work, from an empty folder.

Each run has a database of its own beside the one under test, so that the demo
is known to work on all of them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from django.db import connection

from tests import databases
from tests.docs_runner import ROOT

pytestmark = [
    pytest.mark.newcomer,
    pytest.mark.django_db,
    pytest.mark.skipif(os.name != "posix", reason="stops processes by signals"),
    pytest.mark.skipif(
        databases.vendor() == "mysql" and find_spec("MySQLdb") is None and not databases.on_ci(),
        reason="the demo has no PyMySQL to fall back on: install mysqlclient",
    ),
]


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a demo in an empty folder, with an empty database of the vendor under test."""
    mine = ("DJANGO_", "TASKQ_", "SHOP_", "DATABASE_URL")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    variables |= {"SHOP_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": "default", "COLUMNS": "120"}
    if connection.vendor == "sqlite":
        yield variables
        return
    name = f"test_taskq_demo_{os.getpid()}_{time.monotonic_ns()}"
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield {**variables, "DATABASE_URL": _url(name)}
    finally:
        with connection._nodb_cursor() as cursor:
            force = " WITH (FORCE)" if connection.vendor == "postgresql" else ""
            cursor.execute(f"DROP DATABASE {name}{force}")


def _url(name: str) -> str:
    where = connection.settings_dict
    scheme = "postgres" if connection.vendor == "postgresql" else "mysql"
    login = quote(where["USER"], safe="") + (f":{quote(where['PASSWORD'], safe='')}" if where["PASSWORD"] else "")
    host, option = where["HOST"], ""
    if host.startswith("/"):
        # A server that was started for the tests listens on a socket.
        option = f"?{'host' if scheme == 'postgres' else 'unix_socket'}={quote(host, safe='')}"
        host = ""
    port = f":{where['PORT']}" if where["PORT"] and host else ""
    return f"{scheme}://{login}@{host}{port}/{name}{option}"


def _demo(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "manage.py"), "demo", *arguments]


def test_demo_once_does_the_shipped_work_and_says_so(surroundings: dict[str, str], tmp_path: Path) -> None:
    found = subprocess.run(
        _demo("--once"), env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )

    log = tmp_path / "data" / "worker.log"
    assert found.returncode == 0, found.stdout + found.stderr + (log.read_text()[-4000:] if log.exists() else "")
    for row in (
        ("orders imported", "307"),
        ("bad lines set aside", "13"),
        ("receipts in the mail folder", "307"),
        ("receipts rendered and mailed by a chain", "307"),
        ("pictures resized", "5"),
        ("the nightly batch", "completed, 0 of 2 failed"),
        ("its batch of pictures", "completed, 1 of 6 failed"),
        ("pictures in the catalogue \\(then\\)", "5, and 1 missing"),
        ("schedules", "at 03:00 every day, Europe/Rome"),
        ("webhook calls refused", "6"),
        ("webhook calls delivered", "12"),
        ("dead letters", "resize_picture"),
        ("tasks left over", "0"),
    ):
        assert re.search(rf"{row[0]}\W+{row[1]}\b", found.stdout), (row, found.stdout)
    assert "receipts rendered and mailed" in found.stdout
    receipts = "".join(path.read_text() for path in (tmp_path / "data" / "mail").iterdir())
    assert receipts.count("Subject: Your receipt for order") == 307
    assert not [line for line in found.stderr.splitlines() if "Warning" in line], found.stderr


def test_demo_once_refuses_a_database_in_use_and_fails_when_the_work_is_not_done(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            # No worker is ready that fast, so nothing of the work can be done.
            _demo("--once", "--timeout=0"),
            env=surroundings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    early, again = run(), run()

    assert early.returncode == 1
    assert "not every task had ended when the time was up" in early.stderr
    assert "orders imported: expected 307, found 0" in early.stderr
    assert again.returncode == 1
    assert "needs an empty database" in again.stderr


class Browser:
    """As much of a browser as a login needs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cookies = CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def get(self, path: str) -> str:
        with self.opener.open(self.address + path, timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    def post(self, path: str, **fields: str) -> str:
        token = next(cookie.value for cookie in self.cookies if cookie.name == "csrftoken")
        data = urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        request = urllib.request.Request(self.address + path, data, {"Referer": self.address + path})
        with self.opener.open(request, timeout=20) as answer:
            text: str = answer.read().decode()
            return text


def _wait_until(true: object, seconds: float = 60) -> bool:
    assert callable(true)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.1)
    return False


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def test_demo_opens_the_shop_beside_a_taken_port_and_closes_it_on_ctrl_c(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with socket.socket() as taken, output.open("wb") as file:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = subprocess.Popen(
            _demo(f"--port={port}"), env=surroundings, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            assert _wait_until(lambda: "The shop is open." in output.read_text() or demo.poll() is not None)
            said = output.read_text()
            assert f"Port {port} is taken" in said, said
            address = re.search(r"Shop +(http://127\.0\.0\.1:\d+)/", said)
            login = re.search(r"user (\w+), password (\w+)", said)
            assert address is not None
            assert login is not None
            browser = Browser(address[1])
            browser.get("/admin/login/")
            browser.post("/admin/login/?next=/admin/", username=login[1], password=login[2])

            def everything_has_ended() -> bool:
                text = " ".join(re.sub(r"<[^>]+>", "", browser.get("/")).split())
                return "0 tasks waiting or running, 1 dead letter." in text

            assert _wait_until(everything_has_ended, 100), browser.get("/")
            assert "testproject.shop.tasks.resize_picture" in browser.get("/admin/django_taskq/deadtask/")
            assert "testproject.shop.tasks.send_receipt" in browser.get("/admin/django_taskq/finishedtask/")
            assert "django_http_requests" in browser.get("/metrics")
            assert "You bought" in browser.post(re.findall(r'action="(/buy/\d+/)"', browser.get("/"))[0])

            demo.send_signal(signal.SIGINT)
            status = demo.wait(60)
        finally:
            if demo.poll() is None:
                demo.terminate()
                demo.wait(60)

    assert status == 0, output.read_text()
    assert output.read_text().rstrip().endswith("Stopped.")
    assert not _answers(address[1] + "/")
    log = (tmp_path / "data" / "worker.log").read_text()
    assert "has stopped: asked to stop" in log, log[-2000:]
