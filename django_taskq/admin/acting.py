"""
What an operator may do to tasks and workflows, and the page that asks before it is done.

A button or a selection posts ids here; the page names what will happen and asks
for a reason; only its own POST acts. GET changes nothing. Everything goes through
``lifecycle.control``, which audits it and says what it skipped and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.shown import clean
from django_taskq.compat import ADMIN_BREADCRUMBS_ARE_A_LIST
from django_taskq.domain.states import LIVE, State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.lifecycle import control
from django_taskq.lifecycle.control import Changed
from django_taskq.models import Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.ops.workflows import state_name, title
from django_taskq.store import tasks as store

__all__ = [
    "MOST_SELECTED",
    "VERBS",
    "WORKFLOW_VERBS",
    "ReasonForm",
    "Verb",
    "act_on",
    "ask",
    "check_post",
    "fitting",
    "offered",
    "offered_workflow",
    "refuse",
    "safe_back",
]

MOST_SELECTED = 200
_SHOWN_SKIPS = 5
_SHOWN_TASKS = 10


class Permitted(Protocol):
    """Anything that needs a permission."""

    @property
    def permission(self) -> str: ...


P = TypeVar("P", bound=Permitted)


class ReasonForm(forms.Form):
    """Why something is done; kept in the audit log."""

    reason = forms.CharField(
        label=gettext_lazy("reason"),
        max_length=300,
        required=False,
        help_text=gettext_lazy("Kept in the audit log."),
        widget=forms.TextInput(attrs={"class": "vTextField", "autofocus": True, "autocomplete": "off"}),
    )

    def __init__(self, *args: Any, needs_reason: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = needs_reason

    def options(self) -> dict[str, Any]:
        """Return what is passed to the verb beside reason and actor."""
        return {}


class CancelForm(ReasonForm):
    """How a cancel is meant."""

    requeue = forms.BooleanField(
        label=gettext_lazy("only stop the attempt, and run the task again"),
        required=False,
        help_text=gettext_lazy("For running tasks: the attempt is given back, and the task is ready again."),
    )

    def options(self) -> dict[str, Any]:
        return {"requeue": self.cleaned_data["requeue"]}


class AttemptsForm(ReasonForm):
    """How often what is replayed may be tried."""

    attempts = forms.IntegerField(
        label=gettext_lazy("attempts"),
        required=False,
        min_value=1,
        max_value=1000,
        help_text=gettext_lazy("How many more attempts each task gets. Empty: as many as it had at first."),
    )

    def options(self) -> dict[str, Any]:
        return {"attempts": self.cleaned_data["attempts"]}


class ReplayForm(AttemptsForm):
    """How a replay is done."""

    force = forms.BooleanField(
        label=gettext_lazy("also tasks that this web process does not know"),
        required=False,
        help_text=gettext_lazy("A task whose name leads nowhere dies again, unless the workers know more."),
    )

    from_start = forms.BooleanField(
        label=gettext_lazy("run all steps again"),
        required=False,
        help_text=gettext_lazy("A task with steps goes on after the last one that succeeded, unless this is ticked."),
    )

    def options(self) -> dict[str, Any]:
        names = ("force", "from_start")
        return {**super().options(), **{name: self.cleaned_data[name] for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that can be done to tasks, or with ``what`` to workflows."""

    name: str
    label: Any
    title: Any
    effect: Any
    form: type[ReasonForm] = ReasonForm
    style: str = ""
    what: str = "task"
    act: Callable[..., Changed]
    permission: str

    def run(self, ids: Sequence[str], **options: Any) -> Changed:
        """Do it. ``options`` are actor, reason, alias and what the form gives."""
        return self.act(ids, **options)

    def find(self, ids: Sequence[str]) -> list[TaskRow | Workflow]:
        """Return those of the rows that exist."""
        if self.what == "task":
            return list(store.find_many(alias(), ids).values())
        return list(Workflow.objects.using(alias()).filter(pk__in=ids).order_by("-pk"))

    def counted(self, count: int) -> str:
        """Say how many."""
        if self.what == "task":
            return ngettext("%d task", "%d tasks", count) % count
        return ngettext("%d workflow", "%d workflows", count) % count

    @property
    def nothing(self) -> str:
        """What is said where nothing was selected."""
        return _("No task was selected.") if self.what == "task" else _("No workflow was selected.")

    def done(self, count: int) -> str:
        """Say what was done to ``count`` of them."""
        match self.what, self.name:
            case "workflow", "cancel":
                text = ngettext("%d workflow was cancelled.", "%d workflows were cancelled.", count)
            case "workflow", _replayed:
                text = ngettext("%d workflow runs again.", "%d workflows run again.", count)
            case _, "replay":
                text = ngettext("%d task was sent back and is ready.", "%d tasks were sent back and are ready.", count)
            case _, "cancel":
                text = ngettext("%d task was cancelled.", "%d tasks were cancelled.", count)
            case _, "discard":
                text = ngettext("%d dead letter was discarded.", "%d dead letters were discarded.", count)
            case _:
                text = ngettext(
                    "%d task was moved to the dead letters.", "%d tasks were moved to the dead letters.", count
                )
        return text % count

    def asked(self, count: int) -> str:
        """Say how many were asked to stop."""
        if self.what == "task":
            return ngettext("%d running task was asked to stop.", "%d running tasks were asked to stop.", count) % count
        return (
            ngettext(
                "%d workflow is being cancelled: it ends when nothing in it runs.",
                "%d workflows are being cancelled: they end when nothing in them runs.",
                count,
            )
            % count
        )

    def skipped(self, count: int) -> str:
        """Say how many were skipped."""
        if self.what == "task":
            return ngettext("%d task was skipped", "%d tasks were skipped", count) % count
        return ngettext("%d workflow was skipped", "%d workflows were skipped", count) % count


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="replay",
            label=gettext_lazy("Replay…"),
            title=gettext_lazy("Replay"),
            effect=gettext_lazy(
                "The task becomes ready under the same id, with a fresh budget. "
                "It may have had effects already: replay it only if doing it again does no harm."
            ),
            form=ReplayForm,
            style="default",
            act=control.replay,
            permission="django_taskq.replay_task",
        ),
        Verb(
            name="cancel",
            label=gettext_lazy("Cancel…"),
            title=gettext_lazy("Cancel"),
            effect=gettext_lazy(
                "A task that waits ends as cancelled at once. One that runs is asked to stop, "
                "and ends when it listens. A cancelled task can be replayed."
            ),
            form=CancelForm,
            act=control.cancel,
            permission="django_taskq.cancel_task",
        ),
        Verb(
            name="kill",
            label=gettext_lazy("Move to dead letters…"),
            title=gettext_lazy("Move to the dead letters"),
            effect=gettext_lazy(
                "The task will not run. It is kept with the dead letters, where it can be looked at and replayed. "
                "Running tasks are skipped."
            ),
            act=control.kill,
            permission="django_taskq.kill_task",
        ),
        Verb(
            name="discard",
            label=gettext_lazy("Discard…"),
            title=gettext_lazy("Discard"),
            effect=gettext_lazy(
                "The dead letter leaves the list of what somebody has to look at. It is kept and can still be replayed."
            ),
            act=control.discard,
            permission="django_taskq.discard_task",
        ),
    )
}

WORKFLOW_VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="replay",
            label=gettext_lazy("Replay what failed…"),
            title=gettext_lazy("Replay what failed"),
            effect=gettext_lazy(
                "Members that are dead or cancelled run again, and so does what waited for them. What succeeded keeps "
                "its results. What failed may have had effects already: replay it only if doing it again does no harm."
            ),
            form=AttemptsForm,
            style="default",
            what="workflow",
            act=control.replay_workflows,
            permission="django_taskq.replay_workflow",
        ),
        Verb(
            name="restart",
            label=gettext_lazy("Replay from the start…"),
            title=gettext_lazy("Replay from the start"),
            effect=gettext_lazy(
                "All members run again, those that succeeded too, and their results are replaced. "
                "All of it has had effects already: do it only if doing it again does no harm."
            ),
            form=AttemptsForm,
            what="workflow",
            act=partial(control.replay_workflows, from_start=True),
            permission="django_taskq.replay_workflow",
        ),
        Verb(
            name="cancel",
            label=gettext_lazy("Cancel…"),
            title=gettext_lazy("Cancel"),
            effect=gettext_lazy(
                "Members that wait end as cancelled at once, with all that is inside them; running ones are asked to "
                "stop. It ends when nothing in it runs; then its finally callbacks are called, then and catch are not. "
                "A cancelled workflow can be replayed."
            ),
            what="workflow",
            act=control.cancel_workflows,
            permission="django_taskq.cancel_workflow",
        ),
    )
}


def fitting(verbs: Mapping[str, P], fits: Mapping[str, bool], request: HttpRequest) -> list[P]:
    """Return those of the verbs that fit and that this user may use, in their order."""
    user: Any = request.user
    return [verb for name, verb in verbs.items() if fits[name] and user.has_perm(verb.permission)]


def offered(row: TaskRow, request: HttpRequest) -> list[Verb]:
    """Return the verbs that make sense for this task and that this user may use."""
    fits = {
        "replay": row.state in (State.DEAD, State.CANCELLED),
        "cancel": row.state in LIVE,
        "kill": row.state in LIVE and row.state != State.RUNNING,
        "discard": row.state == State.DEAD and getattr(row, "resolved_at", None) is None,
    }
    return fitting(VERBS, fits, request)


def offered_workflow(row: Workflow, request: HttpRequest) -> list[Verb]:
    """Return the verbs that make sense for this workflow and that this user may use."""
    fits = {
        "replay": row.state in (WorkflowState.FAILED, WorkflowState.CANCELLED),
        "restart": row.has_ended,
        "cancel": not row.has_ended and not row.cancel,
    }
    return fitting(WORKFLOW_VERBS, fits, request)


def safe_back(request: HttpRequest, fallback: str) -> str:
    """Return where to go afterwards: the address the form names if it is on this host, else the fallback."""
    back = request.POST.get("back", "")
    if back.startswith("/") and url_has_allowed_host_and_scheme(
        back, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        return back
    return fallback


def is_id(key: str) -> bool:
    """Return whether this may be the id of a task or workflow."""
    return store.to_uuid(key) is not None


def refuse(
    page: ReadOnlyAdmin,
    request: HttpRequest,
    verbs: Mapping[str, Permitted],
    *,
    is_key: Callable[[str], bool] = is_id,
) -> HttpResponse | None:
    """Answer a list's POST that Django's own list would take wrongly, or fail on; None for a good one."""
    user: Any = request.user
    verb = verbs.get(request.POST.get("action", "").removesuffix("_selected"))
    if verb is not None and not (page.has_view_permission(request) and user.has_perm(verb.permission)):
        raise PermissionDenied
    selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
    if request.POST.get("select_across", "0") not in ("", "0"):
        text = _("Only what one page shows can be selected. Nothing was changed.")
    elif not all(map(is_key, selected)):
        text = _("One of the selected ids is none. Nothing was changed.")
    else:
        return None
    messages.error(request, text)
    return HttpResponseRedirect(request.get_full_path())


def check_post(page: ReadOnlyAdmin, request: HttpRequest, permission: str) -> HttpResponse | None:
    """Answer a request that cannot act since it is no POST; None for one that may. Raise PermissionDenied."""
    user: Any = request.user
    if not page.has_view_permission(request) or not user.has_perm(permission):
        raise PermissionDenied
    return None if request.method == "POST" else HttpResponseNotAllowed(["POST"])


def ask(
    page: ReadOnlyAdmin,
    request: HttpRequest,
    *,
    title: str,
    verb: Any,
    form: ReasonForm,
    back: str,
    action: str,
    **shown: Any,
) -> HttpResponse:
    """
    Show the page that says what will happen and asks for a reason.

    ``action`` is the address that its form goes to, ``back`` where the user came from; ``shown`` is what the page
    names, and what its form sends along.
    """
    context = page.page_context(
        request,
        title=title,
        verb=verb,
        form=form,
        back=back,
        action=action,
        breadcrumbs_are_a_list=ADMIN_BREADCRUMBS_ARE_A_LIST,
        list_link=page.list_link(page.model),
        **shown,
    )
    return TemplateResponse(request, "admin/django_taskq/confirm.html", context)


def act_on(
    page: ReadOnlyAdmin, request: HttpRequest, verb: Verb, *, action: str, ids: Sequence[str] = ()
) -> HttpResponse:
    """
    Ask for confirmation, or do it when it was given.

    ``action`` is the address that the confirmation goes to. Raise PermissionDenied without the verb's permission.
    """
    if (answer := check_post(page, request, verb.permission)) is not None:
        return answer
    user: Any = request.user
    ids = [str(key) for key in dict.fromkeys(map(store.to_uuid, ids or request.POST.getlist("id"))) if key is not None]
    back = safe_back(request, page.list_link(page.model) or request.path)
    if not ids or len(ids) > MOST_SELECTED:
        text = _("At most %s at once.") % verb.counted(MOST_SELECTED) if ids else verb.nothing
        messages.warning(request, text)
        return HttpResponseRedirect(back)
    is_confirmed = "confirmed" in request.POST
    form = verb.form(request.POST if is_confirmed else None, needs_reason=len(ids) > 1)
    if is_confirmed and form.is_valid():
        changed = verb.run(
            ids, actor=user.get_username(), reason=form.cleaned_data["reason"], alias=alias(), **form.options()
        )
        report(request, verb, changed)
        return HttpResponseRedirect(back)
    found = verb.find(ids[:_SHOWN_TASKS])
    return ask(
        page,
        request,
        title=f"{verb.title}: {verb.counted(len(ids))}",
        verb=verb,
        form=form,
        back=back,
        action=action,
        ids=ids,
        tasks=[{"row": row, "name": clean(title(row)), "state": state_name(row)} for row in found],
        unlisted=len(ids) - len(found),
    )


def report(request: HttpRequest, verb: Verb, changed: Changed) -> None:
    """Say exactly what was done, and what was skipped and why."""
    if changed.ids:
        messages.success(request, verb.done(len(changed.ids)))
    if changed.asked:
        messages.success(request, verb.asked(len(changed.asked)))
    if changed.skipped:
        count = len(changed.skipped)
        text = verb.skipped(count)
        named = "; ".join(f"{key}: {clean(why)}" for key, why in changed.skipped[:_SHOWN_SKIPS])
        more = _("; and %d more") % (count - _SHOWN_SKIPS) if count > _SHOWN_SKIPS else ""
        messages.warning(request, f"{text}: {named}{more}.")
    if not changed.count and not changed.skipped:
        messages.warning(request, _("Nothing was changed."))
