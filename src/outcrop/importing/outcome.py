"""What an import leaves: the record of its model, and why it failed in words for people. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outcrop.checkpoints.config import kv_head_count
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.engines.model_shape import thought_style, tool_style
from outcrop.importing.choices import PROOF_TAG, Choices
from outcrop.importing.conversion import Converted
from outcrop.inference.canonical import GenerateRequest
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.serving.proof import ProofReport


def told_files(files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the job's record keeps of its files; the scan is kept once for all."""
    return [{"name": name, **{k: v for k, v in entry.items() if k != "scan"}} for name, entry in files.items()]


def model_of(
    job: ImportJob,
    checkpoint: Checkpoint,
    engine: str | None,
    converted: Converted | None,
    notes: list[str],
    scanned: Mapping[str, Any],
    reasons: Sequence[str],
) -> ImportedModel:
    """The record to be. *engine*: None for a checkpoint that is kept for one that is not here; *reasons*: why that one.

    *converted*: None where the engine reads the checkpoint as it is.
    """
    made: dict[str, Any] = {}
    if converted is not None:
        made = {
            "artifact_bytes": converted.artifact_bytes,
            "artifact_dtype": converted.dtype,
            "artifact_key": converted.key,
        }
        notes = list(dict.fromkeys([*notes, *converted.notes]))
    return ImportedModel(
        model_id=job.model_id,
        account=job.account,
        model_name=job.model_name,
        job_id=job.job_id,
        job_name=job.job_name,
        s3_uri=job.s3_uri,
        architecture=checkpoint.model_type,
        instruct_supported=checkpoint.chat_template is not None and checkpoint.embedding is None,
        model_units=checkpoint.model_units,
        artifact=f"models/{job.model_id}/model.gguf",
        facts={
            "engine": engine,
            "engine_reasons": list(reasons),
            "engines": [asdict(verdict) for verdict in checkpoint.engines],
            "modality": checkpoint.modality,
            "quantisation": checkpoint.quantisation.method if checkpoint.quantisation else None,
            "context_tokens": checkpoint.context_tokens,
            "kv_bytes_per_token": checkpoint.kv_bytes_per_token,
            "parameters": checkpoint.parameters,
            "weight_bytes": checkpoint.weight_bytes,
            **({"embedding": asdict(checkpoint.embedding)} if checkpoint.embedding else {}),
            "shape": _shape(checkpoint),
            **made,
            "notes": notes,
            "scan": dict(scanned),
        },
        created_at=0.0,
        engine=Choices.of(job.request).engine,
    )


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """What engines must know of the model beyond its sizes: ``engines.model_shape``."""
    config, template = checkpoint.config, checkpoint.chat_template
    return {
        "architecture": checkpoint.family.architecture,
        "model_type": checkpoint.model_type,
        "dtype": checkpoint.dtype,
        "attention_heads": config["num_attention_heads"],
        "kv_heads": kv_head_count(config),
        "tool_style": tool_style(checkpoint.model_type, template),
        "thought_style": thought_style(checkpoint.model_type, template),
    }


def proof_request(checkpoint: Checkpoint) -> GenerateRequest:
    body: dict[str, Any] = {"max_tokens": 1, "temperature": 0}  # the time to its first token is measured
    if checkpoint.chat_template is not None and checkpoint.embedding is None:
        return GenerateRequest("chat", {**body, "messages": [{"role": "user", "content": "Hello"}]})
    return GenerateRequest("completion", {**body, "prompt": "Hello"})


def proof_complaint(proved: ProofReport, *, accepts_any: bool) -> str | None:
    """Why the proof run fails the job; None when it does not."""
    if proved.mismatches:
        return "The engine tokenises differently from the checkpoint's tokenizer: " + "; ".join(proved.mismatches)
    if proved.diagnosis and not accepts_any:
        return (
            f"The model starts but does not work: {proved.diagnosis}. Check the training run, or import an earlier "
            f"checkpoint; the job tag {PROOF_TAG}=accept imports it as it is."
        )
    return None


def storage_message(exc: OSError, home: Path) -> str:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The weight store has no space left: {exc}. Free space under {home} and import again."
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"The weight store or the source cannot be used: {exc}. Check permissions and mount options of {home}."
    return f"Reading the source or writing the weight store failed: {exc}. Check the disk of {home}."
