"""Access control of the live page: requests need the run's token and the page's own origin. Pure.

The token authenticates a reader. It is in the fragment of the URL, which a browser never sends; the page
sends it in a header, which a page of another site cannot do without a CORS preflight request, and that is
refused. The host name is checked because of DNS rebinding: a foreign name that resolves to this address would
make a foreign page one of our own origin. An IP address cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from rayvisor._edges.http.routes import RefusalError

__all__ = ["TOKEN_HEADER", "Authenticator", "headers_by_name"]

TOKEN_HEADER = "x-rayvisor-token"  # noqa: S105 - the name of a header, no secret
_OWN_SITE = frozenset({"same-origin", "none"})


class Authenticator:
    """Accepts or refuses requests.

    Parameters
    ----------
    token
        The token of the run.
    host
        The name or address that the server is bound to.
    """

    def __init__(self, token: str, host: str) -> None:
        self._token = token.encode()
        self._host = host.lower()

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Check the host name; sufficient for the empty page, which contains no data.

        Raises
        ------
        RefusalError
            If the host name is not one of this server.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RefusalError(
                421, "ForeignHost", f"Host: {host[:200]}: use this server's address or localhost"
            )

    def authenticate(self, headers: Mapping[str, str], *, acts: bool) -> None:
        """Check that a request may read the tree or act on it.

        Parameters
        ----------
        headers
            Headers by lower-case name.
        acts
            Whether the request changes something; then it must name the page's own origin.

        Raises
        ------
        RefusalError
            If something is missing or wrong.
        """
        self.check_host(headers)
        origin = headers.get("origin")
        if origin is None:
            foreign = acts
        else:
            foreign = origin not in {f"{scheme}://{headers['host']}" for scheme in ("http", "https")}
        if foreign or headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise RefusalError(
                403,
                "ForeignOrigin",
                f"Origin: {(origin or 'none')[:200]}: only the page itself may send this",
            )
        given = headers.get(TOKEN_HEADER, "").encode()
        if not secrets.compare_digest(given, self._token):
            raise RefusalError(
                401, "WrongToken", f"{TOKEN_HEADER} must be the part after # of the printed URL"
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
    """Return headers by lower-case name; the values of repeated headers are joined."""
    found: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
