"""SentencePiece tokenizers: ``tokenizer.model`` (a protobuf), and the ``tokenizer.json`` that was made from one.

The CPU engine merges by score: of all neighbours whose union is a piece, the best scored first, the leftmost of equals.
A BPE in ``tokenizer.json`` merges by rank; the two agree when every way to split a piece has a merge and ranks follow
scores, which ``merges_follow_scores`` says. Sources: sentencepiece_model.proto; tokenizers, models/bpe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import Tokenizer, refused, steps

FILE = "tokenizer.model"
SPACE = "\u2581"
_BYTES = {f"<0x{value:02X}>" for value in range(256)}
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # SentencePiece.Type; 1 is a normal piece
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NO_MERGE = -1e6


def is_kind(model: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json``'s *model* came from SentencePiece: Unigram, or BPE with bytes to fall back on."""
    return model.get("type") == "Unigram" or bool(model.get("byte_fallback"))


def from_json(document: Mapping[str, Any], bos: str | None) -> Tokenizer:
    """The facts of a ``tokenizer.json``. Raises EngineCannot for what the CPU engine could not follow."""
    model = document["model"]
    added = document.get("added_tokens") or []
    merges: tuple[tuple[str, str], ...] = ()
    prefix, swallows, charsmap, squeezes = _text_handling(document)
    if model.get("type") == "Unigram":
        if model.get("byte_fallback"):
            raise refused("is a Unigram tokenizer with byte fallback, which the engine does not do")
        tokens = {index: str(text) for index, (text, _) in enumerate(model["vocab"])}
        scores = {index: float(score) for index, (_, score) in enumerate(model["vocab"])}
        kind, unknown = "unigram", model.get("unk_id")
    else:
        if charsmap or squeezes:
            raise refused("changes text before splitting it (Precompiled), which the engine does not")
        tokens = {int(index): str(text) for text, index in model["vocab"].items()}
        merges = tuple(_pair(merge) for merge in model["merges"])
        scores = _scores(model["vocab"], merges)
        kind, unknown = "spm", model["vocab"].get(model.get("unk_token"))
    tokens.update({int(token["id"]): str(token["content"]) for token in added})
    _check_added(added)
    return Tokenizer(
        kind=kind,
        tokens=tokens,
        special=frozenset(token["id"] for token in added if token.get("special")),
        added=frozenset(token["id"] for token in added),
        merges=tuple(f"{left} {right}" for left, right in merges),
        bos=bos,
        scores=scores,
        bytes_=frozenset(index for index, text in tokens.items() if text in _BYTES) if kind == "spm" else frozenset(),
        unknown=unknown,
        space_prefix=prefix,
        swallows_space=swallows,
        squeezes_spaces=squeezes,
        charsmap=charsmap,
    )


def merges_follow_scores(tokenizer: Tokenizer) -> str | None:
    """A piece that the engine would build in another way than the merges do; None when there is none.

    Of a vocabulary of 256,000 pieces this takes seconds: it belongs to the conversion, not to the first check.
    """
    own = {text for index, text in tokenizer.tokens.items() if index not in tokenizer.added}
    last = -1
    places: dict[str, set[str]] = {}
    finished: set[str] = set()
    current = None
    for merge in tokenizer.merges:
        left, _, right = merge.partition(" ")
        piece = left + right
        if piece != current:
            if piece in finished:
                return piece
            if current is not None:
                finished.add(current)
            current, last = piece, last + 1
        places.setdefault(piece, set()).add(left)
    for piece in own - tokenizer_bytes(tokenizer):
        ways = {piece[:cut] for cut in range(1, len(piece)) if piece[:cut] in own and piece[cut:] in own}
        if ways != places.get(piece, set()):
            return piece
    return None


def tokenizer_bytes(tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.tokens[index] for index in tokenizer.bytes_}


def parse_model(raw: bytes, added: Mapping[int, tuple[str, bool]], bos: bool) -> Tokenizer:
    """``tokenizer.model`` with the *added* tokens (id -> text, special) of the files beside it."""
    pieces, trainer, normalizer = _read(raw)
    kind = trainer.get(3, [_UNIGRAM])[0]
    if kind not in (_UNIGRAM, _BPE):
        raise refused("is neither a BPE nor a Unigram model", FILE)
    charsmap = bytes(normalizer.get(2, [b""])[0])
    squeezes = bool(normalizer.get(4, [1])[0])
    if kind == _BPE and (charsmap or squeezes):
        raise refused(
            "changes text before splitting it (normalization_rule_name or remove_extra_whitespaces), which the engine "
            "does not",
            FILE,
        )
    if trainer.get(24, [0])[0]:
        raise refused("treats white space as a suffix, which the engine does not", FILE)
    byte_ids = frozenset(index for index, (_, _, type_) in enumerate(pieces) if type_ == _BYTE)
    if kind == _UNIGRAM and byte_ids:
        raise refused("is a Unigram model with byte fallback, which the engine does not do", FILE)
    tokens = {index: text for index, (text, _, _) in enumerate(pieces)}
    tokens.update({index: text for index, (text, _) in added.items()})
    control = {index for index, (_, _, type_) in enumerate(pieces) if type_ == _CONTROL}
    defined = {index for index, (_, _, type_) in enumerate(pieces) if type_ == _USER_DEFINED}
    special = control | {index for index, (_, is_special) in added.items() if is_special}
    begin = trainer.get(41, [1])[0]
    return Tokenizer(
        kind="unigram" if kind == _UNIGRAM else "spm",
        tokens=tokens,
        special=frozenset(special),
        added=frozenset(special | defined | set(added)),
        bos=tokens.get(begin) if bos else None,
        scores={index: score for index, (_, score, _) in enumerate(pieces)},
        bytes_=byte_ids,
        unknown=next((index for index, (_, _, type_) in enumerate(pieces) if type_ == _UNKNOWN), None),
        space_prefix=bool(normalizer.get(3, [1])[0]),
        squeezes_spaces=squeezes,
        charsmap=charsmap,
    )


def parse_plainly(raw: bytes) -> Tokenizer:
    """Ids, texts and which are special: enough for an engine that runs the file itself."""
    pieces, _, _ = _read(raw)
    control = frozenset(index for index, (_, _, type_) in enumerate(pieces) if type_ in (_CONTROL, _UNKNOWN))
    tokens = {index: text for index, (text, _, _) in enumerate(pieces)}
    return Tokenizer(kind="other", tokens=tokens, special=control, added=control)


def _text_handling(document: Mapping[str, Any]) -> tuple[bool, bool, bytes, bool]:
    """Whether a space goes before the text, whether a leading space takes its place, the map of characters, and
    whether runs of spaces become one."""
    import base64

    prefix, swallows, charsmap, squeezes = False, False, b"", False
    for step in steps(document.get("normalizer"), "normalizers"):
        kind = step["type"]
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and step.get("content") == SPACE and step["pattern"].get("String") == " ":
            continue
        elif kind == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif kind == "Replace" and step["pattern"].get("Regex") == " {2,}":
            squeezes = True
        else:
            raise refused(f"changes text before splitting it ({kind}), which the engine does not")
    for step in steps(document.get("pre_tokenizer"), "pretokenizers"):
        kind = step["type"]
        if kind == "Metaspace":
            if step.get("replacement", SPACE) != SPACE:
                raise refused(f"writes spaces as {step['replacement']!r}, which the engine does not")
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            if scheme == "first":
                raise refused(
                    "puts a space before the first word only (prepend_scheme first), where the engine puts one after "
                    "every special token. Save the tokenizer with legacy=True"
                )
            prefix = scheme == "always"
            swallows = prefix
            if step.get("split", True) and document["model"].get("type") != "Unigram":
                raise refused("splits text at spaces (Metaspace split), which the engine does not")
        elif kind == "Split" and step["pattern"].get("String") == " ":
            continue  # nothing is left to split once spaces are written otherwise (Gemma)
        elif kind == "WhitespaceSplit" and document["model"].get("type") == "Unigram":
            squeezes = True
        else:
            raise refused(f"splits text in steps that the engine does not know: {kind}")
    return prefix, swallows, charsmap, squeezes


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _scores(vocab: Mapping[str, int], merges: tuple[tuple[str, str], ...]) -> dict[int, float]:
    """The earlier a piece is merged, the better; what no merge leads to is worst."""
    scores = dict.fromkeys(vocab.values(), _NO_MERGE)
    rank = 0
    for left, right in merges:
        index = vocab[left + right]
        if scores[index] == _NO_MERGE:
            scores[index] = float(-rank)
            rank += 1
    return scores


def _check_added(added: list[Any]) -> None:
    for token in added:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag) and not token.get("special"):
                raise refused(f"sets {flag} for the added token {token['content']!r}, which the engine does not do")


def _read(raw: bytes) -> tuple[list[tuple[str, float, int]], dict[int, list[Any]], dict[int, list[Any]]]:
    """Pieces (text, score, type), trainer settings and normaliser settings by field number."""
    try:
        model = _message(raw)
        pieces = []
        for piece in model.get(1, []):
            fields = _message(piece)
            pieces.append((fields[1][0].decode(), float(fields.get(2, [0.0])[0]), int(fields.get(3, [1])[0])))
        trainer = _message(model.get(2, [b""])[0])
        normalizer = _message(model.get(3, [b""])[0])
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise CheckpointRejected.of(f"{FILE} is not a SentencePiece model ({exc}). Upload it again.", FILE) from exc
    if not pieces:
        raise CheckpointRejected.of(f"{FILE} holds no pieces. Upload it again.", FILE)
    return pieces, trainer, normalizer


def _message(raw: bytes) -> dict[int, list[Any]]:
    """A protobuf message: field number -> values, in order (protobuf.dev, "Encoding")."""
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(raw):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        wire = tag & 7
        value: Any
        if wire == 0:
            value, place = _varint(raw, place)
        elif wire == 1:
            (value,), place = struct.unpack_from("<d", raw, place), place + 8
        elif wire == 2:
            length, place = _varint(raw, place)
            if place + length > len(raw):
                raise ValueError("it is cut off")
            value, place = raw[place : place + length], place + length
        elif wire == 5:
            (value,), place = struct.unpack_from("<f", raw, place), place + 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        yield tag >> 3, value


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
