"""The upload form."""

from django import forms


class ImportForm(forms.Form):
    """A CSV file of orders; without one the file that ships with the shop is taken."""

    file = forms.FileField(required=False, label="CSV file of orders")
