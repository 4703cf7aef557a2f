"""Start the web server and the worker as processes of their own, and stop them again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from django.conf import settings

__all__ = ["Child", "accepts", "free_port", "is_free"]

MANAGE = Path(settings.BASE_DIR) / "manage.py"


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        # As the web server does it: a port that is only cooling down counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Return whether somebody answers on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Child:
    """One ``manage.py`` command in a process of its own."""

    def __init__(
        self, name: str, *arguments: str, variables: Mapping[str, str], quiet: bool = False, log: Path | None = None
    ) -> None:
        """Start it. ``quiet`` drops what it prints, ``log`` takes that and its errors instead of the terminal."""
        self.name = name
        self.log = log
        output = None if log is None else log.open("wb")
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, str(MANAGE), *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
            cwd=MANAGE.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else output,
            stderr=None if output is None else subprocess.STDOUT,
            # Ctrl-C in a terminal goes to the whole group; the demo stops its children itself, in order.
            start_new_session=True,
        )
        if output is not None:
            output.close()

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def stop(self, how: signal.Signals, *, patience: float = 20.0) -> int:
        """Ask the process to stop, insist after ``patience`` seconds, and return its exit status."""
        if not self.has_ended:
            self.process.send_signal(how)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def wait_for(self, port: int, *, patience: float = 30.0) -> bool:
        """Wait until the process answers on a port; return False if it ended or took too long."""
        until = time.monotonic() + patience
        while time.monotonic() < until and not self.has_ended:
            if accepts(port):
                return True
            time.sleep(0.05)
        return False
