"""The list of chains, batches and workflows, and the page of one: progress, callbacks, members, and ways to act."""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_taskq import clock
from django_taskq.admin import acting, detail
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.detail import Fact
from django_taskq.admin.paging import FilterForm, SpanField
from django_taskq.admin.shown import ago, clean
from django_taskq.domain.workflows import Role, WorkflowState
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.ops import search, workflows
from django_taskq.ops.explain import duration, explain_workflow
from django_taskq.ops.search import Page
from django_taskq.ops.workflows import Member, WorkflowFilter
from django_taskq.store import workflows as store
from django_taskq.store.tasks import to_uuid

__all__ = ["WorkflowAdmin"]

_AFTER = "after"


class WorkflowForm(FilterForm):
    """The filters of the list."""

    q = forms.CharField(
        label=gettext_lazy("id or name"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"placeholder": gettext_lazy("id, its beginning, or the whole name")}),
    )
    state = forms.ChoiceField(
        label=gettext_lazy("state"),
        required=False,
        choices=[
            ("", gettext_lazy("all states")),
            *((state.name.lower(), state.name.lower()) for state in WorkflowState),
        ],
    )
    kind = forms.ChoiceField(
        label=gettext_lazy("kind"),
        required=False,
        choices=[("", gettext_lazy("all kinds")), *((name, name) for name in workflows.KINDS)],
    )
    inside = forms.ChoiceField(
        label=gettext_lazy("show"),
        required=False,
        choices=[("", gettext_lazy("also those inside others")), ("no", gettext_lazy("only outermost ones"))],
    )
    created = SpanField(label=gettext_lazy("enqueued"))

    field_order = ["q", "state", "kind", "inside", "created", "per"]

    def wanted(self) -> WorkflowFilter:
        """Return what the cleaned form asks for."""
        values = self.cleaned_data
        term = values.get("q", "").strip()
        is_id = search.id_span(term) is not None
        return WorkflowFilter(
            id=term if is_id else "",
            name="" if is_id else term,
            states=frozenset({WorkflowState[values["state"].upper()]} if values.get("state") else ()),
            kinds=frozenset({workflows.KINDS[values["kind"]]} if values.get("kind") else ()),
            outermost=values.get("inside") == "no",
            created_since=clock.now() - values["created"] if values.get("created") else None,
        )


def _pill(row: Any) -> SafeString:
    return format_html(
        '<span class="taskq-state taskq-{}">{}</span>', workflows.state_name(row), row.get_state_display()
    )


def _bar(row: Workflow) -> SafeString:
    """Return how many members have ended, as a bar and as text."""
    ended = max(row.total - row.open, 0)
    text = f"{ended} / {row.total}"
    lost = row.failed + row.cancelled
    if lost:
        text += " · " + ngettext("%d without success", "%d without success", lost) % lost
    return format_html(
        '<span class="taskq-progress"><progress max="{}" value="{}" aria-label="{}">{}</progress> {}</span>',
        max(row.total, 1),
        ended if row.total else 1,
        _("Progress"),
        text,
        text,
    )


@admin.register(Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    """Chains, batches and workflows in one list; the kind is a filter."""

    filter_form = WorkflowForm
    list_display = [
        "name_column", "kind_column", "state_column", "progress_column", "created_column", "ended_column", "id_column",
    ]  # fmt: skip
    actions = ["replay_selected", "cancel_selected"]
    empty_text = gettext_lazy("No chain, batch or workflow was enqueued yet, or all of them were pruned.")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # It shows nothing that the pages of its tasks do not.
        user: Any = request.user
        return user.has_perm("django_taskq.view_task") or super().has_view_permission(request, obj)

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "replay")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "cancel")

    def _may(self, request: HttpRequest, verb: str) -> bool:
        user: Any = request.user
        allowed: bool = user.has_perm(acting.WORKFLOW_VERBS[verb].permission)
        return allowed

    # The list

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        return workflows.listed(alias(), form.wanted(), limit=limit, after=after, before=before)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if request.method == "POST":
            refused = acting.refuse(self, request, acting.WORKFLOW_VERBS)
            if refused is not None:
                return refused
        span = search.id_span(request.GET.get("q", ""))
        if span is not None and span[0] == span[1] and self.has_view_permission(request):
            found = store.find(alias(), span[0])
            link = None if found is None else self.link_to(Workflow, found.pk)
            if link is not None:
                return HttpResponseRedirect(link)
        return super().changelist_view(request, extra_context)

    @admin.action(description=gettext_lazy("Replay what failed…"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act(request, "replay", request.POST.getlist(ACTION_CHECKBOX_NAME))

    @admin.action(description=gettext_lazy("Cancel…"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act(request, "cancel", request.POST.getlist(ACTION_CHECKBOX_NAME))

    def _act(self, request: HttpRequest, verb: str, ids: list[str]) -> HttpResponse:
        return acting.act_on(self, request, acting.WORKFLOW_VERBS[verb], action=self.act_link(verb), ids=ids)

    @admin.display(description=gettext_lazy("name"))
    def name_column(self, row: Workflow) -> SafeString:
        below = ""
        if row.parent_id is not None:
            below = _("inside another one")
        return format_html(
            '<span class="taskq-name">{}</span><span class="taskq-line">{}</span>',
            clean(row.name) or _("(no name)"),
            below,
        )

    @admin.display(description=gettext_lazy("kind"))
    def kind_column(self, row: Workflow) -> str:
        return str(row.get_kind_display())

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Workflow) -> SafeString:
        return _pill(row)

    @admin.display(description=gettext_lazy("members ended"))
    def progress_column(self, row: Workflow) -> SafeString:
        return _bar(row)

    @admin.display(description=gettext_lazy("enqueued"))
    def created_column(self, row: Workflow) -> SafeString | str:
        return ago(row.created_at)

    @admin.display(description=gettext_lazy("ended"))
    def ended_column(self, row: Workflow) -> SafeString | str:
        return ago(row.finished_at)

    @admin.display(description=gettext_lazy("id"))
    def id_column(self, row: Workflow) -> SafeString:
        return format_html('<code class="taskq-id" title="{}">{}…{}</code>', row.pk, str(row.pk)[:8], str(row.pk)[-4:])

    # One

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("act/<slug:verb>/", view, name="django_taskq_workflow_act"), *super().get_urls()]

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's confirmation goes to."""
        return reverse("admin:django_taskq_workflow_act", args=[verb], current_app=self.admin_site.name)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        if verb not in acting.WORKFLOW_VERBS:
            raise Http404
        return self._act(request, verb, [])

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        key = to_uuid(unquote(object_id))
        row = None if key is None else store.find(alias(), key)
        if row is None:
            text = _("No workflow has the id “%(id)s”. It never existed, or it was pruned.") % {"id": clean(object_id)}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_link(Workflow) or "/")
        after = to_uuid(request.GET[_AFTER]) if _AFTER in request.GET else None
        context = self.page_context(
            request, title=clean(workflows.title(row)), original=row, **self._facts(request, row, after)
        )
        response = TemplateResponse(request, "admin/django_taskq/workflow.html", context)
        response["Cache-Control"] = "no-store"
        return response

    def _facts(self, request: HttpRequest, row: Workflow, after: uuid.UUID | None) -> dict[str, Any]:
        """Return the template's context. A fixed number of small queries, however many members there are."""
        members = workflows.members(alias(), row, after=after)
        query = None if members.more is None else f"?{_AFTER}={members.more}#members"
        return {
            "row": row,
            "pill": _pill(row),
            "bar": _bar(row),
            "why": clean(explain_workflow(alias(), row)),
            "buttons": [
                {"verb": verb, "action": self.act_link(verb.name)} for verb in acting.offered_workflow(row, request)
            ],
            "facts": self._fact_list(row),
            "callbacks": self._callbacks(row),
            "members": [self._member(member) for member in members.rows],
            "has_names": bool(row.node_names),
            "more_link": query,
            "is_continued": after is not None,
            **detail.audit(request, row.pk),
        }

    def _fact_list(self, row: Workflow) -> list[Fact]:
        found = [
            Fact(label=_("Id"), value=str(row.pk)),
            Fact(label=_("Kind"), value=row.get_kind_display()),
            Fact(label=_("Members"), value=row.total),
            Fact(label=_("Open"), value=row.open),
            Fact(label=_("Succeeded"), value=row.succeeded),
            Fact(label=_("Failed"), value=row.failed),
            Fact(label=_("Cancelled"), value=row.cancelled),
            Fact(label=_("May fail"), value=row.allowed),
        ]
        if row.parent_id is not None:
            outer = store.find(alias(), row.parent_id)
            name = _("gone") if outer is None else clean(workflows.title(outer))
            found.append(Fact(label=_("Part of"), value=name, link=self.link_to(Workflow, row.parent_id)))
        if row.replays:
            found.append(Fact(label=_("Replayed"), value=ngettext("%d time", "%d times", row.replays) % row.replays))
        if row.cancel:
            found.append(Fact(label=_("Cancel"), value=_("requested")))
        found += [
            Fact(label=label, value=ago(at))
            for label, at in (
                (_("Enqueued"), row.created_at),
                (_("Started"), row.started_at),
                (_("Ended"), row.finished_at),
            )
            if at is not None
        ]
        if row.started_at is not None and row.finished_at is not None:
            found.append(Fact(label=_("Took"), value=duration(row.finished_at - row.started_at)))
        return found

    def _callbacks(self, row: Workflow) -> list[dict[str, Any]]:
        called = workflows.callbacks(alias(), row.pk)
        found = [
            {
                "turn": Role(task.role or Role.MEMBER).name.lower(),
                "name": clean(task.name),
                "link": self._page_of(task),
                "pill": _pill(task),
                "at": ago(task.created_at),
            }
            for task in called
        ]
        turns = {entry["turn"] for entry in found}
        waiting = _("not called") if row.has_ended else _("not called yet")
        found += [
            {"turn": turn, "name": clean(name), "link": None, "pill": waiting, "at": "-"}
            for turn, name in workflows.planned(row)
            if turn not in turns
        ]
        return found

    def _member(self, member: Member) -> dict[str, Any]:
        row = member.row
        ended = row.finished_at if isinstance(row, Workflow | FinishedTask) else None
        return {
            "id": row.pk,
            "node": clean(member.name),
            "name": clean(workflows.title(row)),
            "link": self.link_to(Workflow, row.pk) if isinstance(row, Workflow) else self._page_of(row),
            "pill": _pill(row),
            "bar": _bar(row) if isinstance(row, Workflow) else "",
            "attempt": "" if isinstance(row, Workflow) else f"{row.attempt}/{row.max_attempts}",
            "error": clean(getattr(row, "error_line", None) or ""),
            "ended": ago(ended),
        }

    def _page_of(self, row: Task | FinishedTask) -> str | None:
        return self.link_to(Task if isinstance(row, Task) else FinishedTask, row.pk) or self.link_to(Task, row.pk)
