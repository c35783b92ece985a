"""What the metrics ask of the fleet at a scrape."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

from outcrop.engines.base import Engine
from outcrop.engines.occupancy import Occupancy
from outcrop.serving import room
from outcrop.serving.copies import Copy, Model
from outcrop.serving.lifecycle import ENDED, State
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metric_table import Row
from outcrop.telemetry.metrics import Reading


def readings(models: Mapping[str, Model], names: Iterable[tuple[str, str]], *, memory_bytes: int) -> list[Reading]:
    """Copies, slots and queue of every model in *names* (model id, name): a model without copies reads zero.

    *memory_bytes*: what copies may take of this node.

    Models of the same name, of different accounts, are added up.
    """
    found: Counter[tuple[Row, tuple[str, ...]]] = Counter()
    for model_id, name in names:
        model = models.get(model_id)
        copies = model.copies if model else []
        found[table.MODEL_COPY, (name, State.READY)] += 0
        for copy in copies:
            found[table.MODEL_COPY, (name, copy.state)] += 1
        found[table.SLOTS, (name,)] += sum(copy.slots for copy in copies if copy.is_ready)
        found[table.SLOTS_BUSY, (name,)] += sum(copy.in_flight for copy in copies)
        found[table.QUEUE, (name,)] += len(model.queue) if model else 0
    live = (copy.spec for model in models.values() for copy in model.copies if copy.state not in ENDED)
    found[table.MEMORY_USED, ()] = room.used_bytes(live)
    found[table.MEMORY_LIMIT, ()] = memory_bytes
    return [(row, labels, value) for (row, labels), value in found.items()]


async def occupancies(copies: Iterable[Copy], engines: Mapping[str, Engine]) -> dict[str, list[Occupancy]]:
    """By model id, what the engines of its ready copies say; a copy that says nothing is left out."""
    asked = [(copy, copy.endpoint) for copy in copies if copy.is_ready and copy.endpoint is not None]
    answers = await asyncio.gather(*(engines[copy.spec.engine].occupancy(endpoint) for copy, endpoint in asked))
    found: dict[str, list[Occupancy]] = {}
    for (copy, _), occupancy in zip(asked, answers, strict=True):
        if occupancy is not None:
            found.setdefault(copy.spec.model_id, []).append(occupancy)
    return found
