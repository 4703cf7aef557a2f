from django.apps import AppConfig


class DocsShopConfig(AppConfig):
    name = "tests.docs_shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"
