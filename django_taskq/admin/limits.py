"""Limits: what they allow, who holds them, and the forms that set and reset them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_taskq.admin.acting import ReasonForm, ask, check_post, safe_back
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.paging import FilterForm, SpanField
from django_taskq.admin.shown import ago, clean
from django_taskq.domain.limits import LimitKind, is_shared, key_of
from django_taskq.domain.parking import is_paused_type
from django_taskq.exceptions import InvalidOptions, LimitNotFound
from django_taskq.lifecycle import set_limits
from django_taskq.models import Limit, Queue, Task
from django_taskq.ops import limits
from django_taskq.ops.explain import limit_bound
from django_taskq.ops.limits import LimitView
from django_taskq.ops.search import Page

__all__ = ["LimitAdmin"]

_PERMISSION = "django_taskq.change_limit"
_MOST_HOLDERS = 50
_MOST_QUEUES = 500
_VERBS = {
    "set": {
        "title": gettext_lazy("Set the limit"),
        "effect": gettext_lazy(
            "Within a second it holds for all workers, until its time is over or it is reset. Running tasks go on."
        ),
    },
    "reset": {
        "title": gettext_lazy("Reset the limit"),
        "effect": gettext_lazy("Within a second the bound that the code says holds again for all workers."),
    },
}


class ForField(SpanField):
    """A span ahead, such as ``2h``."""

    choices = [
        ("1h", gettext_lazy("an hour")),
        ("15m", gettext_lazy("15 minutes")),
        ("4h", gettext_lazy("4 hours")),
        ("24h", gettext_lazy("24 hours")),
        ("7d", gettext_lazy("7 days")),
        ("", gettext_lazy("until it is reset")),
    ]


class SetForm(ReasonForm):
    """The bound that is set, and for how long."""

    concurrency = forms.IntegerField(
        label=gettext_lazy("at once"), min_value=0, help_text=gettext_lazy("0 lets nothing start.")
    )
    rate = forms.CharField(
        label=gettext_lazy("rate"),
        max_length=40,
        help_text=gettext_lazy("A number per time: 100/m, 5/30s, 1000/h. 0/m lets nothing start."),
    )
    burst = forms.IntegerField(
        label=gettext_lazy("burst"),
        required=False,
        min_value=1,
        help_text=gettext_lazy(
            "How many may start together. Empty: what comes in a quarter of a second, at least one."
        ),
    )
    until = ForField(label=gettext_lazy("for"))

    field_order = ["concurrency", "rate", "burst", "until", "reason"]

    def __init__(self, *args: Any, kind: str, **kwargs: Any) -> None:
        super().__init__(*args, needs_reason=True, **kwargs)
        for name in ("rate", "burst") if kind == LimitKind.CONCURRENCY else ("concurrency",):
            del self.fields[name]

    def options(self) -> dict[str, Any]:
        names = ("concurrency", "rate", "burst", "until")
        return {name: self.cleaned_data[name] for name in names if name in self.fields}


class LimitForm(FilterForm):
    """The filter of the list."""

    q = forms.CharField(
        label=gettext_lazy("name"),
        required=False,
        max_length=190,
        widget=forms.TextInput(attrs={"placeholder": gettext_lazy("its beginning: queue:, task:shop., smtp:")}),
    )


def _number(count: int, is_capped: bool = False) -> str:
    return number_format(count, force_grouping=True) + ("+" if is_capped else "")


def _pill(view: LimitView) -> SafeString:
    if view.bound is None:
        return format_html('<span class="taskq-state">{}</span>', _("no bound"))
    if view.is_full:
        return format_html('<span class="taskq-state taskq-parked">{}</span>', _("full"))
    return format_html('<span class="taskq-state taskq-alive">{}</span>', _("has room"))


@admin.register(Limit)
class LimitAdmin(ReadOnlyAdmin):
    """Limits: bounds, holders, and who waits."""

    filter_form = LimitForm
    order = limits.BY_KEY
    list_display = [
        "name_column", "kind_column", "state_column", "bound_column", "code_column", "held_column", "parked_column",
        "next_column", "set_column",
    ]  # fmt: skip
    change_list_template = "admin/django_taskq/limit_list.html"
    empty_text = gettext_lazy("No limit is known. One appears when the first task that has it is claimed.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        page = limits.listed(alias(), form.cleaned_data["q"], limit=limit, after=after, before=before)
        for view in page.rows:
            view.row.view = view
        return replace(page, rows=[view.row for view in page.rows])

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        user: Any = request.user
        names: list[str] = []
        if user.has_perm(_PERMISSION):
            queues = Queue.objects.using(alias()).values_list("name", flat=True)[:_MOST_QUEUES]
            names = ["all", *(f"queue:{name}" for name in queues)]
        context = {"set_names": names, "set_action": self.act_link("set"), **(extra_context or {})}
        return super().changelist_view(request, context)

    # Columns

    @admin.display(description=gettext_lazy("limit"))
    def name_column(self, row: Any) -> SafeString:
        return format_html('<span class="taskq-name">{}</span>', clean(row.view.name))

    @admin.display(description=gettext_lazy("kind"))
    def kind_column(self, row: Any) -> str:
        return _("rate") if row.view.kind == LimitKind.RATE else _("concurrency")

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Any) -> SafeString:
        return _pill(row.view)

    @admin.display(description=gettext_lazy("bound"))
    def bound_column(self, row: Any) -> str:
        return limit_bound(row.view.bound)

    @admin.display(description=gettext_lazy("in the code"))
    def code_column(self, row: Any) -> str:
        return limit_bound(row.view.code)

    @admin.display(description=gettext_lazy("taken"))
    def held_column(self, row: Any) -> str:
        view: LimitView = row.view
        if view.kind == LimitKind.RATE:
            return "-" if view.tokens is None else _("%s left") % _number(max(int(view.tokens), 0))
        return _number(view.held)

    @admin.display(description=gettext_lazy("parked"))
    def parked_column(self, row: Any) -> str:
        return _number(row.view.parked, row.view.parked_is_capped)

    @admin.display(description=gettext_lazy("next start"))
    def next_column(self, row: Any) -> SafeString | str:
        return ago(row.view.next_start_at)

    @admin.display(description=gettext_lazy("set"))
    def set_column(self, row: Any) -> SafeString | str:
        if not row.view.is_set:
            return "-"
        until = ago(row.set_until) if row.set_until is not None else _("until it is reset")
        return format_html("{}, {}", clean(row.set_by or _("somebody")), until)

    # One limit

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("act/<slug:verb>/", view, name="django_taskq_limit_act"), *super().get_urls()]

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's form goes to."""
        return reverse("admin:django_taskq_limit_act", args=[verb], current_app=self.admin_site.name)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        key = unquote(object_id)
        view = None if is_paused_type(key) else limits.find_key(alias(), key)
        if view is None:
            text = _("No limit has the key “%(key)s”. It has never been used, or it was pruned.") % {"key": clean(key)}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_link(Limit) or "/")
        user: Any = request.user
        verbs = ["set", "reset"] if view.by_hand is not None else ["set"]
        held = [] if view.kind == LimitKind.RATE else limits.holders(alias(), key, limit=_MOST_HOLDERS + 1)
        context = self.page_context(
            request,
            title=clean(view.name),
            original=view.row,
            view=view,
            name=clean(view.name),
            kind=self.kind_column(_Row(view)),
            pill=_pill(view),
            bounds=[
                (_("Holds now"), limit_bound(view.bound)),
                (_("In the code"), limit_bound(view.code)),
                (_("Set by hand"), limit_bound(view.by_hand) if view.by_hand is not None else "-"),
            ],
            set_by=clean(view.row.set_by),
            set_until=ago(view.row.set_until) if view.row.set_until is not None else None,
            set_reason=clean(view.row.set_reason),
            taken=self.held_column(_Row(view)),
            parked=_number(view.parked, view.parked_is_capped),
            next_start=ago(view.next_start_at) if view.next_start_at is not None else None,
            holders=[
                {"id": holder.id, "name": clean(holder.name), "since": ago(holder.since), "link": self._task(holder)}
                for holder in held[:_MOST_HOLDERS]
            ],
            has_more_holders=len(held) > _MOST_HOLDERS,
            parked_link=None if is_shared(key) else self.list_link(Task, f"?{urlencode({'parked_on': key})}"),
            verbs=[(_VERBS[verb]["title"], self.act_link(verb)) for verb in verbs]
            if user.has_perm(_PERMISSION)
            else [],
        )
        return TemplateResponse(request, "admin/django_taskq/limit.html", context)

    def _task(self, holder: limits.Holder) -> str | None:
        return self.link_to(Task, holder.id)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Ask for the bound, or set or reset it when it was given."""
        if (answer := check_post(self, request, _PERMISSION)) is not None:
            return answer
        if verb not in _VERBS:
            raise Http404
        kind, name = self._named(request)
        is_confirmed = "confirmed" in request.POST
        data = request.POST if is_confirmed else None
        form = SetForm(data, kind=kind) if verb == "set" else ReasonForm(data, needs_reason=True)
        # The column of the limit is shorter than that of the audit log.
        form.fields["reason"].widget.attrs["maxlength"] = 200
        key = key_of(kind, name)
        back = safe_back(request, self.link_to(Limit, key) or request.path)
        if is_confirmed and form.is_valid() and self._act(request, verb, kind, name, form):
            return HttpResponseRedirect(back)
        return ask(
            self,
            request,
            title=f"{_VERBS[verb]['title']} {clean(name)}",
            verb={"name": verb, **_VERBS[verb]},
            form=form,
            back=back,
            action=request.path,
            hidden=[("name", name), ("kind", kind)],
        )

    def _named(self, request: HttpRequest) -> tuple[str, str]:
        """Return the limit that is meant: one that has a row, or one of everything or of a queue that is known."""
        kind, name = request.POST.get("kind", ""), request.POST.get("name", "")
        if kind not in (LimitKind.CONCURRENCY, LimitKind.RATE) or not name.strip():
            raise Http404
        key = key_of(kind, name)
        known = Limit.objects.using(alias()).filter(pk=key).exists() or name == "all"
        queue = name.removeprefix("queue:")
        if not known and not (is_shared(key) and Queue.objects.using(alias()).filter(pk=queue).exists()):
            raise Http404
        return kind, name

    def _act(self, request: HttpRequest, verb: str, kind: str, name: str, form: ReasonForm) -> bool:
        user: Any = request.user
        given = {"actor": user.get_username(), "reason": form.cleaned_data["reason"], "alias": alias()}
        if verb == "reset":
            done = set_limits.reset_limit(name, kind=kind, **given)
            text = _("The limit “%s” is reset.") if done else _("Nothing was set for the limit “%s”.")
            self.message_user(request, text % clean(name), messages.SUCCESS if done else messages.WARNING)
            return True
        try:
            set_limits.set_limit(name, **form.options(), **given)
        except (InvalidOptions, LimitNotFound) as error:
            form.add_error(
                getattr(error, "field", None) if getattr(error, "field", "") in form.fields else None, str(error)
            )
            return False
        self.message_user(request, _("The limit “%s” is set.") % clean(name), messages.SUCCESS)
        return True


class _Row:
    """What a column looks at."""

    def __init__(self, view: LimitView) -> None:
        self.view = view
