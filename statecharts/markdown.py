"""A fence that puts a chart or a tree on a page that Python-Markdown reads (MkDocs, Zensical, ...).

It is a custom fence of the extension SuperFences (of ``pymdown-extensions``, which Material for MkDocs
includes). In ``mkdocs.yml``::

    markdown_extensions:
      - pymdownx.superfences:
          custom_fences:
            - name: statechart
              class: statechart
              format: !!python/name:statecharts.markdown.fence

On a page, the name, optionally with options below it::

    ```statechart
    engine
    state: PAUSED.STALE
    path: STARTING SERVING
    caption: An engine whose weights are out of date
    ```

The name is that of one of rayvisor's charts, or ``module:NAME`` for your own chart or tree, whose folder is
on Python's path (``PYTHONPATH``). A chart that cannot be drawn stops the build with an error.
"""

from __future__ import annotations

from typing import Any

from statecharts.embedding import Embedding, figure, split_states
from statecharts.errors import ChartError

__all__ = ["fence"]

_OPTIONS = ("state", "path", "caption")


def fence(
    source: str,
    _language: str,
    _class_name: str,
    _options: Any,
    md: Any,
    **_: Any,
) -> str:
    """Return the HTML of a fence; called by SuperFences.

    Parameters
    ----------
    source
        The content of the fence.
    _language, _class_name, _options
        Passed by SuperFences, by position; not used.
    md
        The Markdown instance, which holds the number of pictures on the page.

    Raises
    ------
    SuperFencesException
        If the fence cannot be read or drawn; the message says why.
    """
    try:
        number = getattr(md, "statecharts_shown", 0) + 1
        html = figure(_read(source), number=number)
    except ChartError as error:
        from pymdownx.superfences import SuperFencesException

        # With any other error SuperFences would silently show the fence as plain code.
        raise SuperFencesException(f"statechart: {error}") from error
    md.statecharts_shown = number
    return html


def _read(source: str) -> Embedding:
    name, *lines = [line.strip() for line in source.strip().splitlines()] or [""]
    given: dict[str, str] = {}
    for line in filter(None, lines):
        option, colon, value = line.partition(":")
        if not colon or option not in _OPTIONS or option in given:
            remedy = f"write one of {', '.join(_OPTIONS)}, a colon and a value, each once"
            raise ChartError(name, repr(line), "is not an option", remedy)
        given[option] = value.strip()
    return Embedding(name, given.get("state"), split_states(given.get("path", "")), given.get("caption", ""))
