"""Build the documentation: Markdown pages, one theme, warnings are errors."""

project = "django_taskq"
author = copyright = "django_taskq contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "django_taskq"
exclude_patterns = ["_build", "changelog/next/*"]
# Nothing is fetched while building: a build works without a network.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
