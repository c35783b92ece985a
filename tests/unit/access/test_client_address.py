"""Whose address a request has, behind proxies that are trusted and others."""

from __future__ import annotations

import pytest

from outcrop.api.client_address import ClientAddress
from outcrop.errors import BadSetting

PROXIES = ["10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("peer", "header", "found"),
    [
        ("203.0.113.5", "192.0.2.1", "203.0.113.5"),  # a stranger may write what it likes
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "6.6.6.6, 192.0.2.1", "192.0.2.1"),  # what the caller itself wrote stands left
        ("10.0.0.1", "6.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
        ("10.0.0.1", "[2001:db9::1]:4711", "2001:db9::1"),
        ("2001:db8::1", "2001:db9::2", "2001:db9::2"),
        ("10.0.0.1", "garbage", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("", "192.0.2.1", ""),  # a Unix socket
    ],
)
def test_only_trusted_proxies_say_for_whom_they_ask(peer: str, header: str | None, found: str) -> None:
    headers = {} if header is None else {"x-forwarded-for": header}

    assert ClientAddress(PROXIES).of(peer, headers) == found


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    assert ClientAddress([]).of("10.0.0.1", {"x-forwarded-for": "192.0.2.1"}) == "10.0.0.1"


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(BadSetting, match=r"trusted_proxies: '10\.0\.0\.300'"):
        ClientAddress(["10.0.0.300"])
