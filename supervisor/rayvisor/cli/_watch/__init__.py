"""``rayvisor status --watch``: what the live page shows, in a terminal, as lines, or as JSON.

``following``
    reads a tree's ``/live``, and goes on reading when the tree comes back.
``tree``
    what has been read: nodes, faults, and whether the tree is there. Pure.
``words``
    the same in words, for both views. Pure.
``screen``
    the picture on a terminal.
``lines``
    a line for each thing that happens.
"""
