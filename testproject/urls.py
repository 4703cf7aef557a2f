"""The storefront, the admin, the metrics, and in development the pictures."""

from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("testproject.shop.urls")),
    path("admin/", admin.site.urls),
    path("", include("django_prometheus.urls")),
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),
]
