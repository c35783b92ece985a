"""What a checkpoint is found to be, and what broken ones are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import TEMPLATE, copy_of, drop_tensor, make_checkpoint, set_config, truncate_shard

from outcrop.checkpoints.files import INDEX, CheckpointFiles, wanted_texts
from outcrop.checkpoints.inspect import Checkpoint, inspect
from outcrop.checkpoints.problems import SHOWN, CheckpointRejected, Problem

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
Change = Callable[[Path], object]


def found(folder: Path) -> Checkpoint:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    texts = {name: (folder / name).read_bytes() for name in wanted_texts(sizes)}
    headers = {}
    for name in sizes:
        if name.endswith(".safetensors"):
            data = (folder / name).read_bytes()
            headers[name] = data[: 8 + int.from_bytes(data[:8], "little")]
    return inspect(CheckpointFiles(sizes, texts, headers))


def refusal(folder: Path) -> CheckpointRejected:
    with pytest.raises(CheckpointRejected) as refused:
        found(folder)
    assert all(problem.message for problem in refused.value.problems)
    return refused.value


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return copy_of(tiny, tmp_path / "model")


def put(name: str, value: object) -> Change:
    return lambda folder: (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def config(**values: object) -> Change:
    return lambda folder: set_config(folder, **values)


def without_key(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        del values[key]
        (folder / name).write_text(json.dumps(values))

    return change


def test_a_checkpoint_is_described(tiny: Path) -> None:
    checkpoint = found(tiny)

    assert checkpoint.model_type == "qwen2"
    assert checkpoint.dtype == "F32"
    assert checkpoint.weight_bytes == 4 * checkpoint.parameters
    assert checkpoint.context_tokens == 512
    assert checkpoint.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # K and V, layers, KV heads, head size, f16
    assert checkpoint.chat_template == TEMPLATE
    assert checkpoint.eos_token_ids == (1, 2)
    assert checkpoint.bos_token_id is None
    assert len(checkpoint.shards) == 2


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {"rope_scaling": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 512}),  # never closes within the context
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_families_and_variants_that_are_served(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    assert found(make_checkpoint(tmp_path / "model", family, **values)).model_type == family


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("adapter_config.json", {}), "unmerged LoRA adapter. Merge it"),
        (without("config.json"), "config.json is missing"),
        (put("config.json", '{"a": 1,}'), "config.json is not valid JSON"),
        (put("config.json", []), "config.json must hold a JSON object"),
        (put("config.json", "[" * 100_000), "config.json is not valid JSON"),
        (config(model_type="mamba"), "does not support the architecture (mamba)"),
        (config(model_type=["qwen2"]), "does not support the architecture (['qwen2'])"),
        (config(model_type=None), "supported architectures: [llama, mistral, mixtral, qwen2, qwen3, "),
        (config(architectures=["Qwen2ForSequenceClassification"]), "(Qwen2ForSequenceClassification)"),
        (
            config(quantization_config={"quant_method": "awq"}),
            "quantization_config (awq): no engine here reads such weights",
        ),
        (config(hidden_size=0), "hidden_size is 0"),
        (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, an integer from 1 to 1024"),
        (config(vocab_size="512"), "vocab_size is '512'"),
        (config(num_key_value_heads=3), "4 heads over 3 key-value heads do not divide"),
        (config(num_attention_heads=6, num_key_value_heads=6), "does not divide; set head_dim"),
        (config(head_dim=15), "even size is needed"),
        (config(rms_norm_eps="tiny"), "rms_norm_eps is 'tiny'"),
        (without_key("config.json", "num_key_value_heads"), "num_key_value_heads is missing"),
        (config(attention_bias=True), "attention_bias True is not supported"),
        (config(hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
        (
            config(mlp_bias=True),
            "served by vllm (NVIDIA or AMD GPU, or CPU) or sglang (NVIDIA or AMD GPU), not installed here",
        ),
        (config(rope_scaling={"rope_type": "yarn"}), "rope type yarn needs a positive factor"),
        (config(rope_scaling={"type": "longrope", "short_factor": [1.0]}), "longrope needs short_factor with 8"),
        (config(partial_rotary_factor=0.5), "partial_rotary_factor 0.5 is not supported for qwen2"),
        (config(partial_rotary_factor=1.5), "partial_rotary_factor is 1.5"),
        (config(quantization_config="gptq"), "an object with a quant_method is needed"),
        (config(rope_scaling=LLAMA3), "rope type 'llama3' is not supported for qwen2"),
        (config(rope_scaling="linear"), "rope_scaling is 'linear', an object is needed"),
        (config(rope_theta="1e6"), "rope_theta is '1e6'"),
        (without("tokenizer.json"), "tokenizer.json is missing"),
        (put("tokenizer.json", "{"), "tokenizer.json is not valid JSON"),
        (config(vocab_size=100), "belongs to another model"),
        (put("tokenizer_config.json", "nope"), "tokenizer_config.json is not valid JSON"),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
            "chat_template.jinja is not UTF-8",
        ),
        (put(INDEX, {"weight_map": {"a": "gone.safetensors"}}), "names gone.safetensors, which was not uploaded"),
        (put(INDEX, {"weight_map": []}), "has no weight_map"),
        (truncate_shard, "1000 bytes are missing"),
        (lambda folder: drop_tensor(folder, "model.norm.weight"), "Tensor model.norm.weight [64] is missing"),
        (config(num_hidden_layers=1), "does not belong to a qwen2 model"),
        (config(tie_word_embeddings=False), "Tensor lm_head.weight [512, 64] is missing"),
    ],
)
def test_a_broken_checkpoint_is_told_file_value_and_remedy(folder: Path, change: Change, told: str) -> None:
    change(folder)

    assert told in str(refusal(folder))


def test_weights_in_another_format_are_asked_for_as_safetensors(folder: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        shard.rename(shard.with_suffix(".bin"))

    assert "No *.safetensors file was found (*.bin, *.pt and other pickles are not read" in str(refusal(folder))


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))
    (folder / second.name).write_bytes(first.read_bytes())

    assert f"is in both {first.name} and {second.name}" in str(refusal(folder))


def test_all_problems_are_found_at_once(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    set_config(folder, hidden_act="gelu", mlp_bias=True)
    truncate_shard(folder)

    messages = str(refusal(folder))

    assert all(
        part in messages for part in ("tokenizer.json is missing", "hidden_act", "mlp_bias", "bytes are missing")
    )


def test_many_problems_are_counted_and_stay_short(folder: Path) -> None:
    set_config(folder, intermediate_size=96)
    shapes = refusal(folder)
    long = CheckpointRejected([Problem(file="f", message="x" * 1500) for _ in range(3)])

    assert str(shapes).endswith(f"(and {len(shapes.problems) - SHOWN} more)")
    assert len(str(long)) < 2048
    assert str(long).endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.jinja": "A", "chat_template.json": '{"chat_template": "B"}'}, "A"),
        ({"chat_template.json": '{"chat_template": "B"}'}, "B"),
        ({"tokenizer_config.json": '{"eos_token": "<|im_end|>"}'}, None),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}
                )
            },
            "D",
        ),
    ],
)
def test_the_chat_template_is_taken_by_awss_precedence(
    folder: Path, files: Mapping[str, str], template: str | None
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)

    assert found(folder).chat_template == template


def test_every_file_that_names_an_end_of_text_token_is_heard(folder: Path) -> None:
    put("generation_config.json", {"eos_token_id": [40, 41, 9999]})(folder)
    put("tokenizer_config.json", {"eos_token": {"content": "<|endoftext|>"}})(folder)

    assert found(folder).eos_token_ids == (2, 40, 41, 1)


def test_a_checkpoint_without_an_end_of_text_token_is_refused(folder: Path) -> None:
    without("generation_config.json")(folder)
    without("tokenizer_config.json")(folder)
    set_config(folder, eos_token_id=None)

    assert "No end-of-text token is named" in str(refusal(folder))


def test_only_the_shards_that_transformers_reads_are_read(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"not read")

    assert "consolidated.safetensors" not in found(folder).shards
