"""Queues with their depths, to be arranged, and the registry of task types; both to be paused and resumed."""

from __future__ import annotations

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

from django_taskq import clock, conf
from django_taskq.admin import pausing
from django_taskq.admin.acting import ReasonForm, ask, check_post, safe_back
from django_taskq.admin.base import alias
from django_taskq.admin.pausing import PausableAdmin
from django_taskq.admin.shown import ago, clean
from django_taskq.domain.pauses import PauseScope
from django_taskq.lifecycle.arrange_queue import MOST, arrange
from django_taskq.models import DeadTask, Queue, Task, TaskType
from django_taskq.ops import snapshot
from django_taskq.ops.explain import duration
from django_taskq.ops.search import Order, Page
from django_taskq.ops.snapshot import QueueDepth
from django_taskq.store import pauses as pause_store

__all__ = ["QueueAdmin", "TaskTypeAdmin"]


ARRANGE_PERMISSION = "django_taskq.change_queue"
_ARRANGE = {
    "name": "arrange",
    "title": gettext_lazy("Arrange the queue"),
    "effect": gettext_lazy(
        "Workers that name no queues themselves follow within a second. While every queue weighs 1, the positions "
        "decide, lower ones first; as soon as one does not, each gets its share."
    ),
}


class ArrangeForm(ReasonForm):
    """Where a queue stands among the others."""

    position = forms.IntegerField(
        label=gettext_lazy("position"),
        min_value=-MOST,
        max_value=MOST,
        help_text=gettext_lazy("A lower one is served first."),
    )
    weight = forms.IntegerField(
        label=gettext_lazy("weight"),
        min_value=1,
        max_value=MOST,
        help_text=gettext_lazy("Its share of the tasks against the others'."),
    )

    def options(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in ("position", "weight")}


def _bound(queue: str) -> tuple[int, str] | None:
    """Return how many tasks may be ready, and what happens to more, as this process's settings have it."""
    rule = conf.options().queues.get(queue)
    return None if rule is None or rule.max_ready is None else (rule.max_ready, rule.full_policy)


def _pill(view: QueueDepth) -> SafeString:
    if view.pause is not None:
        return format_html('<span class="taskq-state taskq-paused">{}</span>', _("paused"))
    if not view.workers:
        return format_html('<span class="taskq-state taskq-silent">{}</span>', _("no worker"))
    return format_html('<span class="taskq-state taskq-alive">{}</span>', _("active"))


@admin.register(Queue)
class QueueAdmin(PausableAdmin):
    """Queues: how deep they are, and whether they are paused."""

    scope = PauseScope.QUEUE
    order = Order(name="order", label=gettext_lazy("in the order they are served"), columns=("position", "name"))
    list_display = [
        "name", "state_column", "place_column", "ready", "scheduled", "running", "dead", "oldest_column",
        "workers_column", "at_column",
    ]  # fmt: skip
    empty_text = gettext_lazy("No queue is known. One appears when a worker starts or a queue is paused.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        page = super().find_page(form, limit=limit, after=after, before=before)
        views = snapshot.queues(alias(), rows=page.rows)
        by_name = {view.queue.name: view for view in views}
        for row in page.rows:
            row.view = by_name.get(row.name)
        return page

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Any) -> SafeString | str:
        return "-" if row.view is None else _pill(row.view)

    @admin.display(description=gettext_lazy("position, weight"))
    def place_column(self, row: Queue) -> str:
        return f"{row.position}, {row.weight}"

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
        view = self.admin_site.admin_view(self.arrange_view)
        return [path("arrange/", view, name="django_taskq_queue_arrange"), *super().get_urls()]

    def arrange_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the place of a queue among the others, or set it when it was given."""
        if (answer := check_post(self, request, ARRANGE_PERMISSION)) is not None:
            return answer
        row = Queue.objects.using(alias()).filter(pk=request.POST.get("queue", "")).first()
        if row is None:
            raise Http404
        is_confirmed = "confirmed" in request.POST
        place = {"position": row.position, "weight": row.weight}
        form = ArrangeForm(request.POST if is_confirmed else None, initial=place, needs_reason=True)
        back = safe_back(request, self.link_to(Queue, row.pk) or request.path)
        if is_confirmed and form.is_valid():
            user: Any = request.user
            given = {"actor": user.get_username(), "reason": form.cleaned_data["reason"], "alias": alias()}
            done = arrange(row.name, **form.options(), **given)
            text = _("The queue “%s” is arranged.") if done else _("The queue “%s” was arranged so already.")
            self.message_user(request, text % clean(row.name), messages.SUCCESS if done else messages.WARNING)
            return HttpResponseRedirect(back)
        return ask(
            self,
            request,
            title=f"{_ARRANGE['title']} {clean(row.name)}",
            verb=_ARRANGE,
            form=form,
            back=back,
            action=request.path,
            hidden=[("queue", row.name)],
        )

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
        query = urlencode({"queue": name})
        context = self.page_context(
            request,
            title=clean(name),
            original=view.queue,
            view=view,
            pill=_pill(view),
            oldest=None if view.oldest_ready is None else duration(view.oldest_ready),
            looked=None if view.depth is None else ago(view.depth.at),
            pause=pausing.facts(view.pause),
            bound=_bound(name),
            arrange_action=self._arrange_action(request),
            button=pausing.button(
                request,
                PauseScope.QUEUE,
                name,
                pause=pausing.held(PauseScope.QUEUE, name),
                action=self.act_link("pause"),
            ),
            ready_link=self.list_link(Task, f"?{query}&state=ready"),
            live_link=self.list_link(Task, f"?{query}"),
            dead_link=self.list_link(DeadTask, f"?{query}"),
        )
        return TemplateResponse(request, "admin/django_taskq/queue.html", context)

    def _arrange_action(self, request: HttpRequest) -> str | None:
        """Return where the button that arranges the queue leads, None for a user who may not."""
        user: Any = request.user
        if not user.has_perm(ARRANGE_PERMISSION):
            return None
        return reverse("admin:django_taskq_queue_arrange", current_app=self.admin_site.name)


@admin.register(TaskType)
class TaskTypeAdmin(PausableAdmin):
    """Task paths that some worker knew when it started, to be paused and resumed."""

    scope = PauseScope.TASK
    order = Order(name="name", label=gettext_lazy("by name"), columns=("name",))
    list_display = ["name", "queue", "state_column", "seen_column"]
    empty_text = gettext_lazy("No worker has announced a task yet.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        page = super().find_page(form, limit=limit, after=after, before=before)
        paused = pause_store.paused_types(alias(), clock.now())
        for row in page.rows:
            row.is_paused = row.name in paused
        return page

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Any) -> SafeString | str:
        return format_html('<span class="taskq-state taskq-paused">{}</span>', _("paused")) if row.is_paused else ""

    @admin.display(description=gettext_lazy("last announced"))
    def seen_column(self, row: TaskType) -> SafeString | str:
        return ago(row.seen_at)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        # Nothing here can be edited, which is how Django answers an attempt.
        if not self.has_view_permission(request) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        name = unquote(object_id)
        row = TaskType.objects.using(alias()).filter(pk=name).first()
        if row is None:
            text = _("No worker has announced a task called “%(name)s”.") % {"name": clean(name)}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_link(TaskType) or "/")
        pause = pausing.held(PauseScope.TASK, name)
        query = urlencode({"task": name})
        context = self.page_context(
            request,
            title=clean(name),
            original=row,
            seen=ago(row.seen_at),
            queue_name=clean(row.queue),
            queue_link=self.link_to(Queue, row.queue),
            pause=pausing.facts(pause),
            button=pausing.button(request, PauseScope.TASK, name, pause=pause, action=self.act_link("pause")),
            live_link=self.list_link(Task, f"?{query}"),
            dead_link=self.list_link(DeadTask, f"?{query}"),
        )
        return TemplateResponse(request, "admin/django_taskq/task_type.html", context)
