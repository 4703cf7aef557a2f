"""The rows that the samples of the docs speak of."""

from django.db import models


class Order(models.Model):
    email = models.EmailField(default="ada@example.com")
    total = models.DecimalField(max_digits=10, decimal_places=2, default="42.00")
    receipt_sent_at = models.DateTimeField(null=True)
    paid_at = models.DateTimeField(null=True)


class Payment(models.Model):
    order = models.OneToOneField(Order, on_delete=models.CASCADE)
    charge_id = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=10, decimal_places=2)


class Account(models.Model):
    points = models.IntegerField(default=0)
