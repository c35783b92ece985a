"""How likely the tokens of a prompt are, each after those before it.

llama.cpp has no route for that, so it writes the prompt once more: a grammar of token ids leaves it no choice, and what
it reports of each token comes from before the grammar. Two kinds of token cannot be had that way: half a character is
held back, an end of text ends the answer. Those are asked for one by one, beside a token that can be written. The cost
is that of generating the prompt, in one slot.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import msgspec

from outcrop.engines import http1
from outcrop.errors import EngineFault

# POST of a body to a path of the engine; raises EngineFault with the engine's status.
Ask = Callable[[str, Mapping[str, Any]], AbstractAsyncContextManager[http1.Answer]]

COMPLETION = "/completion"
AT_ONCE = 1024  # tokens of one grammar
RANKED = 20  # the most likely tokens at each place, among which a token's rank is known
_BIAS = 100.0  # of the token that is asked for; float32 keeps five decimals of the difference
_LEAST = -9999.0  # for a probability of zero, as vLLM writes it


class _Token(msgspec.Struct):
    id: int
    token: str = ""
    logprob: float = 0.0
    prob: float = 0.0
    top_logprobs: list[_Token] = []
    top_probs: list[_Token] = []


class _Written(msgspec.Struct):
    completion_probabilities: list[_Token] = []
    error: Any = None


_decode = msgspec.json.Decoder(_Written).decode


async def prompt_logprobs(ask: Ask, tokens: list[int], top: int, *, writable: int) -> list[dict[str, Any] | None]:
    """For each of *tokens* an object from token id to logprob, rank and text: its own and the *top* most likely.

    vLLM's form. The first token follows nothing and has None; a rank below ``RANKED`` is None. *writable*: any token
    that is a whole character.
    """
    found: list[dict[str, Any] | None] = [None]
    while len(found) < len(tokens):
        goal = min(len(tokens), len(found) + AT_ONCE)
        async with aclosing(_forced(ask, tokens, len(found), goal)) as entries:
            found.extend([_row(entry, entry.top_logprobs, top) async for entry in entries])
        if len(found) < goal:
            found.append(await _alone(ask, tokens[: len(found)], tokens[len(found)], writable, top))
    return found


async def _forced(ask: Ask, tokens: list[int], begin: int, end: int) -> AsyncGenerator[_Token, None]:
    """What is reported of the tokens from *begin* on, up to *end* or to the first that cannot be written."""
    grammar = "root ::= " + " ".join(f"<[{token}]>" for token in tokens[begin:end])
    body = _body(tokens[:begin], end - begin, RANKED) | {"grammar": grammar, "stream": True}
    rest, place = b"", begin
    try:
        async with ask(COMPLETION, body) as response:
            async for data in response.parts():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    written = _read(event[6:]) if event.startswith(b"data: {") else _Written()
                    if written.error is not None:
                        return
                    for entry in written.completion_probabilities:
                        if place == end or entry.id != tokens[place]:
                            return
                        yield entry
                        place += 1
    except EngineFault as exc:
        # The first token cannot be written. What else may be wrong with the engine, the next request meets as well.
        if exc.engine_status != 500:
            raise


async def _alone(ask: Ask, before: list[int], token: int, writable: int, top: int) -> dict[str, Any]:
    """The row of *token* after *before*, while *writable* is written in its place.

    When it is not among the likely ones, its odds against *writable* are measured with both lifted far above all other
    tokens, *writable* so much further that it is surely the one that is written.
    """
    body = _body(before, 1, RANKED)
    seen = await _one(ask, body | {"logit_bias": [[writable, 1e6]]})
    for other in seen.top_logprobs:
        if other.id == token:
            return _row(other, seen.top_logprobs, top)
    gap = 20.0 + max(0.0, seen.top_logprobs[-1].logprob - seen.logprob if seen.top_logprobs else 0.0)
    lifted = {"logit_bias": [[writable, _BIAS + gap], [token, _BIAS]], "post_sampling_probs": True, "n_probs": 2}
    odds = {other.id: other for other in (await _one(ask, body | lifted)).top_probs}
    own, measure = odds.get(token), odds.get(writable)
    logprob = _LEAST
    if own is not None and measure is not None and own.prob > 0:
        logprob = seen.logprob + math.log(own.prob / measure.prob) + gap
    return _row(_Token(token, own.token if own else "", logprob), seen.top_logprobs, top)


async def _one(ask: Ask, body: Mapping[str, Any]) -> _Token:
    async with ask(COMPLETION, body) as response:
        written = _read(await response.read())
    if not written.completion_probabilities:
        raise EngineFault("the engine's answer has no log-probabilities")
    return written.completion_probabilities[0]


def _body(prompt: list[int], tokens: int, ranked: int) -> dict[str, Any]:
    """A request that samples from what the model says, unchanged."""
    return {
        "prompt": prompt,
        "n_predict": tokens,
        "n_probs": ranked,
        "temperature": 1.0,
        "samplers": [],
        "cache_prompt": True,
        "stream": False,
    }


def _row(token: _Token, likely: list[_Token], top: int) -> dict[str, Any]:
    ranks = {other.id: rank for rank, other in enumerate(likely, 1)}
    return {
        str(entry.id): {"logprob": entry.logprob, "rank": ranks.get(entry.id), "decoded_token": entry.token}
        for entry in [token, *likely[:top]]
    }


def _read(data: bytes) -> _Written:
    try:
        return _decode(data)
    except msgspec.MsgspecError as exc:
        raise EngineFault(f"the engine's answer could not be read: {exc}") from exc
