"""Tiny random checkpoints in Hugging Face layout, made without torch, and ways to break them."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from outcrop.checkpoints.families import FAMILIES

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DIGITS = {"qwen2": r"\p{N}", "qwen3": r"\p{N}", "llama": r"\p{N}{1,3}", "mistral": r"\p{N}{1,3}"}
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = [Path(__file__).read_text()] * 3
VOCAB = 512


def make_checkpoint(
    folder: Path,
    family: str = "qwen2",
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    context: int = 512,
    has_chat_template: bool = True,
    shards: int = 2,
    **config: object,
) -> Path:
    """Write a random float32 checkpoint of *family* to *folder*; the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    full = {
        "model_type": family,
        "architectures": [FAMILIES[family].architecture],
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": layers,
        "vocab_size": VOCAB,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": family == "qwen2",
        "eos_token_id": 1,
        **({"head_dim": hidden // 4} if family == "qwen3" else {}),
        **({"sliding_window": None} if family == "mistral" else {}),
        "torch_dtype": "float32",
        **config,
    }
    _json(folder / "config.json", full)
    _json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    if has_chat_template:
        tokenizer_config["chat_template"] = TEMPLATE
    _json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "tokenizer.json").write_text(tokenizer_json(family))
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(1 if "norm" in name else 0, 0.2 if "norm" in name else 0.15, shape).astype(np.float32)
        for name, shape in FAMILIES[family].tensors(full).items()
    }
    weight_map = {}
    names = list(tensors)
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def truncate_shard(folder: Path) -> Path:
    shard = _shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-1000])
    return folder


def drop_tensor(folder: Path, name: str) -> Path:
    for shard in _shards(folder):
        tensors = load_file(shard)
        if tensors.pop(name, None) is not None:
            save_file(tensors, shard)
    return folder


def fill_nan(folder: Path, name: str) -> Path:
    for shard in _shards(folder):
        tensors = {key: value.copy() for key, value in load_file(shard).items()}
        if name in tensors:
            tensors[name].flat[7] = np.nan
            save_file(tensors, shard)
    return folder


def set_config(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    _json(folder / "config.json", {**config, **values})
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


@lru_cache
def tokenizer_json(family: str) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=family in ("llama", "mistral")))
    split = pre_tokenizers.Split(Regex(_SPLIT.format(digits=_DIGITS[family])), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 12,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer.to_str()


# Eight texts of at least 64 tokens: prose, other scripts, emoji, code, white space, special tokens.
PROMPTS = (
    "The import service reads a checkpoint, checks its tensors, converts it and proves that it answers. " * 2,
    "Grüße aus Zürich: naïve Café-Besucher zahlen 3,50 € für «Rösti» – ‘quoted’ … ½ 日本語のテキスト 中文字符 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪🏳️‍🌈☃️𝔘𝔫𝔦𝔠𝔬𝔡𝔢 e\u0301 A\u030a zero\u200bwidth\ufeff nb\u00a0sp",
    "for (Account a : [SELECT Id FROM Account WHERE Name = :n LIMIT 10]) {\n        update a;\n\t}\n\n\n" * 2,
    "def f(self, *args, **kwargs):\n    return {k: v[::-1] for k, v in kwargs.items() if v}  # 12345.678\n" * 2,
    "a" + " " * 40 + "b\n\n\n\n\t\t\t\tc" + "\n " * 20 + "d" + " \r\n" * 12 + "e",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n<|endoftext|>" * 3,
    "العربية עִבְרִית हिन्दी ไทย ქართული Ελληνικά Съешь ещё этих мягких французских булок",
)
