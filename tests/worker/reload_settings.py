"""The quick settings, and a module that a test changes to see the worker begin anew."""

import changing  # noqa: F401 - made by the test, in a folder on the path

from tests.worker.quick_settings import *  # noqa: F403 - a settings module
