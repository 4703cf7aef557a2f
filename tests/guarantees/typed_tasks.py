"""Tasks whose arguments are checked by their annotations."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from django_taskq import Concurrency, Fixed, task
from django_taskq.middleware import without_overlapping
from django_taskq.models import Lock
from tests.guarantees.tasks import ran

if TYPE_CHECKING:
    from django_taskq import TaskContext


class Speed(Enum):
    SLOW = "slow"
    FAST = "fast"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass(frozen=True)
class Order:
    number: int
    placed: date
    lines: list[Line]
    speed: Speed = Speed.SLOW


class Item(BaseModel):
    name: str
    count: int


ORDER = Order(7, date(2030, 5, 1), [Line("a", Decimal("1.50"))], Speed.FAST)


@task(validate=True)
def ship(order: Order, *, express: bool = False) -> Order:
    """Return the order as it came."""
    ran.append((order, express))
    return order


@task(validate=True)
async def aship(order: Order | None, mode: Literal["air", "sea"] = "sea") -> Decimal:
    """Return what it costs."""
    await asyncio.sleep(0)
    ran.append((order, mode))
    return Decimal("9.90")


@task(validate=True, takes_context=True)
def ship_all(context: TaskContext, *orders: Order, **days: date) -> list[int]:
    """Return the numbers."""
    ran.append((context.args, context.kwargs))
    assert orders == context.args
    return [order.number for order in orders]


@task(validate=True)
def pack(item: Item) -> Item:
    """Return the item, with one more of it."""
    ran.append(item)
    return Item(name=item.name, count=item.count + 1)


@task(validate=True, max_attempts=3, backoff=Fixed(0))
def enqueue_wrongly(number: int) -> None:
    """Make a mistake of its own."""
    ran.append(number)
    ship.enqueue(number)  # type: ignore[arg-type]


@task(validate=True, max_attempts=3, backoff=Fixed(0))
def return_something_else() -> Any:
    """Return what JSON has no form for."""
    ran.append("returned")
    return object()


@task(validate="signature")
def by_signature(number: int, *, extra: int = 0) -> int:
    """Be checked for how it is called only."""
    return number


@task(validate=False)
def never(number: int) -> Any:
    """Not be checked, whatever the settings say."""
    return number


@task
def plain(number: int) -> Any:
    """Be checked where the settings say so."""
    ran.append(number)
    return number


@task(validate=True)
def make_order(number: int) -> Order:
    """Return an order, for others."""
    return Order(number, date(2030, 5, 1), [])


@task(validate=True)
def make_nonsense() -> int:
    """Return what is no order."""
    return 5


@task(validate=True)
def ship_each(orders: list[Order]) -> int:
    """Take the results of a batch."""
    ran.append(orders)
    return len(orders)


@task(
    validate=True,
    limits=[Concurrency(3, key="order:{order[number]}")],
    middleware=[without_overlapping("{order.number}")],
)
def ship_in_turn(order: Order) -> str:
    """Return the key of its lock."""
    return Lock.objects.get().key
