"""Long lists decoded in pieces are what they are decoded at once; many texts in one are the texts."""

from __future__ import annotations

import json
from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.checkpoints import large_json
from outcrop.checkpoints.large_json import array_pieces, object_pieces
from outcrop.checkpoints.vocabulary import Texts, Vocabulary

TEXT = st.text(st.one_of(st.sampled_from('"\\,:[]{} \n\u0120'), st.characters(exclude_categories=["Cs"])), max_size=6)
FORMS = st.sampled_from([{}, {"indent": 2}, {"indent": "\t", "ensure_ascii": False}, {"separators": (",", ":")}])


@given(st.dictionaries(TEXT, st.one_of(st.integers(0, 1 << 40), st.just(-1), st.none())), FORMS)
def test_an_object_in_pieces_is_the_object(members: dict[str, int | None], form: dict[str, str]) -> None:
    raw = memoryview(b" \n" + json.dumps(members, **form).encode())

    assert dict(chain.from_iterable(piece.items() for piece in object_pieces(raw))) == members


@given(st.lists(st.one_of(TEXT, st.tuples(TEXT, TEXT).map(list), st.lists(TEXT), st.integers())), FORMS)
def test_an_array_in_pieces_is_the_array(entries: list[object], form: dict[str, str]) -> None:
    raw = memoryview(json.dumps(entries, **form).encode())

    assert list(chain.from_iterable(array_pieces(raw))) == entries


@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"separators": (",", ":")}])
def test_no_piece_of_a_tokenizer_is_long(form: dict[str, str]) -> None:
    vocab = {f'"{index}\\': index for index in range(10_000)}
    merges = [["a", f"b{index}"] for index in range(10_000)]

    lengths = [len(piece) for piece in object_pieces(memoryview(json.dumps(vocab, **form).encode()))]
    lengths += [len(piece) for piece in array_pieces(memoryview(json.dumps(merges, **form).encode()))]

    assert sum(lengths) == 20_000
    assert max(lengths) == large_json.AT_A_TIME


@pytest.mark.parametrize("raw", [b"", b"[", b'["a",', b'{"a": 1}', b'["a" "b"]', b"7"])
def test_what_is_no_array_is_an_error(raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, TypeError)):
        list(array_pieces(memoryview(raw)))


@given(st.lists(st.lists(TEXT)), TEXT)
def test_texts_in_one_are_the_texts(pieces: list[list[str]], other: str) -> None:
    flat = list(chain.from_iterable(pieces))
    texts = Texts(pieces)

    assert list(texts) == flat
    assert [texts[place] for place in range(len(flat))] == flat
    assert texts[1:3] == flat[1:3]
    for text in [*filter(None, flat), other]:
        assert texts.find(text) == (flat.index(text) if text and text in flat else None)


@given(st.lists(st.tuples(st.integers(0, 20), TEXT)))
def test_a_vocabulary_maps_as_a_dictionary_does(tokens: list[tuple[int, str]]) -> None:
    vocabulary = Vocabulary([([index for index, _ in tokens], [text for _, text in tokens])])

    assert dict(vocabulary) == dict(tokens)
    assert list(vocabulary) == sorted(dict(tokens))
    assert 21 not in vocabulary
