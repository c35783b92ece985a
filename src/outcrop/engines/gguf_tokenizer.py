"""The artefact's vocabulary, and texts by which it is compared with the checkpoint's own tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from outcrop.checkpoints import bpe_files, sentencepiece, tokenizer
from outcrop.checkpoints.files import wanted_texts
from outcrop.checkpoints.inspect import Checkpoint
from outcrop.checkpoints.pre_tokenizers import LOOSE, PRE_TOKENIZERS
from outcrop.checkpoints.problems import CheckpointRejected

# Tokens that llama.cpp ends a text at because of how they are written, whatever the metadata says.
_ENDS_BY_TEXT = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<|eom_id|>"),
        *("<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOS]"),
    }
)

# The marks of fill-in-the-middle end a text too; nothing else here uses them.
_STOP_KEYS = (
    gguf.Keys.Tokenizer.EOS_ID,
    gguf.Keys.Tokenizer.EOT_ID,
    gguf.Keys.Tokenizer.EOM_ID,
    gguf.Keys.Tokenizer.FIM_PAD_ID,
    gguf.Keys.Tokenizer.FIM_REP_ID,
    gguf.Keys.Tokenizer.FIM_SEP_ID,
)
_MODELS = {"bpe": "gpt2", "spm": "llama", "unigram": "t5"}

PROBES = (
    "Hello, world! How are you today?",
    "for (Account a : [SELECT Id FROM Account WHERE Name = :n LIMIT 10]) {\n        update a;\n\t}\n\n\n",
    "12|   x += 3.14159 * 1000000; // 7% of $42",
    "Grüße aus Zürich, naïve café — ‘quoted’ … ½",
    "日本語のテキスト 中文字符 한국어 العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\ufeff",
    "I'll we're DON'T it's  two  spaces   three\r\n\r\nend ",
    "                    deep\n \n  \n",
    "def f(self, *args, **kwargs):\n    return {k: v[::-1] for k, v in kwargs.items() if v is not None}\n",
    "camelCase snake_case SCREAMING kebab-case x.y::z->w a@b.c https://e.org/?q=1&r=%20#f",
    "Съешь ещё этих мягких французских булок, да выпей же чаю. Ελληνικά Türkçe Việt ไทย ქართული",
    "\t\t\t\ttabs  \t mixed \u00a0 nbsp \u3000 ideographic\n\n\n\nfour newlines\n",
)


def describe_tokenizer(writer: Any, checkpoint: Checkpoint) -> list[str]:
    """Write the vocabulary; what of the checkpoint's stops the engine cannot follow."""
    found, size = checkpoint.tokenizer, checkpoint.config["vocab_size"]
    if found.kind == "spm" and found.merges and (piece := sentencepiece.merges_follow_scores(found)):
        raise CheckpointRejected.of(
            f"tokenizer.json builds {piece!r} by merges of its own, where the CPU engine merges by score. Upload the "
            "tokenizer.model that it came from, without tokenizer.json.",
            tokenizer.FILE,
        )
    taken = frozenset(found.tokens.values())
    texts, kinds, scores = [], [], []
    for index in range(size):
        text = found.tokens.get(index)
        scores.append((found.scores or {}).get(index, -1e6))
        if text is None:
            text = f"[PAD{index}]"
            while text in taken:
                text += "_"
        texts.append(text)
        kinds.append(_kind(checkpoint, index))
    writer.add_tokenizer_model(_MODELS[found.kind])
    writer.add_tokenizer_pre(found.pre or "default")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    if found.kind == "bpe":
        writer.add_token_merges(list(found.merges))
    else:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(found.space_prefix)
        if found.unknown is not None:
            writer.add_unk_token_id(found.unknown)
    if found.kind == "unigram":
        writer.add_remove_extra_whitespaces(found.squeezes_spaces)
        if found.charsmap:
            writer.add_precompiled_charsmap(found.charsmap)
    writer.add_add_bos_token(found.bos is not None)
    if found.kind != "bpe" or found.eos is not None:
        writer.add_add_eos_token(found.eos is not None)
    if checkpoint.bos_token_id is not None:
        writer.add_bos_token_id(checkpoint.bos_token_id)
    if checkpoint.chat_template is not None:
        writer.add_chat_template(_template(checkpoint))
    return _describe_stops(writer, checkpoint)


def _kind(checkpoint: Checkpoint, index: int) -> Any:
    found = checkpoint.tokenizer
    if index not in found.tokens:
        return gguf.TokenType.UNUSED
    if index in found.bytes_:
        return gguf.TokenType.BYTE
    if index == found.unknown and found.kind != "bpe":
        return gguf.TokenType.UNKNOWN
    if index in found.special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if index in found.added else gguf.TokenType.NORMAL


def _describe_stops(writer: Any, checkpoint: Checkpoint) -> list[str]:
    """llama.cpp has places for ids that end a text, and knows some by how they are written: those need none."""
    first, *others = checkpoint.eos_token_ids
    tokens = checkpoint.tokenizer.tokens
    others = [index for index in others if tokens[index] not in _ENDS_BY_TEXT]
    for key, index in zip(_STOP_KEYS, [first, *others], strict=False):
        writer.add_uint32(key, index)
    notes = []
    if left := [tokens[index] for index in others[len(_STOP_KEYS) - 1 :]]:
        notes.append(f"the engine does not end a text at {', '.join(left)}: it holds {len(_STOP_KEYS)} such tokens")
    ends_anyway = {text for index, text in tokens.items() if index not in checkpoint.eos_token_ids} & _ENDS_BY_TEXT
    if ends_anyway:
        notes.append(f"the engine also ends a text at {', '.join(sorted(ends_anyway))}")
    return notes


def _template(checkpoint: Checkpoint) -> str:
    """The chat template; without a bos token its ``bos_token`` is empty, where llama.cpp would put token 11."""
    template = checkpoint.chat_template or ""
    if checkpoint.bos_token_id is None and "bos_token" in template:
        return "{%- set bos_token = '' -%}" + template
    return template


def probes(folder: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Texts and the ids that the checkpoint's own tokenizer gives: the engine must give the same."""
    found = checkpoint.tokenizer
    encode = encoder(folder, checkpoint)
    texts = list(PROBES)
    if _tokenizer_json(folder) is not None:
        groups = [[found.tokens[i] for i in sorted(ids)[:8]] for ids in (found.special, found.added - found.special)]
        texts += [f"{marks[0]}user\nHi {' and '.join(marks[1:])}{''.join(marks)}\n" for marks in groups if marks]
    if found.nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    if found.pre in LOOSE:
        texts = ["".join(char for char in text if unicodedata.category(char)[0] != "M") for text in texts]
    if found.swallows_space:
        texts = [text.lstrip(" ") for text in texts]
    return [{"text": text, "ids": encode(text)} for text in texts]


def encoder(folder: Path, checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """The checkpoint's own tokenizer, run by the library that its file belongs to; nothing is added to a text."""
    if (document := _tokenizer_json(folder)) is not None:
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(document.decode())
        own.no_truncation()
        own.no_padding()
        return lambda text: list(own.encode(text, add_special_tokens=False).ids)
    if (folder / sentencepiece.FILE).exists():
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(folder / sentencepiece.FILE))
        return lambda text: list(processor.encode(text))
    return _tekken_encoder(checkpoint)


def _tokenizer_json(folder: Path) -> bytes | None:
    """The ``tokenizer.json`` of *folder*, or the one that its other files amount to; None where they do not."""
    texts = {name: (folder / name).read_bytes() for name in wanted_texts(path.name for path in folder.iterdir())}
    if tokenizer.FILE in texts:
        return texts[tokenizer.FILE]
    return bpe_files.tokenizer_json(texts) if bpe_files.FILE in texts else None


def _tekken_encoder(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """tekken.json run by Hugging Face's library, with the merges that were derived from its ranks."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    found = checkpoint.tokenizer
    ((pattern,),) = [rules for (rules, _), name in PRE_TOKENIZERS.items() if name == found.pre]
    vocab = {text: index for index, text in found.tokens.items()}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in found.merges)]
    own = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    own.add_special_tokens([AddedToken(found.tokens[index], normalized=False) for index in sorted(found.special)])
    return lambda text: list(own.encode(text, add_special_tokens=False).ids)
