"""Only the admin: every other face is mounted by the test that looks at it."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
