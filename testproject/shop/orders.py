"""Read the lines of a CSV file of orders. Knows nothing of tasks, so it can be tested and used without them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from testproject.shop.models import Customer, Import, Order, Product

__all__ = ["COLUMNS", "BadLineError", "Line", "read", "store"]

COLUMNS = ("number", "ordered_on", "name", "email", "sku", "quantity", "total")


class BadLineError(Exception):
    """The line is not an order; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One order as the file has it."""

    number: str
    ordered_on: date
    name: str
    email: str
    sku: str
    quantity: int
    total: Decimal


def read(path: Path) -> Iterator[tuple[int, str, Line | BadLineError]]:
    """Yield line number, text, and the order or what is wrong with it, for each line after the header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        seen: set[str] = set()
        for values in rows:
            if not values:
                continue
            try:
                found: Line | BadLineError = _line(values)
                if found.number in seen:
                    raise BadLineError(f"order {found.number} was on an earlier line")
                seen.add(found.number)
            except BadLineError as error:
                found = error
            yield rows.line_num, ",".join(values), found


def _line(values: list[str]) -> Line:
    if len(values) != len(COLUMNS):
        raise BadLineError(f"{len(values)} columns instead of {len(COLUMNS)}")
    fields: Mapping[str, str] = dict(zip(COLUMNS, (value.strip() for value in values), strict=True))
    if not fields["number"]:
        raise BadLineError("no order number")
    try:
        ordered_on = date.fromisoformat(fields["ordered_on"])
    except ValueError:
        raise BadLineError(f"{fields['ordered_on']!r} is not a date") from None
    try:
        validate_email(fields["email"])
    except ValidationError:
        raise BadLineError(f"{fields['email']!r} is not an e-mail address") from None
    if not fields["quantity"].isdecimal() or not 0 < int(fields["quantity"]) < 1000:
        raise BadLineError(f"{fields['quantity']!r} is not a quantity")
    try:
        total = Decimal(fields["total"])
    except InvalidOperation:
        raise BadLineError(f"{fields['total']!r} is not an amount") from None
    return Line(
        number=fields["number"],
        ordered_on=ordered_on,
        name=fields["name"],
        email=fields["email"],
        sku=fields["sku"],
        quantity=int(fields["quantity"]),
        total=total,
    )


def store(line: Line, source: Import, products: Mapping[str, Product]) -> Order | None:
    """Store an order and its customer; None if the order is there already. Raise BadLineError if it cannot be."""
    product = products.get(line.sku)
    if product is None:
        raise BadLineError(f"no product has the SKU {line.sku!r}")
    if line.total != product.price * line.quantity:
        raise BadLineError(f"{line.quantity} at {product.price} do not make {line.total}")
    customer, _ = Customer.objects.get_or_create(email=line.email, defaults={"name": line.name})
    order, is_new = Order.objects.get_or_create(
        number=line.number,
        defaults={
            "customer": customer,
            "product": product,
            "quantity": line.quantity,
            "total": line.total,
            "ordered_on": line.ordered_on,
            "source": source,
        },
    )
    return order if is_new else None
