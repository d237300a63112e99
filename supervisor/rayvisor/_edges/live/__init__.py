"""The state and recent history of a tree for the live page and ``rayvisor status --watch``.

``live``
    the messages to readers: the versioned state of the tree, so that a slow reader gets the differences.
``history``
    faults with their outcomes, and the transitions of each child, from records. Pure.
``charts``, ``text``
    the chart of a child in its current state; nodes, faults and decisions as text. Pure.
"""
