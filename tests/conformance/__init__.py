"""Django's own tests of ``django.tasks``, run against the backends of this project."""
