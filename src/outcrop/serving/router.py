"""Which copy takes a request: least outstanding work, and the copy that has the prompt's prefix when it is not
overloaded. Synchronous and short.

A prefix that nobody has goes where the least work is: to send it elsewhere would make it wait for a cache that holds
nothing of it. From then on that copy is its home. While its home is gone or carries more than its share it goes by
rendezvous hashing with bounded load: a copy that comes or goes moves only the prefixes that were its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar
from zlib import crc32

PREFIX_CHARS = 512
BOUND = 1.25  # of the mean outstanding work
HOMES_KEPT = 1024  # prefixes of a model; the caches of its copies rarely hold more
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


class Homes:
    """Where the prefixes that were asked last were sent first; at most ``HOMES_KEPT``."""

    def __init__(self) -> None:
        self._of: OrderedDict[int, str] = OrderedDict()

    def of(self, prefix: int | None) -> str | None:
        return None if prefix is None else self._of.get(prefix)

    def sent(self, prefix: int | None, to: Routable, copies: Iterable[Routable]) -> None:
        """A home stays one while its copy is among *copies*, although another one helps out."""
        if prefix is None:
            return
        home = self._of.get(prefix)
        if home is None or (home != to.copy_id and all(copy.copy_id != home for copy in copies)):
            self._of[prefix] = to.copy_id
        self._of.move_to_end(prefix)
        if len(self._of) > HOMES_KEPT:
            self._of.popitem(last=False)


def choose(copies: Iterable[C], prefix: int | None = None, home: str | None = None) -> C | None:
    """The copy to use; None when none is ready with a free slot. *home*: the id of the copy that has *prefix*."""
    ready = [copy for copy in copies if copy.is_ready]
    free = [copy for copy in ready if copy.in_flight < copy.slots]
    if prefix is None or len(free) < 2:
        return min(free, key=_load, default=None)
    if home is None:
        return min(free, key=lambda copy: (*_load(copy), -_score(copy.copy_id, prefix)))
    bound = math.ceil(BOUND * (sum(copy.in_flight for copy in ready) + 1) / len(ready))
    within = [copy for copy in free if copy.in_flight < bound]
    at_home = next((copy for copy in within if copy.copy_id == home), None)
    return at_home or max(within or free, key=lambda copy: _score(copy.copy_id, prefix))


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
