"""Sphinx extension of the documentation site: references in the form that the docstrings use.

Docstrings refer to other objects as ``[`Supervisor`][rayvisor.Supervisor]``, which is readable in the source.
This extension turns each of these into a reference of Sphinx. An object is found by identity, so a reference
works whatever path its name was imported by.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

from tools import docs_reference

_LINK = re.compile(r"\[(`{0,2})([^\]`]+)\1\]\[([\w.]*)\]")
_MERMAID = re.compile(r"<!-- made of: rayvisor chart (\w+) --format mermaid -->\n.*?<!-- end -->", re.DOTALL)
_OURS = ("rayvisor", "statecharts")
_PRIVATE = re.compile(r"rayvisor\.(_core\.supervision\.messages\.\w+|faults\._Case|retrying\.T)")
"""Names that a signature shows and nobody has to know; any other private name there is an error."""


def _links(
    app: Sphinx,  # noqa: ARG001 - part of Sphinx's callback signature, as the next four
    what: str,  # noqa: ARG001 - as above
    name: str,  # noqa: ARG001 - as above
    obj: Any,  # noqa: ARG001 - as above
    options: Any,  # noqa: ARG001 - as above
    lines: list[str],
) -> None:
    """Rewrite the references of a docstring in the syntax of Sphinx."""
    text = "\n".join(lines)
    lines[:] = _LINK.sub(lambda found: f":py:obj:`{found[2]} <{found[3] or found[2]}>`", text).split("\n")


def _made(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx's callback
    """Insert the generated parts, and replace Mermaid source with a drawn chart."""
    source[0] = docs_reference.made(source[0])
    source[0] = _MERMAID.sub(lambda found: f"```{{statechart}} {found[1]}\n```", source[0])


def _object(path: str) -> Any:
    """Return the object at a dotted path, or None."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part, None)
        return value
    return None


def _missing(app: Sphinx, env: BuildEnvironment, node: Any, content: Any) -> Any:
    """Link a name to the entry of its object; names of other packages stay plain text."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if not target.startswith(_OURS) or _PRIVATE.fullmatch(target):
        return content
    wanted = _object(target)
    for name, known in env.get_domain("py").objects.items():
        if wanted is not None and _object(name) is wanted:
            return make_refnode(app.builder, node["refdoc"], known.docname, known.node_id, content, name)
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the callbacks; Sphinx calls this."""
    app.connect("autodoc-process-docstring", _links, priority=400)
    app.connect("missing-reference", _missing)
    app.connect("source-read", _made)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
