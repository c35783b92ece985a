"""The CPU engine splits text as the checkpoint's own tokenizer does, and ends it where the checkpoint says."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tests.parity.engine import convert, serving
from tests.support.checkpoints import make_checkpoint
from tests.support.tokenizers import LONG, merged_by_rank, tekken_json, tekken_ranks, tokenizer_json_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from outcrop.checkpoints.pre_tokenizers import LOOSE, PRE_TOKENIZERS
from outcrop.engines.gguf_convert import read

TEXTS = (
    "Hello, world! How are you today? worldwide a worldwide worldwides",
    "I'll we're DON'T IT'S o'clock 'S ' s 'LLAMA",
    "    public void run() {\n\t\tfor (int i = 0; i < 10; i++) {\r\n\t\t\ts += 'x';\r\n\r\n\t}\n    }\n\n\n",
    "1 12 123 1234 12345 3.14159 1,000,000 ٣٤٥ ½ ² Ⅷ ೩",
    "Grüße aus Zürich, naïve café — ‘quoted’ … ½",
    "日本語のテキスト、中文字符。한국어 العربية עִבְרִית हिन्दी ไทย ქართული",
    "🙂👩‍👩‍👧‍👦🇩🇪🏳️‍🌈 ☃️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "e\u0301 A\u030a \u0915\u093f \u1112\u1161\u11ab zero\u200bwidth\ufeff nb\u00a0sp em\u2003sp ideo\u3000sp",
    "a  b   c    d     e                                                        f",
    " lead", "trail ", "\n", "\n\n", " \n", "\n ", "\r\n", "\t", "\t \t", " \u00a0 x", "\u2028\u2029\x85x", "\x0b\x0c\x1c\x1f",
    "   \n   \n\n  x \r \r\n  y\n\n\n   ",
    "!!! ?!... --- === <<>> [](){} \\\\ // /* */ #!@$%^&*~`|",
    "...\n\n!!!\r\n  ???\n x",
    "\x00\x01\x7f\x80\u009f\u00ad",
    "ÀÉÎ ǅ ʰ ª º ı İ ß ẞ ﬁ ŉ",
    "snake_case camelCase SCREAMING_CASE kebab-case x.y::z->w a@b.c https://e.org/?q=1&r=%20#f",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|> <|im_end|><|endoftext|><|im_end",
)  # fmt: skip
# Without U+017F, the long s: after an apostrophe the one known difference, see outcrop/checkpoints/tokenizer.py.
_ALPHABET = "ab Z\t\n\r '.,!_-0123é日🙂\u0301\u00a0\u200d½ª٣"


_UNREACHABLE = "Ġworldwide"  # a word that no merges lead to
_VOCAB = 6000


def _texts() -> list[str]:
    """The texts above and random ones: common characters crowded, and assigned characters of the first two planes."""
    random = Random(3)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x20, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
    rare = [chr(random.randrange(*random.choice(ranges))) for _ in range(6000)]
    rare = [char for char in rare if unicodedata.category(char) != "Cn"]
    made = ["".join(random.choices(_ALPHABET, k=40)) for _ in range(100)]
    made += ["".join(random.choices("abZQ \t\n\r'.,/!_-0123", k=40)) for _ in range(100)]
    made += ["".join(random.choice(random.choice((rare, " \n\r'sa1."))) for _ in range(30)) for _ in range(300)]
    return [*TEXTS, *made]


def _all_joined(texts: list[str]) -> dict[str, Any]:
    """A BPE model whose merges run across words, so that every place where text is split shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB - 20,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    model["vocab"][_UNREACHABLE] = _VOCAB - 20
    return model


def _split_by(*patterns: str, ignore_merges: bool = False) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        rules = [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
            for regex in patterns
        ]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*rules, level]}
        document["model"]["ignore_merges"] = ignore_merges

    return change


def _like_starcoder(document: dict[str, Any]) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, level]}


def _as_it_is(document: dict[str, Any]) -> None:
    pass


def _without_ignore_merges(document: dict[str, Any]) -> None:
    document["model"]["ignore_merges"] = False


def _like_gpt2(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def _with_nfc(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "NFC"}


def _sentencepiece(folder: Path, *, unigram: bool) -> Path:
    """``tokenizer.model`` in *folder*, trained as Llama's was: bytes to fall back on, text left as it is."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(LONG.splitlines()))
    SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="unigram" if unigram else "bpe",
        vocab_size=450 if unigram else 700,
        byte_fallback=not unigram,
        character_coverage=0.99,
        normalization_rule_name="nmt_nfkc" if unigram else "identity",
        remove_extra_whitespaces=unigram,
        allow_whitespace_only_pieces=not unigram,
        split_digits=True,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    return folder / "tokenizer.model"


def test_a_sentencepiece_model_alone_gives_the_ids_of_the_sentencepiece_library(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", vocab_size=768, eos_token_id=2, has_chat_template=False)
    processor = SentencePieceProcessor(model_file=str(_sentencepiece(folder, unigram=False)))
    done = convert(folder, tmp_path / "model.gguf")
    texts = [*TEXTS[:-2], *LONG.splitlines(), LONG[:20_000], *(probe["text"] for probe in done["probes"])]

    with serving(tmp_path / "model.gguf", 512) as engine:
        wrong = [text for text in texts if text and engine.tokenize(text) != processor.encode(text)]
        started = engine.tokenize("for each", add_special=True)

    assert wrong == []
    assert started == [1, *processor.encode("for each")]


def test_a_unigram_model_alone_gives_the_ids_of_the_sentencepiece_library(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", vocab_size=768, eos_token_id=2, has_chat_template=False)
    processor = SentencePieceProcessor(model_file=str(_sentencepiece(folder, unigram=True)))
    convert(folder, tmp_path / "model.gguf")

    with serving(tmp_path / "model.gguf", 512) as engine:
        wrong = [text for text in LONG.splitlines() if engine.tokenize(text) != processor.encode(text)]

    assert wrong == []


@pytest.mark.parametrize("style", ["prepended", "metaspace", "gemma"])
def test_a_tokenizer_json_made_from_sentencepiece_gives_the_ids_of_its_library(tmp_path: Path, style: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", vocab_size=768, eos_token_id=2, has_chat_template=False)
    model = _sentencepiece(folder, unigram=False)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json_of(model, style)))
    model.unlink()
    convert(folder, tmp_path / "model.gguf")
    own = Tokenizer.from_file(str(path))
    texts = [
        text.lstrip(" ") if style == "metaspace" else text for text in (*TEXTS[:-2], *LONG.splitlines(), LONG[:20_000])
    ]

    with serving(tmp_path / "model.gguf", 512) as engine:
        wrong = [text for text in texts if engine.tokenize(text) != own.encode(text, add_special_tokens=False).ids]

    assert wrong == []


def test_a_tekken_file_gives_the_ids_of_merging_by_rank(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "mistral", vocab_size=1024, eos_token_id=2, has_chat_template=False)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    ranks = tekken_ranks(LONG, 900)
    (folder / "tekken.json").write_text(json.dumps(tekken_json(ranks)))
    convert(folder, tmp_path / "model.gguf")
    words = _words()

    wanted = {text: [rank + 20 for rank in merged_by_rank(text.encode(), ranks)] for text in words}

    with serving(tmp_path / "model.gguf", 512) as engine:
        wrong = [text for text in words if engine.tokenize(text) != wanted[text]]

    assert wrong == []


def _words() -> list[str]:
    """Single words of the long text, which no pattern splits further."""
    return sorted(set(re.findall(r"[a-zäöüß]+", LONG)))


def test_a_hundred_kilobytes_of_many_languages_get_the_ids_of_the_checkpoints_tokenizer(tmp_path: Path) -> None:
    assert len(LONG.encode()) >= 100_000
    folder = make_checkpoint(tmp_path / "model", "qwen2", vocab_size=_VOCAB)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"] = {**_all_joined(LONG.splitlines()), "ignore_merges": False}
    path.write_text(json.dumps(document))
    convert(folder, tmp_path / "model.gguf")

    with serving(tmp_path / "model.gguf", 512) as engine:
        found = engine.tokenize(LONG)

    assert found == Tokenizer.from_file(str(path)).encode(LONG, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", _as_it_is),
        ("llama", _without_ignore_merges),
        ("qwen2", _as_it_is),
        ("qwen2", _with_nfc),
        ("qwen2", _like_gpt2),
        ("qwen2", _like_starcoder),
        *(
            ("qwen2", _split_by(*rules, ignore_merges=ignore_merges))
            for (rules, ignore_merges), name in PRE_TOKENIZERS.items()
            if name in ("qwen35", "gpt-4o", "tekken", "deepseek-v3")
        ),
    ],
    ids=[
        *("llama-bpe", "dbrx", "qwen2", "qwen2 with NFC", "gpt-2", "starcoder"),
        *(name for name in PRE_TOKENIZERS.values() if name in ("qwen35", "gpt-4o", "tekken", "deepseek-v3")),
    ],
)
def test_every_text_gets_the_ids_of_the_checkpoints_tokenizer(
    tmp_path: Path, family: str, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = make_checkpoint(tmp_path / "model", family, vocab_size=_VOCAB)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    texts = _texts()
    document["model"] = {**_all_joined(texts), "ignore_merges": document["model"]["ignore_merges"]}
    change(document)
    path.write_text(json.dumps(document))
    if read(folder).tokenizer.pre in LOOSE:
        texts = [text for text in texts if text in TEXTS or text.isascii()]
        texts = ["".join(char for char in text if unicodedata.category(char)[0] != "M") for text in texts]
    done = convert(folder, tmp_path / "model.gguf")
    tokenizer = Tokenizer.from_file(str(path))
    if change is _with_nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]

    wrong = {}
    with serving(tmp_path / "model.gguf", 512) as engine:
        for text in texts:
            wanted = tokenizer.encode(text, add_special_tokens=False).ids
            if engine.tokenize(text) != wanted:
                wrong[text] = (engine.tokenize(text), wanted)
        wrong |= {probe["text"]: "probe" for probe in done["probes"] if engine.tokenize(probe["text"]) != probe["ids"]}

    assert list(wrong) == []


def test_the_beginning_of_text_is_added_as_the_post_processor_does(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 2)]
    )
    tokenizer.save(str(path))
    convert(folder, tmp_path / "model.gguf")

    with serving(tmp_path / "model.gguf", 512) as engine:
        assert engine.tokenize("for each", add_special=True) == tokenizer.encode("for each").ids
        assert engine.tokenize("for each") == tokenizer.encode("for each", add_special_tokens=False).ids


def test_every_end_of_text_token_ends_a_text_and_no_other_does(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    stops = [2, 60, 61, 62, 63, 64]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    convert(folder, tmp_path / "model.gguf")

    ended = set()
    with serving(tmp_path / "model.gguf", 512) as engine:
        for token in range(70):
            forced = {"n_predict": 2, "samplers": [], "logit_bias": [[token, 1e6]]}
            if engine.complete(prompt=[50, 51], **forced)["stop_type"] == "eos":
                ended.add(token)

    assert ended == {1, *stops}
