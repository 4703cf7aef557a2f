"""Queues with their depths, to be paused and resumed; and the registry of task types."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_taskq.admin.acting import ReasonForm, safe_back
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.shown import ago, clean
from django_taskq.compat import ADMIN_BREADCRUMBS_ARE_A_LIST
from django_taskq.lifecycle import control
from django_taskq.models import DeadTask, Queue, Task, TaskType
from django_taskq.ops import snapshot
from django_taskq.ops.explain import duration
from django_taskq.ops.search import Order, Page
from django_taskq.ops.snapshot import QueueDepth

__all__ = ["QueueAdmin", "TaskTypeAdmin"]

_PERMISSION = "django_taskq.pause_queue"
_VERBS = {
    "pause": {
        "title": gettext_lazy("Pause the queue"),
        "effect": gettext_lazy(
            "Within a second no worker takes a task from it any more. Running tasks finish, and enqueueing goes on."
        ),
    },
    "resume": {
        "title": gettext_lazy("Resume the queue"),
        "effect": gettext_lazy("Workers take tasks from it again at once."),
    },
}


def _pill(view: QueueDepth) -> SafeString:
    if view.queue.paused:
        return format_html('<span class="taskq-state taskq-paused">{}</span>', _("paused"))
    if not view.workers:
        return format_html('<span class="taskq-state taskq-silent">{}</span>', _("no worker"))
    return format_html('<span class="taskq-state taskq-alive">{}</span>', _("active"))


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """Queues: how deep they are, and whether they are paused."""

    order = Order(name="order", label=gettext_lazy("in the order they are served"), columns=("position", "name"))
    list_display = [
        "name", "state_column", "ready", "scheduled", "running", "dead", "oldest_column", "workers_column", "at_column",
    ]  # fmt: skip
    empty_text = gettext_lazy("No queue is known. One appears when a worker starts or a queue is paused.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        page = super().find_page(form, limit=limit, after=after, before=before)
        views = snapshot.queues(alias(), names=[row.name for row in page.rows])
        by_name = {view.queue.name: view for view in views}
        for row in page.rows:
            row.view = by_name.get(row.name)
        return page

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Any) -> SafeString | str:
        return "-" if row.view is None else _pill(row.view)

    def _depth(self, row: Any, name: str) -> str:
        if row.view is None or row.view.depth is None:
            return "-"
        number = number_format(getattr(row.view.depth, name), force_grouping=True)
        return number if row.view.depth.exact else f"{number}+"

    @admin.display(description=gettext_lazy("ready"))
    def ready(self, row: Any) -> str:
        return self._depth(row, "ready")

    @admin.display(description=gettext_lazy("scheduled"))
    def scheduled(self, row: Any) -> str:
        return self._depth(row, "scheduled")

    @admin.display(description=gettext_lazy("running"))
    def running(self, row: Any) -> str:
        return self._depth(row, "running")

    @admin.display(description=gettext_lazy("dead"))
    def dead(self, row: Any) -> str:
        return self._depth(row, "dead")

    @admin.display(description=gettext_lazy("oldest ready"))
    def oldest_column(self, row: Any) -> str:
        return "-" if row.view is None or row.view.oldest_ready is None else duration(row.view.oldest_ready)

    @admin.display(description=gettext_lazy("workers"))
    def workers_column(self, row: Any) -> str:
        return "-" if row.view is None else str(row.view.workers)

    @admin.display(description=gettext_lazy("numbers of"))
    def at_column(self, row: Any) -> SafeString | str:
        if row.view is None or row.view.depth is None:
            return _("never looked at")
        return ago(row.view.depth.at)

    # One queue

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("act/<slug:verb>/", view, name="django_taskq_queue_act"), *super().get_urls()]

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's confirmation goes to."""
        return reverse("admin:django_taskq_queue_act", args=[verb], current_app=self.admin_site.name)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        name = unquote(object_id)
        found = snapshot.queues(alias(), names=[name])
        if not found:
            text = _("No queue is called “%(name)s”.") % {"name": clean(name)}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_link(Queue) or "/")
        (view,) = found
        user: Any = request.user
        verb = "resume" if view.queue.paused else "pause"
        query = urlencode({"queue": name})
        context = self.page_context(
            request,
            title=clean(name),
            original=view.queue,
            view=view,
            pill=_pill(view),
            oldest=None if view.oldest_ready is None else duration(view.oldest_ready),
            looked=None if view.depth is None else ago(view.depth.at),
            since=ago(view.queue.paused_at),
            verb=verb if user.has_perm(_PERMISSION) else None,
            verb_title=_VERBS[verb]["title"],
            action=self.act_link(verb),
            ready_link=self.list_link(Task, f"?{query}&state=ready"),
            live_link=self.list_link(Task, f"?{query}"),
            dead_link=self.list_link(DeadTask, f"?{query}"),
        )
        return TemplateResponse(request, "admin/django_taskq/queue.html", context)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Ask for confirmation, or pause or resume when it was given."""
        user: Any = request.user
        if not self.has_view_permission(request) or not user.has_perm(_PERMISSION):
            raise PermissionDenied
        if verb not in _VERBS:
            raise Http404
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        name = request.POST.get("queue", "")
        if not Queue.objects.using(alias()).filter(pk=name).exists():
            raise Http404
        is_confirmed = "confirmed" in request.POST
        form = ReasonForm(request.POST if is_confirmed else None, needs_reason=verb == "pause")
        # The column of the queue is shorter than that of the audit log.
        form.fields["reason"].widget.attrs["maxlength"] = 200
        back = safe_back(request, self.link_to(Queue, name) or request.path)
        if is_confirmed and form.is_valid():
            self._act(request, verb, name, user.get_username(), form.cleaned_data["reason"])
            return HttpResponseRedirect(back)
        context = self.page_context(
            request,
            title=f"{_VERBS[verb]['title']} {clean(name)}",
            verb={"name": verb, **_VERBS[verb]},
            form=form,
            queue=name,
            back=back,
            action=request.path,
            breadcrumbs_are_a_list=ADMIN_BREADCRUMBS_ARE_A_LIST,
            list_link=self.list_link(Queue),
        )
        return TemplateResponse(request, "admin/django_taskq/confirm.html", context)

    def _act(self, request: HttpRequest, verb: str, name: str, actor: str, reason: str) -> None:
        if verb == "pause":
            done = control.pause(name, actor=actor, reason=reason, alias=alias())
            text = _("The queue “%s” is paused.") if done else _("The queue “%s” was paused already.")
        else:
            done = control.resume(name, actor=actor, reason=reason, alias=alias())
            text = _("The queue “%s” goes on.") if done else _("The queue “%s” was not paused.")
        self.message_user(request, text % clean(name), messages.SUCCESS if done else messages.WARNING)


@admin.register(TaskType)
class TaskTypeAdmin(ReadOnlyAdmin):
    """Task paths that some worker knew when it started."""

    order = Order(name="name", label=gettext_lazy("by name"), columns=("name",))
    list_display = ["name", "queue", "seen_column"]
    empty_text = gettext_lazy("No worker has announced a task yet.")

    @admin.display(description=gettext_lazy("last announced"))
    def seen_column(self, row: TaskType) -> SafeString | str:
        return ago(row.seen_at)
