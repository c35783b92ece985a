"""Tokenizers in other formats than ``tokenizer.json``, and a long text in many languages to compare them on."""

from __future__ import annotations

import base64
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from outcrop.checkpoints.pre_tokenizers import PRE_TOKENIZERS
from outcrop.checkpoints.sentencepiece import SPACE, parse_model

_SENTENCES = (
    "Die Maschine prüft jede Datei, bevor ein einziges Byte bewegt wird; sonst sagt sie, was fehlt.",
    "La machine vérifie chaque fichier avant de déplacer un seul octet, sinon elle dit ce qui manque.",
    "La máquina comprueba cada archivo antes de mover un solo byte; si no, dice qué falta. ¿Y después?",
    "The machine checks every file before a single byte moves; otherwise it says what is missing.",
    "Машина проверяет каждый файл, прежде чем сдвинется хотя бы один байт.",
    "Η μηχανή ελέγχει κάθε αρχείο πριν μετακινηθεί έστω και ένα byte.",
    "機械は一バイトも動かす前に、すべてのファイルを調べます。足りないものがあれば、そう言います。",
    "机器在移动任何一个字节之前检查每个文件，否则它会说明缺少什么。",
    "기계는 단 하나의 바이트도 옮기기 전에 모든 파일을 검사합니다.",
    "الآلة تفحص كل ملف قبل أن يتحرك بايت واحد، وإلا فإنها تقول ما الذي ينقص.",
    "המכונה בודקת כל קובץ לפני שבית אחד זז, אחרת היא אומרת מה חסר.",
    "मशीन एक भी बाइट हिलाने से पहले हर फ़ाइल की जाँच करती है।",
    "เครื่องจะตรวจสอบทุกไฟล์ก่อนที่จะย้ายแม้แต่ไบต์เดียว",
    "Makine tek bir bayt taşınmadan önce her dosyayı denetler. Việc kiểm tra diễn ra trước khi bắt đầu.",
    "for (int i = 0; i < 10; i++) { total += values[i] * 3.14159; }  // 42 %",
    "    return {key: value[::-1] for key, value in sorted(found.items()) if value is not None}",
    "🙂 👩‍👩‍👧‍👦 🇩🇪 ☃️ — “quoted”, ‘single’ … ½ × 12 345,67 € = £8.90",
)


def _long() -> str:
    random = Random(17)
    lines: list[str] = []
    while sum(map(len, lines)) < 75_000:
        words = random.choice(_SENTENCES).split(" ")
        cut = random.randrange(len(words))
        lines.append(" ".join(words[cut:] + words[:cut]) + random.choice(("", "  ", "\t", " 1234567", "!!")))
    return "\n".join(lines)


LONG = _long()


def tokenizer_json_of(model: Path, style: str) -> dict[str, Any]:
    """*model* (a SentencePiece BPE) as transformers writes it: a merge for every way to split a piece, best first."""
    found = parse_model(model.read_bytes(), {}, bos=True)
    assert found.scores is not None
    vocab = {text: index for index, text in found.tokens.items()}
    plain = {text for text, index in vocab.items() if index not in found.special | found.bytes_}
    merges = []
    for piece in sorted(plain, key=lambda text: vocab[text]):
        ways = [
            (piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in plain and piece[cut:] in plain
        ]
        merges += [[left, right] for left, right in sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    if style == "prepended":
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    elif style == "metaspace":
        pre_tokenizer = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
    else:
        normalizer = replace
        pre_tokenizer = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    names = {index: found.tokens[index] for index in (0, 1, 2)}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
            for index, text in names.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": names[0], "fuse_unk": True, "byte_fallback": True},
    }  # fmt: skip


def tekken_ranks(text: str, size: int) -> dict[bytes, int]:
    """A byte BPE of *size* ranks, trained the simple way on the words of *text*."""
    ranks = {bytes([value]): value for value in range(256)}
    words = Counter(tuple(bytes([value]) for value in word.encode()) for word in text.split())
    while len(ranks) < size:
        pairs = Counter[tuple[bytes, bytes]]()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        joined = Counter[tuple[bytes, ...]]()
        for word, times in words.items():
            joined[_joined(word, best)] += times
        words = joined
    return ranks


def _joined(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    parts: list[bytes] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def tekken_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    """*ranks* as Mistral's ``tekken.json``, with 20 special tokens before them."""
    ((pattern,),) = [rules for (rules, _), name in PRE_TOKENIZERS.items() if name == "tekken"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    specials = [
        {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    config = {
        "pattern": pattern,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    return {"config": config, "vocab": vocab, "special_tokens": specials}  # fmt: skip


def merged_by_rank(token: bytes, ranks: dict[bytes, int]) -> list[int]:
    """*token* as tiktoken encodes one word: found whole, or its bytes merged, the lowest rank first."""
    if token in ranks:
        return [ranks[token]]
    parts = [bytes([value]) for value in token]
    while pairs := [
        (ranks[left + right], at) for at, (left, right) in enumerate(pairwise(parts)) if left + right in ranks
    ]:
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]
