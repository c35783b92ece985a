"""The preflight report: what a checkpoint is, what it will take here, and what is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from outcrop.checkpoints.inspect import Checkpoint
from outcrop.importing.preflight import Preflight
from outcrop.importing.rates import Expected

RUNTIME_BYTES = 300 << 20  # an engine's process besides weights and key-value cache


def report(found: Preflight, expected: Expected | None = None) -> dict[str, Any]:
    """JSON-shaped facts. Bytes and seconds are integers and floats, names as in the docs of ``outcrop check``.

    *expected*: how long the import will take; left out where nobody imports.
    """
    checkpoint = found.checkpoint
    told: dict[str, Any] = {
        "source": found.uri,
        "importable": checkpoint is not None and not found.problems,
        "problems": [
            {**asdict(problem), "remedy": problem.remedy or _remedy(problem.message)} for problem in found.problems
        ],
        "warnings": [*found.warnings, *(checkpoint.notes if checkpoint else ())],
        "files": len(found.names),
        "total_bytes": found.total_bytes,
    }
    if checkpoint is not None:
        told |= _described(checkpoint)
        if expected is not None:
            told |= {"expected_import_s": expected.seconds, "expected_from_jobs": expected.jobs}
    return told


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "family": checkpoint.model_type,
        "architecture": checkpoint.family.architecture,
        "modality": checkpoint.modality,
        "parameters": checkpoint.parameters,
        "dtype": checkpoint.dtype,
        "quantisation": checkpoint.quantisation.method if checkpoint.quantisation else None,
        "weight_bytes": checkpoint.weight_bytes,
        "shards": len(checkpoint.shards),
        "context_tokens": checkpoint.context_tokens,
        "chat": checkpoint.chat_template is not None and checkpoint.embedding is None,
        "embedding": asdict(checkpoint.embedding) if checkpoint.embedding else None,
        "end_of_text_ids": list(checkpoint.eos_token_ids),
        "units_per_copy": checkpoint.model_units,
        "engine": checkpoint.engine,
        "engines": [asdict(verdict) for verdict in checkpoint.engines],
        "memory_per_copy_bytes": checkpoint.weight_bytes + checkpoint.kv_bytes_full_context + RUNTIME_BYTES,
        "kv_bytes_per_token": checkpoint.kv_bytes_per_token,
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    if "family" in told:
        packed = f", {told['quantisation']}" if told["quantisation"] else ""
        kind = f"{told['family']} ({told['architecture']}, {told['modality']})"
        yield f"{kind}, {_count(told['parameters'])} parameters in {told['dtype']}{packed}"
        yield f"  weights        {_size(told['weight_bytes'])} in {told['shards']} file(s), {told['source']}"
        yield f"  context        {told['context_tokens']} tokens, {_size(told['kv_bytes_per_token'])} of cache each"
        if embedding := told["embedding"]:
            unit = "unit length" if embedding["normalize"] else "as computed"
            yield f"  embeddings     pooled by {embedding['pooling']}, {unit}"
        else:
            yield f"  chat           {'yes' if told['chat'] else 'no chat template: completions only'}"
        yield f"  units per copy {told['units_per_copy']}"
        for entry in told["engines"]:
            state = "serves it" if entry["serves"] else f"does not: {entry['reason']}"
            here = "" if entry["available"] else " (not installed here)"
            yield f"  engine         {entry['engine']}, {entry['hardware']}: {state}{here}"
        yield f"  memory a copy  {_size(told['memory_per_copy_bytes'])} with one full context"
        if "expected_import_s" in told:
            jobs = told["expected_from_jobs"]
            basis = f"measured by {jobs} earlier import(s)" if jobs else "assumed, none was measured here yet"
            yield f"  import takes   about {told['expected_import_s']:g} s (rates {basis})"
    for warning in told["warnings"]:
        yield f"warning: {warning}"
    for problem in told["problems"]:
        yield f"problem: {problem['message']}"
    if told["importable"]:
        yield "The checkpoint can be imported."
    else:
        yield f"The checkpoint cannot be imported: {len(told['problems'])} problem(s)."


def _remedy(message: str) -> str:
    """The last sentence of a problem's message, which by the house's rule says what to do."""
    return message.rstrip(".").rsplit(". ", 1)[-1] + "."


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _count(count: float) -> str:
    for unit in ("", " thousand", " million", " billion"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} trillion"
