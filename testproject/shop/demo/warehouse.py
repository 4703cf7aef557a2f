"""
The warehouse: a system outside of the shop, with a bad morning.

It answers the first calls that bring it orders with 500. It keeps a log of its
own, so that what the shop believes can be compared with what arrived.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from zlib import crc32

__all__ = ["Warehouse"]


class Warehouse:
    """An HTTP server on a free port of this machine. Use it as a context manager."""

    def __init__(self, log: Path, *, fail_first: int) -> None:
        self.log = log
        self.fail_first = fail_first
        self.calls = 0
        self._lock = threading.Lock()
        warehouse = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sku = self.path.rpartition("/")[2]
                self._answer(HTTPStatus.OK, {"sku": sku, "stock": crc32(sku.encode()) % 90 + 10})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                status = warehouse.receive(json.loads(self.rfile.read(length)))
                self._answer(status, {"accepted": status == HTTPStatus.OK})

            def _answer(self, status: HTTPStatus, content: object) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing: the log file has it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="warehouse", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def receive(self, order: dict[str, object]) -> HTTPStatus:
        """Take an order, or fail; write down which."""
        with self._lock:
            self.calls += 1
            status = HTTPStatus.INTERNAL_SERVER_ERROR if self.calls <= self.fail_first else HTTPStatus.OK
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"status": int(status), **order}) + "\n")
        return status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
