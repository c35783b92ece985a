"""Grammars are held to an outside oracle: llama.cpp itself says whether it accepts one (see tests/api); here their text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.engines.gbnf import LAST_CHARACTER, choice, complement, expression, literal, regex, union
from outcrop.engines.gbnf_schema import integers, json_document
from outcrop.errors import InvalidRequest


def test_a_literal_escapes_all_that_grammars_read_themselves() -> None:
    assert literal('a"\\\n é😀') == '"a\\x22\\x5C\\x0A \\xE9\\U0001F600"'


def test_a_choice_is_one_of_its_options() -> None:
    assert choice(["yes", "n o"]) == 'root ::= "yes" | "n o"'


@pytest.mark.parametrize(
    ("pattern", "body"),
    [
        ("", '""'),
        ("a", '"a"'),
        ("^ab$", '"a" "b"'),
        ("a|bc", '("a" | "b" "c")'),
        ("[a-c]{2,3}", "([a-c]){2,3}"),
        ("a*?", '("a"){0,}'),
        (r"\d+", "([0-9]){1,}"),
        (r"(?:x)?", '("x"){0,1}'),
    ],
)
def test_a_regular_expression_becomes_a_rule(pattern: str, body: str) -> None:
    assert regex(pattern) == f"root ::= {body}"


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(a)\1", "backreferences"),
        ("(?=a)b", "lookaround"),
        (r"a\b", "anchors"),
        ("^a|b$", "anchors"),
        ("(?i:a)", "flags"),
        ("a{2000}", "repetitions"),
        ("(", "not a regular expression"),
        ("a++", "possessive"),
    ],
)
def test_what_a_grammar_cannot_say_is_refused_by_name(pattern: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        regex(pattern)


def test_inside_a_json_string_a_quote_is_written_escaped_and_never_matched_by_a_set() -> None:
    assert expression('"', in_json_string=True) == '"\\x5C\\x22"'
    assert "\\x22" not in expression("[^a]", in_json_string=True)


intervals = st.lists(
    st.tuples(st.integers(0, LAST_CHARACTER), st.integers(0, LAST_CHARACTER)).map(lambda pair: (min(pair), max(pair))),
    max_size=6,
)


@given(intervals, st.integers(0, LAST_CHARACTER))
def test_a_character_is_in_a_set_or_in_its_complement(some: list[tuple[int, int]], point: int) -> None:
    def holds(which: list[tuple[int, int]]) -> bool:
        return any(low <= point <= high for low, high in which)

    assert holds(union(some)) == holds(some)
    assert holds(complement(union(some))) != holds(some)


def as_pattern(body: str) -> str:
    """An expression of digits as a regular expression, to be tried out."""
    return re.sub(r'"(-?\d*)"', r"\1", body).replace(" ", "")


@given(st.integers(-(10**5), 10**5), st.integers(0, 10**5), st.integers(-(10**6), 10**6))
def test_a_range_of_integers_lets_through_those_and_no_others(low: int, span: int, tried: int) -> None:
    pattern = as_pattern(integers(low, low + span))

    assert bool(re.fullmatch(pattern, str(tried))) == (low <= tried <= low + span)
    assert re.fullmatch(pattern, str(low))
    assert re.fullmatch(pattern, str(low + span))
    assert not re.fullmatch(pattern, str(low - 1))
    assert not re.fullmatch(pattern, str(low + span + 1))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "number", "maximum": 3}, "maximum"),
        ({"not": {}}, "not"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"type": "wrong"}, "type"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}, "lookaround"),
        ({"$ref": "#/$defs/absent"}, "absent"),
        ({"$ref": "http://elsewhere/schema"}, "elsewhere"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "above maximum"),
        ({"type": "string", "minimum": 3}, "minimum"),
        (5, "must be an object"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_the_keyword_and_its_place(schema: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(named)):
        json_document(schema)


def test_a_schema_may_name_itself() -> None:
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}

    assert "root ::= rref0" in json_document(tree)
