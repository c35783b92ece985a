"""TLS towards the target."""

from __future__ import annotations

import ssl


def tls_context(url: str, ca_bundle: str) -> ssl.SSLContext | None:
    """What an https *url* is reached with; None for any other. *ca_bundle*: a PEM file; empty for the system's."""
    return ssl.create_default_context(cafile=ca_bundle or None) if url.startswith("https") else None
