"""Where a copy listens: what its process and the client of engines have to say of a Unix socket."""

from __future__ import annotations

import os
from urllib.parse import quote, unquote, urlsplit

VARIABLE = "OUTCROP_COPY_SOCKET"  # a path; whoever starts the process of a copy sets it (launchers.local)
SCHEME = "http+unix"


def path() -> str:
    """The socket that this process is to listen on."""
    return os.environ[VARIABLE]


def url(path: str, prefix: str = "") -> str:
    """The base of addresses on the socket at *path*; *prefix* is what all of them begin with."""
    return f"{SCHEME}://{quote(path, safe='')}{prefix}"


def split(url: str) -> tuple[str, str]:
    """Path of the socket and prefix of a ``url``."""
    parts = urlsplit(url)
    return unquote(parts.netloc), parts.path
