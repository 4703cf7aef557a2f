"""The one table in which test tasks leave proof that they ran."""

from django.db import models


class Effect(models.Model):
    """
    Prove that a task did its work, and did it once.

    The key is unique, so a second run of the same effect fails loudly.
    """

    key = models.CharField(max_length=200, unique=True)
    task_id = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.key
