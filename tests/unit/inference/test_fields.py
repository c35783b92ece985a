import math

import pytest

from outcrop.errors import InvalidRequest
from outcrop.inference.bedrock_completion import BEDROCK_COMPLETION
from outcrop.inference.openai_chat import OPENAI_CHAT
from outcrop.inference.openai_completion import OPENAI_COMPLETION

DIALECTS = [
    pytest.param(BEDROCK_COMPLETION, {"prompt": "p"}, id="bedrock"),
    pytest.param(OPENAI_COMPLETION, {"prompt": "p", "max_tokens": 5}, id="completion"),
    pytest.param(OPENAI_CHAT, {"messages": [{"role": "user", "content": "hi"}]}, id="chat"),
]


@pytest.mark.parametrize(("dialect", "body"), DIALECTS)
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", -0.1, "temperature must be a number from 0 to 2, got -0.1"),
        ("temperature", 2.1, "temperature must be a number from 0 to 2, got 2.1"),
        ("temperature", "hot", "temperature must be a number from 0 to 2, got 'hot'"),
        ("temperature", True, "temperature must be a number from 0 to 2, got True"),
        ("temperature", math.nan, "temperature must be a number from 0 to 2, got nan"),
        ("top_p", -0.1, "top_p must be a number from 0 to 1, got -0.1"),
        ("top_p", 1.5, "top_p must be a number from 0 to 1, got 1.5"),
        ("top_k", -1, "top_k must be a whole number from 0 to 2147483647, got -1"),
        ("top_k", 1.5, "top_k must be a whole number from 0 to 2147483647, got 1.5"),
        ("stop", [""], "stop must be a string or a list of at most 64 strings, none of them empty, got ['']"),
        ("stop", ["a"] * 65, "stop must be a string or a list of at most 64 strings"),
        ("stop", [1], "stop must be a string or a list"),
        ("logit_bias", {"7": 101}, "logit_bias.7 must be a number from -100 to 100, got 101"),
        ("response_format", "json", "response_format must be an object, got 'json'"),
        ("response_format", {"type": "xml"}, "response_format.type must be one of"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema must be an object, got None"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field_value_and_range(model, dialect, body, field, value, said):
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode({**body, field: value}, model)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("dialect", "field"),
    [
        (BEDROCK_COMPLETION, "max_gen_len"),
        (OPENAI_COMPLETION, "max_tokens"),
        (OPENAI_CHAT, "max_tokens"),
        (OPENAI_CHAT, "max_completion_tokens"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, 2**31])
def test_a_token_limit_that_is_not_a_positive_whole_number_is_refused(model, dialect, field, value):
    body = {"prompt": "p", "messages": [{"role": "user", "content": "hi"}], field: value}
    with pytest.raises(InvalidRequest, match=f"{field} must be a whole number from 1 to"):
        dialect.decode(body, model)


@pytest.mark.parametrize(("dialect", "body"), DIALECTS)
def test_parameters_that_a_format_does_not_know_are_ignored(model, dialect, body):
    unknown = {"model": "other", "stream": True, "n_predict": -1, "anthropic_version": 1, "user": "u"}
    assert dialect.decode({**body, **unknown}, model) == dialect.decode(body, model)


@pytest.mark.parametrize(("dialect", "body"), DIALECTS)
def test_null_counts_as_absent(model, dialect, body):
    nulls = dict.fromkeys(["temperature", "top_p", "top_k", "stop", "seed", "response_format", "n", "logprobs"])
    assert dialect.decode({**body, **nulls}, model) == dialect.decode(body, model)


@pytest.mark.parametrize(("dialect", "body"), DIALECTS)
@pytest.mark.parametrize(("field", "low", "high"), [("temperature", 0, 2), ("top_p", 0.001, 1), ("top_k", 0, 100)])
def test_the_ends_of_each_range_are_allowed(model, dialect, body, field, low, high):
    for value in (low, high):
        assert dialect.decode({**body, field: value}, model).body[field] == value


@pytest.mark.parametrize(("dialect", "body"), DIALECTS)
def test_one_stop_sequence_becomes_a_list_and_none_are_left_out(model, dialect, body):
    assert dialect.decode({**body, "stop": "END"}, model).body["stop"] == ["END"]
    assert "stop" not in dialect.decode({**body, "stop": []}, model).body


@pytest.mark.parametrize(("dialect", "body"), DIALECTS[1:])
@pytest.mark.parametrize("n", [0, 9])
def test_more_than_eight_choices_or_none_are_refused(model, dialect, body, n):
    with pytest.raises(InvalidRequest, match=f"n must be a whole number from 1 to 8, got {n}"):
        dialect.decode({**body, "n": n}, model)


@pytest.mark.parametrize(("dialect", "body"), DIALECTS[1:])
@pytest.mark.parametrize(
    "value", [{}, {"json": {}, "regex": "a"}, {"xml": "a"}, {"choice": []}, {"choice": [1]}, "json"]
)
def test_structured_outputs_need_exactly_one_known_constraint(model, dialect, body, value):
    with pytest.raises(InvalidRequest, match="structured_outputs"):
        dialect.decode({**body, "structured_outputs": value}, model)


@pytest.mark.parametrize(("dialect", "body"), DIALECTS[1:])
def test_structured_outputs_pass_on_their_constraint(model, dialect, body):
    wanted = {"choice": ["yes", "no"]}
    assert dialect.decode({**body, "structured_outputs": wanted}, model).body["structured_outputs"] == wanted


@pytest.mark.parametrize(("dialect", "body"), DIALECTS[:2])
def test_long_values_are_cut_in_messages(model, dialect, body):
    with pytest.raises(InvalidRequest) as refused:
        dialect.decode({**body, "temperature": "x" * 10_000}, model)
    assert len(refused.value.message) < 200
