"""What servers in OpenAI's shape answer, and what becomes of it: whole choices, streamed chunks, errors by name.

llama.cpp's server sets the form; other engines' spellings are read beside it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from outcrop.engines.answer_text import Piece
from outcrop.engines.llama_cpp_request import Plan
from outcrop.engines.tool_text import joined
from outcrop.errors import EngineFault, InvalidRequest, PromptTooLong, ServiceError
from outcrop.inference.canonical import Choice, Chunk, Usage

T = TypeVar("T")


class Spent(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Said(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's name for it
    tool_calls: list[Any] | None = None


class AnswerChoice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # of vLLM: the stop sequence that matched, or the id of an end token
    logprobs: Any = None
    prompt_logprobs: list[Any] | None = None


class Refusal(msgspec.Struct):
    code: int | str | None = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Verbose(msgspec.Struct):
    """What the engine says beside the answer when asked for more."""

    stop_type: str = ""
    stopping_word: str = ""


class _Timings(msgspec.Struct):
    predicted_ms: float | None = None


class Answer(msgspec.Struct):
    """An answer or a streamed event, of chats and completions both."""

    choices: list[AnswerChoice] = []
    usage: Spent | None = None
    error: Refusal | None = None
    timings: _Timings | None = None
    verbose: _Verbose | None = msgspec.field(default=None, name="__verbose")
    prompt_logprobs: list[Any] | None = None


decode_answer = msgspec.json.Decoder(Answer).decode


def read(decode: Callable[[bytes], T], data: bytes) -> T:
    """*data* as *decode* reads it. Raises EngineFault."""
    try:
        return decode(data)
    except msgspec.MsgspecError as exc:
        raise EngineFault(f"the engine's answer could not be read: {exc}") from exc


def refusal(status: int, data: bytes) -> ServiceError:
    """Our error for an engine's answer of an error *status*."""
    try:
        error = decode_answer(data).error
    except msgspec.MsgspecError:
        error = None
    return fault(status, error or Refusal(code=status, message=data[:500].decode(errors="replace")))


def status_of(error: Refusal) -> int:
    """The HTTP status that an error inside an answer stands for; other engines write words there."""
    return error.code if isinstance(error.code, int) else 500


def fault(status: int, error: Refusal) -> ServiceError:
    """Our error for *error*: whose fault it is, in words that the caller can act on."""
    if error.type == "exceed_context_size_error":
        return PromptTooLong(
            f"The prompt has {error.n_prompt_tokens} tokens; this model's context holds {error.n_ctx} tokens. "
            "Shorten the prompt."
        )
    if status == 400 and "maximum context length" in error.message:  # vLLM and SGLang
        return PromptTooLong(f"{error.message.rstrip('.')}. Shorten the prompt.")
    # What the template or the reader of messages minds comes as a 500, but is the caller's.
    if status == 400 or error.message.startswith(("Failed to parse messages", "Failed to parse tools")):
        _, refused, why = error.message.partition("Jinja Exception: ")
        return InvalidRequest(f"The model's chat template refuses the messages: {why}" if refused else error.message)
    return EngineFault(f"the engine answered {status}: {error.message}", engine_status=status)


# What a token that ends within a character is shown as. An answer that its length cuts there ends before it.
_HALF_CHARACTER = "\ufffd"


def whole_choice(answer: Answer, how: Plan, index: int) -> Choice:
    """The finished choice of *answer*, which has one, as choice *index* of the request that *how* asked."""
    choice = answer.choices[0]
    message = choice.message or Said(content=choice.text)
    text, calls, finish_reason = message.content or "", message.tool_calls or [], choice.finish_reason
    if finish_reason == "length":
        text = text.rstrip(_HALF_CHARACTER)
    reasoning = message.reasoning_content or message.reasoning
    reader = how.reader()
    if reader is not None:
        read = _joined([reader.feed(text), reader.finish()])
        text, calls, reasoning = read.text, joined(_with_ids(read.calls)), read.reasoning or None
        finish_reason = _finish_reason(finish_reason, called_tools=bool(calls))
    return Choice(
        index=index,
        text=text,
        finish_reason=finish_reason,
        logprobs=_trimmed(choice.logprobs, how.top_logprobs),
        tool_calls=calls or None,
        reasoning=reasoning,
        stop_sequence=_stop_sequence(answer),
    )


def _joined(pieces: list[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        [call for piece in pieces for call in piece.calls],
        "".join(piece.reasoning for piece in pieces),
    )


class Reading:
    """Turns the events of one streamed answer into chunks."""

    def __init__(self, how: Plan, index: int) -> None:
        self._index = index
        self._top_logprobs = how.top_logprobs
        self._reader = how.reader()
        self._called_tools = False
        self._held = ""  # half a character at the end: part of the answer only when something follows

    def chunks(self, answer: Answer) -> list[Chunk]:
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else None
        if not answer.choices:
            return [Chunk(usage=usage, index=self._index)] if usage else []
        choice = answer.choices[0]
        delta = choice.delta or Said(content=choice.text)
        text, calls, finish_reason = delta.content or "", delta.tool_calls, choice.finish_reason
        reasoning = delta.reasoning_content or delta.reasoning
        if self._held or text.endswith(_HALF_CHARACTER):
            text = self._held + text
            whole = text.rstrip(_HALF_CHARACTER)
            self._held, text = (text[len(whole) :], whole) if finish_reason in (None, "length") else ("", text)
        if self._reader is not None:
            read = self._reader.feed(text)
            if finish_reason is not None:
                read = _joined([read, self._reader.finish()])
            text, calls, reasoning = read.text, _with_ids(read.calls), read.reasoning or None
            self._called_tools |= bool(calls)
            finish_reason = _finish_reason(finish_reason, called_tools=self._called_tools)
        chunk = Chunk(
            text=text,
            finish_reason=finish_reason,
            usage=usage,
            index=self._index,
            logprobs=_trimmed(choice.logprobs, self._top_logprobs),
            tool_calls=calls or None,
            reasoning=reasoning,
            stop_sequence=_stop_sequence(answer),
        )
        return [chunk] if text or chunk != Chunk(index=self._index) else []  # the first event only names the role


def _with_ids(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """*calls* with an id where a call begins; later deltas of it have none."""
    return [{"id": f"call_{uuid.uuid4().hex[:24]}", **call} if "type" in call else call for call in calls]


def _finish_reason(reason: str | None, *, called_tools: bool) -> str | None:
    return "tool_calls" if called_tools and reason == "stop" else reason


def _stop_sequence(answer: Answer) -> str | None:
    matched = answer.choices[0].stop_reason
    if isinstance(matched, str):
        return matched
    verbose = answer.verbose
    return verbose.stopping_word if verbose is not None and verbose.stop_type == "word" else None


def _from_older(logprobs: Mapping[str, Any]) -> dict[str, Any]:
    """The form of chats, of what engines other than llama.cpp say in OpenAI's older form of completions."""
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    alternatives = logprobs.get("top_logprobs") or [None] * len(tokens)
    content = [
        {
            **_entry(token, value),
            "top_logprobs": [_entry(other, logprob) for other, logprob in (others or {}).items()],
        }
        for token, value, others in zip(tokens, values, alternatives, strict=False)
    ]
    return {"content": content}


def _entry(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _trimmed(logprobs: Any, top: int | None) -> Any:
    """*logprobs* with *top* alternatives a token; the engine cannot be asked for none."""
    if not logprobs or top is None:
        return None
    if "content" not in logprobs:
        logprobs = _from_older(logprobs)
    content = [{**entry, "top_logprobs": entry.get("top_logprobs", [])[:top]} for entry in logprobs["content"]]
    return {"content": content}
