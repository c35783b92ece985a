"""The models that can be asked now, in memory: what the hot path looks up instead of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from outcrop.engines.base import CopySpec
from outcrop.engines.llama_cpp import NAME as LLAMA_CPP
from outcrop.engines.llama_cpp import default_slots
from outcrop.engines.model_shape import shape_of
from outcrop.errors import EngineMissing, ModelNotFound
from outcrop.ids import imported_model_arn, imported_model_id
from outcrop.inference.canonical import ModelFacts
from outcrop.registry.records import ImportedModel
from outcrop.serving.starts import Tier
from outcrop.settings import Settings

SMALL_ARTIFACT_BYTES = 1_000_000_000  # below this the key-value cache is kept in float32 as well: exact, still small


MOST_POOLED_TOKENS = 4096  # of a text whose tokens are pooled together, which are all computed in one batch


class Served(Struct, frozen=True):
    """One model with all that a request needs of it."""

    record: ImportedModel
    facts: ModelFacts
    spec: CopySpec


class Kept(Struct, frozen=True):
    """A model that nothing here can serve now, and why."""

    record: ImportedModel
    reason: str


class Catalogue:
    """Imported models by ARN, id and name, within an account. Owned by the event loop.

    *engines*: by name, what makes of a spec one as that engine runs it.
    """

    def __init__(
        self, settings: Settings, memory_bytes: int, engines: Mapping[str, Callable[[CopySpec], CopySpec]]
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._memory_bytes = memory_bytes
        self._by_key: dict[tuple[str, str], Served] = {}
        self._by_id: dict[str, Served] = {}
        self._kept: dict[tuple[str, str], Kept] = {}  # no engine here serves these
        self._aliases: dict[tuple[str, str], str] = {}  # (account, alias) -> model id
        self._contexts: dict[str, int] = {}  # by model id, what an operator allows of a model's own

    def load(self, records: Iterable[ImportedModel]) -> None:
        for record in records:
            self.add(record)

    def add(self, record: ImportedModel) -> None:
        try:
            spec = self.spec(record)
        except EngineMissing as exc:
            self._by_id.pop(record.model_id, None)
            for key in (record.model_id, record.model_name):
                self._by_key.pop((record.account, key), None)
                self._kept[record.account, key] = Kept(record, exc.message)
            return
        served = Served(record, self.facts(record, spec), spec)
        self._by_key[record.account, record.model_id] = served
        self._by_key[record.account, record.model_name] = served
        self._by_id[record.model_id] = served

    def remove(self, record: ImportedModel) -> None:
        self._by_id.pop(record.model_id, None)
        self._contexts.pop(record.model_id, None)
        for key in (record.model_id, record.model_name):
            self._by_key.pop((record.account, key), None)
            self._kept.pop((record.account, key), None)
        self._aliases = {alias: model_id for alias, model_id in self._aliases.items() if model_id != record.model_id}

    def find(self, account: str, identifier: str) -> Served:
        """The model with this ARN, id, name or alias. Raises ModelNotFound, EngineMissing."""
        key = account, imported_model_id(identifier) or identifier
        served = self._by_key.get(key)
        if served is None and (model_id := self._aliases.get((account, identifier))):
            key = account, model_id
            served = self._by_key.get(key)
        if served is None and (kept := self._kept.get(key)) is not None:
            raise EngineMissing(kept.reason)
        if served is None or (identifier.startswith("arn:") and identifier != served.facts.arn):
            raise ModelNotFound(f"Could not find imported model {identifier}. Check the model ARN or name.")
        return served

    def limit_context(self, model_id: str, tokens: int | None) -> None:
        """Say that the model's copies hold *tokens* at most; None: as much as the model can."""
        if tokens is None:
            self._contexts.pop(model_id, None)
        else:
            self._contexts[model_id] = tokens
        if (served := self._by_id.get(model_id)) is not None:
            self.add(served.record)

    def id_of(self, account: str, identifier: str) -> str | None:
        """The id of the model with this id, name or alias, served or only kept; None when there is none."""
        key = account, identifier
        if (served := self._by_key.get(key)) is not None:
            return served.record.model_id
        if (kept := self._kept.get(key)) is not None:
            return kept.record.model_id
        return self._aliases.get(key)

    def point(self, account: str, alias: str, model_id: str | None) -> None:
        """Let *alias* name the model from now on; None takes the alias away."""
        if model_id is None:
            self._aliases.pop((account, alias), None)
        else:
            self._aliases[account, alias] = model_id

    def aliases(self, account: str) -> dict[str, str]:
        """Model id by alias."""
        return {alias: model_id for (owner, alias), model_id in self._aliases.items() if owner == account}

    def names(self, account: str) -> set[str]:
        """Names of models, which an alias must not hide."""
        return {served.record.model_name for (owner, _), served in self._by_key.items() if owner == account}

    def of_id(self, model_id: str) -> Served | None:
        """The model of whatever account; None when it is gone or not served."""
        return self._by_id.get(model_id)

    def everything(self) -> list[Served]:
        """The models of every account."""
        return list({served.record.model_id: served for served in self._by_key.values()}.values())

    def name_of(self, model_id: str) -> str | None:
        """The name of the model with this id; None when it is gone."""
        served = self._by_id.get(model_id)
        return None if served is None else served.record.model_name

    def by_id(self) -> list[tuple[str, str]]:
        """Id and name of every model that is served."""
        return [(model_id, served.record.model_name) for model_id, served in self._by_id.items()]

    def count(self) -> int:
        """Models that may be asked here, of every account."""
        return len({served.record.model_id for served in self._by_key.values()})

    def all(self, account: str) -> list[Served]:
        found = {served.record.model_id: served for (owner, _), served in self._by_key.items() if owner == account}
        return sorted(found.values(), key=lambda served: served.record.created_at)

    def facts(self, record: ImportedModel, spec: CopySpec) -> ModelFacts:
        return ModelFacts(
            model_id=record.model_id,
            arn=imported_model_arn(self._settings.region, record.account, record.model_id),
            account=record.account,
            name=record.model_name,
            context_tokens=min(spec.context_tokens, self._contexts.get(record.model_id, spec.context_tokens)),
            has_chat_template=record.instruct_supported,
            dialect=record.dialect,
            takes_images=record.facts.get("modality") == "vision-language",
            embeds=bool(record.facts.get("embedding")),
        )

    def spec(self, record: ImportedModel) -> CopySpec:
        """How a copy of *record* is started on this machine: everything derived, every value overridable.

        Raises EngineMissing when no engine of this installation serves it.
        """
        engine = self._engine(record)
        context = self._context(record)
        slots = self._settings.slots or default_slots(context, record.facts["kv_bytes_per_token"], self._memory_bytes)
        weight_bytes = record.facts.get("artifact_bytes", record.facts["weight_bytes"])
        embedding = record.facts.get("embedding")
        if embedding and embedding["pooling"] != "last":
            slots = 1  # llama.cpp cuts texts of unequal length that share a batch, and pools each part by itself
        kv_f32 = record.facts.get("artifact_dtype") == "f32" and weight_bytes <= SMALL_ARTIFACT_BYTES
        spec = CopySpec(
            model_id=record.model_id,
            artifact=Path(self._settings.store) / record.artifact,
            context_tokens=context,
            slots=slots,
            threads=self._settings.threads_per_copy(),
            kv_f32=kv_f32,
            engine=engine,
            model=shape_of(record.facts),
            slots_limit=self._settings.slots,
            weight_bytes=weight_bytes,
            pooling=embedding["pooling"] if embedding else None,
            normalizes=embedding is None or embedding["normalize"],
            is_sealed=bool(record.facts.get("weight_key")),
            weights=record.facts.get("artifact_key", ""),
            # kv_bytes_per_token counts two bytes a value
            kv_bytes=context * slots * record.facts["kv_bytes_per_token"] * (2 if kv_f32 else 1),
        )
        return self._engines[engine](spec)

    def engine_now(self, record: ImportedModel) -> dict[str, Any]:
        """The engine that runs the model now and who said so; ``name`` is None, with the reason, when none can."""
        try:
            name = self.spec(record).engine
        except EngineMissing as exc:
            return {"name": None, "reasons": [exc.message]}
        if record.engine:
            return {"name": name, "reasons": [f"{name}: an operator put the model on it"]}
        if self._settings.engine_of(record.model_name):
            return {"name": name, "reasons": [f"{name}: the server's settings put the model on it"]}
        return {"name": name, "reasons": list(record.facts.get("engine_reasons", ()))}

    def _engine(self, record: ImportedModel) -> str:
        """The engine that the model was put on, else the settings', else the one that the import chose."""
        engine = record.engine or self._settings.engine_of(record.model_name) or record.facts["engine"]
        if engine is None:
            able = [f"{entry['engine']} ({entry['hardware']})" for entry in record.facts["engines"] if entry["serves"]]
            raise EngineMissing(
                f"The model {record.model_name} ({record.architecture}) is imported, but no engine of this "
                f"installation serves it. It needs {' or '.join(able)}: install one of them and import the model "
                "again, or set OUTCROP_CUSTOM_ENGINE."
            )
        if engine not in self._engines:
            raise EngineMissing(
                f"The model {record.model_name} is on the engine {engine}, which cannot be used here "
                "(outcrop engines). Install it, or put the model on another one (outcrop models set --engine)."
            )
        if engine != LLAMA_CPP and record.facts.get("weight_key"):
            raise EngineMissing(
                f"The weights of {record.model_name} are encrypted, which is for {LLAMA_CPP} only, and it is put on "
                f"{engine}. Put it back on {LLAMA_CPP}, or import it without importedModelKmsKeyId."
            )
        if engine == LLAMA_CPP and "artifact_bytes" not in record.facts:
            raise EngineMissing(
                f"The model {record.model_name} was imported for {record.facts['engine']}, and {LLAMA_CPP} needs an "
                "artefact of its own. Import it again, or put it on its engine again (OUTCROP_ENGINE_BY_MODEL)."
            )
        return str(engine)

    def _context(self, record: ImportedModel) -> int:
        own: int = record.facts["context_tokens"]
        embedding = record.facts.get("embedding")
        if embedding and embedding["pooling"] != "last":
            own = min(own, MOST_POOLED_TOKENS)
        return min(own, self._settings.max_context_tokens) if self._settings.max_context_tokens else own


def proven_start(record: ImportedModel) -> list[tuple[Tier, float]]:
    """The start that the import's proof run measured: with its pages fresh in memory."""
    proof = record.facts.get("proof", {})
    return [(Tier.CACHED, proof["spawn_s"] + proof["load_s"])] if {"spawn_s", "load_s"} <= proof.keys() else []
