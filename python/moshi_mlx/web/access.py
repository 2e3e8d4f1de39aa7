"""Who may speak to the server: the machine it runs on, or holders of a token; and from which web pages."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from aiohttp import web


def is_local(host: str) -> bool:
    """Whether a host's name stands for this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_token() -> str:
    """A new access token: 144 random bits."""
    return secrets.token_urlsafe(18)


class Access:
    """The rules at the door.

    A request from a web page must come from a page of this server (`Origin`), or any page in the user's browser could
    converse. A server for this machine alone must be asked by a name of this machine (`Host`), or a foreign page whose
    name is made to point here would pass for its own. A server open to others asks for the token.
    """

    def __init__(self, token: str | None = None, origins: frozenset[str] = frozenset()):
        self.token = token
        self._origins = origins

    def check_origin(self, request: web.Request) -> None:
        """Raises `web.HTTPForbidden` where a request comes by another name or from another site's page."""
        try:
            host = urlsplit(f"//{request.host}").hostname or ""
        except ValueError:
            host = ""
        if self.token is None and not is_local(host):
            raise web.HTTPForbidden(text=f"This server is for this machine only; it isn't called {host!a}.\n")
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins:
            return
        try:
            parts = urlsplit(origin)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or parts.netloc != request.host:
            raise web.HTTPForbidden(text="Pages of other sites may not use this server; see --allow-origin.\n")

    def check_token(self, request: web.Request) -> None:
        """Raises `web.HTTPUnauthorized` where the token is needed and missing or wrong."""
        if self.token is None:
            return
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else request.query.get("token", "")
        if not hmac.compare_digest(given.encode(errors="surrogatepass"), self.token.encode()):
            raise web.HTTPUnauthorized(
                text="The access token is missing or wrong; use the address that the server printed when it started.\n"
            )
