"""Operators of several ranks, and where their pages are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse


@pytest.fixture
def operator(db) -> Callable[..., Client]:
    """Return a function that logs in a staff user with just these permissions of django_taskq."""

    def make(*codenames: str) -> Client:
        user = User.objects.create_user(f"op{User.objects.count()}", password="x", is_staff=True)
        user.user_permissions.set(
            Permission.objects.filter(content_type__app_label="django_taskq", codename__in=codenames)
        )
        client = Client()
        client.force_login(user)
        return client

    return make


def list_url(model: str, query: str = "") -> str:
    return reverse(f"admin:django_taskq_{model}_changelist") + query


def page_url(model: str, key: object) -> str:
    return reverse(f"admin:django_taskq_{model}_change", args=[key])


def act_url(model: str, verb: str) -> str:
    return reverse(f"admin:django_taskq_{model}_act", args=[verb])
