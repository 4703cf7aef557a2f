"""
The account of one ``demo --once``: what happened, read from the database and the files, and what should have.

What should have is known of the shipped input; nothing in here asks the tasks what they believe they did.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Count, Max, Min
from PIL import Image

from django_taskq.domain.states import State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.models import Attempt, Batch, Chain, DeadTask, FinishedTask, Schedule, Task
from django_taskq.ops.schedules import words_of
from testproject.shop.models import BadLine, Order, Picture, Product, Report
from testproject.shop.tasks import LARGE_ORDER, SMALL, publish_catalogue

__all__ = ["FAILED_CALLS", "Row", "account", "throughput"]

#: The warehouse refuses so many calls before it takes orders.
FAILED_CALLS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the summary. ``expected`` is None where any value is right."""

    what: str
    found: Any
    expected: Any = None

    @property
    def is_right(self) -> bool:
        """Whether what was expected happened."""
        return self.expected is None or self.found == self.expected


def account(warehouse_log: Path) -> list[Row]:
    """Return what happened, and what should have."""
    posted = [json.loads(line) for line in warehouse_log.read_text().splitlines()] if warehouse_log.exists() else []
    taken = {call["order"] for call in posted if call["status"] == 200}
    large = set(Order.objects.filter(total__gte=LARGE_ORDER).values_list("number", flat=True))
    told = set(Order.objects.filter(warehouse_told_at__isnull=False).values_list("number", flat=True))
    orders = Order.objects.count()
    dead = list(DeadTask.objects.filter(state=State.DEAD).values_list("name", flat=True))
    return [
        Row(what="orders imported", found=orders, expected=307),
        Row(what="bad lines set aside", found=BadLine.objects.count(), expected=13),
        Row(what="receipts in the mail folder", found=_mails(), expected=orders),
        Row(what="orders marked as mailed", found=Order.objects.exclude(receipt_sent_at=None).count(), expected=orders),
        Row(what="receipts rendered and mailed by a chain", found=_chains(), expected=orders),
        Row(what="pictures resized", found=_small_pictures(), expected=5),
        Row(what="the nightly batch", found=_batch("nightly work"), expected="completed, 0 of 2 failed"),
        Row(
            what="its batch of pictures",
            found=_batch("pictures of the catalogue"),
            expected="completed, 1 of 6 failed",
        ),
        Row(what="pictures in the catalogue (then)", found=_catalogue(), expected="5, and 1 missing"),
        Row(what="webhook calls refused", found=sum(call["status"] == 500 for call in posted), expected=FAILED_CALLS),
        Row(what="webhook calls delivered", found=len(taken), expected=12),
        Row(what="large orders the warehouse misses", found=len(large - taken) + len(large ^ told), expected=0),
        Row(what="products with stock (coroutine)", found=Product.objects.exclude(stock=None).count(), expected=12),
        Row(what="schedules", found=_schedules(), expected="at 03:00 every day, Europe/Rome"),
        Row(what="nightly reports", found=Report.objects.count(), expected=1),
        Row(what="dead letters", found=", ".join(_short(dead)) or "none", expected="resize_picture"),
        Row(what="tasks left over", found=Task.objects.count(), expected=0),
        # Two for each receipt, webhooks, five pictures, the catalogue, the import, the stock, the report.
        Row(
            what="tasks succeeded",
            # A demo that is run at three in the morning has one more.
            found=FinishedTask.objects.filter(state=State.SUCCEEDED).exclude(options__contains='"schedule"').count(),
            expected=2 * orders + len(large) + 9,
        ),
        Row(what="attempts that failed", found=Attempt.objects.count()),
    ]


def _chains() -> int:
    return Chain.objects.filter(state=WorkflowState.COMPLETED, succeeded=2).count()


def _schedules() -> str:
    return "; ".join(words_of(row) for row in Schedule.objects.all())


def _batch(name: str) -> str:
    found = Batch.objects.get(name__startswith=name)
    return f"{found.get_state_display()}, {found.failed} of {found.total} failed"


def _catalogue() -> str:
    called = FinishedTask.objects.filter(name=publish_catalogue.module_path, state=State.SUCCEEDED).first()
    return "not published" if called is None else "{shown}, and {missing} missing".format(**called.result_value)


def _mails() -> int:
    folder = Path(settings.SHOP_MAIL)
    orders = Counter(
        line.rpartition(" ")[2]
        for path in folder.glob("*.log")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Subject: Your receipt for order")
    )
    return len(orders)


def _small_pictures() -> int:
    count = 0
    for picture in Picture.objects.exclude(small=""):
        with Image.open(picture.small.path) as image:
            count += max(image.size) == max(SMALL)
    return count


def _short(names: list[str]) -> list[str]:
    return sorted(name.rpartition(".")[2] for name in names)


def throughput(task: Any) -> tuple[int, float]:
    """Return how many tasks of a definition succeeded, and the seconds from the first start to the last end."""
    rows = FinishedTask.objects.filter(name=task.module_path, state=State.SUCCEEDED)
    ended = rows.aggregate(count=Count("pk"), first=Min("started_at"), last=Max("finished_at"))
    if not ended["count"]:
        return 0, 0.0
    return ended["count"], (ended["last"] - ended["first"]).total_seconds()
