"""
The tests of Django's suite that do not hold for our backends, and why.

Each is run all the same and has to fail: one that passes has no place here.
``docs/reference/django-tasks.md`` shows this list.
"""

_CHANGES_MEMORY = (
    "changes the object in the dummy backend's memory and expects refresh() to see it; "
    "a row in a database does not change with it"
)

DO_NOT_APPLY: dict[str, str] = {
    "tasks.test_dummy_backend.DummyBackendTestCase.test_refresh_result": _CHANGES_MEMORY,
    "tasks.test_dummy_backend.DummyBackendTestCase.test_refresh_result_async": _CHANGES_MEMORY,
    "tasks.test_immediate_backend.ImmediateBackendTestCase.test_complex_return_value": (
        "expects the class TypeError itself for a result that is not JSON; ours is InvalidPayload, a subclass of it"
    ),
}
