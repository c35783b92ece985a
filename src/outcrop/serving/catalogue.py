"""The models that can be asked now, in memory: what the hot path looks up instead of the registry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from outcrop.engines.base import CopySpec
from outcrop.engines.llama_cpp import default_slots
from outcrop.errors import ModelNotFound
from outcrop.ids import imported_model_arn, imported_model_id
from outcrop.inference.canonical import ModelFacts
from outcrop.registry.records import ImportedModel
from outcrop.settings import Settings

SMALL_ARTIFACT_BYTES = 1_000_000_000  # below this the key-value cache is kept in float32 as well: exact, still small


class Served(Struct, frozen=True):
    """One model with all that a request needs of it."""

    record: ImportedModel
    facts: ModelFacts
    spec: CopySpec


class Catalogue:
    """Imported models by ARN, id and name, within an account. Owned by the event loop."""

    def __init__(self, settings: Settings, memory_bytes: int) -> None:
        self._settings = settings
        self._memory_bytes = memory_bytes
        self._by_key: dict[tuple[str, str], Served] = {}

    def load(self, records: Iterable[ImportedModel]) -> None:
        for record in records:
            self.add(record)

    def add(self, record: ImportedModel) -> None:
        served = Served(record, self.facts(record), self.spec(record))
        self._by_key[record.account, record.model_id] = served
        self._by_key[record.account, record.model_name] = served

    def remove(self, record: ImportedModel) -> None:
        self._by_key.pop((record.account, record.model_id), None)
        self._by_key.pop((record.account, record.model_name), None)

    def find(self, account: str, identifier: str) -> Served:
        """The model with this ARN, id or name. Raises ModelNotFound."""
        served = self._by_key.get((account, imported_model_id(identifier) or identifier))
        if served is None or (identifier.startswith("arn:") and identifier != served.facts.arn):
            raise ModelNotFound(f"Could not find imported model {identifier}. Check the model ARN or name.")
        return served

    def all(self, account: str) -> list[Served]:
        found = {served.record.model_id: served for (owner, _), served in self._by_key.items() if owner == account}
        return sorted(found.values(), key=lambda served: served.record.created_at)

    def facts(self, record: ImportedModel) -> ModelFacts:
        return ModelFacts(
            model_id=record.model_id,
            arn=imported_model_arn(self._settings.region, record.account, record.model_id),
            account=record.account,
            name=record.model_name,
            context_tokens=self._context(record),
            has_chat_template=record.instruct_supported,
        )

    def spec(self, record: ImportedModel) -> CopySpec:
        """How a copy of *record* is started on this machine: everything derived, every value overridable."""
        context = self._context(record)
        slots = self._settings.slots or default_slots(context, record.facts["kv_bytes_per_token"], self._memory_bytes)
        return CopySpec(
            model_id=record.model_id,
            artifact=Path(self._settings.store) / record.artifact,
            context_tokens=context,
            slots=slots,
            threads=self._settings.threads_per_copy(),
            engine=self._settings.engine_of(record.model_name),
            kv_f32=record.facts["artifact_dtype"] == "f32" and record.facts["artifact_bytes"] <= SMALL_ARTIFACT_BYTES,
        )

    def _context(self, record: ImportedModel) -> int:
        own: int = record.facts["context_tokens"]
        return min(own, self._settings.max_context_tokens) if self._settings.max_context_tokens else own
