"""The shop's own pages in the admin."""

from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest

from testproject.shop.models import BadLine, Customer, Import, Order, Picture, Product, Report
from testproject.shop.tasks import import_orders, resize_picture


class BadLineInline(admin.TabularInline):
    """The bad lines of an import."""

    model = BadLine
    extra = 0
    can_delete = False
    readonly_fields = ["number", "text", "reason"]

    def has_add_permission(self, request: HttpRequest, obj: object | None = None) -> bool:
        return False


@admin.register(Import)
class ImportAdmin(admin.ModelAdmin):
    """Uploads; saving a new one starts its import."""

    list_display = ["id", "file", "created_at", "finished_at"]
    readonly_fields = ["created_at", "finished_at"]
    inlines = [BadLineInline]

    def save_model(self, request: HttpRequest, obj: Import, form: object, change: bool) -> None:
        # The admin saves inside a transaction, so the task exists if and only if the upload does.
        super().save_model(request, obj, form, change)
        if not change:
            Import.objects.filter(pk=obj.pk).update(task_id=import_orders.enqueue(obj.pk).id)


@admin.register(Picture)
class PictureAdmin(admin.ModelAdmin):
    """Pictures; saving one makes its small one anew."""

    list_display = ["id", "title", "original", "small"]
    list_display_links = ["id", "title"]
    readonly_fields = ["small"]

    def save_model(self, request: HttpRequest, obj: Picture, form: object, change: bool) -> None:
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            resize_picture.enqueue(obj.pk)


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders."""

    list_display = ["number", "customer", "product", "quantity", "total", "receipt_sent_at", "warehouse_told_at"]
    list_filter = ["product"]
    search_fields = ["number", "customer__email"]
    list_select_related = ["customer", "product"]
    raw_id_fields = ["customer", "product", "source"]


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    """Customers."""

    list_display = ["name", "email"]
    search_fields = ["name", "email"]


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products."""

    list_display = ["sku", "name", "price", "stock"]


@admin.register(Report)
class ReportAdmin(admin.ModelAdmin):
    """Reports."""

    list_display = ["day", "created_at"]
