"""Who is let in to the live page: who has the run's token, from the page's own origin. Pure.

The token is what proves a reader: it is in the part of the URL that a browser never sends, and the page sends
it in a header, which no page of another site can do without being asked about first (and that is refused).
The host name is looked at because of DNS rebinding: a foreign name that leads here would make a foreign page
one of our own origin. A number cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from rayvisor._edges.http.routes import RefusalError

__all__ = ["TOKEN_HEADER", "Authenticator", "headers_by_name"]

TOKEN_HEADER = "x-rayvisor-token"  # noqa: S105 - the name of a header
_OWN_SITE = frozenset({"same-origin", "none"})


class Authenticator:
    """Lets requests in, or refuses them.

    Parameters
    ----------
    token
        The run's.
    host
        The name or address that was bound.
    """

    def __init__(self, token: str, host: str) -> None:
        self._token = token.encode()
        self._host = host.lower()

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Let in a reader of the empty page, which has no data in it.

        Raises
        ------
        RefusalError
            The name that it came by is not this host's.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RefusalError(
                421, "ForeignHost", f"Host: {host[:200]}: this page goes by its address or localhost"
            )

    def authenticate(self, headers: Mapping[str, str], *, acts: bool) -> None:
        """Let in who reads the tree, or acts on it.

        Parameters
        ----------
        headers
            By their names in small letters.
        acts
            Whether something is to be done: then the request must say that it is the page's own.

        Raises
        ------
        RefusalError
            What is missing, or wrong.
        """
        self.check_host(headers)
        origin = headers.get("origin")
        if origin is None:
            foreign = acts
        else:
            foreign = origin not in {f"{scheme}://{headers['host']}" for scheme in ("http", "https")}
        if foreign or headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise RefusalError(
                403, "ForeignOrigin", f"Origin: {(origin or 'none')[:200]}: only the page itself may ask"
            )
        given = headers.get(TOKEN_HEADER, "").encode()
        if not secrets.compare_digest(given, self._token):
            raise RefusalError(
                401, "WrongToken", f"{TOKEN_HEADER} must be what stands behind # in the printed URL"
            )

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in {"localhost", self._host}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def headers_by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their names in small letters; of one that is there twice the values are joined."""
    found: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
