"""
Upkeep that one worker at a time does for all: promote, tick, rescue, snapshot, prune, reconcile.

Each duty is a function ``run_once(alias, options, now) -> count``, harmless when done twice.
"""
