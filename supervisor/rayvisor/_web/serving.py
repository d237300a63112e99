"""The part of a supervisor that serves its live page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

from rayvisor._web.server import WebPage
from rayvisor.errors import SupervisorStoppedError

if TYPE_CHECKING:
    from rayvisor._control.routes import Controls
    from rayvisor._live.story import Story

__all__ = ["WebVerbs"]


class WebVerbs(ABC):
    """Serves live pages of a tree, which end with it."""

    _pages: tuple[WebPage, ...] = ()
    _story: Story

    @property
    @abstractmethod
    def _has_ended(self) -> bool: ...

    async def serve_web(self, port: int = 0, *, host: str = "127.0.0.1", metrics: bool = True) -> WebPage:
        """Serve the live page of this tree until it has ended: see [the how-to](docs/web.md).

        It shows the tree, charts, faults and figures, and has buttons that pause, resume and restart. May be
        called before the block is entered: the start is seen, too.

        Parameters
        ----------
        port
            TCP port; 0: a free one.
        host
            Address to listen on. Any but loopback opens the page to others: what is in it goes, unencrypted,
            to who has the token, which is part of the URL.
        metrics
            Whether ``/metrics`` is answered too. It needs no token: names of children and numbers, nothing
            that acts, for who can reach the port ([metrics](docs/metrics.md)).

        Returns
        -------
        WebPage
            Its ``url`` is what to open.

        Raises
        ------
        SpecError
            For a port or a host that cannot be.
        ControlSocketError
            It cannot listen there.
        SupervisorStoppedError
            The tree has ended.

        Examples
        --------
        >>> page = await sup.serve_web()
        >>> page.url
        'http://127.0.0.1:40253/#9dY3...'
        """
        if self._has_ended:
            raise SupervisorStoppedError("")
        page = WebPage(cast("Controls", self), self._story, port, host, metrics=metrics)
        await page.start()
        self._pages = (*self._pages, page)
        return page

    async def _end_pages(self) -> None:
        for page in self._pages:
            await page.end()
