"""
The walk of a task: enqueue → claim → execute → settle, one verb per file.

``rescue`` and ``control`` lead back into the same state machine; ``definitions``
and ``context`` are what the verbs share.
"""
