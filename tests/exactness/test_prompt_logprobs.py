"""The log-probabilities of a prompt's own tokens are those of transformers, whatever the tokens are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.exactness.test_recorded import RECORDED
from tests.parity.engine import Engine, serving
from tests.support.checkpoints import VOCAB
from tests.support.zoo import write_weights

from outcrop.engines.base import Endpoint
from outcrop.engines.gguf_convert import convert
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.inference.canonical import GenerateRequest

# Half characters, an emoji of four tokens, ends of text in the middle and at the end.
AWKWARD = "<|im_start|>user\nnaïve 🙂 日本<|im_end|>\n<|im_start|>assistant\nyes<|endoftext|>no<|im_end|>"


@asynccontextmanager
async def copy_of(name: str, folder: Path) -> AsyncIterator[tuple[Engine, Any]]:
    """A copy of the recorded model *name*, and what gives the prompt log-probabilities of token ids."""
    write_weights(folder / "model", RECORDED[name]["config"])
    convert(folder / "model", folder / "model.gguf", "auto")
    client = LlamaCpp(request_timeout_s=30)
    with serving(folder / "model.gguf", 512) as engine:
        endpoint = Endpoint(engine.url, "parity")

        async def ask(tokens: list[int], top: int) -> list[dict[str, Any] | None]:
            body = {"prompt": tokens, "max_tokens": 1, "prompt_logprobs": top}
            whole = await client.complete(endpoint, GenerateRequest(kind="completion", body=body))
            assert whole.prompt_logprobs is not None
            return whole.prompt_logprobs

        try:
            yield engine, ask
        finally:
            await client.aclose()


@pytest.mark.parametrize("name", ["qwen2, tied", "gemma2, closing windows"])
async def test_they_are_what_transformers_was_recorded_to_compute(name: str, tmp_path: Path) -> None:
    recorded = RECORDED[name]
    async with copy_of(name, tmp_path) as (_, ask):
        for row in recorded["rows"][2:5]:
            for token, expected in list(zip(recorded["ids"], row["logprobs"], strict=True))[::4]:
                prompt = [*recorded["prompt"][: row["position"] + 1], token]
                found = await ask(prompt, 0)
                assert [list(entry or []) for entry in found] == [[], *([str(each)] for each in prompt[1:])]
                assert found[-1][str(token)]["logprob"] == pytest.approx(expected, abs=1e-2)


async def test_half_characters_and_ends_of_text_have_theirs_too(tmp_path: Path) -> None:
    async with copy_of("qwen2, tied", tmp_path) as (engine, ask):
        tokens = engine.tokenize(AWKWARD)
        found = await ask(tokens, 2)

        assert found[0] is None
        for place in range(1, len(tokens)):
            everything = engine.log_probabilities(tokens[:place], VOCAB)
            ranked = sorted(everything, key=lambda token: -everything[token])
            own = found[place][str(tokens[place])]
            assert own["logprob"] == pytest.approx(everything[tokens[place]], abs=1e-3)
            assert own["rank"] in (None, ranked.index(tokens[place]) + 1)
            assert {int(token) for token in found[place]} == {tokens[place], *ranked[:2]}
