"""Tasks with limits, and limits as the admin and the commands meet them."""

from __future__ import annotations

from typing import Any

from django_taskq import Concurrency, Rate, task
from django_taskq.lifecycle.claim import Claimer
from django_taskq.models import Task
from tests.engine import ALIAS, announce, db_now

ONE = "2c:task:tests.faces.limits.one_at_once"
ONE_NAME = ONE[3:]
PACED = "2r:mail"


@task(limits=[Concurrency(1)])
def one_at_once(number: int) -> None:
    """Do nothing."""


@task(limits=[Rate("1/h", key="mail")])
def paced(number: int) -> None:
    """Do nothing."""


def parked(definition: Any, *, waiting: int = 2) -> Task:
    """Enqueue tasks, let one be claimed, and return one of the others."""
    definition.enqueue_many([(number,) for number in range(waiting + 1)])
    claimed = Claimer(ALIAS, announce(), [("default", None)]).claim(10, now=db_now())
    assert len(claimed) == 1
    return Task.objects.filter(parked_on__isnull=False).order_by("id")[0]


def running() -> Task:
    """Return the task that runs."""
    return Task.objects.get(lease__isnull=False)
