"""What all pages share: read-only, on the database of the tasks, in keyset pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters, ShowFacets
from django.contrib.admin.utils import quote
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from django_taskq.admin.paging import FilterForm, KeysetChangeList
from django_taskq.lifecycle.databases import main_database
from django_taskq.ops.search import Order, Page, paged

__all__ = ["ReadOnlyAdmin", "alias"]

if TYPE_CHECKING:
    ModelAdminBase = admin.ModelAdmin[Any]
else:
    ModelAdminBase = admin.ModelAdmin


def alias() -> str:
    """Return the database that the tasks of this project live in."""
    return main_database()


class ReadOnlyAdmin(ModelAdminBase):
    """
    A page that shows rows and changes none of them; verbs have buttons of their own.

    Lists neither count nor skip nor sort by a clicked header: see ``KeysetChangeList``.
    """

    change_list_template = "admin/django_taskq/change_list.html"
    change_form_template = "admin/django_taskq/row.html"
    actions: Any = None
    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    sortable_by = ()
    # Where a page was left is not kept in the address of the next: a cursor would travel along.
    preserve_filters = False

    filter_form: type[FilterForm] = FilterForm
    order = Order(name="newest", label="", columns=("id",), descending=True)
    empty_text: Any = ""

    class Media:
        css = {"all": ["django_taskq/admin.css"]}

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).using(alias())

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        try:
            return super().get_changelist_instance(request)
        except IncorrectLookupParameters:
            # Django shows the whole list then, without a word.
            self.message_user(
                request, _("This address holds a filter that cannot be read; it was left out."), messages.WARNING
            )
            raise

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        """Return the rows of one page for a valid ``filter_form``."""
        return paged(
            self.model._default_manager.using(alias()).all(), self.order, limit=limit, after=after, before=before
        )

    def link_to(self, model: type[Model], key: Any) -> str | None:
        """Return the address of a row's page on this site, None where the site has none."""
        if not self.admin_site.is_registered(model):
            return None
        opts = model._meta
        try:
            return reverse(
                f"admin:{opts.app_label}_{opts.model_name}_change",
                args=[quote(key)],
                current_app=self.admin_site.name,
            )
        except NoReverseMatch:
            return None

    def list_link(self, model: type[Model], query: str = "") -> str | None:
        """Return the address of a model's list on this site, None where the site has none."""
        if not self.admin_site.is_registered(model):
            return None
        opts = model._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_changelist"
        try:
            return reverse(name, current_app=self.admin_site.name) + query
        except NoReverseMatch:
            return None

    def page_context(self, request: HttpRequest, **extra: Any) -> dict[str, Any]:
        """Return what the site's base templates want."""
        request.current_app = self.admin_site.name
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "has_view_permission": True,
            "has_add_permission": False,
            "has_change_permission": False,
            "has_delete_permission": False,
            "add": False,
            "change": True,
            "is_popup": False,
            "save_as": False,
            "model_admin": self,
            **extra,
        }
