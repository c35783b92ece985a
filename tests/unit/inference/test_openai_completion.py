import pytest

from outcrop.errors import InvalidRequest
from outcrop.inference.answer import Timings, invocation_metrics
from outcrop.inference.canonical import Choice, Chunk, Completion
from outcrop.inference.openai_completion import OPENAI_COMPLETION, include_usage


def test_a_body_keeps_openais_names_and_gets_no_bedrock_defaults(model):
    body = {"prompt": "p", "max_tokens": 5, "temperature": 0.5, "n": 2, "logprobs": 0, "seed": -1, "max_gen_len": 9}
    request = OPENAI_COMPLETION.decode(body, model)
    assert request.kind == "completion"
    assert request.body == {"prompt": "p", "max_tokens": 5, "temperature": 0.5, "n": 2, "logprobs": 0, "seed": -1}


def test_without_max_tokens_openais_default_of_sixteen_holds(model, tiny_model):
    assert OPENAI_COMPLETION.decode({"prompt": "p"}, model).body["max_tokens"] == 16
    assert OPENAI_COMPLETION.decode({"prompt": "p"}, tiny_model).body["max_tokens"] == 8


def test_a_prompt_may_be_token_ids(model):
    assert OPENAI_COMPLETION.decode({"prompt": [1, 2]}, model).body["prompt"] == [1, 2]


@pytest.mark.parametrize("prompt", ["", [], ["a", ""], [[1], []], [[["a"]]], [True], [-1], [1, "a"], 5, None])
def test_an_empty_or_a_foreign_prompt_is_refused(model, prompt):
    with pytest.raises(InvalidRequest, match="prompt must be a string, a list of token ids, or a list of several"):
        OPENAI_COMPLETION.decode({"prompt": prompt}, model)


@pytest.mark.parametrize("prompts", [["a", "b"], [[1], [2, 3]], ["a", [1]]])
def test_several_prompts_are_taken(model, prompts):
    assert OPENAI_COMPLETION.decode({"prompt": prompts, "max_tokens": 1}, model).body == {
        "prompts": prompts,
        "max_tokens": 1,
    }
    assert OPENAI_COMPLETION.decode({"prompt": prompts[:1]}, model).body["prompt"] == prompts[0]


def test_too_many_prompts_are_refused(model):
    with pytest.raises(InvalidRequest, match="prompt holds 257 prompts; at most 256 are taken"):
        OPENAI_COMPLETION.decode({"prompt": ["a"] * 257}, model)


def test_an_echo_asks_for_the_log_probabilities_of_the_prompt_as_well(model):
    body = {"prompt": "p", "max_tokens": 0, "echo": True, "logprobs": 2}
    assert OPENAI_COMPLETION.decode(body, model).body == {
        "prompt": "p",
        "echo": True,
        "max_tokens": 0,
        "logprobs": 2,
        "prompt_logprobs": 2,
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "stream": True}, "max_tokens"),
        ({"echo": True, "logprobs": 0, "stream": True}, "logprobs"),
    ],
)
def test_what_cannot_be_echoed_is_refused(model, body, param):
    with pytest.raises(InvalidRequest) as refused:
        OPENAI_COMPLETION.decode({"prompt": "p", **body}, model)
    assert refused.value.param == param


def test_an_echoed_prompt_comes_first_in_text_and_log_probabilities(ctx, usage):
    row = {"7": {"logprob": -2.0, "decoded_token": " b"}, "8": {"logprob": -0.5, "decoded_token": " c"}}
    said = {"content": [{"token": "!", "logprob": -1.0, "top_logprobs": [{"token": "!", "logprob": -1.0}]}]}
    choice = Choice(index=0, text="!", finish_reason="stop", logprobs=said, echo="a b", prompt_logprobs=[None, row])
    (found,) = OPENAI_COMPLETION.encode(Completion(choices=[choice], usage=usage), ctx)["choices"]
    assert found == {
        "index": 0,
        "text": "a b!",
        "finish_reason": "stop",
        "logprobs": {
            "tokens": ["a", " b", "!"],
            "token_logprobs": [None, -2.0, -1.0],
            "top_logprobs": [None, {" c": -0.5, " b": -2.0}, {"!": -1.0}],
            "text_offset": [0, 1, 3],
        },
    }


def test_a_whole_answer_is_a_text_completion(ctx, usage):
    choices = [Choice(index=i, text=t, finish_reason="length") for i, t in enumerate("ab")]
    assert OPENAI_COMPLETION.encode(Completion(choices=choices, usage=usage), ctx) == {
        "id": "cmpl-r1",
        "object": "text_completion",
        "created": 1763166682,
        "model": "123456789012-g6vkuhd609s4",
        "choices": [
            {"index": 0, "text": "a", "logprobs": None, "finish_reason": "length"},
            {"index": 1, "text": "b", "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3},
    }


def test_the_finishing_piece_is_held_back_for_the_metrics(ctx, usage, timings):
    encoder = OPENAI_COMPLETION.stream(ctx)
    first = encoder.chunk(Chunk(text="a"))
    assert first is not None
    assert first["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]
    assert "usage" not in first
    assert encoder.chunk(Chunk(text="b", finish_reason="stop")) is None
    assert encoder.chunk(Chunk(usage=usage)) is None
    last = encoder.last(usage, timings)
    assert last is not None
    assert last["choices"] == [{"index": 0, "text": "b", "logprobs": None, "finish_reason": "stop"}]
    assert encoder.usage_chunk(usage) is None


def test_of_several_choices_every_finishing_piece_is_sent_once(ctx, usage, timings):
    encoder = OPENAI_COMPLETION.stream(ctx)
    chunks = [Chunk(index=1, finish_reason="stop"), Chunk(text="a", index=0), Chunk(index=0, finish_reason="length")]
    pieces = [*map(encoder.chunk, chunks), encoder.last(usage, timings)]
    finished = [p["choices"][0] for p in pieces if p is not None and p["choices"][0]["finish_reason"]]
    assert [(c["index"], c["finish_reason"]) for c in finished] == [(1, "stop"), (0, "length")]


def test_an_answer_that_never_finished_has_no_last_piece(ctx, usage, timings):
    assert OPENAI_COMPLETION.stream(ctx).last(usage, timings) is None


def test_usage_follows_as_a_chunk_without_choices_when_asked_for(ctx_with_usage, usage):
    encoder = OPENAI_COMPLETION.stream(ctx_with_usage)
    piece = encoder.chunk(Chunk(text="a"))
    assert piece is not None
    assert piece["usage"] is None
    closing = encoder.usage_chunk(usage)
    assert closing is not None
    assert closing["choices"] == []
    assert closing["usage"]["total_tokens"] == 10


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": True}}, True),
    ],
)
def test_usage_in_the_stream_is_asked_for_by_stream_options(body, wanted):
    assert include_usage(body) is wanted


@pytest.mark.parametrize(("first_byte_ms", "expected"), [(40, 40), (0, 0), (None, 120)])
def test_invocation_metrics_are_four_integers_even_when_nothing_was_generated(usage, first_byte_ms, expected):
    assert invocation_metrics(usage, Timings(latency_ms=120, first_byte_ms=first_byte_ms)) == {
        "inputTokenCount": 7,
        "outputTokenCount": 3,
        "invocationLatency": 120,
        "firstByteLatency": expected,
    }
