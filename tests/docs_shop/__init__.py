"""The app that the samples of the docs import as ``shop``."""
