"""The proof run: one copy apart from the routed ones starts, is compared and generates, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from outcrop.engines.base import Endpoint, Engine
from outcrop.inference.canonical import GenerateRequest
from outcrop.serving import proof
from outcrop.serving.bring_up import BringUp
from outcrop.serving.copies import Copy
from outcrop.serving.proof import ProofReport
from outcrop.serving.starts import ColdStarts

STOP_GRACE_S = 5.0


async def prove(
    bring_up: BringUp,
    engine: Engine,
    copy: Copy,
    request: GenerateRequest,
    probes: Iterable[tuple[str, list[int]]],
    *,
    known: ColdStarts,
    clock: Callable[[], float],
) -> ProofReport:
    """Bring *copy* up, compare tokens, generate, stop it. Raises EngineFault, EngineTimeout."""
    begun, spec = clock(), copy.spec
    process, endpoint = await bring_up.launch(spec, "proof", known)
    copy.process = process
    try:
        spawned = clock()
        await bring_up.until_ready(spec, process, endpoint, known)
        ready = clock()
        mismatches = await _mismatches(engine, endpoint, probes if engine.can_tokenize else ())
        asked = clock()
        if spec.pooling is not None:
            diagnosis = proof.vectors_diagnosis(await engine.embed(endpoint, proof.TEXTS, normalize=True))
            return ProofReport(
                spawn_s=round(spawned - begun, 4),
                load_s=round(ready - spawned, 4),
                first_token_s=round((clock() - asked) / len(proof.TEXTS.inputs), 4),
                text="",
                mismatches=mismatches,
                tokens_per_s=None,
                memory_bytes=await asyncio.to_thread(process.peak_memory_bytes),
                diagnosis=diagnosis,
            )
        answer = await engine.complete(endpoint, request)
        answered = clock()
        first, *others = proof.PROMPTS
        answers = [await engine.complete(endpoint, proof.question(first))]
        spoken = clock() - answered
        if proof.repeated_token(answers[0]) is not None:
            answers += [await engine.complete(endpoint, proof.question(prompt)) for prompt in others]
        tokens = answers[0].usage.completion_tokens
        return ProofReport(
            spawn_s=round(spawned - begun, 4),
            load_s=round(ready - spawned, 4),
            first_token_s=round(answered - asked, 4),
            text=answer.choices[0].text if answer.choices else "",
            mismatches=mismatches,
            tokens_per_s=round(tokens / spoken, 2) if tokens and spoken > 0 else None,
            memory_bytes=await asyncio.to_thread(process.peak_memory_bytes),
            diagnosis=proof.diagnosis(answers),
        )
    finally:
        await process.stop(STOP_GRACE_S)


async def _mismatches(engine: Engine, endpoint: Endpoint, probes: Iterable[tuple[str, list[int]]]) -> list[str]:
    """Each probe text that the engine tokenises otherwise than the checkpoint's tokenizer does, with both."""
    found = []
    for text, wanted in probes:
        given = await engine.tokenize(endpoint, text)
        if given != wanted:
            at = next((n for n, (one, two) in enumerate(zip(given, wanted, strict=False)) if one != two), 0)
            found.append(
                f"{text[:40]!r} gives {given[at : at + 6]} from token {at} on, the tokenizer {wanted[at : at + 6]}"
            )
    return found
