"""The Sphinx directive ``statechart``, which puts a chart or a tree on a page.

In ``conf.py``::

    extensions = ["statecharts.sphinx"]

On a page, here in Markdown (MyST)::

    ```{statechart} engine
    :state: PAUSED.STALE
    :path: STARTING SERVING
    :caption: An engine whose weights are out of date
    ```

The argument is the name of one of rayvisor's charts, or ``module:NAME`` for your own chart or tree, whose
folder ``conf.py`` puts on ``sys.path``. HTML builders get the picture; other builders get a chart as a table
and a tree as DOT. The page is rebuilt when the module changes. A chart that cannot be drawn is reported as an
error of the page.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from statecharts.chart import Chart
from statecharts.embedding import Embedding, figure, find, split_states
from statecharts.errors import ChartError

__all__ = ["StatechartDirective", "setup"]


class StatechartDirective(SphinxDirective):
    """Puts a chart or a tree on a page."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "state": directives.unchanged_required,
        "path": directives.unchanged_required,
        "caption": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Return the picture for HTML builders, and its text form for all others."""
        shown = Embedding(
            self.arguments[0],
            self.options.get("state"),
            split_states(self.options.get("path", "")),
            self.options.get("caption", ""),
        )
        try:
            html = figure(shown, number=self.env.new_serialno("statechart") + 1)
            plain = shown.text("table" if isinstance(find(shown.name), Chart) else "dot")
        except ChartError as error:
            raise self.error(str(error)) from error
        module = sys.modules.get(shown.name.partition(":")[0])
        if module is not None and module.__file__:
            self.env.note_dependency(module.__file__)
        elsewhere = addnodes.only("", nodes.literal_block(plain, plain, language="text"), expr="not html")
        return [nodes.raw("", html, format="html"), elsewhere]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive; called by Sphinx."""
    app.add_directive("statechart", StatechartDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
