"""
The engine room: claims, runs and settles tasks until it is told to stop.

``loop.Worker`` is the worker; ``supervisor`` keeps several of them and hears the
operating system's signals; ``executors`` are where tasks run.
"""
