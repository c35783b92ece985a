"""What is known of a tokenizer, whatever file it came from."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any, overload

from outcrop.checkpoints.problems import CheckpointRejected, Problem


class Texts(Sequence[str]):
    """Many short texts in one piece of memory: as objects of their own they would take ten times as much.

    They come in *pieces*, some texts each.
    """

    __slots__ = ("_all", "_starts")

    def __init__(self, pieces: Iterable[Sequence[str]] = ()) -> None:
        self._all, self._starts = bytearray(), array("I", [0])  # UTF-8
        for texts in pieces:
            some = [_bytes(text) for text in texts]
            ends = accumulate(map(len, some), initial=self._starts[-1])
            self._starts.extend(islice(ends, 1, None))
            self._all += b"".join(some)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return _text(self._all[self._starts[place] : self._starts[place + 1]])

    def __iter__(self) -> Iterator[str]:
        return (_text(self._all[begin:end]) for begin, end in pairwise(self._starts))

    def find(self, text: str) -> int | None:
        """The first place of *text*."""
        begin, wanted = -1, _bytes(text)
        while wanted and (begin := self._all.find(wanted, begin + 1)) >= 0:
            place = bisect_right(self._starts, begin) - 1
            if self._starts[place] == begin and self._starts[place + 1] == begin + len(wanted):
                return place
        return None


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(raw: bytearray) -> str:
    return raw.decode(errors="surrogatepass")


class Vocabulary(Mapping[int, str]):
    """Token texts by id, ids ascending. They come in *pieces*, ids and their texts; for one id the last counts."""

    __slots__ = ("_ids", "_texts")

    def __init__(self, pieces: Iterable[tuple[Sequence[int], Sequence[str]]]) -> None:
        ids = array("q")

        def noted() -> Iterator[Sequence[str]]:
            for some, texts in pieces:
                ids.extend(some)
                yield texts

        texts = Texts(noted())
        if any(left >= right for left, right in pairwise(ids)):
            last = {index: place for place, index in enumerate(ids)}
            ids = array("q", sorted(last))
            texts = Texts([[texts[last[index]] for index in ids]])
        self._ids, self._texts = ids, texts

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self._place(index) is not None

    def __getitem__(self, index: int) -> str:
        if (place := self._place(index)) is None:
            raise KeyError(index)
        return self._texts[place]

    @property
    def texts(self) -> Texts:
        """The texts in the order of their ids."""
        return self._texts

    def id_of(self, text: str) -> int | None:
        place = self._texts.find(text)
        return None if place is None else self._ids[place]

    def _place(self, index: int) -> int | None:
        place = index if 0 <= index < len(self._ids) and self._ids[index] == index else bisect_left(self._ids, index)
        return place if place < len(self._ids) and self._ids[place] == index else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """*tokens*: id -> text; *special* and *added* are ids.

    *kind*: ``bpe`` (byte level; *merges* and *pre*, llama.cpp's pre-tokenizer name), ``spm`` (SentencePiece BPE) or
    ``unigram``; the last two have *scores* by id. *bytes_*: ids of the byte tokens ``<0x00>`` to ``<0xFF>``.

    *nfc*: the tokenizer brings text to Unicode's form NFC first. llama.cpp does not; text that is in another form
    (decomposed accents, rare outside of file names) is tokenised as it stands. *swallows_space*: no space is put
    before a text that starts with one, where llama.cpp puts one always.
    """

    kind: str
    tokens: Mapping[int, str]
    special: frozenset[int]
    added: frozenset[int]
    merges: Sequence[str] = ()
    pre: str = ""
    bos: str | None = None  # the token that the post-processor puts first
    eos: str | None = None  # the one that it puts last; only of models that embed
    nfc: bool = False
    scores: Mapping[int, float] | None = None
    bytes_: frozenset[int] = frozenset()
    unknown: int | None = None
    space_prefix: bool = False
    swallows_space: bool = False
    squeezes_spaces: bool = False
    charsmap: bytes = b""

    def id_of(self, text: str) -> int | None:
        if isinstance(self.tokens, Vocabulary):
            return self.tokens.id_of(text)
        return next((index for index, token in self.tokens.items() if token == text), None)


class EngineCannot(CheckpointRejected):
    """A sound tokenizer that the CPU engine could not follow; other engines run the checkpoint's own code."""


def refused(reason: str, file: str = "tokenizer.json") -> EngineCannot:
    return EngineCannot([Problem(file=file, message=f"{file} {reason}.")])


def steps(node: Any, key: str) -> list[dict[str, Any]]:
    """Links of a chain, Sequences inside Sequences opened."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for inner in node[key] for step in steps(inner, key)]
    return [node]
