"""``rayvisor status --watch``: the content of the live page in a terminal, as lines, or as JSON.

``follow``
    reads ``/live`` of a tree, and reconnects when the tree returns.
``tree_state``
    the last known nodes and faults, and the state of the connection. Pure.
``screen``
    the picture on a terminal.
``lines``
    one line for each event.
``loop``
    the command.
"""
