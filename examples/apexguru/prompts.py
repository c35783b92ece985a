"""The chat format: what the model reads around a class, and how its answer ends."""

from __future__ import annotations

from generator import Example
from tokenizers import Tokenizer

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt(example: Example) -> str:
    """What the chat template makes of the review request; written out, as Jinja is slow."""
    return f"{IM_START}user\n{example.numbered}{IM_END}\n{IM_START}assistant\n"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of *token*, which must exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(f"the tokenizer has no token {token!r}")
    return found
