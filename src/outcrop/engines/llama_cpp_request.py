"""A canonical request in llama.cpp's own words, with everything enforced that llama.cpp would let through.

Chats go to its chat route, which applies the template and reads tool calls back. A chat that is held to a grammar, or
whose template writes thoughts or calls between tags, goes another way: the template is applied first, its text is
completed and the answer is read here, because the chat route fails (500) on an answer that ends early. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, structs

from outcrop.engines import gbnf, gbnf_schema, tool_text
from outcrop.engines.answer_text import CLOSE_THOUGHT, OPEN_THOUGHT, Reader, Thoughts, Words, after_a_thought
from outcrop.errors import InvalidRequest
from outcrop.inference.canonical import GenerateRequest

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PENALTY_WINDOW = 32768  # tokens that penalties look back on; llama.cpp's own 64 are fewer than other engines'

# llama.cpp's own defaults (0.8, 40, 0.95, 0.05) would change what an untouched request means elsewhere.
_NEUTRAL: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "cache_prompt": True}
TEMPLATE_FIELDS = ("messages", "tools", "chat_template_kwargs", "reasoning_effort")
_NOT_SENT = frozenset(
    {
        *("n", "logprobs", "top_logprobs", "prompt_logprobs", "return_tokens_as_token_ids", "repetition_penalty"),
        *("response_format", "structured_outputs", "tool_choice", "parallel_tool_calls"),
    }
)


class Template(Struct, frozen=True):
    """What a model's chat template says of how the model answers."""

    takes_tools: bool = True
    writes_tags: bool = False  # calls are written between <tool_call> tags
    thinks: bool = False  # thoughts are written between <think> tags


PLAIN = Template()


def read_template(text: str, *, takes_tools: bool) -> Template:
    """What the template *text* says."""
    return Template(
        takes_tools=takes_tools,
        writes_tags=takes_tools and tool_text.OPEN_TAG in text,
        thinks=OPEN_THOUGHT in text or CLOSE_THOUGHT in text,
    )


class Plan(Struct, frozen=True):
    """How one canonical request is asked of a copy.

    *template*: what to send to ``/apply-template`` first; its text becomes ``prompt`` of *body*. *reading*: how the
    text is read, where the engine does not read it itself.
    """

    path: str
    body: dict[str, Any]
    template: dict[str, Any] | None = None
    reading: type[Words | tool_text.ForcedCalls | tool_text.TaggedCalls] | None = None
    thought_is_open: bool = False  # the template has begun a thought for the model
    choices: int = 1
    top_logprobs: int | None = None  # how many alternatives of a token are given; None: no log-probabilities

    def rendered(self, prompt: str) -> Plan:
        """The same with the text that the chat template made."""
        is_open = prompt.rstrip().endswith(OPEN_THOUGHT)
        body = self.body | {"prompt": prompt}
        if is_open and "grammar" in body:
            body["grammar"] = after_a_thought(body["grammar"])
        return structs.replace(self, body=body, thought_is_open=is_open)

    def reader(self) -> Reader | None:
        """What reads the text of one choice."""
        return None if self.reading is None else Thoughts(self.reading(), is_open=self.thought_is_open)

    def of_choice(self, index: int) -> dict[str, Any]:
        """The body of choice *index*; a seed gives each choice one of its own."""
        seed = self.body.get("seed")
        return self.body if index == 0 or seed is None else self.body | {"seed": (seed + index) % 2**32}


def plan(request: GenerateRequest, template: Template = PLAIN) -> Plan:
    """How to ask for *request*; raises InvalidRequest for what cannot be enforced."""
    wanted = request.body
    body: dict[str, Any] = {**_NEUTRAL, **{key: value for key, value in wanted.items() if key not in _NOT_SENT}}
    if "repetition_penalty" in wanted:
        body["repeat_penalty"] = wanted["repetition_penalty"]
    if body.keys() & {"repeat_penalty", "presence_penalty", "frequency_penalty"}:
        body["repeat_last_n"] = PENALTY_WINDOW
    if wanted.get("seed") is not None:
        body["seed"] = wanted["seed"] % 2**32
    if wanted.get("stop"):
        body["verbose"] = True  # the only way to hear which stop sequence matched
    grammar = _grammar(wanted)
    top_logprobs = alternatives(request)
    given: dict[str, Any] = {"choices": wanted.get("n") or 1, "top_logprobs": top_logprobs}
    if request.kind == "chat":
        return _chat(wanted, body, grammar, given, template)
    if top_logprobs is not None:
        body["logprobs"] = max(1, top_logprobs)
    if grammar is not None:
        body["grammar"] = grammar
    return Plan(COMPLETION, body, **given)


def _chat(
    wanted: Mapping[str, Any],
    body: dict[str, Any],
    grammar: str | None,
    given: dict[str, Any],
    known: Template,
) -> Plan:
    choice = wanted.get("tool_choice") or "auto"
    tools = wanted.get("tools") if choice != "none" else None
    template = {key: wanted[key] for key in TEMPLATE_FIELDS if key in wanted}
    reading: type[Words | tool_text.ForcedCalls | tool_text.TaggedCalls] | None = Words if known.thinks else None
    if tools:
        if grammar is not None:
            raise InvalidRequest(
                'tools cannot be combined with response_format or structured_outputs; send tool_choice "none" for an '
                "answer in that format",
                param="tools",
            )
        if choice != "auto":
            may_repeat = wanted.get("parallel_tool_calls") is not False
            grammar = tool_text.forced_grammar(tools, choice, may_repeat=may_repeat)
            reading = tool_text.ForcedCalls
        elif known.writes_tags or not known.takes_tools:
            reading = tool_text.TaggedCalls
        if not known.takes_tools:
            del template["tools"]
            template["messages"] = tool_text.as_text(wanted["messages"], tools)
    else:
        template.pop("tools", None)
    if grammar is None and reading is None:
        body.pop("tools", None)
        body |= template
        if tools and "parallel_tool_calls" in wanted:
            body["parallel_tool_calls"] = wanted["parallel_tool_calls"]
        if given["top_logprobs"] is not None:
            body |= {"logprobs": True, "top_logprobs": max(1, given["top_logprobs"])}
        return Plan(CHAT, body, **given)
    for key in TEMPLATE_FIELDS:
        body.pop(key, None)
    if grammar is not None:
        body["grammar"] = grammar
    if given["top_logprobs"] is not None:
        body["logprobs"] = max(1, given["top_logprobs"])
    return Plan(COMPLETION, body, template=template, reading=reading, **given)


def alternatives(request: GenerateRequest) -> int | None:
    """How many alternatives of each token *request* asks for; None when it asks for no log-probabilities."""
    logprobs = request.body.get("logprobs")
    if request.kind == "completion":
        return logprobs
    return (request.body.get("top_logprobs") or 0) if logprobs else None


def _grammar(wanted: Mapping[str, Any]) -> str | None:
    form, outputs = wanted.get("response_format"), wanted.get("structured_outputs")
    if form and outputs:
        raise InvalidRequest("send either response_format or structured_outputs, not both", param="structured_outputs")
    if form:
        if form["type"] == "json_object":
            return gbnf_schema.json_object()
        return gbnf_schema.json_document(form["json_schema"]["schema"])
    if not outputs:
        return None
    ((kind, value),) = outputs.items()
    match kind:
        case "choice":
            return gbnf.choice(value)
        case "regex":
            return gbnf.regex(value)
        case "json":
            return gbnf_schema.json_document(value)
    return str(value)
