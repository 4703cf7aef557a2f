"""Idempotency keys, and keys that are held for a time: which task each leads to, and how to forget one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_taskq.admin.acting import ReasonForm, ask, safe_back
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.paging import FilterForm
from django_taskq.admin.shown import ago, clean
from django_taskq.lifecycle import control
from django_taskq.models import IdempotencyKey, Task
from django_taskq.ops import keys
from django_taskq.ops.search import Page

__all__ = ["IdempotencyKeyAdmin"]

_PERMISSION = "django_taskq.delete_idempotencykey"
_VERB = {
    "name": "forget",
    "title": gettext_lazy("Forget the key"),
    "effect": gettext_lazy(
        "The next enqueue with this key stores a new task, whatever became of the first. "
        "What that did may then be done a second time."
    ),
}


class KeyForm(FilterForm):
    """Filters of the keys."""

    key = forms.CharField(label=gettext_lazy("beginning of the key"), required=False, max_length=200, strip=False)


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """Keys with an expiry. One can be forgotten before its time, with a reason."""

    filter_form = KeyForm
    order = keys.BY_KEY
    list_display = ["key_column", "task_column", "created_column", "expires_column"]
    fields = ["key_column", "task_column", "created_column", "expires_column"]
    readonly_fields = fields  # type: ignore[assignment]  # flat, which "fields" need not be
    empty_text = gettext_lazy("No key is held.")

    def get_list_display(self, request: HttpRequest) -> Any:
        user: Any = request.user
        return [*self.list_display, "forget_column"] if user.has_perm(_PERMISSION) else self.list_display

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        return keys.listed(alias(), form.cleaned_data["key"], limit=limit, after=after, before=before)

    @admin.display(description=gettext_lazy("key"))
    def key_column(self, row: IdempotencyKey) -> str:
        return clean(row.key)

    @admin.display(description=gettext_lazy("task"))
    def task_column(self, row: IdempotencyKey) -> SafeString | str:
        link = self.link_to(Task, row.task_id)
        return str(row.task_id) if link is None else format_html('<a href="{}">{}</a>', link, row.task_id)

    @admin.display(description=gettext_lazy("since"))
    def created_column(self, row: IdempotencyKey) -> SafeString | str:
        return ago(row.created_at)

    @admin.display(description=gettext_lazy("until"))
    def expires_column(self, row: IdempotencyKey) -> SafeString | str:
        return ago(row.expires_at)

    @admin.display(description="")
    def forget_column(self, row: IdempotencyKey) -> SafeString:
        return format_html('<a href="{}">{}</a>', self.forget_link(row.key), _("Forget…"))

    # Forgetting one

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.forget_view)
        return [path("<path:key>/forget/", view, name="django_taskq_key_forget"), *super().get_urls()]

    def forget_link(self, key: str) -> str:
        """Return the address of the page that asks before a key is forgotten."""
        return reverse("admin:django_taskq_key_forget", args=[quote(key)], current_app=self.admin_site.name)

    def forget_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Ask for a reason, or forget the key when one was given."""
        user: Any = request.user
        if not self.has_view_permission(request) or not user.has_perm(_PERMISSION):
            raise PermissionDenied
        key = unquote(key)
        if not IdempotencyKey.objects.using(alias()).filter(pk=key).exists():
            raise Http404
        form = ReasonForm(request.POST if request.method == "POST" else None, needs_reason=True)
        back = safe_back(request, self.list_link(IdempotencyKey) or "/")
        if form.is_valid():
            control.forget_keys([key], actor=user.get_username(), reason=form.cleaned_data["reason"], alias=alias())
            self.message_user(request, _("The key “%s” is forgotten.") % clean(key), messages.SUCCESS)
            return HttpResponseRedirect(back)
        asked = f"{_VERB['title']} {clean(key)}"
        return ask(self, request, title=asked, verb=_VERB, form=form, back=back, action=request.path)
