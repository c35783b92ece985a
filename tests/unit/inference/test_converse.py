import botocore.session
import pytest
from botocore.validate import ParamValidator

from outcrop.errors import ChatTemplateMissing, InvalidRequest
from outcrop.inference import converse
from outcrop.inference.answer import AnswerContext
from outcrop.inference.canonical import Choice, Chunk, Completion

HI = {"role": "user", "content": [{"text": "hi"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


@pytest.fixture(scope="module")
def service():
    return botocore.session.get_session().get_service_model("bedrock-runtime")


def assert_fits(shape, value):
    assert ParamValidator().validate(value, shape).generate_report() == ""


def test_a_model_without_a_template_is_refused_in_awss_words(model_without_template):
    with pytest.raises(ChatTemplateMissing) as refused:
        converse.decode({"messages": [HI]}, model_without_template)
    assert refused.value.message == (
        "This action doesn't support the model that you provided. Try again with a supported text or chat model."
    )


CALLED = [
    {"role": "user", "content": [{"text": "add"}]},
    {"role": "assistant", "content": [{"toolUse": {"toolUseId": "c1", "name": "add", "input": {}}}]},
]


def results(*ids):
    blocks = [{"toolResult": {"toolUseId": one, "content": [{"text": "2"}]}} for one in ids]
    return {"role": "user", "content": blocks or [{"text": "and?"}]}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [results("c1")],
            "The number of toolResult blocks at messages.0.content exceeds the number of toolUse blocks of previous turn.",
        ),
        (
            [*CALLED, results("c1", "c2")],
            "The number of toolResult blocks at messages.2.content exceeds the number of toolUse blocks of previous turn.",
        ),
        ([*CALLED, results("c2")], "Expected toolResult blocks at messages.2.content for the following Ids: c1"),
        ([*CALLED, results()], "Expected toolResult blocks at messages.2.content for the following Ids: c1"),
        (
            [*CALLED, results("c1", "c1")],
            "The toolResult blocks at messages.2.content contain duplicate Ids: c1",
        ),
        (
            [CALLED[0], {"role": "assistant", "content": CALLED[1]["content"] * 2}],
            "The toolUse blocks at messages.1.content contain duplicate Ids: c1",
        ),
    ],
)
def test_tool_results_must_answer_the_calls_of_the_turn_before(messages, said, model):
    with pytest.raises(InvalidRequest) as refused:
        converse.decode({"messages": messages}, model)
    assert refused.value.message == said


def test_tool_calls_answered_turn_after_turn_are_taken(model):
    asked = {"messages": [*CALLED, results("c1"), CALLED[1], results("c1"), CALLED[1]]}

    assert [m["role"] for m in converse.decode(asked, model).body["messages"]] == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant")
    ]


@pytest.mark.parametrize("extra", [{}, {"system": []}, {"inferenceConfig": {}}, {"toolConfig": {}}])
def test_empty_options_are_as_none(model, extra):
    request = converse.decode({"messages": [HI], **extra}, model)
    assert request.kind == "chat"
    assert request.body == {"messages": [{"role": "user", "content": "hi"}]}


def test_every_option_reaches_the_canonical_body(model):
    params = {
        "system": [{"text": "be"}, {"text": "brief"}],
        "messages": [HI, {"role": "assistant", "content": [{"text": "yes"}]}, HI],
        "inferenceConfig": {"maxTokens": 5, "temperature": 0.5, "topP": 0, "stopSequences": ["x"]},
        "additionalModelRequestFields": {"top_k": 3, "seed": 1, "model": "other"},
        "outputConfig": {
            "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": '{"type":"object"}'}}}
        },
    }
    assert converse.decode(params, model).body == {
        "messages": [
            {"role": "system", "content": "be\nbrief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "hi"},
        ],
        "top_k": 3,
        "seed": 1,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1e-6,
        "stop": ["x"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
    }


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"inferenceConfig": {"temperature": 2.0}},
            "inferenceConfig.temperature must be a number from 0 to 1, got 2.0",
        ),
        ({"inferenceConfig": {"topP": 1.1}}, "inferenceConfig.topP must be a number from 0 to 1"),
        ({"inferenceConfig": {"maxTokens": 0}}, "inferenceConfig.maxTokens must be a whole number from 1"),
        ({"inferenceConfig": {"stopSequences": ["x"] * 2501}}, "inferenceConfig.stopSequences must be"),
        ({"additionalModelRequestFields": []}, "additionalModelRequestFields must be an object"),
        ({"additionalModelRequestFields": {"top_k": -1}}, "top_k must be a whole number from 0"),
        ({"messages": []}, "A conversation must start with a user message"),
        ({"messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "must start with a user message"),
        ({"messages": [HI, {"role": "user", "content": []}]}, "The content field in the Message object at messages.1"),
        (
            {"messages": [HI, {"role": "robot", "content": [{"text": "x"}]}]},
            "messages.1.role must be user",
        ),
        ({"messages": [{"role": "user", "content": [{"text": " "}]}]}, "messages.0.content.0 is blank"),
        (
            {"messages": [{"role": "user", "content": [{"image": {}}]}]},
            "This model doesn't support the image field",
        ),
        ({"system": [{"image": {}}]}, 'system.0 is a block of type "image"'),
        (
            {
                "messages": [
                    *CALLED,
                    {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": [{"image": {}}]}}]},
                ]
            },
            "This model doesn't support the image field",
        ),
        ({"toolConfig": {"tools": [{"systemTool": {}}]}}, 'toolConfig.tools.0 is a "systemTool"'),
        ({"outputConfig": {"textFormat": {"structure": {"jsonSchema": {"schema": "{"}}}}}, "is not JSON"),
        ({"outputConfig": {"textFormat": {"structure": {"jsonSchema": {"schema": "[]"}}}}}, "must be a JSON object"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_place(model, params, said):
    with pytest.raises(InvalidRequest) as refused:
        converse.decode({"messages": [HI], **params}, model)
    assert said in refused.value.message


def test_tool_use_and_its_result_become_openais_messages(model):
    use = {"toolUseId": "c1", "name": "add", "input": {"a": 1}}
    result = {"toolUseId": "c1", "content": [{"json": {"sum": 2}}, {"text": "ok"}], "status": "success"}
    params = {
        "messages": [
            HI,
            {
                "role": "assistant",
                "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"toolUse": use}],
            },
            {"role": "user", "content": [{"text": "so?"}, {"toolResult": result}]},
        ]
    }
    assert converse.decode(params, model).body["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"sum":2}\nok'},
        {"role": "user", "content": "so?"},
    ]


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (None, None),
        ({"auto": {}}, "auto"),
        ({"any": {}}, "required"),
        ({"tool": {"name": "add"}}, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tools_and_the_choice_among_them_become_openais(model, given, canonical):
    spec = {"name": "add", "description": "adds", "inputSchema": {"json": {"type": "object"}}}
    config = {"tools": [{"toolSpec": spec}], "toolChoice": given}
    body = converse.decode({"messages": [HI], "toolConfig": config}, model).body
    function = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body.get("tool_choice") == canonical


@pytest.mark.parametrize(
    ("choice", "stop_reason", "content"),
    [
        (Choice(index=0, text="a", finish_reason="stop"), "end_turn", [{"text": "a"}]),
        (Choice(index=0, text="a", finish_reason="length"), "max_tokens", [{"text": "a"}]),
        (Choice(index=0, text="", finish_reason=None), "end_turn", [{"text": ""}]),
        (Choice(index=0, text="a", finish_reason="stop", stop_sequence="b"), "stop_sequence", [{"text": "a"}]),
        (
            Choice(index=0, text="a", finish_reason="stop", reasoning="hm"),
            "end_turn",
            [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "a"}],
        ),
        (
            Choice(index=0, text="", finish_reason="stop", tool_calls=[CALL]),
            "tool_use",
            [{"toolUse": {"toolUseId": "c1", "name": "add", "input": {"a": 1}}}],
        ),
        (
            Choice(
                index=0,
                text="",
                finish_reason="tool_calls",
                tool_calls=[{"id": "", "function": {"name": "add", "arguments": "{a"}}],
            ),
            "malformed_tool_use",
            [{"toolUse": {"toolUseId": "tooluse_0", "name": "add", "input": "{a"}}],
        ),
    ],
)
def test_a_whole_answer_fits_awss_model(service, usage, timings, converse_ctx, choice, stop_reason, content):
    answer = converse.encode(Completion(choices=[choice], usage=usage), timings, converse_ctx)
    assert answer == {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": stop_reason,
        "usage": {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10},
        "metrics": {"latencyMs": 120},
    }
    shape = service.operation_model("Converse").output_shape
    assert_fits(shape, answer)
    assert stop_reason in shape.members["stopReason"].enum


def streamed(service, chunks, usage, timings):
    answer = AnswerContext(request_id="r1", model_label="m", created=1)
    encoder = converse.stream(converse.ConverseContext(answer, max_tokens=3))
    events = [*encoder.start(), *(event for chunk in chunks for event in encoder.chunk(chunk))]
    events += encoder.end(usage, timings)
    shape = service.operation_model("ConverseStream").output_shape.members["stream"]
    for name, payload in events:
        assert_fits(shape.members[name], payload)
    return events


def test_a_text_answer_streams_in_awss_order_with_metadata_last(service, usage, timings):
    chunks = [Chunk(text="a"), Chunk(text="b"), Chunk(text="other", index=1), Chunk(finish_reason="length"), Chunk()]
    assert streamed(service, chunks, usage, timings) == [
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"delta": {"text": "a"}, "contentBlockIndex": 0}),
        ("contentBlockDelta", {"delta": {"text": "b"}, "contentBlockIndex": 0}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "max_tokens"}),
        (
            "metadata",
            {"usage": {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10}, "metrics": {"latencyMs": 120}},
        ),
    ]


def test_reasoning_text_and_each_tool_call_stream_as_blocks_of_their_own(service, usage, timings):
    def call(index, **function):
        return Chunk(tool_calls=[{"index": index, "id": f"c{index}", "function": function}])

    chunks = [
        Chunk(reasoning="hm"),
        Chunk(text="a"),
        call(0, name="add", arguments=""),
        call(0, arguments='{"a"'),
        call(0, arguments=":1}"),
        call(1, name="sub", arguments="{}"),
        Chunk(finish_reason="tool_calls"),
    ]
    events = streamed(service, chunks, usage, timings)[1:-1]
    assert events == [
        ("contentBlockDelta", {"delta": {"reasoningContent": {"text": "hm"}}, "contentBlockIndex": 0}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("contentBlockDelta", {"delta": {"text": "a"}, "contentBlockIndex": 1}),
        ("contentBlockStop", {"contentBlockIndex": 1}),
        ("contentBlockStart", {"start": {"toolUse": {"toolUseId": "c0", "name": "add"}}, "contentBlockIndex": 2}),
        ("contentBlockDelta", {"delta": {"toolUse": {"input": '{"a"'}}, "contentBlockIndex": 2}),
        ("contentBlockDelta", {"delta": {"toolUse": {"input": ":1}"}}, "contentBlockIndex": 2}),
        ("contentBlockStop", {"contentBlockIndex": 2}),
        ("contentBlockStart", {"start": {"toolUse": {"toolUseId": "c1", "name": "sub"}}, "contentBlockIndex": 3}),
        ("contentBlockDelta", {"delta": {"toolUse": {"input": "{}"}}, "contentBlockIndex": 3}),
        ("contentBlockStop", {"contentBlockIndex": 3}),
        ("messageStop", {"stopReason": "tool_use"}),
    ]


def test_an_answer_without_content_streams_without_blocks(service, usage, timings):
    names = [name for name, _ in streamed(service, [Chunk(finish_reason="stop")], usage, timings)]
    assert names == ["messageStart", "messageStop", "metadata"]


IMAGE = {"image": {"format": "png", "source": {"bytes": b"abc"}}}


def test_an_image_goes_to_a_model_that_takes_them_as_a_data_url(seeing_model):
    params = {"messages": [{"role": "user", "content": [{"text": "what is it?"}, IMAGE]}]}
    (message,) = converse.decode(params, seeing_model).body["messages"]
    assert message["content"] == [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}},
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([IMAGE] * 4, "4 images; at most 3"),
        ([{"image": {"format": "png", "source": {"s3Location": {"uri": "s3://a/b"}}}}], "images in S3 are not read"),
    ],
)
def test_images_beyond_the_limits_are_refused(seeing_model, content, said):
    with pytest.raises(InvalidRequest, match=said):
        converse.decode({"messages": [{"role": "user", "content": content}]}, seeing_model)


def test_cache_points_leave_no_trace(model):
    point = {"cachePoint": {"type": "default"}}
    params = {
        "system": [{"text": "s"}, point],
        "messages": [{"role": "user", "content": [{"text": "a"}, point]}],
        "toolConfig": {"tools": [point]},
    }
    body = converse.decode(params, model).body
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert "tools" not in body
