"""
The shop's background work.

Each task may run twice: a worker can be killed after the work was done and
before that was written down. So each looks first whether its effect is there.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Count, Sum
from django.template.loader import render_to_string
from django.utils import timezone
from PIL import Image

from django_taskq import Concurrency, Exponential, Fixed, chain, previous, schedule, task
from testproject.shop.models import BadLine, Import, Order, Picture, Product, Report
from testproject.shop.orders import BadLineError, read, store

if TYPE_CHECKING:
    from django_taskq import TaskContext

__all__ = [
    "check_stock",
    "import_orders",
    "nightly_report",
    "publish_catalogue",
    "receipt_of",
    "render_receipt",
    "resize_picture",
    "send_receipt",
    "tell_warehouse",
]

CHUNK = 25
SMALL = (240, 240)
# From this total on the warehouse packs an order at once, so it has to be told.
LARGE_ORDER = 150


@task(queue_name="imports", takes_context=True, timeout=300)
def import_orders(context: TaskContext, import_id: int) -> dict[str, int]:
    """Store the orders of an uploaded file, and enqueue what each new order needs; return the counts."""
    source = Import.objects.get(pk=import_id)
    products = {product.sku: product for product in Product.objects.all()}
    lines = list(read(Path(source.file.path)))
    counts: Counter[str] = Counter()
    rest = iter(lines)
    while chunk := list(islice(rest, CHUNK)):
        context.raise_if_cancelled()
        # The orders and their tasks are committed together: no order without its receipt, no receipt without its order.
        with transaction.atomic():
            new: list[Order] = []
            for number, text, line in chunk:
                try:
                    if isinstance(line, BadLineError):
                        raise line
                    order = store(line, source, products)
                except BadLineError as error:
                    reason = str(error)[:200]
                    BadLine.objects.get_or_create(
                        source=source, number=number, defaults={"text": text, "reason": reason}
                    )
                    counts["bad"] += 1
                else:
                    counts["known" if order is None else "new"] += 1
                    if order is not None:
                        new.append(order)
            for order in new:
                receipt_of(order).enqueue()
            tell_warehouse.enqueue_many([(order.pk,) for order in new if order.total >= LARGE_ORDER])
        context.progress(counts.total(), len(lines), f"{counts['new']} new orders")
    source.finished_at = timezone.now()
    source.save(update_fields=["finished_at"])
    context.log.info("Import %d: %d new orders, %d bad lines", source.pk, counts["new"], counts["bad"])
    return {name: counts[name] for name in ("new", "known", "bad")}


def receipt_of(order: Order) -> Any:
    """Return the chain that renders a receipt and mails it: a mail that is tried again is not rendered anew."""
    return chain(render_receipt.s(order.pk), send_receipt.s(order.pk, previous)).name(f"receipt of {order.number}")


@task(queue_name="mail")
def render_receipt(order_id: int) -> str:
    """Return the text of an order's receipt."""
    order = Order.objects.select_related("customer", "product").get(pk=order_id)
    return render_to_string("shop/receipt.txt", {"order": order})


# The mail server takes two letters at a time, however many workers there are.
@task(queue_name="mail", max_attempts=5, backoff=Exponential(base=2, cap=60), limits=Concurrency(2, key="smtp"))
def send_receipt(order_id: int, text: str) -> str:
    """Mail the receipt of an order, unless that was done."""
    order = Order.objects.select_related("customer", "product").get(pk=order_id)
    if order.receipt_sent_at is not None:
        return "sent before"
    EmailMessage(
        subject=f"Your receipt for order {order.number}",
        body=text,
        to=[f"{order.customer.name} <{order.customer.email}>"],
    ).send()
    Order.objects.filter(pk=order_id).update(receipt_sent_at=timezone.now())
    return "sent"


@task(queue_name="webhooks", backoff=Exponential(base=0.5, cap=30))
def tell_warehouse(order_id: int) -> int:
    """Post a large order to the warehouse; it knows the order by its number, so a second call does no harm."""
    order = Order.objects.select_related("product").get(pk=order_id)
    response = httpx.post(
        f"{settings.SHOP_WAREHOUSE_URL}/orders",
        json={"order": order.number, "sku": order.product.sku, "quantity": order.quantity},
        headers={"Idempotency-Key": order.number},
        timeout=5,
    )
    # A 5xx raises, and the attempt has failed: the task's backoff says when the next one is.
    response.raise_for_status()
    Order.objects.filter(pk=order_id).update(warehouse_told_at=timezone.now())
    return response.status_code


@task(queue_name="pictures", max_attempts=2, backoff=Fixed(1))
def resize_picture(picture_id: int) -> list[int]:
    """Make the small picture that the storefront shows; return its width and height."""
    picture = Picture.objects.get(pk=picture_id)
    with picture.original.open("rb") as file, Image.open(file) as image:
        image.thumbnail(SMALL)
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85)
        size = list(image.size)
    if picture.small:
        picture.small.delete(save=False)
    picture.small.save(f"{picture.pk}.jpg", ContentFile(out.getvalue()), save=False)
    Picture.objects.filter(pk=picture_id).update(small=picture.small.name)
    return size


@task(queue_name="pictures")
def publish_catalogue(sizes: list[list[int] | None]) -> dict[str, int]:
    """Count what the catalogue shows, and what is missing since its picture could not be read."""
    missing = sizes.count(None)
    return {"shown": len(sizes) - missing, "missing": missing}


@schedule(cron="0 3 * * *", timezone="Europe/Rome", name="nightly stock", overlap="skip")
@task(queue_name="webhooks", timeout=30)
async def check_stock() -> int:
    """Ask the warehouse for the stock of every product, all at once on the event loop; return how many answered."""
    async with httpx.AsyncClient(base_url=settings.SHOP_WAREHOUSE_URL, timeout=5) as client:

        async def ask(product: Product) -> None:
            response = await client.get(f"/stock/{product.sku}")
            response.raise_for_status()
            await Product.objects.filter(pk=product.pk).aupdate(stock=response.json()["stock"])

        products = [product async for product in Product.objects.all()]
        await asyncio.gather(*(ask(product) for product in products))
    return len(products)


# Exposed, so that the admin can make schedules of it.
@task(queue_name="reports", schedulable=True)
def nightly_report(day: str) -> dict[str, Any]:
    """Sum up the orders as of a day. A second run writes the same report again."""
    totals = Order.objects.aggregate(orders=Count("pk"), revenue=Sum("total"))
    best = Order.objects.values("product__name").annotate(sold=Sum("quantity")).order_by("-sold", "product__name")[:5]
    text = render_to_string("shop/report.txt", {"day": day, "totals": totals, "best": best})
    report, _ = Report.objects.update_or_create(day=date.fromisoformat(day), defaults={"text": text})
    return {"report": report.pk, "orders": totals["orders"]}
