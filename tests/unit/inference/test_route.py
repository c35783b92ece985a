import pytest

from outcrop.errors import InvalidRequest
from outcrop.inference.route import dialect_for

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"messages": MESSAGES}, "OpenAIChatCompletion"),
        ({"messages": MESSAGES, "prompt": "p", "max_gen_len": 1}, "OpenAIChatCompletion"),
        ({"prompt": "p", "max_tokens": 1}, "OpenAICompletion"),
        ({"prompt": "p", "max_tokens": 1, "max_gen_len": 1}, "OpenAICompletion"),
        ({"prompt": "p", "max_tokens": None}, "BedrockCompletion"),
        ({"prompt": "p", "max_gen_len": 1}, "BedrockCompletion"),
        ({"prompt": "p"}, "BedrockCompletion"),
    ],
)
def test_the_keys_of_a_body_select_its_format(body, name, model):
    assert dialect_for(body, model).name == name


@pytest.mark.parametrize("body", [{}, {"inputText": "p"}, {"max_tokens": 1}, {"prompt": None}])
def test_a_body_without_messages_or_prompt_is_refused_with_what_it_lacks(body, model):
    with pytest.raises(InvalidRequest, match='"messages" or "prompt"'):
        dialect_for(body, model)
