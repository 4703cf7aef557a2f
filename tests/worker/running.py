"""Workers in this process and in others, for the length of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from django_taskq import conf
from django_taskq.worker.loop import Plan, Worker

ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], Any], *, seconds: float = 20.0, what: str = "") -> Any:
    """Return the first true value of ``condition()``; fail if none comes in time."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        threading.Event().wait(0.02)


def make_worker(*, burst: bool = False, grace: float = 10.0, **options: Any) -> Worker:
    worker = replace(conf.options().worker, grace=timedelta(seconds=grace), **options)
    return Worker(Plan(worker=worker, burst=burst))


@contextmanager
def running(**options: Any) -> Iterator[Worker]:
    """Run a worker in this process; stop it at once at the end, whatever happened."""
    worker = make_worker(**options)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop_now()
        assert worker.wait(30)


def drain(**options: Any) -> Worker:
    """Run a burst in this process until it is done."""
    worker = make_worker(burst=True, **options)
    worker.start()
    worker.join(60)
    return worker


def worker_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "django", "runworker", "--settings", "tests.worker.quick_settings", *arguments]


@contextmanager
def worker_process(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``runworker`` in a process of its own, in its own group; kill the whole group at the end."""
    process = subprocess.Popen(
        worker_command(*arguments),
        cwd=ROOT,
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate(timeout=30)


def run_worker(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run ``runworker`` until it leaves by itself."""
    return subprocess.run(
        worker_command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def children_of(pid: int) -> list[int]:
    """Return the worker processes that a supervisor, or a worker's executor, started."""
    import psutil

    try:
        found = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]
