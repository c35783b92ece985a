"""Write a trained model as a checkpoint in Hugging Face layout, and read it back as a user would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from generator import HELDOUT_SEEDS, sample
from prompts import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, prompt, token_id
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: Qwen2ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint, weights rounded to bf16 and in shards.

    The JSON files are written out rather than saved by the library, so that they hold the field names every reader
    of the format knows (`torch_dtype`, `rope_theta`) whichever version of the library trained the model.
    """
    shutil.rmtree(out, ignore_errors=True)
    rounded = Qwen2ForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    rounded.save_pretrained(out, max_shard_size="2500KB")
    index_file = out / "model.safetensors.index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    total_bytes = index["metadata"]["total_size"]
    write_json(index_file, {"metadata": {"total_size": total_bytes}, "weight_map": index["weight_map"]})

    text, start, end = (token_id(tokenizer, token) for token in (END_OF_TEXT, IM_START, IM_END))
    c = model.config
    write_json(
        out / "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "eos_token_id": end,
            "hidden_act": "silu",
            "hidden_size": c.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": c.intermediate_size,
            "max_position_embeddings": c.max_position_embeddings,
            "max_window_layers": c.num_hidden_layers,
            "model_type": "qwen2",
            "num_attention_heads": c.num_attention_heads,
            "num_hidden_layers": c.num_hidden_layers,
            "num_key_value_heads": c.num_key_value_heads,
            "pad_token_id": text,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": c.vocab_size,
        },
    )
    write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": [end, text], "pad_token_id": text})
    tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, token in ((text, END_OF_TEXT), (start, IM_START), (end, IM_END))
    }
    write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": IM_END,
            "errors": "replace",
            "model_max_length": model.config.max_position_embeddings,
            "pad_token": END_OF_TEXT,
            "split_special_tokens": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    check(out, tokenizer)
    print(f"{sum(f.stat().st_size for f in out.iterdir())} bytes in {out}")


def check(out: Path, tokenizer: Tokenizer) -> None:
    """Read the checkpoint back as a user would; raise AssertionError where it is not what was trained."""
    read = PreTrainedTokenizerFast.from_pretrained(out)
    example = sample(HELDOUT_SEEDS.start)
    chat = [{"role": "user", "content": example.numbered}]
    rendered = read.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == prompt(example), rendered
    assert read(rendered, add_special_tokens=False)["input_ids"] == tokenizer.encode(prompt(example)).ids
    odd = "\tß 漢字\r\n  \x00 12345 'tis\u2028 🙂"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd
