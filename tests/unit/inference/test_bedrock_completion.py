import pytest

from outcrop.errors import InvalidRequest
from outcrop.inference.bedrock_completion import BEDROCK_COMPLETION
from outcrop.inference.canonical import Choice, Chunk, Completion, Usage

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def test_defaults_are_those_of_llama_on_bedrock(model):
    request = BEDROCK_COMPLETION.decode({"prompt": "p"}, model)
    assert request.kind == "completion"
    assert request.body == {"prompt": "p", "max_tokens": 512, "temperature": 0.5, "top_p": 0.9}


def test_the_default_length_does_not_exceed_a_small_context(tiny_model):
    assert BEDROCK_COMPLETION.decode({"prompt": "p"}, tiny_model).body["max_tokens"] == 8


def test_what_the_caller_sets_replaces_the_defaults(model):
    body = {"prompt": "p", "max_gen_len": 9, "temperature": 0, "top_p": 1, "top_k": 4, "stop": ["x"]}
    assert BEDROCK_COMPLETION.decode(body, model).body == {
        "prompt": "p",
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 1,
        "top_k": 4,
        "stop": ["x"],
    }


@pytest.mark.parametrize("prompt", ["", 5, ["a"], None])
def test_an_empty_or_foreign_prompt_is_refused(model, prompt):
    with pytest.raises(InvalidRequest, match="prompt must be a string that is not empty"):
        BEDROCK_COMPLETION.decode({"prompt": prompt}, model)


@pytest.mark.parametrize("given", [SCHEMA, {"name": "answer", "schema": SCHEMA}])
def test_a_bare_or_a_wrapped_schema_becomes_openais_form(model, given):
    body = {"prompt": "p", "response_format": {"type": "json_schema", "json_schema": given}}
    assert BEDROCK_COMPLETION.decode(body, model).body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA},
    }


def test_a_whole_answer_has_llamas_five_fields(ctx, usage):
    completion = Completion(choices=[Choice(index=0, text=" hi", finish_reason="length")], usage=usage)
    assert BEDROCK_COMPLETION.encode(completion, ctx) == {
        "generation": " hi",
        "prompt_token_count": 7,
        "generation_token_count": 3,
        "stop_reason": "length",
        "logprobs": None,
    }


@pytest.mark.parametrize(
    ("finish", "stop"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), (None, None)]
)
def test_stop_reason_is_stop_or_length(ctx, usage, finish, stop):
    completion = Completion(choices=[Choice(index=0, text="", finish_reason=finish)], usage=usage)
    assert BEDROCK_COMPLETION.encode(completion, ctx)["stop_reason"] == stop


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({"content": [{"token": "a", "id": 11, "logprob": -0.5}]}, [{"11": -0.5}]),
        ({"content": [{"token": "a", "id": 0, "logprob": -0.5}]}, [{"0": -0.5}]),
        ({"content": [{"token": "token_id:12", "logprob": -1.0}]}, [{"12": -1.0}]),
        ({"tokens": ["token_id:13", "token_id:14"], "token_logprobs": [-2.0, -3.0]}, [{"13": -2.0}, {"14": -3.0}]),
        ({"content": [{"token": "a", "logprob": -1.0}]}, [{"a": -1.0}]),
        (None, None),
    ],
)
def test_logprobs_are_keyed_by_token_id_where_the_engine_gives_ids(ctx, usage, logprobs, expected):
    completion = Completion(choices=[Choice(index=0, text="a", finish_reason="stop", logprobs=logprobs)], usage=usage)
    assert BEDROCK_COMPLETION.encode(completion, ctx)["logprobs"] == expected


def test_return_logprobs_asks_for_the_generated_token_and_its_id(model):
    body = BEDROCK_COMPLETION.decode({"prompt": "p", "return_logprobs": True}, model).body
    assert body["logprobs"] == 1
    assert body["return_tokens_as_token_ids"] is True
    assert "logprobs" not in BEDROCK_COMPLETION.decode({"prompt": "p", "return_logprobs": False}, model).body


def test_a_stream_counts_up_and_ends_with_the_engines_own_counts(ctx, usage, timings):
    encoder = BEDROCK_COMPLETION.stream(ctx)
    sent = [encoder.chunk(c) for c in (Chunk(text="a"), Chunk(), Chunk(text="b"), Chunk(finish_reason="stop"))]
    sent.append(encoder.chunk(Chunk(usage=usage)))
    assert sent == [
        {"generation": "a", "prompt_token_count": None, "generation_token_count": 1, "stop_reason": None},
        None,
        {"generation": "b", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": None},
        None,
        None,
    ]
    assert encoder.last(usage, timings) == {
        "generation": "",
        "prompt_token_count": 7,
        "generation_token_count": 3,
        "stop_reason": "stop",
    }


def test_the_prompt_is_counted_once_with_the_first_piece_when_the_engine_reports_early(ctx, usage, timings):
    encoder = BEDROCK_COMPLETION.stream(ctx)
    pieces = [
        encoder.chunk(Chunk(text="a", usage=Usage(prompt_tokens=7, completion_tokens=1))),
        encoder.chunk(Chunk(text="bc", usage=Usage(prompt_tokens=7, completion_tokens=3))),
        encoder.chunk(Chunk(text="", finish_reason="length")),
        encoder.last(usage, timings),
    ]
    assert [p and p["prompt_token_count"] for p in pieces] == [7, None, None, None]
    assert [p and p["generation_token_count"] for p in pieces] == [1, 3, None, 3]


def test_text_that_comes_with_the_finish_is_not_lost(ctx, usage, timings):
    encoder = BEDROCK_COMPLETION.stream(ctx)
    assert encoder.chunk(Chunk(text="all", finish_reason="stop")) is None
    last = encoder.last(usage, timings)
    assert last is not None
    assert (last["generation"], last["stop_reason"]) == ("all", "stop")
