from msgspec.structs import replace

from outcrop.inference.canonical import Choice, Chunk, Completion
from outcrop.inference.mistral import MISTRAL
from outcrop.inference.route import DIALECTS, dialect_for


def test_mistral_s_defaults_hold_and_its_parameters_pass_on(model):
    assert MISTRAL.decode({"prompt": "p"}, model).body == {
        "prompt": "p",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 512,
    }
    body = {"prompt": "p", "max_tokens": 9, "top_k": 3, "stop": ["x"]}
    assert MISTRAL.decode(body, model).body.items() >= body.items()


def test_an_answer_is_a_list_of_outputs(ctx, usage):
    completion = Completion(choices=[Choice(index=0, text="a", finish_reason="length")], usage=usage)
    assert MISTRAL.encode(completion, ctx) == {"outputs": [{"text": "a", "stop_reason": "length"}]}


def test_a_stream_holds_its_last_output_back_for_the_metrics(ctx, usage, timings):
    encoder = MISTRAL.stream(ctx)
    assert encoder.chunk(Chunk(text="a")) == {"outputs": [{"text": "a", "stop_reason": None}]}
    assert encoder.chunk(Chunk(finish_reason="stop")) is None
    assert encoder.last(usage, timings) == {"outputs": [{"text": "", "stop_reason": "stop"}]}


def test_a_model_s_own_dialect_wins_over_the_keys_of_a_prompt_but_not_of_messages(model):
    for own, dialect in DIALECTS.items():
        assert dialect_for({"prompt": "p", "max_tokens": 1}, replace(model, dialect=own)) is dialect
        assert dialect_for({"messages": []}, replace(model, dialect=own)).name == "OpenAIChatCompletion"
