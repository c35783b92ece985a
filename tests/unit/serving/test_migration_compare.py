"""How answers are compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.serving.migration.compare import compared

NAMES = st.text("abc", min_size=1, max_size=3)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("xyz", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(DOCUMENTS, DOCUMENTS)
def test_a_score_is_a_share_and_one_for_the_same_alone(one: Any, other: Any) -> None:
    found = compared(json.dumps({"a": one}), json.dumps({"a": other}))

    assert 0 <= found.score <= 1
    assert (found.score == 1) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert bool(found.differences) == (found.score < 1)


@pytest.mark.parametrize(
    ("one", "other", "score", "said"),
    [
        ('{"a": 1, "id": "x"}', '{"id": "y", "a": 1}', 1, []),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5, ["$.b: 2 | 3"]),
        ('{"a": [1, {"c": true}]}', '{"a": [1]}', 0.5, ["$.a[1].c: true | nothing"]),
        ('{"a": 1}', '{"a": true}', 0, ["$.a: 1 | true"]),
        ("for each row", "for each row", 1, []),
        ("for  each row", "for each row", 1, ["only white space differs"]),
        ("a b c d", "a b x d", 0.75, ["c | x"]),
        ("", "words", 0, ["nothing | words"]),
    ],
)
def test_answers_are_compared_field_by_field_or_word_by_word(
    one: str, other: str, score: float, said: list[str]
) -> None:
    found = compared(one, other)

    assert found.score == pytest.approx(score)
    assert found.differences == said


def test_fields_can_be_left_out() -> None:
    assert compared('{"a": 1, "took": 3}', '{"a": 1, "took": 4}', ["took"]).score == 1


def test_long_texts_are_compared_in_bounded_time() -> None:
    one, other = " ".join(str(n) for n in range(50_000)), " ".join(str(-n) for n in range(50_000))
    assert compared(one, other).score < 0.1
    assert compared("[" * 100_000, "[" * 99_999 + "x").method == "text"
