"""The storefront."""

from django.urls import path

from testproject.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.storefront, name="storefront"),
    path("buy/<int:product_id>/", views.buy, name="buy"),
    path("import/", views.import_now, name="import"),
    path("stock/", views.stock, name="stock"),
    path("report/", views.report, name="report"),
]
