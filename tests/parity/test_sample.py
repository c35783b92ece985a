"""The sample model answers through the whole stack as it does in transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from tests.support.server import Server
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SAMPLE = Path(__file__).parents[2] / "examples" / "apexguru"


def test_the_sample_answers_through_the_whole_stack_as_in_transformers(server: Server) -> None:
    spec = importlib.util.spec_from_file_location("generator", SAMPLE / "generator.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    sys.modules["generator"] = generator
    spec.loader.exec_module(generator)
    arn = server.import_model(SAMPLE / "checkpoint", "apexguru")
    runtime = server.client("bedrock-runtime")
    # Not AutoTokenizer: for model_type qwen2 it builds its own pre-tokenizer and ignores that of tokenizer.json.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(SAMPLE / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(SAMPLE / "checkpoint", dtype=torch.float32)
    for seed in range(40):
        messages = generator.messages(generator.sample(seed))
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        made = model.generate(**inputs, max_new_tokens=200, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        body = json.dumps({"messages": messages, "max_tokens": 200, "temperature": 0})
        answer = json.loads(runtime.invoke_model(modelId=arn, body=body)["body"].read())

        assert answer["choices"][0]["message"]["content"] == tokenizer.decode(made, skip_special_tokens=True), seed
