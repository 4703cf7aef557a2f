"""A small shop that shows django_taskq at real work: ``manage.py demo``."""
