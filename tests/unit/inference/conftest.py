import pytest

from outcrop.inference.answer import AnswerContext, Timings
from outcrop.inference.canonical import ModelFacts, Usage
from outcrop.inference.converse import ConverseContext


def model_facts(
    *, has_chat_template: bool = True, context_tokens: int = 4096, takes_images: bool = False
) -> ModelFacts:
    return ModelFacts(
        model_id="g6vkuhd609s4",
        arn="arn:aws:bedrock:us-east-1:123456789012:imported-model/g6vkuhd609s4",
        account="123456789012",
        name="rainbow",
        context_tokens=context_tokens,
        has_chat_template=has_chat_template,
        takes_images=takes_images,
    )


@pytest.fixture
def model() -> ModelFacts:
    return model_facts()


@pytest.fixture
def model_without_template() -> ModelFacts:
    return model_facts(has_chat_template=False)


@pytest.fixture
def seeing_model() -> ModelFacts:
    return model_facts(takes_images=True)


@pytest.fixture
def tiny_model() -> ModelFacts:
    return model_facts(context_tokens=8)


@pytest.fixture
def ctx() -> AnswerContext:
    return AnswerContext(request_id="r1", model_label="123456789012-g6vkuhd609s4", created=1763166682)


@pytest.fixture
def ctx_with_usage() -> AnswerContext:
    return AnswerContext(request_id="r1", model_label="rainbow", created=1763166682, include_usage=True)


@pytest.fixture
def converse_ctx(ctx) -> ConverseContext:
    return ConverseContext(ctx, max_tokens=3)


@pytest.fixture
def usage() -> Usage:
    return Usage(prompt_tokens=7, completion_tokens=3)


@pytest.fixture
def timings() -> Timings:
    return Timings(latency_ms=120, first_byte_ms=40)
