"""What the shop keeps. The marks ``receipt_sent_at`` and ``warehouse_told_at`` make its tasks safe to run twice."""

from __future__ import annotations

from django.db import models


class Customer(models.Model):
    """Who buys."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"


class Product(models.Model):
    """What is sold. ``stock`` is what the warehouse said last."""

    sku = models.CharField("SKU", max_length=20, unique=True)
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(null=True, blank=True)

    class Meta:
        ordering = ["sku"]

    def __str__(self) -> str:
        return self.name


class Import(models.Model):
    """One CSV file of orders, and how far its import is."""

    file = models.FileField(upload_to="imports")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    task_id = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        verbose_name = "import"
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"Import {self.pk}"


class BadLine(models.Model):
    """A line of an import that is not an order."""

    source = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="bad_lines")
    number = models.IntegerField("line")
    text = models.TextField()
    reason = models.CharField(max_length=200)

    class Meta:
        ordering = ["number"]
        # An import that is run again must not list its bad lines twice.
        constraints = [models.UniqueConstraint(fields=["source", "number"], name="shop_bad_line_once")]

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


class Order(models.Model):
    """Something somebody bought."""

    number = models.CharField(max_length=20, unique=True)
    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="orders")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="orders")
    quantity = models.PositiveIntegerField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    ordered_on = models.DateField()
    source = models.ForeignKey(Import, on_delete=models.SET_NULL, null=True, blank=True, related_name="orders")
    receipt_sent_at = models.DateTimeField(null=True, blank=True)
    warehouse_told_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.number


class Picture(models.Model):
    """A product's picture, and the small one that the storefront shows."""

    title = models.CharField(max_length=100)
    original = models.FileField(upload_to="originals")
    small = models.ImageField(upload_to="small", blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.title


class Report(models.Model):
    """What was sold, as of one day."""

    day = models.DateField(unique=True)
    text = models.TextField()
    created_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-day"]

    def __str__(self) -> str:
        return f"Report of {self.day}"
