"""Passages of a document, and what of an answer cites which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.inference import passages
from outcrop.inference.passages import Citation


@given(st.text(alphabet="ab .!?\n", max_size=400), st.integers(1, 60))
def test_splitting_leaves_out_nothing_but_space(text: str, limit: int) -> None:
    found = passages.split(text, limit)

    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(len(passage) <= limit for passage in found)


def test_passages_end_where_sentences_do() -> None:
    assert passages.split("One two. Three four. Five six.", 22) == ["One two. Three four. ", "Five six."]


def test_passages_with_the_rarer_words_of_the_question_come_first() -> None:
    found = ["the the the cat", "the dog sleeps", "a hut in July"]

    assert passages.ranked(found, "When does the dog sleep, the dog?")[0] == 1
    assert passages.ranked(found, "the hut")[0] == 2


def test_a_prompt_has_its_variables_filled_in_once() -> None:
    filled = passages.prompt("$search_results$|$query$|$other$", ["a $query$"], "what?")

    assert filled == "[1] a $query$|what?|$other$"


@pytest.mark.parametrize(
    ("answer", "text", "spans"),
    [
        ("Open in July [2].", "Open in July.", [("Open in July.", (1,))]),
        ("Yes. [1][2] No [1, 2]!", "Yes. No!", [("Yes.", (0, 1)), ("No!", (0, 1))]),
        ("Item [9] costs 3.", "Item [9] costs 3.", []),
        ("No mark", "No mark", []),
        ("A [1] and B", "A and B", [("A", (0,))]),
    ],
)
def test_marks_become_citations(answer: str, text: str, spans: list[tuple[str, tuple[int, ...]]]) -> None:
    found, citations = passages.cited(answer, 2)

    assert found == text
    assert [(found[one.start : one.end], one.passages) for one in citations] == spans


@given(st.text(alphabet="ab [12],.\n", max_size=60))
def test_spans_lie_within_the_answer_in_order(answer: str) -> None:
    text, citations = passages.cited(answer, 2)

    ends = [0]
    for citation in citations:
        assert isinstance(citation, Citation)
        assert ends[-1] <= citation.start < citation.end <= len(text)
        ends.append(citation.end)
