"""What the rest of the server knows of an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from outcrop.engines.model_shape import ModelShape
from outcrop.engines.occupancy import Occupancy
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest
from outcrop.inference.embeddings import Embeddings, EmbedRequest


class Endpoint(Struct, frozen=True):
    """Where a running copy listens, and the key that it asks for."""

    base_url: str
    secret: str


class CopySpec(Struct, frozen=True):
    """All that an engine needs to start one copy of a model."""

    model_id: str
    artifact: Path
    context_tokens: int
    slots: int
    threads: int
    kv_f32: bool
    engine: str = "llama.cpp"  # which of the server's engines runs it
    weight_bytes: int = 0  # mapped from the artefact, shared by its copies
    kv_bytes: int = 0  # the key-value cache of all slots
    model: ModelShape = ModelShape()
    slots_limit: int = 0  # an operator's; 0: none
    arguments: tuple[str, ...] = ()  # an operator's, of the engine's command line; they win over the derived ones
    gpus: int = 0  # GPUs that the copy takes for itself
    devices: tuple[int, ...] = ()  # which of the machine's, once it is placed
    start_s: float = 0.0  # what the engine's own start is known to take, beside the weights; deadlines allow for it
    pooling: str | None = None  # last, mean or cls: the copy gives embeddings
    normalizes: bool = True  # its vectors have unit length
    is_sealed: bool = False  # the artefact is encrypted, and opened in memory for each start
    weights: str = ""  # the same for models that were made from the same files, whose artefact is one file

    @property
    def mapped(self) -> str:
        """What copies that map the same weights have in common."""
        return self.weights or str(self.artifact)


class Asleep(Struct, frozen=True):
    """One way for a copy to sleep: what it then takes of the machine, and why so.

    *level*: 1 keeps the weights in the node's memory, 2 gives them up and reads them again; both keep the process and
    give up the GPUs.
    """

    level: int
    spec: CopySpec
    reason: str


class Engine(Protocol):
    """One kind of engine: starts nothing itself, but says how to, and speaks to what was started.

    Every failure leaves as an error of ``outcrop.errors``; no client library's exception escapes.
    """

    @property
    def name(self) -> str: ...

    @property
    def can_tokenize(self) -> bool:
        """Whether ``tokenize`` answers; the proof run compares tokens only then."""
        ...

    @property
    def takes_arguments(self) -> bool:
        """Whether ``CopySpec.arguments`` reach its command line."""
        ...

    def fitted(self, spec: CopySpec) -> CopySpec:
        """*spec* as this engine runs it: what it takes of the machine, how many requests at a time.

        What is fitted already, and was changed, may be fitted again.
        """
        ...

    def asleep(self, spec: CopySpec) -> Sequence[Asleep]:
        """How a copy of *spec* may sleep, the soonest to wake first; nothing when this engine cannot."""
        ...

    async def sleep(self, endpoint: Endpoint, level: int) -> None:
        """Give the GPUs up, keep the process. Only asked for a level that ``asleep`` gave. Raises EngineFault."""
        ...

    async def wake(self, endpoint: Endpoint, level: int) -> None:
        """Undo ``sleep`` of the same level. Raises EngineFault."""
        ...

    def command(self, spec: CopySpec) -> list[str]:
        """The argument vector of a copy; never holds a secret."""
        ...

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        """One line of JSON, newline included, that the copy reads from its standard input."""
        ...

    def stage(self, log: str) -> str | None:
        """The last stage of a start that the copy's *log* shows; None when this engine says nothing of it."""
        ...

    def stage_seconds(self, log: str) -> dict[str, float]:
        """Seconds of a start by stage, as far as the engine logs them."""
        ...

    def slots(self, spec: CopySpec, log: str) -> int | None:
        """Requests at a time for which the started copy has the cache, as its *log* says; None when it does not say."""
        ...

    async def is_ready(self, endpoint: Endpoint) -> bool:
        """Whether the copy answers requests now; False when it cannot be reached."""
        ...

    async def progress(self, endpoint: Endpoint) -> float | None:
        """A number that moves while the copy computes, whatever it computes; None when the engine has none to give.

        Raises EngineFault or EngineTimeout when the copy does not answer within a few seconds.
        """
        ...

    async def complete(self, endpoint: Endpoint, request: GenerateRequest) -> Completion: ...

    def stream(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
        """Chunks as the engine makes them, at least one at a time; what came together is one list.

        Closing it (``contextlib.aclosing``) ends the generation.
        """
        ...

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        """How many tokens the engine would read for *request*, chat template included; nothing is generated."""
        ...

    async def embed(self, endpoint: Endpoint, request: EmbedRequest, *, normalize: bool) -> Embeddings:
        """The vectors of a copy that embeds, whole; *normalize*: brought to unit length."""
        ...

    async def tokenize(self, endpoint: Endpoint, text: str) -> list[int]:
        """Token ids of *text*, special tokens parsed, none added."""
        ...

    async def detokenize(self, endpoint: Endpoint, tokens: list[int]) -> str:
        """The text of token ids. Raises NotImplementedError where the engine has no way to say."""
        ...

    async def occupancy(self, endpoint: Endpoint) -> Occupancy | None:
        """How full the copy is; None when it cannot be reached or does not say. Never raises, takes 2 s at most."""
        ...

    async def aclose(self) -> None: ...
