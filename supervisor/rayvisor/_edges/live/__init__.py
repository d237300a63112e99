"""What happens in a tree, for those who look on: the live page, and ``rayvisor status --watch``.

``live``
    what readers are told: the tree's state by versions, so that whoever missed something gets what differs.
``history``
    faults with what became of them, and the way each child took, from records. Pure.
"""
