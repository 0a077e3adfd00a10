"""Requests that another web site has a visitor's browser send are refused.

A page of any site may have a browser post to an address on its user's own machine; and a site may
let its own name stand for that address (DNS rebinding), so that the browser takes what is here for
a part of the site. The first kind says where it comes from in `Origin`, the second one, in `Host`,
under which name it was sent.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from tfmeta.serving.limits import RefusedError, received

# All that the page needs is here, and nothing of it may be a part of another page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SAFE = ("GET", "HEAD", "OPTIONS")


def check(method: str, host: str | None, origin: str | None, site: str | None, name: str) -> None:
    """Raise unless a request comes from this page, or from no page at all.

    Args:
        method: Of HTTP.
        host: The header `Host`. An address in figures belongs to no site, and `localhost` neither.
        origin: The header `Origin`, which browsers send with all that may change something.
        site: The header `Sec-Fetch-Site`.
        name: What the server was told that it is called.

    Raises:
        RefusedError: 421 for another name, 403 for another site.
    """
    if host is None or not _is_own(_name(host), name):
        raise RefusedError(
            421,
            f"`Host` must be an address in figures, 'localhost' or --host.{received(host)}",
        )
    if method in _SAFE:
        return
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise RefusedError(403, f"`Origin` must be this page's own.{received(origin)}")
    if site not in (None, "same-origin", "none"):
        raise RefusedError(403, f"`Sec-Fetch-Site` must be same-origin.{received(site)}")


def _name(host: str) -> str:
    """Return the name in a `Host`, without the port; none where it is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_own(host: str, name: str) -> bool:
    if host in ("localhost", name.lower()) and host:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
