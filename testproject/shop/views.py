"""
The storefront: what a view of your own project does with tasks.

Each view that changes something enqueues inside ``transaction.atomic()``, so
that the task exists if and only if the change does.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.core.files import File
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST

from django_taskq import TaskNotFound, find_task
from django_taskq.domain.states import State
from django_taskq.models import DeadTask, Progress, Task
from testproject.shop.forms import ImportForm
from testproject.shop.models import Customer, Import, Order, Picture, Product, Report
from testproject.shop.seed import SHIPPED_ORDERS
from testproject.shop.tasks import check_stock, import_orders, nightly_report, receipt_of


def storefront(request: HttpRequest) -> HttpResponse:
    """Show what is sold and what happens in the background."""
    context = {
        "products": Product.objects.all(),
        "orders": Order.objects.select_related("customer", "product")[:8],
        "imports": [_with_progress(found) for found in Import.objects.all()[:5]],
        "pictures": Picture.objects.all(),
        "reports": Report.objects.all()[:3],
        "live": Task.objects.count(),
        "dead": DeadTask.objects.filter(state=State.DEAD).count(),
        "form": ImportForm(),
    }
    return render(request, "shop/storefront.html", context)


def _with_progress(found: Import) -> dict[str, Any]:
    try:
        state = find_task(found.task_id).get_state_display() if found.task_id else ""
    except TaskNotFound:
        state = "forgotten"
    return {
        "import": found,
        "state": state,
        "progress": Progress.objects.filter(task_id=found.task_id).first() if found.task_id else None,
        "orders": found.orders.count(),
        "bad": found.bad_lines.count(),
    }


@require_POST
def buy(request: HttpRequest, product_id: int) -> HttpResponse:
    """Sell one piece; the receipt is mailed by a worker, the page does not wait for it."""
    product = get_object_or_404(Product, pk=product_id)
    with transaction.atomic():
        customer, _ = Customer.objects.get_or_create(email="you@example.com", defaults={"name": "You"})
        order = Order.objects.create(
            number=f"WEB-{secrets.token_hex(4).upper()}",
            customer=customer,
            product=product,
            quantity=1,
            total=product.price,
            ordered_on=timezone.localdate(),
        )
        receipt_of(order).enqueue()
    messages.success(request, f"You bought: {product}. A worker mails the receipt of order {order.number}.")
    return redirect("shop:storefront")


@require_POST
def import_now(request: HttpRequest) -> HttpResponse:
    """Take an uploaded file of orders, or the shipped one, and let a worker import it."""
    form = ImportForm(request.POST, request.FILES)
    if not form.is_valid():
        messages.error(request, "That file could not be read.")
        return redirect("shop:storefront")
    with transaction.atomic():
        if form.cleaned_data["file"]:
            source = Import.objects.create(file=form.cleaned_data["file"])
        else:
            with SHIPPED_ORDERS.open("rb") as file:
                source = Import.objects.create(file=File(file, name=SHIPPED_ORDERS.name))
        source.task_id = import_orders.enqueue(source.pk).id
        source.save(update_fields=["task_id"])
    messages.success(request, f"{source} is in line. Orders that are known already are not stored twice.")
    return redirect("shop:storefront")


@require_POST
def stock(request: HttpRequest) -> HttpResponse:
    """Ask the warehouse for the stock."""
    check_stock.enqueue()
    messages.success(request, "A worker asks the warehouse.")
    return redirect("shop:storefront")


@require_POST
def report(request: HttpRequest) -> HttpResponse:
    """Enqueue today's report to run in ten seconds."""
    day = timezone.localdate().isoformat()
    nightly_report.using(run_after=timedelta(seconds=10)).enqueue(day)
    messages.success(request, "The report is scheduled: it starts in ten seconds.")
    return redirect("shop:storefront")
