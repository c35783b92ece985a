"""Answers that were complete and may not have arrived: an SDK's retry of the same invocation gets the same one again.

Kept for a bounded time within bounded memory, the oldest going first; found only by the same principal, invocation,
model and request.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from outcrop.inference.canonical import Completion, GenerateRequest

Key = tuple[str, str, bytes]
_OVERHEAD_BYTES = 400  # of one entry beside its answer

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Completion).decode


def key_of(principal: str, invocation_id: str, model_id: str, request: GenerateRequest) -> Key:
    digest = hashlib.blake2b(msgspec.json.encode((model_id, request.kind, request.body)), digest_size=16)
    return principal, invocation_id, digest.digest()


class KeptAnswers:
    """*limit_bytes* in all, each for *keep_s* seconds of *clock*; 0 of either keeps none."""

    def __init__(self, *, limit_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._limit_bytes = limit_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    @property
    def is_on(self) -> bool:
        return self._limit_bytes > 0 and self._keep_s > 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def keep(self, key: Key, answer: Completion) -> None:
        """Keep *answer*; one that is larger than a tenth of the memory is not."""
        data = _encode(answer)
        if len(data) > self._limit_bytes // 10:
            return
        self._drop(key)
        self._kept[key] = (self._clock() + self._keep_s, data)
        self._bytes += len(data) + _OVERHEAD_BYTES
        self._forget()

    def find(self, key: Key) -> Completion | None:
        self._forget()
        found = self._kept.get(key)
        return None if found is None else _decode(found[1])

    def _forget(self) -> None:
        now = self._clock()
        while self._kept:
            oldest, (until, _) = next(iter(self._kept.items()))
            if until > now and self._bytes <= self._limit_bytes:
                return
            self._drop(oldest)

    def _drop(self, key: Key) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._bytes -= len(found[1]) + _OVERHEAD_BYTES
