"""
The rules, in the standard library only; time comes in as an argument.

Nothing here knows a database, Django, or a clock.
"""
