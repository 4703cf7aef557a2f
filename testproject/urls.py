"""The storefront, the admin, the metrics, and in development the pictures."""

from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def no_icon(request: HttpRequest) -> HttpResponse:
    """Answer the browser that asks for an icon, so that nobody looks into the log for nothing."""
    return HttpResponse(status=204)


urlpatterns = [
    path("", include("testproject.shop.urls")),
    path("favicon.ico", no_icon),
    path("admin/", admin.site.urls),
    path("", include("django_prometheus.urls")),
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),
]
