"""
A change list that pages by key: one row more than is shown, no COUNT, no OFFSET, no DISTINCT.

Its surprise: Django's own keeps every GET parameter, so a cursor would leak into
each filter link. Here the form says which parameters there are, and cursors are not among them.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_taskq.exceptions import InvalidCursor
from django_taskq.ops.search import COUNT_CAP, Page

__all__ = ["AFTER", "BEFORE", "FilterForm", "KeysetChangeList", "SpanField"]

AFTER, BEFORE = "after", "before"
_SIZES = (25, 50, 100, 200)
_DEFAULT_SIZE = 50
_SPAN = re.compile(r"(\d{1,5})\s*(m|h|d)", re.IGNORECASE)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class SpanField(forms.CharField):
    """A span back from now, such as ``24h``; stays relative in the address."""

    choices = [
        ("", gettext_lazy("any time")),
        ("1h", gettext_lazy("last hour")),
        ("24h", gettext_lazy("last 24 hours")),
        ("7d", gettext_lazy("last 7 days")),
        ("30d", gettext_lazy("last 30 days")),
    ]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(required=False, widget=forms.Select(choices=self.choices), **kwargs)

    def clean(self, value: Any) -> timedelta | None:
        text = super().clean(value)
        if not text:
            return None
        found = _SPAN.fullmatch(text)
        if found is None:
            raise forms.ValidationError(_("Write a number and m, h or d: 30m, 24h, 7d."))
        return timedelta(**{_UNITS[found[2].lower()]: int(found[1])})


class FilterForm(forms.Form):
    """The filters of one list. Its fields are the only parameters that the list's address may have."""

    per = forms.TypedChoiceField(
        label=gettext_lazy("rows"),
        required=False,
        coerce=int,
        empty_value=str(_DEFAULT_SIZE),
        choices=[(size, str(size)) for size in _SIZES],
    )

    def __init__(self, data: Any, *, alias: str) -> None:
        data = data.copy()
        # A select without a value would show its first choice, which is not what the list does.
        data.setdefault("per", str(_DEFAULT_SIZE))
        super().__init__(data, auto_id="filter-%s")
        self.alias = alias
        self.prepare()

    def prepare(self) -> None:
        """Fill choices from the registry."""

    def bar(self) -> list[Any]:
        """Return the fields to draw, without the number of rows."""
        return [field for field in self if field.name != "per"]

    def active(self) -> dict[str, str]:
        """Return the parameters that narrow the list, as they stand in the address."""
        return {
            name: self.data[name] for name in self.fields if name != "per" and self.data.get(name, "").strip() != ""
        }


class KeysetChangeList(ChangeList):
    """One page of a list, read by ``model_admin.find_page``."""

    form: FilterForm
    page: Page
    model_admin: Any

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        self.title = str(capfirst(self.opts.verbose_name_plural))

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        self.filter_specs: list[Any] = []
        self.has_filters = self.has_active_filters = False
        self.form = self.model_admin.filter_form(request.GET, alias=self.root_queryset.db)
        unknown = set(request.GET) - set(self.form.fields) - {AFTER, BEFORE, ERROR_FLAG}
        if unknown or not self.form.is_valid():
            raise IncorrectLookupParameters(", ".join(sorted(unknown)) or self.form.errors.as_text())
        for name in (AFTER, BEFORE):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        self.clear_all_filters_qs = "?"
        return self.root_queryset

    def get_ordering_field_columns(self) -> Any:
        return {}

    def get_results(self, request: HttpRequest) -> None:
        self.limit = int(self.form.cleaned_data["per"])
        try:
            self.page = self.model_admin.find_page(
                self.form,
                limit=self.limit,
                after=request.GET.get(AFTER),
                before=request.GET.get(BEFORE) or None,
            )
        except InvalidCursor as error:
            raise IncorrectLookupParameters(str(error)) from error
        rows = self.page.rows
        self.result_list = rows
        # What the page holds, not what matches: Django would offer to select the rest, and act on all.
        self.result_count = len(rows)
        self.full_result_count = None
        self.show_full_result_count = False
        self.show_admin_actions = bool(rows)
        self.can_show_all = self.multi_page = False
        self.paginator = Paginator(rows, max(len(rows), 1))

    def get_query_string(self, new_params: Any = None, remove: Any = None) -> str:
        return super().get_query_string(new_params, [*(remove or []), AFTER, BEFORE])

    def _address(self, changes: dict[str, str]) -> str:
        kept = {**self.form.active(), **({"per": str(self.limit)} if self.limit != _DEFAULT_SIZE else {})}
        return "?" + urlencode({**kept, **changes})

    # For the template

    @property
    def here(self) -> str:
        """The query of this page without its cursor, to come back to after an action."""
        return "?" + urlencode(self.form.active())

    @property
    def older_link(self) -> str | None:
        return None if self.page.older is None else self._address({AFTER: self.page.older})

    @property
    def newer_link(self) -> str | None:
        return None if self.page.newer is None else self._address({BEFORE: self.page.newer})

    @property
    def stopped_short(self) -> bool:
        """Whether there is more to look through although the page is not full."""
        page = self.page
        return page.examined is not None and page.older is not None and len(page.rows) < self.limit

    @property
    def count_text(self) -> str:
        """Say how many there are, and what that number speaks of."""
        page, what = self.page, self.opts.verbose_name_plural
        number = number_format(page.count, force_grouping=True)
        if page.examined is None:
            if page.more:
                number = number_format(COUNT_CAP, force_grouping=True)
                return _("more than %(number)s %(what)s") % {"number": number, "what": what}
            return f"{number} {self.opts.verbose_name if page.count == 1 else what}"
        looked = number_format(page.examined, force_grouping=True)
        if page.more:
            return _("%(number)s found among the %(looked)s %(what)s looked through") % {
                "number": number,
                "looked": looked,
                "what": what,
            }
        return _("%(number)s of %(looked)s %(what)s") % {"number": number, "looked": looked, "what": what}
