"""A fence for pages that Python-Markdown reads (MkDocs, Zensical, ...): a chart, or a tree, on a page.

It is a custom fence of the extension SuperFences (``pymdown-extensions``, which Material for MkDocs brings).
In ``mkdocs.yml``::

    markdown_extensions:
      - pymdownx.superfences:
          custom_fences:
            - name: statechart
              class: statechart
              format: !!python/name:statecharts.markdown.fence

On a page, the name alone or with options below it::

    ```statechart
    engine
    state: PAUSED.STALE
    path: STARTING SERVING
    caption: An engine whose weights are old
    ```

The name is that of one of rayvisor's charts, or ``module:NAME`` for a chart or a tree of your own, whose
folder is on Python's path (``PYTHONPATH``). What cannot be drawn ends the build with an error.
"""

from __future__ import annotations

from typing import Any

from statecharts.embedding import Embedding, figure, words
from statecharts.errors import ChartError

__all__ = ["fence"]

_OPTIONS = ("state", "path", "caption")


def fence(
    source: str,
    language: str,  # noqa: ARG001 - SuperFences gives it, as the next two
    class_name: str,  # noqa: ARG001
    options: Any,  # noqa: ARG001
    md: Any,
    **_: Any,
) -> str:
    """Make the HTML of a fence; SuperFences calls it.

    Parameters
    ----------
    source
        What stands in the fence.
    language, class_name, options
        As SuperFences gives them; not used.
    md
        The Markdown instance, on which the pictures of a page are counted.

    Raises
    ------
    SuperFencesException
        When the fence cannot be read or drawn; it says why.
    """
    try:
        number = getattr(md, "statecharts_shown", 0) + 1
        html = figure(_read(source), number=number)
    except ChartError as error:
        from pymdownx.superfences import SuperFencesException

        # Any other error would make SuperFences show the fence as plain code, and say nothing.
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
            raise ChartError(name, repr(line), "cannot stand below the name", remedy)
        given[option] = value.strip()
    return Embedding(name, given.get("state"), words(given.get("path", "")), given.get("caption", ""))
