"""Addresses of other services, as operators write them. Pure."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def http_url(text: str) -> SplitResult | None:
    """The parts of a URL that can be called; None for what is none, or holds a name and password.

    Those would end up in a Host header, and in whatever names the place.
    """
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a host in broken brackets, of a port that is none
        return None
    return parts if is_good and parts.username is None and not any(c.isspace() for c in text) else None
