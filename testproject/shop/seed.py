"""What the shop starts with: its products, its pictures, and its first work."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from django.core.files import File
from django.db import transaction
from django.utils import timezone

from django_taskq import batch, previous
from testproject.shop.models import Import, Picture, Product
from testproject.shop.tasks import check_stock, import_orders, nightly_report, publish_catalogue, resize_picture

__all__ = ["PRODUCTS", "SHIPPED_ORDERS", "SHIPPED_PICTURES", "seed"]

_DATA = Path(__file__).parent / "data"
SHIPPED_ORDERS = _DATA / "orders.csv"
SHIPPED_PICTURES = tuple(sorted((_DATA / "pictures").iterdir()))

PRODUCTS = {
    "TEA-GREEN": ("Green tea, 250 g", "9.90"),
    "TEA-BLACK": ("Black tea, 250 g", "8.50"),
    "COFFEE-1KG": ("Coffee beans, 1 kg", "24.00"),
    "MUG-BLUE": ("Mug, blue", "14.50"),
    "MUG-RED": ("Mug, red", "14.50"),
    "POT-SMALL": ("Teapot, 0.5 l", "39.00"),
    "POT-LARGE": ("Teapot, 1.2 l", "58.00"),
    "KETTLE": ("Kettle, steel", "79.00"),
    "FILTER-100": ("Paper filters, 100", "4.20"),
    "HONEY": ("Honey, 500 g", "7.80"),
    "BISCUITS": ("Biscuits, tin", "12.30"),
    "POSTER": ("Poster, tea map", "19.00"),
}


def seed(*, report_in: timedelta) -> Import:
    """
    Store products and pictures, and enqueue the first work, in one transaction; return the import.

    The nightly batch holds a batch of pictures and the report of today, which starts ``report_in`` from now.
    """
    with transaction.atomic():
        for sku, (name, price) in PRODUCTS.items():
            Product.objects.get_or_create(sku=sku, defaults={"name": name, "price": Decimal(price)})
        pictures = []
        for path in SHIPPED_PICTURES:
            with path.open("rb") as file:
                picture = Picture.objects.create(
                    title=path.stem.replace("-", " ").capitalize(), original=File(file, name=path.name)
                )
            pictures.append(picture.pk)
        # One of them is broken: the catalogue is published without it, and its task waits for a human.
        catalogue = (
            batch(resize_picture.s(key) for key in pictures)
            .name("pictures of the catalogue")
            .allow_failures(1)
            .then(publish_catalogue.s(previous))
        )
        today = timezone.localdate()
        report = nightly_report.s(today.isoformat()).using(delay=report_in)
        batch(catalogue, report).name(f"nightly work of {today}").enqueue()
        with SHIPPED_ORDERS.open("rb") as file:
            source = Import.objects.create(file=File(file, name=SHIPPED_ORDERS.name))
        # The import first: who looks at the shop wants to see orders.
        source.task_id = import_orders.using(priority=10).enqueue(source.pk).id
        source.save(update_fields=["task_id"])
        check_stock.enqueue()
    return source
