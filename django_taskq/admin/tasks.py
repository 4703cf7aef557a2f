"""The lists of live, finished and dead tasks, and the page of one task, whichever table it is in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

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
from django.utils.translation import gettext_lazy

from django_taskq import clock
from django_taskq.admin import acting, detail
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.paging import FilterForm, SpanField
from django_taskq.admin.shown import ago, clean
from django_taskq.domain.states import DeadReason, State
from django_taskq.models import DeadTask, FinishedTask, Queue, Task, TaskType
from django_taskq.models.tasks import STATE_CHOICES, TaskRow
from django_taskq.ops import search
from django_taskq.ops.search import Page, TaskFilter
from django_taskq.store import tasks as store

__all__ = ["DeadTaskAdmin", "FinishedTaskAdmin", "TaskAdmin", "state_pill"]

_MOST_CHOICES = 500
_LABELS = dict(STATE_CHOICES)


def state_pill(state: int) -> SafeString:
    """Return a state as a word in a coloured pill."""
    return format_html('<span class="taskq-state taskq-{}">{}</span>', State(state).name.lower(), _LABELS[state])


def _choices(names: list[str], current: str, empty: Any) -> list[tuple[str, Any]]:
    # A name the registry does not know (any more) stays selectable while the address holds it.
    extra = [current] if current and current not in names else []
    return [("", empty), *((name, clean(name)) for name in (*names, *extra))]


class TaskForm(FilterForm):
    """The filters that live and finished tasks share."""

    q = forms.CharField(
        label=gettext_lazy("id or task"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"placeholder": gettext_lazy("id, its beginning, or a task's whole name")}),
    )
    state = forms.ChoiceField(label=gettext_lazy("state"), required=False)
    queue = forms.CharField(label=gettext_lazy("queue"), required=False, max_length=64, widget=forms.Select)
    task = forms.CharField(label=gettext_lazy("task"), required=False, max_length=200, widget=forms.Select)
    created = SpanField(label=gettext_lazy("enqueued"))

    field_order = ["q", "state", "queue", "task", "reason", "created", "finished", "per"]
    states: ClassVar[tuple[State, ...]] = ()

    def prepare(self) -> None:
        queues = list(Queue.objects.using(self.alias).values_list("name", flat=True)[:_MOST_CHOICES])
        names = list(TaskType.objects.using(self.alias).values_list("name", flat=True)[:_MOST_CHOICES])
        self._choose("queue", _choices(queues, self.data.get("queue", ""), _("all queues")))
        self._choose("task", _choices(names, self.data.get("task", ""), _("all tasks")))
        if "state" in self.fields:
            states = [(state.name.lower(), _LABELS[int(state)]) for state in self.states]
            self.fields["state"].choices = [("", _("all states")), *states]  # type: ignore[attr-defined]
        if "reason" in self.fields:
            reasons = [(reason.value, reason.value.replace("_", " ")) for reason in DeadReason]
            self._choose("reason", [("", _("all reasons")), *reasons])

    def _choose(self, name: str, choices: list[tuple[str, Any]]) -> None:
        self.fields[name].widget.choices = choices

    def wanted(self) -> TaskFilter:
        """Return what the cleaned form asks for."""
        values = self.cleaned_data
        now = clock.now()
        term = values.get("q", "").strip()
        span = search.id_span(term)
        names = {values["task"]} if values.get("task") else set()
        if term and span is None:
            names = {term} if not names or term in names else {""}
        return TaskFilter(
            id=term if span else "",
            names=frozenset(names),
            states=frozenset({State[values["state"].upper()]} if values.get("state") else ()),
            queues=frozenset({values["queue"]} if values.get("queue") else ()),
            reasons=frozenset({values["reason"]} if values.get("reason") else ()),
            fingerprint=values.get("fingerprint", ""),
            created_since=now - values["created"] if values.get("created") else None,
            finished_since=now - values["finished"] if values.get("finished") else None,
        )


class LiveForm(TaskForm):
    states = (State.READY, State.SCHEDULED, State.RUNNING, State.WAITING, State.PARKED)

    parked_on = forms.CharField(required=False, max_length=200, widget=forms.HiddenInput)

    def wanted(self) -> TaskFilter:
        return replace(super().wanted(), parked_on=self.cleaned_data["parked_on"])


class FinishedForm(TaskForm):
    states = (State.SUCCEEDED, State.DEAD, State.CANCELLED)

    reason = forms.ChoiceField(
        label=gettext_lazy("reason"),
        required=False,
        choices=[("", ""), *((reason.value, reason.value) for reason in DeadReason)],
    )
    finished = SpanField(label=gettext_lazy("ended"))
    fingerprint = forms.CharField(required=False, max_length=16, widget=forms.HiddenInput)


class DeadForm(FinishedForm):
    state = None  # type: ignore[assignment]  # Django's way to leave an inherited field out
    discarded = forms.ChoiceField(
        label=gettext_lazy("show"),
        required=False,
        choices=[
            ("", gettext_lazy("open ones")),
            ("yes", gettext_lazy("discarded ones")),
            ("all", gettext_lazy("open and discarded")),
        ],
    )

    def wanted(self) -> TaskFilter:
        discarded = {"": False, "yes": True, "all": None}[self.cleaned_data["discarded"]]
        return replace(super().wanted(), states=frozenset({State.DEAD}), discarded=discarded)


class TaskRowAdmin(ReadOnlyAdmin):
    """What the three lists have in common."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # A task changes tables as it runs; who may see it in one may see it in each.
        user: Any = request.user
        return user.has_perm("django_taskq.view_task") or super().has_view_permission(request, obj)

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "replay")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "cancel")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "discard")

    def has_kill_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "kill")

    def _may(self, request: HttpRequest, verb: str) -> bool:
        user: Any = request.user
        allowed: bool = user.has_perm(acting.VERBS[verb].permission)
        return allowed

    # Lists

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if request.method == "POST":
            refused = acting.refuse(self, request, acting.VERBS)
            if refused is not None:
                return refused
        found = self._whole_id(request.GET.get("q", ""))
        if found is not None and self.has_view_permission(request):
            return HttpResponseRedirect(found)
        return super().changelist_view(request, extra_context)

    def _whole_id(self, term: str) -> str | None:
        """Return the page of the task whose whole id was searched for."""
        span = search.id_span(term)
        if span is None or span[0] != span[1]:
            return None
        row = store.find(alias(), span[0])
        return None if row is None else self.page_of(row)

    def page_of(self, row: TaskRow) -> str | None:
        """Return the address of a task, in the list it belongs to now."""
        if isinstance(row, Task):
            return self.link_to(Task, row.pk)
        if row.state == State.DEAD:
            return self.link_to(DeadTask, row.pk) or self.link_to(FinishedTask, row.pk)
        return self.link_to(FinishedTask, row.pk)

    # Actions on a selection: Django draws the menu and checks the permission, the page that asks is ours.

    @admin.action(description=gettext_lazy("Replay…"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "replay")

    @admin.action(description=gettext_lazy("Cancel…"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "cancel")

    @admin.action(description=gettext_lazy("Discard…"), permissions=["discard"])
    def discard_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "discard")

    @admin.action(description=gettext_lazy("Move to dead letters…"), permissions=["kill"])
    def kill_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "kill")

    def _act_on_selected(self, request: HttpRequest, verb: str) -> HttpResponse:
        # The ids as posted, not the queryset: a task that moved on meanwhile is reported, not left out in silence.
        ids = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return acting.act_on(self, request, acting.VERBS[verb], action=self.act_link(verb), ids=ids)

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's confirmation goes to."""
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_act"
        return reverse(name, args=[verb], current_app=self.admin_site.name)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        if verb not in acting.VERBS:
            raise Http404
        return acting.act_on(self, request, acting.VERBS[verb], action=self.act_link(verb))

    # One task

    def get_urls(self) -> list[Any]:
        info = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        return [
            path("act/<slug:verb>/", view(self.act_view), name=f"{info}_act"),
            path("<path:object_id>/raw/<slug:column>/", view(self.raw_view), name=f"{info}_raw"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = store.find(alias(), unquote(object_id))
        if row is None:
            text = _("No task has the id “%(id)s”. It never existed, or it was pruned.") % {"id": clean(object_id)}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_link(self.model) or "/")
        if not self._is_home_of(row):
            # It has moved since the link was made: on when it ended, back when it was replayed.
            home = self.page_of(row)
            if home is not None:
                return HttpResponseRedirect(home)
        context = self.page_context(request, title=clean(row.name), original=row, **detail.facts(self, request, row))
        response = TemplateResponse(request, "admin/django_taskq/task.html", context)
        response["Cache-Control"] = "no-store"
        return response

    def _is_home_of(self, row: TaskRow) -> bool:
        if isinstance(row, Task):
            return self.model is Task
        return self.model is FinishedTask or (self.model is DeadTask and row.state == State.DEAD)

    def raw_view(self, request: HttpRequest, object_id: str, column: str) -> HttpResponse:
        """Return a whole value as it is stored, to be saved and not shown."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = store.find(alias(), unquote(object_id))
        text = getattr(row, column, None) if column in ("args", "result", "metadata", "options") else None
        if row is None or text is None:
            raise Http404
        body = text.encode("utf-8", "backslashreplace")
        headers = {
            "Content-Disposition": f'attachment; filename="{row.pk}-{column}.json"',
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        return HttpResponse(body, content_type="text/plain; charset=utf-8", headers=headers)

    # Columns

    @admin.display(description=gettext_lazy("task"))
    def task_column(self, row: TaskRow) -> SafeString:
        line = getattr(row, "error_line", None)
        below = format_html('<span class="taskq-line">{}</span>', clean(line)) if line else ""
        return format_html('<span class="taskq-name">{}</span>{}', clean(row.name), below)

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: TaskRow) -> SafeString:
        return state_pill(row.state)

    @admin.display(description=gettext_lazy("attempt"))
    def attempt_column(self, row: TaskRow) -> str:
        return f"{row.attempt}/{row.max_attempts}"

    @admin.display(description=gettext_lazy("enqueued"))
    def created_column(self, row: TaskRow) -> SafeString | str:
        return ago(row.created_at)

    @admin.display(description=gettext_lazy("id"))
    def id_column(self, row: TaskRow) -> SafeString:
        # The beginning is the time; the end tells neighbours apart.
        return format_html('<code class="taskq-id" title="{}">{}…{}</code>', row.pk, str(row.pk)[:8], str(row.pk)[-4:])


@admin.register(Task)
class TaskAdmin(TaskRowAdmin):
    """Tasks that have not ended."""

    filter_form = LiveForm
    list_display = [
        "task_column", "state_column", "queue", "priority_column", "attempt_column", "created_column", "when_column",
        "id_column",
    ]  # fmt: skip
    actions = ["cancel_selected", "kill_selected"]
    empty_text = gettext_lazy("Nothing waits and nothing runs.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        return search.live(alias(), form.wanted(), limit=limit, after=after, before=before)

    @admin.display(description=gettext_lazy("priority"))
    def priority_column(self, row: Task) -> int:
        return row.priority

    @admin.display(description=gettext_lazy("due or claimed"))
    def when_column(self, row: Task) -> SafeString | str:
        return ago(row.started_at if row.state == State.RUNNING else row.run_after)


@admin.register(FinishedTask)
class FinishedTaskAdmin(TaskRowAdmin):
    """Tasks that have ended, until they are pruned."""

    filter_form = FinishedForm
    list_display = [
        "task_column", "state_column", "queue", "attempt_column", "reason_column", "created_column", "finished_column",
        "id_column",
    ]  # fmt: skip
    actions = ["replay_selected", "discard_selected"]
    empty_text = gettext_lazy("Nothing has ended yet, or all of it was pruned.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        return search.finished(alias(), form.wanted(), limit=limit, after=after, before=before)

    @admin.display(description=gettext_lazy("reason"))
    def reason_column(self, row: FinishedTask) -> str:
        text = (row.reason or "-").replace("_", " ")
        return f"{text}, {_('discarded')}" if row.resolved_at is not None else text

    @admin.display(description=gettext_lazy("ended"))
    def finished_column(self, row: FinishedTask) -> SafeString | str:
        return ago(row.finished_at)


@admin.register(DeadTask)
class DeadTaskAdmin(FinishedTaskAdmin):
    """The dead letters: what somebody has to look at."""

    filter_form = DeadForm
    list_display = [
        "task_column", "queue", "reason_column", "attempt_column", "replays", "finished_column", "created_column",
        "id_column",
    ]  # fmt: skip
    empty_text = gettext_lazy("No dead letters. Nobody has to look at anything.")
