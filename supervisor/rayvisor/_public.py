"""Public paths of classes that are defined in private modules, for tracebacks, reprs and pickles.

The path is set where a class is defined, so it is the same in every process, whatever that has imported.
"""

from __future__ import annotations

from typing import Any, get_type_hints

__all__ = ["shown_as"]


def shown_as(module: str, *objects: Any) -> None:
    """Set the public module of classes and functions.

    Parameters
    ----------
    module
        The public module from which they can be imported: ``"rayvisor.pool"``.
    objects
        Classes and functions of the calling module, which must have imported the names in their annotations.
    """
    for each in objects:
        own = vars(each).get("__annotations__") if isinstance(each, type) else None
        if own:
            # An annotation that is text is looked up in the module that the class names.
            hints = get_type_hints(each, include_extras=True)
            each.__annotations__ = {name: hints[name] for name in own}
        each.__module__ = module
