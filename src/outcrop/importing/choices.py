"""What an import is told beside AWS's fields, carried as tags of the job so that every SDK and tool can say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outcrop.checkpoints.embedding import POOLINGS
from outcrop.errors import InvalidRequest

QUANTISATION_TAG = "outcrop:quantization"
PROOF_TAG = "outcrop:proof"
ENGINE_TAG = "outcrop:engine"
EMBEDDING_TAG = "outcrop:embedding"
QUANTISATIONS = ("q8_0", "q4_0")
_PROOF_ACCEPT = "accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """*quantise*: the type that the CPU engine's matrices are packed to; None keeps the checkpoint's precision.

    *engine*: the engine that the model is put on; None leaves it to be chosen.

    *pooling*: the model embeds, its tokens pooled so; None leaves it to the checkpoint's files.

    *accepts_any_proof*: a model that the proof run calls broken is kept with a note.
    """

    quantise: str | None = None
    accepts_any_proof: bool = False
    pooling: str | None = None
    engine: str | None = None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Choices:
        """The choices in a CreateModelImportJob *request*. Raises InvalidRequest for a value that is none."""
        tags = {tag["key"]: tag["value"] for tag in request.get("jobTags") or ()}
        quantise, proof = tags.get(QUANTISATION_TAG), tags.get(PROOF_TAG)
        if quantise is not None and quantise not in QUANTISATIONS:
            raise InvalidRequest(
                f"The job tag {QUANTISATION_TAG} is {quantise!r}; use {' or '.join(QUANTISATIONS)}, or leave it out to "
                "keep the checkpoint's precision."
            )
        if proof is not None and proof != _PROOF_ACCEPT:
            raise InvalidRequest(
                f"The job tag {PROOF_TAG} is {proof!r}; use {_PROOF_ACCEPT!r} to import a model that the proof run "
                "calls broken, or leave it out."
            )
        pooling = tags.get(EMBEDDING_TAG)
        if pooling is not None and pooling not in POOLINGS:
            raise InvalidRequest(
                f"The job tag {EMBEDDING_TAG} is {pooling!r}; use {', '.join(POOLINGS)} to import a model that gives "
                "embeddings, or leave it out."
            )
        return cls(quantise=quantise, accepts_any_proof=proof is not None, pooling=pooling, engine=tags.get(ENGINE_TAG))


def tags(
    quantise: str | None, *, accepts_any_proof: bool, pooling: str | None = None, engine: str | None = None
) -> list[dict[str, str]]:
    """The job tags that say these choices."""
    said = {
        QUANTISATION_TAG: quantise,
        PROOF_TAG: _PROOF_ACCEPT if accepts_any_proof else None,
        EMBEDDING_TAG: pooling,
        ENGINE_TAG: engine,
    }
    return [{"key": key, "value": value} for key, value in said.items() if value is not None]
