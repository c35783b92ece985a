"""Whose address a request has: the peer's, or what a trusted proxy in front says."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from outcrop.errors import BadSetting

HEADER = "x-forwarded-for"


class ClientAddress:
    """*trusted*: networks whose hosts may say, in X-Forwarded-For, for whom they ask. Raises BadSetting."""

    def __init__(self, trusted: Sequence[str]) -> None:
        try:
            self._trusted = [ipaddress.ip_network(network, strict=False) for network in trusted]
        except ValueError as exc:
            raise BadSetting(f"trusted_proxies: {exc}; give addresses or networks such as 10.0.0.0/8.") from exc
        self._is_trusted = lru_cache(maxsize=4096)(self._looked_up)

    def of(self, peer: str, headers: Mapping[str, str]) -> str:
        """The nearest address that is no trusted proxy's, counted from here; the peer's where no proxy is trusted.

        What a caller writes into the header itself stands left of what the proxies add, and is never reached.
        """
        if not self._trusted or HEADER not in headers or not self._is_trusted(peer):
            return peer
        found = peer
        for part in reversed(headers[HEADER].split(",")):
            address = _plain(part)
            if address is None:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _looked_up(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted if network.version == parsed.version)


def _plain(text: str) -> str | None:
    """The address in a part of the header, without port and brackets; None when it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
