"""What completions may ask beyond one prompt and its answer: several prompts at once, the prompt before the answer.

Each prompt is asked of the engine by itself, so that every engine counts, samples and ends it alike; choices are
numbered as OpenAI numbers them, the first prompt's first. Canonical fields that no engine sees: ``prompts`` in place of
``prompt``, ``echo``, and ``max_tokens`` 0 with it, which gives the prompt alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import structs

from outcrop.engines.base import Endpoint, Engine
from outcrop.engines.choices import all_or_first_error, merged
from outcrop.errors import InvalidRequest
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, Usage


def choices_of(request: GenerateRequest) -> int:
    """How many answers *request* asks for."""
    return (request.body.get("n") or 1) * len(request.body.get("prompts") or [None])


async def complete(engine: Engine, endpoint: Endpoint, request: GenerateRequest) -> Completion:
    """The whole answer to every prompt. Raises what the engine raises, InvalidRequest for what it cannot echo."""
    if "prompts" not in request.body:
        return await _complete(engine, endpoint, request)
    asked = [_complete(engine, endpoint, one) for one in _singles(request)]
    each = await all_or_first_error(asked, request.width)
    choices = [choice for whole in each for choice in whole.choices]
    return Completion(
        choices=[structs.replace(choice, index=index) for index, choice in enumerate(choices)],
        usage=Usage(
            sum(whole.usage.prompt_tokens for whole in each), sum(whole.usage.completion_tokens for whole in each)
        ),
        decode_s=max((whole.decode_s for whole in each if whole.decode_s is not None), default=None),
    )


def stream(engine: Engine, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
    """The same in pieces. Log-probabilities of an echoed prompt are not streamed."""
    if "prompts" not in request.body and not request.body.get("echo"):
        return engine.stream(endpoint, request)
    return _stream(engine, endpoint, request)


async def count_tokens(engine: Engine, endpoint: Endpoint, request: GenerateRequest) -> int:
    """Tokens that the engine would read, of all prompts together."""
    return sum([await engine.count_tokens(endpoint, _plain(one)) for one in _singles(request)])


def _singles(request: GenerateRequest) -> list[GenerateRequest]:
    """A request for each prompt. They share the width, so each has a width of one."""
    if "prompts" not in request.body:
        return [request]
    rest = {key: value for key, value in request.body.items() if key != "prompts"}
    return [GenerateRequest(kind=request.kind, body=rest | {"prompt": prompt}) for prompt in request.body["prompts"]]


def _plain(request: GenerateRequest) -> GenerateRequest:
    """*request* as the engine is asked it."""
    if not request.body.get("echo"):
        return request
    body = {key: value for key, value in request.body.items() if key != "echo"}
    return structs.replace(request, body=body | {"max_tokens": body.get("max_tokens") or 1})


async def _complete(engine: Engine, endpoint: Endpoint, request: GenerateRequest) -> Completion:
    whole = await engine.complete(endpoint, _plain(request))
    choices = [structs.replace(choice, prompt_logprobs=whole.prompt_logprobs) for choice in whole.choices]
    if not request.body.get("echo"):
        return structs.replace(whole, choices=choices)
    echo = await _echoed(engine, endpoint, request.body["prompt"])
    if request.body.get("max_tokens") == 0:
        choices = [structs.replace(choice, text="", logprobs=None, finish_reason="length") for choice in choices]
        whole = structs.replace(whole, usage=Usage(whole.usage.prompt_tokens, 0))
    return structs.replace(whole, choices=[structs.replace(choice, echo=echo) for choice in choices])


async def _stream(engine: Engine, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
    width = request.body.get("n") or 1
    usages: list[Usage] = []

    async def one(single: GenerateRequest, first: int) -> AsyncGenerator[list[Chunk], None]:
        """The pieces for one prompt, its choices numbered from *first* on; usage goes to *usages*."""
        if single.body.get("echo"):
            echo = await _echoed(engine, endpoint, single.body["prompt"])
            yield [Chunk(text=echo, index=first + choice) for choice in range(width)]
        async with aclosing(engine.stream(endpoint, _plain(single))) as batches:
            async for batch in batches:
                usages.extend(chunk.usage for chunk in batch if chunk.usage is not None)
                moved = [structs.replace(chunk, index=first + chunk.index, usage=None) for chunk in batch]
                if kept := [chunk for chunk in moved if chunk != Chunk(index=chunk.index)]:
                    yield kept

    streams = [one(single, place * width) for place, single in enumerate(_singles(request))]
    async with aclosing(merged(streams, request.width)) as batches:
        async for batch in batches:
            yield batch
    prompt, completion = (sum(getattr(usage, name) for usage in usages) for name in _COUNTS)
    yield [Chunk(usage=Usage(prompt, completion))]


_COUNTS = ("prompt_tokens", "completion_tokens")


async def _echoed(engine: Engine, endpoint: Endpoint, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    try:
        return await engine.detokenize(endpoint, prompt)
    except NotImplementedError:
        raise InvalidRequest(
            f"echo of token ids is not available with the engine {engine.name}; send the prompt as text", param="echo"
        ) from None
