"""The app."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Configuration of the shop."""

    name = "testproject.shop"
    label = "shop"
    verbose_name = "Corner Shop"
    default_auto_field = "django.db.models.BigAutoField"
