"""
A tiny HTTP server that tells a process manager how a worker is.

``/live``: this process is up and answers. ``/ready``: it runs, its heartbeat is
fresh, and the database answers; else 503 and what is wrong. Any other page was
added by ``add_page``: the rooms above register what they have to show.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

__all__ = ["Report", "add_page", "judge", "serving"]

logger = logging.getLogger("django_taskq")

Report = Callable[[], list[dict[str, Any]]]
Page = Callable[[], tuple[str, bytes] | None]

_pages: dict[str, Page] = {}


def add_page(path: str, page: Page) -> None:
    """Serve what ``page()`` returns, (content type, body), under ``path``; None is a 404."""
    _pages[path] = page


def judge(status: dict[str, Any], *, lease_seconds: float) -> list[str]:
    """Return what is wrong with a worker, in words; nothing if it is ready to work."""
    if not status:
        return ["has not started yet"]
    wrong: list[str] = []
    if status["state"] != "running":
        wrong.append(f"is {status['state']}")
    if status["heartbeat_age"] >= lease_seconds:
        wrong.append(
            f"had its last heartbeat {status['heartbeat_age']:.0f} s ago, longer than its lease of {lease_seconds:g} s"
        )
    return wrong


def _ready(
    workers: list[dict[str, Any]], lease_seconds: float, database: Callable[[], str]
) -> tuple[int, dict[str, Any]]:
    judged = [{**status, "problems": judge(status, lease_seconds=lease_seconds)} for status in workers]
    problem = database()
    problems = [f"the database does not answer: {problem}"] if problem else []
    # One worker that is being replaced does not make the others useless.
    is_ready = not problems and any(not status["problems"] for status in judged)
    return (200 if is_ready else 503), {"ready": is_ready, "problems": problems, "workers": judged}


@contextmanager
def serving(
    host: str, port: int, report: Report, *, lease_seconds: float, database: Callable[[], str]
) -> Iterator[int]:
    """
    Answer on ``host:port`` while the block runs; give the port, which the system chooses for 0.

    ``database()`` returns what is wrong with it, "" if it answers. Raise OSError if the port is taken.
    """
    from http.server import ThreadingHTTPServer

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server((host, port), _handler(report, lease_seconds, database))
    thread = threading.Thread(target=server.serve_forever, name="taskq-health", args=(0.1,), daemon=True)
    thread.start()
    number = int(server.server_address[1])
    logger.info("Health is told at http://%s:%d/live and /ready", host, number)
    try:
        yield number
    finally:
        server.shutdown()
        server.server_close()
        thread.join(2)


def _handler(report: Report, lease_seconds: float, database: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        # A client that sends nothing must not hold a thread for ever.
        timeout = 5

        def do_GET(self) -> None:
            path = self.path.split("?", 1)[0]
            if path == "/live":
                self._answer(200, {"live": True, "workers": report()})
            elif path == "/ready":
                self._answer(*_ready(report(), lease_seconds, database))
            else:
                found = _pages[path]() if path in _pages else None
                if found is None:
                    self._answer(404, {"error": f"no page {path}", "pages": ["/live", "/ready", *_pages]})
                else:
                    self._send(200, *found)

        do_HEAD = do_GET  # noqa: N815 - the base class chose the name

        def _answer(self, code: int, body: dict[str, Any]) -> None:
            self._send(code, "application/json", json.dumps(body).encode())

        def _send(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class chose the name
            logger.debug("health: %s", format % args)

    return Handler
