"""Which copy takes a request: the ready one with the least in flight and a free slot. Synchronous and short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Routable(Protocol):
    @property
    def is_ready(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def slots(self) -> int: ...


C = TypeVar("C", bound=Routable)


def choose(copies: Iterable[C]) -> C | None:
    """The copy to use; None when none is ready with a free slot."""
    free = [copy for copy in copies if copy.is_ready and copy.in_flight < copy.slots]
    return min(free, key=lambda copy: copy.in_flight, default=None)
