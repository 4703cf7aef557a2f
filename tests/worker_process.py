"""
A worker in a process of its own, for tests: ``python -m tests.worker_process '{"worker": {…}}'``.

Prints "ready <id>" once it is announced. ``prepare`` is the dotted path of a
function called first, with ``prepare_with``: it breaks what the test wants broken.
"""

import json
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

import django
from django.conf import settings
from django.utils.module_loading import import_string


def main(order: dict[str, Any]) -> int:
    settings.TASKQ = order["taskq"]
    settings.DATABASES["default"].update(order["database"])
    django.setup()
    if order["prepare"]:
        import_string(order["prepare"])(order["prepare_with"])
    return serve(order)


def serve(order: dict[str, Any]) -> int:
    from django_taskq import conf
    from django_taskq.exceptions import ShutdownTimeout
    from django_taskq.worker.loop import Plan, Worker

    options = {**order["worker"], "grace": timedelta(seconds=order["worker"].get("grace", 10))}
    if "poll" in options:
        options["poll"] = timedelta(seconds=options["poll"])
    worker = Worker(Plan(worker=conf.WorkerOptions(**options), burst=order["burst"]))
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    worker.start()
    print(f"ready {worker.id}", flush=True)
    while not leave.wait(0.05):
        if worker.state == "stopped":
            break
    worker.stop()
    try:
        worker.join(60)
    except ShutdownTimeout:
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
