"""The runtime's contract with AWS's clients, through boto3 and a real engine: dialects, constraints, tools, counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

MESSAGES = [{"role": "user", "content": "for each record"}]
CONVERSE = [{"role": "user", "content": [{"text": "for each record"}]}]
SCHEMA = {
    "type": "object",
    "properties": {
        "line": {"type": "integer", "minimum": 1, "maximum": 40},
        "rule": {"enum": ["DmlInLoop", "SoqlInLoop"]},
        "sure": {"type": "boolean"},
    },
    "required": ["line", "rule", "sure"],
    "additionalProperties": False,
}
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}
SUB = {"name": "sub", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": function} for function in (ADD, SUB)]
SPECS = [{"toolSpec": {"name": f["name"], "inputSchema": {"json": f["parameters"]}}} for f in (ADD, SUB)]
HERMES = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": <name>, "arguments": <arguments>}</tool_call>.<|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def runtime(server: Server) -> Any:
    return server.client("bedrock-runtime")


@pytest.fixture(scope="module")
def tool_model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose chat template shows tools, as Hermes and Qwen write them."""
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "runtime-tools", context=2048)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": HERMES}))
    return server.import_model(folder, "runtime-tools")


@pytest.fixture(scope="module")
def ask(runtime: Any, model: str) -> Any:
    def invoke(**body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(runtime.invoke_model(modelId=model, body=json.dumps(body))["body"].read())
        return answer

    return invoke


def refused(runtime: Any, operation: str, **params: Any) -> str:
    with pytest.raises(ClientError) as error:
        getattr(runtime, operation)(**params)
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return str(error.value.response["Error"]["Message"])


# -- dialects -------------------------------------------------------------------------------------


def test_a_model_s_own_dialect_decides_what_a_prompt_is_answered_in(server: Server, tiny: Path, runtime: Any) -> None:
    arn = server.import_model(tiny, "dialects")
    body = json.dumps({"prompt": "for each", "max_tokens": 3, "temperature": 0})

    def answers(**asked: str) -> dict[str, Any]:
        if asked:
            server.patch("/outcrop/v1/models/dialects", {"dialect": asked["dialect"]})
        found: dict[str, Any] = json.loads(runtime.invoke_model(modelId=arn, body=body)["body"].read())
        return found

    by_keys, llama, mistral = answers(), answers(dialect="llama"), answers(dialect="mistral")
    stream = runtime.invoke_model_with_response_stream(modelId=arn, body=body)["body"]
    chunks = [json.loads(event["chunk"]["bytes"]) for event in stream]

    text = by_keys["choices"][0]["text"]
    assert llama["generation"] == text
    assert llama["generation_token_count"] == 3
    assert mistral == {"outputs": [{"text": text, "stop_reason": "length"}]}
    assert "".join(chunk["outputs"][0]["text"] for chunk in chunks) == text
    assert chunks[-1]["outputs"][0]["stop_reason"] == "length"


def test_a_dialect_that_is_unknown_is_refused_and_one_that_is_set_survives_a_restart(
    tmp_path: Path, tiny: Path
) -> None:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    try:
        arn = server.import_model(tiny, "kept")
        with pytest.raises(Exception, match="400"):
            server.patch("/outcrop/v1/models/kept", {"dialect": "klingon"})
        server.patch("/outcrop/v1/models/kept", {"dialect": "mistral"})
        server.stop()
        server.start()
        answer = server.client("bedrock-runtime").invoke_model(modelId=arn, body='{"prompt":"x","max_tokens":1}')

        assert "outputs" in json.loads(answer["body"].read())
    finally:
        server.stop()


def test_unknown_parameters_and_a_model_in_the_body_are_ignored(ask: Any) -> None:
    known = ask(prompt="for each", max_gen_len=4, temperature=0)

    assert ask(prompt="for each", max_gen_len=4, temperature=0, model="other", stream=True, frobnicate=[1]) == known


# -- log-probabilities ----------------------------------------------------------------------------


def test_return_logprobs_gives_one_entry_a_token_keyed_by_its_id(ask: Any) -> None:
    answer = ask(prompt="for each", max_gen_len=5, temperature=0, return_logprobs=True)

    assert len(answer["logprobs"]) == answer["generation_token_count"]
    for entry in answer["logprobs"]:
        ((token, logprob),) = entry.items()
        assert token.isdigit()
        assert logprob < 0


@pytest.mark.parametrize("top", [0, 3])
def test_openai_log_probabilities_have_as_many_alternatives_as_asked(ask: Any, top: int) -> None:
    chat = ask(messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=top)
    text = ask(prompt="for each", max_tokens=3, temperature=0, logprobs=top)

    content = chat["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [top] * 3
    found = text["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 3
    assert all(len(entry) <= top for entry in found["top_logprobs"])


def test_a_prompt_s_own_tokens_have_log_probabilities_in_vllm_s_form(ask: Any) -> None:
    chat = ask(messages=MESSAGES, max_tokens=2, prompt_logprobs=2)
    text = ask(prompt="for each record", max_tokens=2, n=2, prompt_logprobs=0)

    for answer, found in ((chat, chat["prompt_logprobs"]), (text, text["choices"][1]["prompt_logprobs"])):
        assert len(found) == answer["usage"]["prompt_tokens"]
        assert found[0] is None
        assert all(entry["logprob"] < 0 for row in found[1:] for entry in row.values())
    assert "".join(next(iter(row.values()))["decoded_token"] for row in text["choices"][0]["prompt_logprobs"][1:]) in (
        "for each record"
    )
    assert all(len(row) in (2, 3) for row in chat["prompt_logprobs"][1:])


def test_a_streamed_answer_has_no_prompt_log_probabilities(runtime: Any, model: str) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 2, "prompt_logprobs": 1})

    assert "prompt_logprobs" in refused(runtime, "invoke_model_with_response_stream", modelId=model, body=body)


# -- constraints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}},
        },
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}},
        {"prompt": "x", "structured_outputs": {"json": SCHEMA}},
        {"messages": MESSAGES, "structured_outputs": {"json": SCHEMA}},
    ],
)
def test_an_answer_fits_the_schema_that_was_asked_for(ask: Any, body: dict[str, Any]) -> None:
    for seed in range(3):
        choice = ask(**body, max_tokens=400, seed=seed)["choices"][0]
        found = json.loads(choice["message"]["content"] if "message" in choice else choice["text"])

        assert set(found) == {"line", "rule", "sure"}
        assert 1 <= found["line"] <= 40
        assert found["rule"] in ("DmlInLoop", "SoqlInLoop")
        assert choice["finish_reason"] == "stop"


def test_a_bare_schema_is_what_bedrock_completion_takes(ask: Any) -> None:
    answer = ask(prompt="x", max_gen_len=400, response_format={"type": "json_schema", "json_schema": SCHEMA})

    assert set(json.loads(answer["generation"])) == {"line", "rule", "sure"}


def test_a_json_object_that_is_cut_short_is_an_answer_and_not_an_error(ask: Any) -> None:
    choice = ask(messages=MESSAGES, max_tokens=1, response_format={"type": "json_object"})["choices"][0]

    assert choice["message"]["content"].startswith("{")
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["yes", 'no "x"']}, 'yes|no "x"'),
        ({"regex": r"[A-F]{2}-\d{3}(x|yz)?"}, r"[A-F]{2}-[0-9]{3}(x|yz)?"),
        ({"grammar": 'root ::= "a"+ "b"{1,2}'}, "a+b{1,2}"),
    ],
)
def test_structured_outputs_hold_the_answer_to_them(ask: Any, constraint: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        text = ask(prompt="x", max_tokens=300, seed=seed, structured_outputs=constraint)["choices"][0]
        chat = ask(messages=MESSAGES, max_tokens=300, seed=seed, structured_outputs=constraint)["choices"][0]

        for found in (text["text"], chat["message"]["content"]):
            assert re.fullmatch(pattern, found) or "grammar" in constraint


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"json": {"type": "object", "patternProperties": {}}}, "patternProperties"),
        ({"json": {"type": "object"}, "regex": "a"}, "exactly one"),
    ],
)
def test_a_constraint_that_cannot_be_kept_to_is_refused_by_name(
    runtime: Any, model: str, constraint: dict[str, Any], named: str
) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 5, "structured_outputs": constraint})

    assert named in refused(runtime, "invoke_model", modelId=model, body=body)


# -- sampling -------------------------------------------------------------------------------------


def test_a_stop_sequence_ends_the_answer_is_left_out_and_is_named(ask: Any, runtime: Any, model: str) -> None:
    whole = ask(messages=MESSAGES, max_tokens=12, temperature=0)["choices"][0]["message"]["content"]
    stop = re.findall("[a-z]{2}", whole)[0]
    body = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stop": [stop, "never-said"]}

    choice = ask(**body)["choices"][0]
    asked = {"maxTokens": 12, "temperature": 0, "stopSequences": [stop]}
    answer = runtime.converse(modelId=model, messages=CONVERSE, inferenceConfig=asked)

    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert answer["stopReason"] == "stop_sequence"


def test_a_seed_makes_a_sampled_answer_repeatable_and_choices_differ(ask: Any) -> None:
    body = {"prompt": "for each", "max_tokens": 8, "temperature": 1, "seed": 7, "n": 3}
    first, second = ask(**body), ask(**body)

    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]
    assert len(set(texts)) == 3
    assert first["usage"]["completion_tokens"] == 24


def test_top_k_of_one_and_a_min_p_of_one_are_greedy(ask: Any) -> None:
    body = {"prompt": "for each", "max_tokens": 8}
    greedy = ask(**body, temperature=0)["choices"]

    assert ask(**body, temperature=1, top_k=1, seed=1)["choices"] == greedy
    assert ask(**body, temperature=1, min_p=1, seed=1)["choices"] == greedy
    assert ask(**body, temperature=0, repetition_penalty=2, frequency_penalty=2)["choices"] != greedy


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": "x", "temperature": 3}, "temperature must be a number from 0 to 2, got 3"),
        ({"prompt": "x", "top_p": -1}, "top_p"),
        ({"prompt": "x", "max_gen_len": 0}, "max_gen_len"),
        ({"prompt": ""}, "prompt"),
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            "text only",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(runtime: Any, model: str, body: dict[str, Any], named: str) -> None:
    assert named in refused(runtime, "invoke_model", modelId=model, body=json.dumps(body))


# -- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model", "tool_model"])
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"add", "sub"}), ({"type": "function", "function": {"name": "sub"}}, {"sub"})],
)
def test_a_tool_choice_is_enforced_whatever_the_template(
    request: pytest.FixtureRequest, runtime: Any, which: str, choice: Any, names: set[str]
) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "max_tokens": 90, "parallel_tool_calls": False}
    arn = request.getfixturevalue(which)
    for seed in range(3):
        raw = json.dumps({**body, "seed": seed})
        choice_made = json.loads(runtime.invoke_model(modelId=arn, body=raw)["body"].read())["choices"][0]
        (call,) = choice_made["message"]["tool_calls"]

        assert call["function"]["name"] in names
        assert choice_made["finish_reason"] == "tool_calls"
        arguments = json.loads(call["function"]["arguments"])
        assert arguments == {} if call["function"]["name"] == "sub" else isinstance(arguments["a"], bool)


def test_several_calls_have_ids_of_their_own(ask: Any) -> None:
    calls = []
    for seed in range(8):
        body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "seed": seed}
        calls.append(ask(**body)["choices"][0]["message"]["tool_calls"])

    several = max(calls, key=len)
    assert len(several) > 1
    assert len({call["id"] for call in several}) == len(several)


def test_converse_streams_a_forced_tool_s_input_and_stops_for_it(runtime: Any, tool_model: str) -> None:
    asked = {
        "modelId": tool_model,
        "messages": CONVERSE,
        "toolConfig": {"tools": SPECS, "toolChoice": {"tool": {"name": "add"}}},
        "inferenceConfig": {"maxTokens": 60},
    }
    whole = runtime.converse(**asked)
    events = list(runtime.converse_stream(**asked)["stream"])
    names = [next(iter(event)) for event in events]

    (block,) = whole["output"]["message"]["content"]
    assert whole["stopReason"] == "tool_use"
    assert block["toolUse"]["name"] == "add"
    assert isinstance(block["toolUse"]["input"]["a"], bool)
    assert names[:2] == ["messageStart", "contentBlockStart"]
    assert names[-3:] == ["contentBlockStop", "messageStop", "metadata"]
    assert events[1]["contentBlockStart"]["start"]["toolUse"]["name"] == "add"
    deltas = [e["contentBlockDelta"]["delta"]["toolUse"]["input"] for e in events if "contentBlockDelta" in e]
    assert len(deltas) > 1
    assert isinstance(json.loads("".join(deltas))["a"], bool)
    assert events[-2]["messageStop"]["stopReason"] == "tool_use"


def test_a_tool_s_result_goes_back_and_tools_are_counted_with_the_template(runtime: Any, tool_model: str) -> None:
    use = {"toolUse": {"toolUseId": "t1", "name": "add", "input": {"a": True}}}
    result = {"toolResult": {"toolUseId": "t1", "content": [{"json": {"sum": 3}}], "status": "success"}}
    messages = [*CONVERSE, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    asked = {"messages": messages, "toolConfig": {"tools": SPECS}}
    answer = runtime.converse(modelId=tool_model, **asked, inferenceConfig={"maxTokens": 3})

    counted = runtime.count_tokens(modelId=tool_model, input={"converse": asked})["inputTokens"]
    without = runtime.count_tokens(modelId=tool_model, input={"converse": {"messages": messages}})["inputTokens"]
    assert counted == answer["usage"]["inputTokens"]
    assert without < counted


def test_what_a_chat_template_refuses_is_told_in_its_own_words(server: Server, runtime: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "strict")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    rule = "{% if messages|length > 1 and messages[0].role == messages[1].role %}{{ raise_exception('roles must alternate') }}{% endif %}"
    config["chat_template"] = rule + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    arn = server.import_model(folder, "strict")
    body = json.dumps({"messages": MESSAGES * 3, "max_tokens": 1})

    said = refused(runtime, "invoke_model", modelId=arn, body=body)
    assert said == "The model's chat template refuses the messages: roles must alternate"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x", "name": 5}]},
        {"messages": MESSAGES, "tools": [{"function": {"name": "a", "parameters": 5}}]},
        {"messages": MESSAGES, "logit_bias": {"x": 1}},
        {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{}]}]},
        {"prompt": [999999], "max_tokens": 1},
        {"prompt": "a", "max_tokens": 1, "structured_outputs": {"regex": 5}},
        {"prompt": "a", "max_tokens": 1, "structured_outputs": {"regex": "(a{0,900}){0,900}"}},
        {"prompt": "a", "max_tokens": 1, "structured_outputs": {"json": {"$ref": "#"}}},
        {"prompt": "a", "max_tokens": 1, "structured_outputs": {"json": {"type": "integer", "minimum": "x"}}},
        {"prompt": "a", "max_tokens": 1, "structured_outputs": {"json": {"type": "array", "prefixItems": 5}}},
    ],
)
def test_nonsense_is_the_caller_s_error_and_never_the_server_s(runtime: Any, model: str, body: dict[str, Any]) -> None:
    assert refused(runtime, "invoke_model", modelId=model, body=json.dumps(body))


def test_thoughts_come_back_as_reasoning_content_whole_and_streamed(
    server: Server, runtime: Any, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "thinker")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config["chat_template"].replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    arn = server.import_model(folder, "thinker")
    asked = {"modelId": arn, "messages": CONVERSE, "inferenceConfig": {"maxTokens": 8, "temperature": 0}}

    (block,) = runtime.converse(**asked)["output"]["message"]["content"]
    events = runtime.converse_stream(**asked)["stream"]
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    counted = runtime.count_tokens(modelId=arn, input={"converse": {"messages": CONVERSE}})["inputTokens"]

    thought = block["reasoningContent"]["reasoningText"]["text"]
    assert thought
    assert "".join(delta["reasoningContent"]["text"] for delta in deltas) == thought
    assert counted == runtime.converse(**asked)["usage"]["inputTokens"]


# -- Converse -------------------------------------------------------------------------------------


def test_converse_fills_every_member_that_aws_requires(runtime: Any, model: str) -> None:
    answer = runtime.converse(
        modelId=model,
        system=[{"text": "Be brief."}],
        messages=[
            *CONVERSE,
            {"role": "assistant", "content": [{"text": "ok"}]},
            {"role": "user", "content": [{"text": "go"}]},
        ],
        inferenceConfig={"maxTokens": 4, "temperature": 0, "topP": 0.5},
        additionalModelRequestFields={"top_k": 1},
        requestMetadata={"team": "apex"},
    )

    assert answer["output"]["message"]["role"] == "assistant"
    assert answer["stopReason"] == "max_tokens"
    usage = answer["usage"]
    assert usage["inputTokens"] + usage["outputTokens"] == usage["totalTokens"]
    assert usage["outputTokens"] == 4
    assert answer["metrics"]["latencyMs"] >= 0


def test_the_events_of_a_converse_stream_are_in_aws_s_order(runtime: Any, model: str) -> None:
    greedy = {"maxTokens": 5, "temperature": 0.0}  # a sampled answer may be empty
    stream = runtime.converse_stream(modelId=model, messages=CONVERSE, inferenceConfig=greedy)["stream"]
    names = [next(iter(event)) for event in stream]

    assert names[0] == "messageStart"
    assert set(names[1:-3]) == {"contentBlockDelta"}
    assert names[-3:] == ["contentBlockStop", "messageStop", "metadata"]


@pytest.mark.parametrize("tools", [{}, {"toolConfig": {"tools": SPECS}}], ids=["plain", "with tools"])
def test_an_answer_cut_anywhere_streams_the_text_of_the_whole_one(
    runtime: Any, tool_model: str, tools: dict[str, Any]
) -> None:
    """White space at its end included, unless it shares its token with half a character, which llama.cpp holds back."""
    for most in range(1, 25):
        asked = {"modelId": tool_model, "messages": CONVERSE, **tools}
        asked |= {"inferenceConfig": {"maxTokens": most, "temperature": 0.0}}
        asked |= {"additionalModelRequestFields": {"ignore_eos": True}}
        whole = "".join(block.get("text", "") for block in runtime.converse(**asked)["output"]["message"]["content"])
        events = [event for event in runtime.converse_stream(**asked)["stream"] if "contentBlockDelta" in event]
        streamed = "".join(event["contentBlockDelta"]["delta"].get("text", "") for event in events)
        assert whole.startswith(streamed.rstrip("\ufffd"))
        assert "\ufffd" in whole or whole[len(streamed) :] in ("", " ")


def test_an_answer_that_fills_the_context_says_so(runtime: Any, model: str) -> None:
    answer = runtime.converse(
        modelId=model, messages=CONVERSE, additionalModelRequestFields={"ignore_eos": True}, inferenceConfig={}
    )

    assert answer["stopReason"] == "model_context_window_exceeded"
    assert answer["usage"]["totalTokens"] == 512


def test_a_schema_of_converse_s_output_config_holds(runtime: Any, model: str) -> None:
    structure = {"jsonSchema": {"schema": json.dumps(SCHEMA), "name": "finding"}}
    answer = runtime.converse(
        modelId=model,
        messages=CONVERSE,
        inferenceConfig={"maxTokens": 400},
        outputConfig={"textFormat": {"type": "json_schema", "structure": structure}},
    )

    assert set(json.loads(answer["output"]["message"]["content"][0]["text"])) == {"line", "rule", "sure"}


@pytest.mark.parametrize("operation", ["converse", "converse_stream"])
def test_response_paths_give_back_fields_of_the_model_s_own_answer(runtime: Any, model: str, operation: str) -> None:
    asked = {
        "modelId": model,
        "messages": CONVERSE,
        "inferenceConfig": {"maxTokens": 2, "temperature": 0},
        "additionalModelResponseFieldPaths": ["/choices/0/finish_reason", "/absent/x"],
    }
    answer = getattr(runtime, operation)(**asked)
    if operation == "converse_stream":
        answer = next(event["messageStop"] for event in answer["stream"] if "messageStop" in event)

    assert answer["additionalModelResponseFields"] == {"finish_reason": "length"}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"inferenceConfig": {"temperature": 2.0}}, "temperature"),
        ({"messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "must start with a user message"),
        ({"messages": [{"role": "user", "content": []}]}, "content field in the Message object at messages.0 is empty"),
        ({"messages": [{"role": "user", "content": [{"text": " "}]}]}, "blank"),
        (
            {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": b"x"}}}]}]},
            "image",
        ),
        ({"guardrailConfig": {"guardrailIdentifier": "gr123"}}, "guardrailVersion"),
        ({"guardrailConfig": {"guardrailIdentifier": "gr123", "guardrailVersion": "1"}}, "does not exist"),
        ({"additionalModelResponseFieldPaths": ["stop"]}, "JSON pointers"),
        ({"additionalModelRequestFields": {"top_k": "many"}}, "top_k"),
    ],
)
def test_what_converse_cannot_take_is_a_validation_error(
    runtime: Any, model: str, params: dict[str, Any], named: str
) -> None:
    asked = {"modelId": model, "messages": CONVERSE, **params}

    assert named in refused(runtime, "converse", **asked)


def test_a_text_document_is_read_and_a_pdf_is_refused(runtime: Any, model: str) -> None:
    def document(form: str) -> dict[str, Any]:
        block = {"format": form, "name": "notes", "source": {"bytes": b"insert item;"}}
        content = [{"document": block}, {"text": "Review it."}]
        return {
            "modelId": model,
            "messages": [{"role": "user", "content": content}],
            "inferenceConfig": {"maxTokens": 1},
        }

    plain = {"modelId": model, "messages": [{"role": "user", "content": [{"text": "Review it."}]}]}
    answer = runtime.converse(**document("txt"))

    assert (
        answer["usage"]["inputTokens"]
        > runtime.converse(**plain, inferenceConfig={"maxTokens": 1})["usage"]["inputTokens"]
    )
    assert "documents" in refused(runtime, "converse", **document("pdf"))


def test_a_guardrail_is_never_passed_over_in_silence(runtime: Any, model: str) -> None:
    asked = {"modelId": model, "body": '{"prompt":"x"}'}
    message = refused(runtime, "invoke_model", **asked, guardrailIdentifier="gr123", guardrailVersion="1")

    assert "does not exist" in message
    assert "guardrailVersion" in refused(runtime, "invoke_model", **asked, guardrailIdentifier="gr123")
    body = '{"prompt":"x","amazon-bedrock-guardrailConfig":{"tagSuffix":"a"}}'
    assert "guardrailIdentifier" in refused(runtime, "invoke_model", modelId=model, body=body)


# -- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"messages": MESSAGES, "max_tokens": 1}, {"prompt": "for each", "max_tokens": 1}])
def test_tokens_are_counted_as_the_engine_counts_them(runtime: Any, model: str, ask: Any, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    counted = runtime.count_tokens(modelId=model, input={"invokeModel": {"body": raw}})["inputTokens"]

    assert counted == ask(**body)["usage"]["prompt_tokens"]


def test_a_stream_ends_with_four_integers_and_says_its_type(runtime: Any, model: str) -> None:
    answer = runtime.invoke_model_with_response_stream(modelId=model, body='{"prompt":"for each","max_gen_len":5}')
    chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    metrics = chunks[-1]["amazon-bedrock-invocationMetrics"]

    assert answer["contentType"] == "application/json"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["content-type"] == "application/vnd.amazon.eventstream"
    assert set(metrics) == {"inputTokenCount", "outputTokenCount", "invocationLatency", "firstByteLatency"}
    assert all(type(value) is int for value in metrics.values())
    assert chunks[-1]["stop_reason"] == "length"
