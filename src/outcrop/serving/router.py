"""Which copy takes a request: least outstanding work, and the copy that has the prompt's prefix when it is not
overloaded. Synchronous and short.

Prefix affinity is rendezvous hashing with bounded load: a prefix goes to its highest-scoring copy unless that one
carries more than its share, then to the next. A copy that comes or goes moves only the prefixes that were its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar
from zlib import crc32

PREFIX_CHARS = 512
BOUND = 1.25  # of the mean outstanding work
_U64 = 2**64 - 1
DEFAULT_TOKENS = 256  # of an answer whose length was not limited


class Routable(Protocol):
    @property
    def copy_id(self) -> str: ...

    @property
    def is_ready(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def outstanding(self) -> int: ...

    @property
    def slots(self) -> int: ...


C = TypeVar("C", bound=Routable)


def choose(copies: Iterable[C], prefix: int | None = None) -> C | None:
    """The copy to use; None when none is ready with a free slot."""
    ready = [copy for copy in copies if copy.is_ready]
    free = [copy for copy in ready if copy.in_flight < copy.slots]
    if prefix is None or len(free) < 2:
        return min(free, key=_load, default=None)
    bound = math.ceil(BOUND * (sum(copy.in_flight for copy in ready) + 1) / len(ready))
    within = [copy for copy in free if copy.in_flight < bound]
    return max(within or free, key=lambda copy: _score(copy.copy_id, prefix))


def prefix_of(body: Mapping[str, Any]) -> int:
    """A number that requests with the same beginning of their prompt share."""
    return crc32(_text(body, PREFIX_CHARS).encode(errors="replace"))


def weight_of(body: Mapping[str, Any], size_bytes: int) -> int:
    """Tokens that a request may take, roughly: four bytes a token, and what it may generate."""
    asked = body.get("max_tokens")
    return size_bytes // 4 + (asked if isinstance(asked, int) and asked > 0 else DEFAULT_TOKENS)


def _score(copy_id: str, prefix: int) -> int:
    """A number that is even over copies and over prefixes; a CRC of both is not, being linear (MurmurHash3's mixer)."""
    mixed = crc32(copy_id.encode()) << 32 | prefix
    mixed = (mixed ^ mixed >> 33) * 0xFF51AFD7ED558CCD & _U64
    mixed = (mixed ^ mixed >> 33) * 0xC4CEB9FE1A85EC53 & _U64
    return mixed ^ mixed >> 33


def _load(copy: Routable) -> tuple[int, int]:
    return copy.outstanding, copy.in_flight


def _text(body: Mapping[str, Any], limit: int) -> str:
    prompt = body.get("prompt") or next(iter(body.get("prompts") or ()), None)
    if isinstance(prompt, str):
        return prompt[:limit]
    parts: list[str] = []
    length = 0
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        text = content if isinstance(content, str) else repr(content)[:limit]
        parts.append(text[: limit - length])
        length += len(parts[-1])
        if length >= limit:
            break
    return "\n".join(parts)
