"""A module that cannot be imported."""

raise RuntimeError("a dependency is missing here")
