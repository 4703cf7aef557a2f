import pytest

pytest.register_assert_rewrite("django_taskq.testing.store_contract", "django_taskq.testing.executor_contract")
