"""What copies take of a node, with what an operator set of them."""

from __future__ import annotations

from msgspec import structs
from tests.support.virtual import spec

from outcrop.engines.base import CopySpec
from outcrop.serving import room
from outcrop.serving.schedule import DEFAULTS, Scaling


def as_it_is(found: CopySpec) -> CopySpec:
    return found


def test_the_cache_follows_slots_and_context() -> None:
    one = spec(slots=4, kv_bytes=4096)

    assert room.as_set(one, DEFAULTS, as_it_is) is one
    halved = room.as_set(one, Scaling(slots=8, context_tokens=128), as_it_is)
    assert (halved.slots, halved.slots_limit, halved.context_tokens, halved.kv_bytes) == (8, 8, 128, 2048)
    assert room.as_set(one, Scaling(context_tokens=4096), as_it_is) is one, "never more than the model's own"


def test_an_engine_that_takes_otherwise_has_the_last_word() -> None:
    asked = Scaling(slots=100, arguments=("--enforce-eager",))
    fitted = room.as_set(spec(slots=4), asked, lambda found: structs.replace(found, slots=64, kv_bytes=7))

    assert (fitted.slots, fitted.slots_limit, fitted.kv_bytes) == (64, 100, 7)
    assert fitted.arguments == ("--enforce-eager",)
