"""``outcrop proxy init``: the files that a new bundle begins with."""

from __future__ import annotations

from pathlib import Path

from outcrop.errors import BadSetting

MODEL = '''\
"""What an application sends to the endpoint and gets back, around the imported model.

Every function may be plain or async, and all but one may be left out. ctx is the request's client of the model:

    await ctx.invoke({"messages": [...], "max_tokens": 100})    InvokeModel; the answer's JSON
    async for piece in ctx.stream({"prompt": "..."}): ...       in pieces
    await ctx.converse("Hello")                                 Converse
    await ctx.chat("Hello")                                     the text alone
    ctx.remaining_s(), ctx.custom_attributes, ctx.request.headers

In a plain function the same calls block, and streams are iterated with `for`.
"""

from outcrop.proxy import Refuse


def preprocess(request, ctx):
    """What is sent to the model: a mapping, a text (a prompt), a list of messages, or bytes as they are."""
    body = request.json()
    if not isinstance(body, dict) or not isinstance(body.get("question"), str):
        raise Refuse('Send {"question": "..."}.')  # 400; Refuse("...", 413) answers with another status
    messages = [{"role": "user", "content": body["question"]}]
    return {"messages": messages, "max_tokens": 200, "temperature": 0}


def postprocess(response, ctx):
    """What the caller gets: a value (JSON), text, bytes, or a pair of text and its content type."""
    return {"answer": response.json()["choices"][0]["message"]["content"]}


# async def predict(request, ctx):
#     """In place of forwarding, for more than one call: it gets what preprocess gave."""
#     return await ctx.invoke(request)


# async def postprocess_stream(chunks, ctx):
#     """For callers who ask for a stream ("stream": true): the model's pieces in, yours out."""
#     async for chunk in chunks:
#         yield f"data: {chunk}\\n\\n"
'''

TEST = '''\
"""Tests of model.py that need no model. `outcrop proxy test` adds those with recorded answers (payloads/)."""

import json

import model
import pytest
from outcrop.proxy import Refuse, Request, Response


def test_a_question_becomes_a_message():
    sent = model.preprocess(Request(b'{"question": "Why?"}'), None)

    assert sent["messages"] == [{"role": "user", "content": "Why?"}]


def test_the_answer_is_taken_out():
    answer = {"choices": [{"message": {"role": "assistant", "content": "So."}}]}

    assert model.postprocess(Response(json.dumps(answer).encode()), None) == {"answer": "So."}


def test_another_body_is_refused():
    with pytest.raises(Refuse):
        model.preprocess(Request(b"[]"), None)
'''

PAYLOAD = """\
{
  "request": {"json": {"question": "What is a proxy?"}}
}
"""

CONTAINERFILE = """\
# docker build -t my-proxy . && docker run -p 8080:8080 -e OUTCROP_PROXY_TARGET=<model ARN> -e AWS_REGION=... my-proxy
# SageMaker starts it as `docker run <image> serve`; the argument is not needed and passed over.
FROM python:3.11-slim
# A release of Outcrop, or a wheel that you built from its sources (pip wheel --no-deps .).
ARG OUTCROP=outcrop
RUN pip install --no-cache-dir "$OUTCROP"
# What model.py imports beside Outcrop:
# RUN pip install --no-cache-dir ...
COPY model.py /opt/ml/model/
ENTRYPOINT ["outcrop", "proxy"]
EXPOSE 8080
"""

FILES = {
    "model.py": MODEL,
    "test_model.py": TEST,
    "payloads/question.json": PAYLOAD,
    "Containerfile": CONTAINERFILE,
}


def write(folder: Path) -> list[Path]:
    """Write the files of a new bundle. Raises BadSetting, before anything is written, when one is there already."""
    paths = {folder / name: text for name, text in FILES.items()}
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise BadSetting(f"{', '.join(taken)} exist already; choose another folder or remove them.")
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(paths)
