"""``manage.py demo``: the shop with a web server and a worker; ``--once``: the same without a screen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, call_command
from rich.console import Console
from rich.table import Table

from django_taskq.models import Task
from testproject.shop.demo.account import FAILED_CALLS, account, throughput
from testproject.shop.demo.processes import MANAGE, Child, free_port, is_free
from testproject.shop.demo.warehouse import Warehouse
from testproject.shop.models import Order, Product
from testproject.shop.seed import seed
from testproject.shop.tasks import send_receipt

LOGIN = ("admin", "admin")


class Command(BaseCommand):
    """The demo."""

    help = (
        "Set up the demo shop, start its web server and a worker, and print where to look; Ctrl-C stops both. "
        "With --once: let a worker do the shipped work in a fresh database, print what happened, and exit 0 if it "
        "is what should have happened."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="do the shipped work once, print a summary, and exit")
        parser.add_argument("--port", type=int, default=8000, help="port of the web server (default: 8000)")
        parser.add_argument(
            "--timeout", type=float, default=120, help="--once: give up after so many seconds (default: 120)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            self._once(options)
        else:
            self._open(options["port"], is_talkative=options["verbosity"] > 1)

    # Open the shop

    def _open(self, wanted: int, *, is_talkative: bool) -> None:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        self._migrate()
        self._admin_user()
        is_new = not Product.objects.exists()
        port = wanted if is_free(wanted) else free_port()
        if port != wanted:
            self.stdout.write(f"Port {wanted} is taken, so the shop opens on {port}.")
        with ExitStack() as stack:
            warehouse = stack.enter_context(Warehouse(self._warehouse_log(), fail_first=FAILED_CALLS))
            if is_new:
                seed(report_in=timedelta(seconds=20))
            web = Child(
                "web server",
                *("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}"),
                variables={"SERVER_LOG_LEVEL": "ERROR"},
                quiet=True,
            )
            stack.callback(web.stop, signal.SIGINT)
            worker = Child(
                "worker",
                "runworker",
                variables={"SHOP_WAREHOUSE_URL": warehouse.url},
                # Hundreds of lines would drive the address off the screen.
                log=None if is_talkative else self._worker_log(),
            )
            stack.callback(worker.stop, signal.SIGTERM)
            if not web.wait_for(port) and not stop.is_set():
                raise CommandError(f"The web server did not answer on port {port}.")
            self._tell(port)
            self._watch(stop, [web, worker])
            self.stdout.write("\nStopping. The worker finishes what it has begun.")
        self.stdout.write("Stopped.")

    def _tell(self, port: int) -> None:
        name, password = LOGIN
        address = f"http://127.0.0.1:{port}"
        lines = [
            "",
            "The shop is open.",
            f"  Shop     {address}/",
            f"  Admin    {address}/admin/   user {name}, password {password}",
            f"  Metrics  {address}/metrics",
            f"  Mail     {settings.SHOP_MAIL}",
            f"  Log      {self._worker_log()} (on this screen with -v 2)",
            "",
            "One picture is broken on purpose: its task ends among the dead letters, for you to look at.",
            "Ctrl-C stops the web server and the worker.",
            "",
        ]
        self.stdout.write("\n".join(lines))
        self.stdout.flush()

    @staticmethod
    def _watch(stop: threading.Event, children: list[Child]) -> None:
        while not stop.wait(0.3):
            for child in children:
                if child.has_ended:
                    raise CommandError(f"The {child.name} ended with status {child.process.returncode}.")

    # Once

    def _once(self, options: dict[str, Any]) -> None:
        if "SHOP_DATA" not in os.environ and "DATABASE_URL" not in os.environ:
            self._again_in_a_fresh_folder(options)
        self._migrate()
        if Order.objects.exists() or Task.objects.exists():
            raise CommandError(
                "demo --once compares what happens with what should, so it needs an empty database, and this one has "
                "orders or tasks. Without SHOP_DATA and DATABASE_URL it makes itself one."
            )
        self._admin_user()
        log = self._warehouse_log()
        log.unlink(missing_ok=True)
        with Warehouse(log, fail_first=FAILED_CALLS) as warehouse:
            seed(report_in=timedelta(seconds=2))
            self.stdout.write("A worker does the shop's work. This takes some seconds.")
            self.stdout.flush()
            worker = Child(
                "worker",
                "runworker",
                variables={"SHOP_WAREHOUSE_URL": warehouse.url},
                log=self._worker_log(),
            )
            try:
                is_done = self._wait(worker, options["timeout"])
            finally:
                status = worker.stop(signal.SIGTERM)
        self._summarise(log, is_done=is_done, status=status)

    @staticmethod
    def _again_in_a_fresh_folder(options: dict[str, Any]) -> None:
        # The settings name the database, and they are read: only a new process can have another.
        folder = Path(settings.BASE_DIR) / "demo-data" / "once"
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(MANAGE), "demo", "--once", f"--timeout={options['timeout']}"]
        variables = {**os.environ, "SHOP_DATA": str(folder)}
        sys.exit(subprocess.run(command, env=variables, check=False).returncode)  # noqa: S603 - ourselves

    @staticmethod
    def _wait(worker: Child, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while time.monotonic() < until and not worker.has_ended:
            if not Task.objects.exists():
                return True
            time.sleep(0.1)
        return False

    def _summarise(self, log: Path, *, is_done: bool, status: int) -> None:
        table = Table("", "found", "expected", title="The shop's work")
        rows = account(log)
        for row in rows:
            mark = "" if row.is_right else "  ← differs"
            table.add_row(row.what, str(row.found), ("any" if row.expected is None else str(row.expected)) + mark)
        Console(file=self.stdout._out).print(table)
        count, seconds = throughput(send_receipt)
        if seconds:
            self.stdout.write(
                f"{count} receipts rendered and mailed in {seconds:.2f} s beside the other work: "
                f"{count / seconds:.0f} a second with one worker process."
            )
        wrong = [f"{row.what}: expected {row.expected}, found {row.found}" for row in rows if not row.is_right]
        if not is_done:
            wrong.append("not every task had ended when the time was up")
        if status != 0:
            wrong.append(f"the worker ended with status {status}")
        if wrong:
            wrong.append(f"the worker's log is {self._worker_log()}")
            raise CommandError("The demo did not do what it should:\n  " + "\n  ".join(wrong))
        self.stdout.write("Everything that should have happened did.")

    # Both

    def _migrate(self) -> None:
        call_command("migrate", verbosity=0, interactive=False)

    @staticmethod
    def _admin_user() -> None:
        name, password = LOGIN
        users = get_user_model().objects
        if not users.filter(username=name).exists():
            users.create_superuser(name, "admin@example.com", password)

    @staticmethod
    def _warehouse_log() -> Path:
        return Path(settings.SHOP_DATA) / "warehouse.jsonl"

    @staticmethod
    def _worker_log() -> Path:
        return Path(settings.SHOP_DATA) / "worker.log"
