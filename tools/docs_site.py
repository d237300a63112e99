"""What the documentation site needs beyond Sphinx: links as the docstrings spell them.

Docstrings name other objects as ``[`Supervisor`][rayvisor.Supervisor]``, which reads well as it is; here this
becomes a reference. A name is found wherever it is documented, by whatever path it was imported.
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
    app: Sphinx,  # noqa: ARG001 - Sphinx gives it, as the next four
    what: str,  # noqa: ARG001
    name: str,  # noqa: ARG001
    obj: Any,  # noqa: ARG001
    options: Any,  # noqa: ARG001
    lines: list[str],
) -> None:
    """Spell the links of a docstring as Sphinx does."""
    text = "\n".join(lines)
    lines[:] = _LINK.sub(lambda found: f":py:obj:`{found[2]} <{found[3] or found[2]}>`", text).split("\n")


def _made(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx gives them
    """Put in what is made here, and draw where a repository's viewer is given Mermaid."""
    source[0] = docs_reference.made(source[0])
    source[0] = _MERMAID.sub(lambda found: f"```{{statechart}} {found[1]}\n```", source[0])


def _object(path: str) -> Any:
    """What a dotted path leads to, or None."""
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
    """Lead a name to where its object is documented; leave what is not ours as text."""
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
    """Register all of it; Sphinx calls it."""
    app.connect("autodoc-process-docstring", _links, priority=400)
    app.connect("missing-reference", _missing)
    app.connect("source-read", _made)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
