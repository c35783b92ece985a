import pytest

from outcrop.errors import ChatTemplateMissing, InvalidRequest
from outcrop.inference.canonical import Choice, Chunk, Completion
from outcrop.inference.openai_chat import OPENAI_CHAT

HI = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_a_model_without_a_template_is_named_with_the_remedy(model_without_template):
    with pytest.raises(ChatTemplateMissing) as refused:
        OPENAI_CHAT.decode({"messages": [HI]}, model_without_template)
    assert "rainbow" in refused.value.message
    assert "chat_template.jinja" in refused.value.message


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (HI, HI),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        ({"role": "developer", "content": "be brief"}, {"role": "system", "content": "be brief"}),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
        (
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ),
        (
            {"role": "assistant", "content": "x", "refusal": None, "annotations": []},
            {"role": "assistant", "content": "x"},
        ),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
    ],
)
def test_a_message_becomes_one_that_every_template_takes(model, given, canonical):
    assert OPENAI_CHAT.decode({"messages": [given]}, model).body == {"messages": [canonical]}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages must be a list of at least one message"),
        ([], "messages must be a list of at least one message, got []"),
        ("hi", "messages must be a list of at least one message, got 'hi'"),
        (["hi"], "messages[0] must be an object"),
        ([HI, {"role": "robot", "content": "x"}], "messages[1].role must be one of system, developer"),
        ([{"content": "x"}], "messages[0].role must be one of"),
        ([{"role": "user"}], "messages[0].content must be a string or a list of text parts, got None"),
        ([{"role": "assistant", "content": None}], "messages[0].content must be a string"),
        ([{"role": "user", "content": []}], "messages[0].content must be a string or a list of text parts, got []"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0] must be a part"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text must be a string"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
            'messages[0].content[0] is of type "image_url": this model accepts text only',
        ),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused_with_its_place(model, messages, said):
    with pytest.raises(InvalidRequest) as refused:
        OPENAI_CHAT.decode({"messages": messages}, model)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", {}),
        ("tools", ["add"]),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "always"),
        ("tool_choice", {"type": "function"}),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("reasoning_effort", "huge"),
        ("chat_template_kwargs", []),
    ],
)
def test_a_chat_parameter_that_breaks_a_rule_is_refused_by_name(model, field, value):
    with pytest.raises(InvalidRequest, match=field):
        OPENAI_CHAT.decode({"messages": [HI], field: value}, model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]),
        ("logprobs", True),
        ("top_logprobs", 5),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}),
        ("max_tokens", 7),
    ],
)
def test_chat_parameters_pass_on_as_they_are(model, field, value):
    assert OPENAI_CHAT.decode({"messages": [HI], field: value}, model).body == {"messages": [HI], field: value}


def test_max_completion_tokens_is_the_newer_name_of_max_tokens_and_wins(model):
    body = {"messages": [HI], "max_tokens": 5, "max_completion_tokens": 6}
    assert OPENAI_CHAT.decode(body, model).body["max_tokens"] == 6


def test_a_bare_schema_is_refused_in_chat(model):
    body = {"messages": [HI], "response_format": {"type": "json_schema", "json_schema": {"type": "object"}}}
    with pytest.raises(InvalidRequest, match=r"response_format\.json_schema\.schema"):
        OPENAI_CHAT.decode(body, model)


def test_a_whole_answer_has_every_field_of_aws_full_answer(ctx, usage):
    completion = Completion(choices=[Choice(index=0, text="A rainbow", finish_reason="length")], usage=usage)
    assert OPENAI_CHAT.encode(completion, ctx) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1763166682,
        "model": "123456789012-g6vkuhd609s4",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "A rainbow",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning_content": None,
                },
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3},
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }


def test_an_answer_that_only_calls_tools_has_null_content(ctx, usage):
    choice = Choice(index=0, text="", finish_reason="tool_calls", tool_calls=[CALL])
    message = OPENAI_CHAT.encode(Completion(choices=[choice], usage=usage), ctx)["choices"][0]["message"]
    assert (message["content"], message["tool_calls"]) == (None, [CALL])


def test_the_role_is_in_the_first_delta_of_each_choice_only(ctx):
    encoder = OPENAI_CHAT.stream(ctx)
    pieces = [encoder.chunk(Chunk(text=t, index=i)) for t, i in [("a", 0), ("b", 0), ("c", 1)]]
    assert [p and p["object"] for p in pieces] == ["chat.completion.chunk"] * 3
    assert [p and p["choices"][0]["delta"] for p in pieces] == [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
        {"role": "assistant", "content": "c"},
    ]


def test_the_finishing_piece_is_held_back_and_comes_last(ctx, usage, timings):
    encoder = OPENAI_CHAT.stream(ctx)
    encoder.chunk(Chunk(text="a"))
    assert encoder.chunk(Chunk(finish_reason="stop")) is None
    assert encoder.chunk(Chunk(usage=usage)) is None
    last = encoder.last(usage, timings)
    assert last is not None
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert encoder.usage_chunk(usage) is None


def test_reasoning_and_tool_calls_are_deltas_of_their_own(ctx):
    encoder = OPENAI_CHAT.stream(ctx)
    encoder.chunk(Chunk(text="a"))
    thought = encoder.chunk(Chunk(reasoning="hm"))
    call = encoder.chunk(Chunk(tool_calls=[{"index": 0, **CALL}]))
    assert thought is not None
    assert call is not None
    assert thought["choices"][0]["delta"] == {"reasoning_content": "hm"}
    assert call["choices"][0]["delta"] == {"tool_calls": [{"index": 0, **CALL}]}


def test_usage_follows_as_a_chunk_without_choices_when_asked_for(ctx_with_usage, usage):
    closing = OPENAI_CHAT.stream(ctx_with_usage).usage_chunk(usage)
    assert closing is not None
    assert (closing["object"], closing["choices"]) == ("chat.completion.chunk", [])
    assert closing["usage"] == {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}


PIXEL = "data:image/png;base64,iVBORw0KGgo="


def seen(*urls: object) -> list[dict[str, object]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, *parts]}]


def test_images_go_to_a_model_that_takes_them_in_their_order(seeing_model):
    (message,) = OPENAI_CHAT.decode({"messages": seen(PIXEL, PIXEL, PIXEL)}, seeing_model).body["messages"]
    assert [part["type"] for part in message["content"]] == ["text"] + ["image_url"] * 3


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (seen(PIXEL, PIXEL, PIXEL, PIXEL), "4 images; at most 3"),
        (seen(PIXEL, PIXEL) + seen(PIXEL, PIXEL), "4 images; at most 3"),
        (seen("https://example.org/a.png"), "data:image/"),
        (seen("data:image/png;base64,%%"), "base64"),
        (seen("data:image/png,abc"), "data:image/"),
        (seen(None), "data:image/"),
    ],
)
def test_an_image_that_is_one_too_many_elsewhere_or_broken_is_refused(seeing_model, messages, said):
    with pytest.raises(InvalidRequest) as refused:
        OPENAI_CHAT.decode({"messages": messages}, seeing_model)
    assert said in refused.value.message


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_choice_among_tools_passes_on_and_without_tools_is_refused(model, choice):
    body = {"messages": [HI], "tool_choice": choice}
    assert OPENAI_CHAT.decode({**body, "tools": [TOOL]}, model).body["tool_choice"] == choice
    with pytest.raises(InvalidRequest, match="send tools"):
        OPENAI_CHAT.decode(body, model)


def test_repeated_calls_are_written_in_one_way(model):
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}, {"id": "c", "function": {"name": "add"}}]
    body = {"messages": [HI, {"role": "assistant", "tool_calls": calls}]}
    assert OPENAI_CHAT.decode(body, model).body["messages"][1]["tool_calls"] == [
        {"id": "0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("calls", ["x", [{}], [5], [{"function": {"name": "a", "arguments": "{bad"}}]])
def test_repeated_calls_that_are_none_are_refused_with_their_place(model, calls):
    body = {"messages": [HI, {"role": "assistant", "tool_calls": calls}]}
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.tool_calls"):
        OPENAI_CHAT.decode(body, model)


def allowed(*names, mode="required"):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_of_the_tools_only_the_allowed_ones_are_offered(model):
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    body = OPENAI_CHAT.decode({"messages": [HI], "tools": [TOOL, other], "tool_choice": allowed("add")}, model).body

    assert (body["tools"], body["tool_choice"]) == ([TOOL], "required")


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        (allowed("nope"), "nope"),
        (allowed(), "allowed_tools.tools"),
        (allowed("add", mode="all"), "allowed_tools.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "allowed_tools.mode"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["add"]}}, "allowed_tools.tools"),
    ],
)
def test_allowed_tools_that_cannot_be_meant_are_refused_by_name(model, choice, word):
    with pytest.raises(InvalidRequest, match=word):
        OPENAI_CHAT.decode({"messages": [HI], "tools": [TOOL], "tool_choice": choice}, model)
