"""Which engines may serve what a job brings: the one that somebody named, or all that are installed and have room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outcrop.checkpoints.engines import LLAMA_CPP, Available
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.engines.base import CopySpec
from outcrop.engines.custom import NAME as CUSTOM
from outcrop.engines.installed import Installed
from outcrop.engines.supported import vllm_architectures
from outcrop.errors import EngineMissing
from outcrop.importing.choices import Choices
from outcrop.importing.outcome import model_of
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.settings import Settings


class Candidates:
    """*engines*: those that are usable, in order of preference; *spec*: how a copy of a model would be started."""

    def __init__(
        self, settings: Settings, engines: Sequence[Installed], spec: Callable[[ImportedModel], CopySpec]
    ) -> None:
        self._settings = settings
        self._engines = tuple(engines)
        self._spec = spec
        self._architectures: frozenset[str] | None = None

    @property
    def names(self) -> list[str]:
        return [engine.engine for engine in self._engines]

    async def of(self, job: ImportJob) -> tuple[str | None, Available]:
        """The engine that the model is put on, if any, and those that may serve it, in order of preference.

        What the custom one's vLLM serves is asked once.
        """
        named = Choices.of(job.request).engine or self._settings.engine_of(job.model_name)
        order = (named,) if named else tuple(engine.engine for engine in self._engines if engine.is_choosable)
        if named != CUSTOM:
            return named, Available(names=frozenset(order), order=order)
        if self._settings.vllm_python and self._architectures is None:
            self._architectures = await vllm_architectures(self._settings.vllm_python)
        asked = {CUSTOM: self._architectures} if self._architectures is not None else {}
        return named, Available(names=frozenset({CUSTOM}), architectures=asked, order=order)

    async def available_for(self, job: ImportJob) -> Available:
        return (await self.of(job))[1]

    def obstacle(self, job: ImportJob, checkpoint: Checkpoint | None, engine: str) -> str | None:
        """Why *engine* has no room for the checkpoint on this machine. llama.cpp maps what it reads and always has."""
        if checkpoint is None or engine == LLAMA_CPP:
            return None
        try:
            self._spec(model_of(job, checkpoint, engine, None, [], {}, ()))
        except EngineMissing as exc:
            return exc.message
        return None
