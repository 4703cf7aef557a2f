"""
A process with both contracts in it, as one of Wagtail's can be. Prints what it saw as JSON.

Run by test_backend_both.py, on the database of the test.
"""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import django

django.setup()

import django.tasks  # noqa: E402
import django_tasks  # noqa: E402
import django_tasks.base  # noqa: E402
import django_tasks.exceptions  # noqa: E402
import django_tasks.signals  # noqa: E402

import django_taskq  # noqa: E402
from django_taskq.exceptions import InvalidOptions  # noqa: E402
from tests.by_hand import HandWorker  # noqa: E402


@django_tasks.task(max_attempts=1, takes_context=True)
def theirs(context: Any, fails: bool) -> list[str]:
    kinds = [_contract(item) for item in (context, context.task_result)]
    if fails:
        raise LookupError("no")
    return [*kinds, str(isinstance(context, django_taskq.TaskContext)), str(context.remaining)]


@django_taskq.task(max_attempts=1)
def ours() -> int:
    return 1


@django.tasks.task()
def cores() -> int:
    return 2


def _plain(a: int) -> int:
    return a


_plain.__name__ = _plain.__qualname__ = "foreign"
foreign = django_tasks.base.Task(func=_plain)

sys.modules["tests.faces.both_program"] = sys.modules[__name__]
for made in (theirs, ours, cores, foreign):
    made.func.__module__ = "tests.faces.both_program"


def _contract(thing: object) -> str:
    """Return which contract a task, a result or an error is of."""
    found = [cls.__module__.split(".")[0] + "." for cls in type(thing).__mro__]
    return "backport" if "django_tasks." in found else "core" if "django." in found else "neither"


def main() -> None:
    heard: list[tuple[str, str, str]] = []

    def hear(which: str, name: str) -> Any:
        def receiver(sender: Any, task_result: Any, **kwargs: Any) -> None:
            heard.append((which, name, task_result.task.name))

        return receiver

    for which, module in (("core", django.tasks.signals), ("backport", django_tasks.signals)):
        for name in ("task_enqueued", "task_started", "task_finished"):
            getattr(module, name).connect(hear(which, name), weak=False)

    results = {
        "theirs": theirs.enqueue(False),
        "fails": theirs.enqueue(True),
        "ours": ours.enqueue(),
        "cores": cores.enqueue(),
        "foreign": foreign.enqueue(3),
    }
    many = theirs.enqueue_many([(False,)])
    HandWorker().work()
    seen: dict[str, Any] = {"heard": sorted(set(heard)), "handlers": [], "caught": {}}
    for name, result in results.items():
        result.refresh()
        again = pickle.loads(pickle.dumps(result)) if name != "foreign" else result
        seen[name] = {
            "task": _contract(result.task),
            "result": _contract(result),
            "state": result.state,
            "errors": [_contract(error) for error in result.errors],
            "value": result.return_value if result.status == "SUCCESSFUL" else None,
            "pickles": again == result,
            "found": result.task.get_result(result.id) == result,
        }
    seen["many"] = many[0].task.name
    seen["handlers"] = [
        django_tasks.task_backends["default"] is django.tasks.task_backends["default"],
        theirs.get_backend() is django_tasks.task_backends["default"],
        ours.get_backend() is django.tasks.task_backends["default"],
    ]
    for spelled, kinds in {
        "invalid": (django.tasks.exceptions.InvalidTask, django_tasks.exceptions.InvalidTaskError),
        "backend": (django.tasks.exceptions.InvalidTaskBackend, django_tasks.exceptions.InvalidTaskBackendError),
        "missing": (django.tasks.exceptions.TaskResultDoesNotExist, django_tasks.exceptions.TaskResultDoesNotExist),
    }.items():
        for which, made in (("theirs", theirs), ("ours", ours)):
            seen["caught"][f"{spelled} by {which}"] = [_raises(spelled, made, kind) for kind in kinds]
    seen["options"] = [_raises("options", theirs, InvalidOptions)]
    print(json.dumps(seen))


def _raises(what: str, made: Any, kind: type[Exception]) -> bool:
    try:
        match what:
            case "invalid":
                made.using(priority=101)
            case "backend":
                made.using(backend="unknown")
            case "missing":
                made.get_result("123")
            case "options":
                made.using(max_attempts=0)
    except kind:
        return True
    return False


if __name__ == "__main__":
    main()
