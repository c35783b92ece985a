"""Every family's row: what its config implies, what it takes, which engines serve it and why others do not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.exactness.test_recorded import RECORDED
from tests.support.checkpoints import make_checkpoint, set_config
from tests.support.zoo import ZOO, write_weights

from outcrop.checkpoints.engines import LLAMA_CPP, Available
from outcrop.checkpoints.families import FAMILIES
from outcrop.checkpoints.inspect import Checkpoint, inspect
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.sizing import kv_bytes_of, kv_bytes_per_token
from outcrop.checkpoints.units import model_units
from outcrop.engines.gguf_convert import read_files

WITH_GPU = Available(names=frozenset({LLAMA_CPP, "vllm"}))


def found(folder: Path, available: Available | None = None) -> Checkpoint:
    files = read_files(folder)
    return inspect(files, available) if available else inspect(files)


def served_by(checkpoint: Checkpoint) -> list[str]:
    return [verdict.engine for verdict in checkpoint.engines if verdict.serves]


@pytest.mark.parametrize("name", ZOO)
def test_a_checkpoint_of_every_family_is_described(name: str, tmp_path: Path) -> None:
    checkpoint = found(write_weights(tmp_path / "model", RECORDED[name]["config"]))

    assert checkpoint.model_type == ZOO[name][0]
    assert checkpoint.engine == LLAMA_CPP
    assert checkpoint.dtype == "F32"
    assert checkpoint.weight_bytes == 4 * checkpoint.parameters
    assert checkpoint.context_tokens == (128 if "one window" in name else 512)
    assert 0 < checkpoint.kv_bytes_full_context <= checkpoint.context_tokens * checkpoint.kv_bytes_per_token


# Parameters as their makers publish them, KV bytes per token in 16 bits; configs as published, shortened to what counts.
PUBLISHED: Mapping[str, tuple[dict[str, Any], float, int]] = {
    "Llama 3.1 8B": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072},
        8.03e9, 131072,
    ),
    "Llama 3.1 70B": (
        {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072},
        70.55e9, 327680,
    ),
    "Mixtral 8x7B": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
         "num_local_experts": 8, "num_experts_per_tok": 2},
        46.7e9, 131072,
    ),
    "Qwen2.5 14B": (
        {"model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
         "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 16384},
        14.77e9, 196608,
    ),
    "Qwen3 30B-A3B": (
        {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
         "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
         "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        30.5e9, 98304,
    ),
    "StarCoder": (
        {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_layer": 40, "n_inner": 24576,
         "n_positions": 8192, "vocab_size": 49152, "multi_query": True},
        15.5e9, 20480,
    ),
    "Gemma 2 9B": (
        {"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
         "max_position_embeddings": 8192, "sliding_window": 4096},
        9.24e9, 344064,
    ),
    "DeepSeek-V3": (
        {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
         "num_attention_heads": 128, "vocab_size": 129280, "max_position_embeddings": 163840, "q_lora_rank": 1536,
         "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
         "first_k_dense_replace": 3},
        671e9, 70272,
    ),
    "GPT-OSS 20B": (
        {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
         "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
         "max_position_embeddings": 131072, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128},
        20.9e9, 49152,
    ),
    "Flan-T5 XXL": (
        {"model_type": "t5", "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64,
         "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        11.135e9, 393216,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_sizes(name: str) -> None:
    raw, parameters, kv_bytes = PUBLISHED[name]
    family = FAMILIES[raw["model_type"]]
    config = family.read(raw)
    assert family.tensors is not None
    counted = sum(_product(shape) for shape in family.tensors(config).values())

    assert counted == pytest.approx(parameters, rel=0.01)
    assert kv_bytes_per_token(config) == kv_bytes


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize(("name", "units"), [("Llama 3.1 8B", 2), ("Llama 3.1 70B", 8), ("Qwen2.5 14B", 1)])
def test_units_from_config_alone_are_the_published_ones(name: str, units: int) -> None:
    raw, _, _ = PUBLISHED[name]
    family = FAMILIES[raw["model_type"]]
    config = family.read(raw)
    assert family.tensors is not None
    weight_bytes = 2 * sum(_product(shape) for shape in family.tensors(config).values())
    context = config["max_position_embeddings"]

    assert model_units(weight_bytes, kv_bytes_of(config, context) // context, context) == units


def test_a_sliding_window_keeps_no_more_than_itself() -> None:
    config = FAMILIES["gemma2"].read(PUBLISHED["Gemma 2 9B"][0])

    assert kv_bytes_of(config, 4096) == 4096 * kv_bytes_per_token(config)
    assert kv_bytes_of(config, 8192) == 6144 * kv_bytes_per_token(config)


def test_a_window_that_the_cpu_engine_does_not_keep_shortens_the_context_and_says_so(tmp_path: Path) -> None:
    checkpoint = found(make_checkpoint(tmp_path / "model", "mistral", sliding_window=128))

    assert checkpoint.context_tokens == 128
    assert any("128 tokens of 512" in note for note in checkpoint.notes)
    assert {verdict.engine: verdict.context_tokens for verdict in checkpoint.engines}["vllm"] == 512


def test_layers_that_only_predict_further_tokens_are_no_part_of_the_model(tmp_path: Path) -> None:
    config = {**RECORDED["deepseek_v3"]["config"], "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    plain = found(write_weights(tmp_path / "plain", config))
    folder = write_weights(tmp_path / "model", {**config, "num_hidden_layers": 3})
    set_config(folder, num_hidden_layers=2)

    assert found(folder).parameters == plain.parameters
    set_config(folder, num_nextn_predict_layers=0)
    with pytest.raises(CheckpointRejected, match=r"model\.layers\.2\..* does not belong to a deepseek_v3 model"):
        found(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_quantised_weights_are_served_where_an_engine_reads_them(tmp_path: Path, method: str) -> None:
    folder = set_config(make_checkpoint(tmp_path / "model"), quantization_config={"quant_method": method, "bits": 4})

    checkpoint = found(folder, WITH_GPU)

    assert checkpoint.engine == "vllm"
    assert checkpoint.quantisation is not None
    assert (checkpoint.quantisation.method, checkpoint.quantisation.bits) == (method, 4)
    with pytest.raises(CheckpointRejected) as refused:
        found(folder)
    assert f"({method}): no engine here reads such weights. It can be served by vllm" in str(refused.value)


def test_an_option_that_the_cpu_engine_lacks_is_left_to_an_engine_that_has_it(tmp_path: Path) -> None:
    folder = set_config(make_checkpoint(tmp_path / "model"), hidden_act="gelu")

    checkpoint = found(folder, WITH_GPU)

    assert checkpoint.engine == "vllm"
    assert next(v.reason for v in checkpoint.engines if v.engine == LLAMA_CPP) == (
        "hidden_act 'gelu' is not supported by the CPU engine"
    )


def test_a_tokenizer_that_the_cpu_engine_lacks_is_left_to_an_engine_that_runs_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))

    assert found(folder, WITH_GPU).engine == "vllm"
    with pytest.raises(CheckpointRejected, match=r"Lowercase.*It can be served by vllm"):
        found(folder)


def test_an_encoder_and_decoder_is_kept_for_an_engine_that_serves_it(tmp_path: Path) -> None:
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_ff": 64,
              "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 512, "feed_forward_proj": "gated-gelu",
              "tie_word_embeddings": False, "eos_token_id": 1}  # fmt: skip

    checkpoint = found(write_weights(tmp_path / "model", config))

    assert checkpoint.engine is None
    assert served_by(checkpoint) == ["tensorrt-llm"]
    assert any("no engine of this installation serves T5" in note for note in checkpoint.notes)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "mllama"])
def test_vision_language_checkpoints_are_sized_and_kept_for_a_gpu_engine(tmp_path: Path, model_type: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    text = json.loads((folder / "config.json").read_text())
    text = {key: text[key] for key in text if key not in ("model_type", "architectures")}
    nested = {"model_type": model_type, "architectures": [FAMILIES[model_type].architecture], "text_config": text}
    (folder / "config.json").write_text(json.dumps({**nested, "vision_config": {"depth": 2}}))

    checkpoint = found(folder)

    assert (checkpoint.modality, checkpoint.engine) == ("vision-language", None)
    assert served_by(checkpoint) == ["vllm", "sglang"]
    assert checkpoint.weight_bytes == 4 * checkpoint.parameters > 0
    assert checkpoint.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert found(folder, WITH_GPU).engine == "vllm"


def test_what_no_row_covers_is_taken_on_an_engines_word_only(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    set_config(folder, model_type="olmo9", architectures=["Olmo9ForCausalLM"])
    said = Available(
        names=frozenset({LLAMA_CPP, "vllm"}),
        architectures={"vllm": frozenset({"Olmo9ForCausalLM", "Qwen2ForCausalLM"})},
    )

    checkpoint = found(folder, said)

    assert (checkpoint.engine, checkpoint.model_type) == ("vllm", "olmo9")
    assert any("because vllm says that it serves it" in note for note in checkpoint.notes)
    with pytest.raises(CheckpointRejected, match=r"does not support the architecture \(olmo9\)"):
        found(folder)


def test_an_engine_that_was_asked_and_does_not_know_an_architecture_does_not_serve_it(tmp_path: Path) -> None:
    said = Available(names=frozenset({"vllm"}), architectures={"vllm": frozenset({"LlamaForCausalLM"})})

    checkpoint = found(make_checkpoint(tmp_path / "model"), said)

    assert checkpoint.engine is None
    assert next(v.reason for v in checkpoint.engines if v.engine == "vllm") == (
        "vllm, as installed, does not serve Qwen2ForCausalLM"
    )
