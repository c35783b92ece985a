"""Expectations of prompts, and the policies for AWS."""

from __future__ import annotations

from typing import Any

import pytest

from outcrop.delivery.expectations import problems, read_cases, text_of
from outcrop.delivery.iam import documents
from outcrop.errors import BadSetting


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        ('{"prompt":"x","equals":"a"}', " a\n", []),
        ('{"prompt":"x","equals":"a"}', "b", ["is not 'a'"]),
        ('{"prompt":"x","contains":["a","c"]}', "ab", ["lacks 'c'"]),
        ('{"prompt":"x","lacks":"secret"}', "a secret", ["has 'secret'"]),
        ('{"prompt":"x","matches":"^[0-9]+$"}', "12a", ["does not match '^[0-9]+$'"]),
        ('{"prompt":"x","json":true}', "{", ["is not JSON"]),
        ('{"prompt":"x","json":{"a":1}}', '{"a": 2}', ["has a=2, not 1"]),
        ('{"prompt":"x","json":{"a":1}}', '{"a": 1, "b": 2}', []),
        (
            '{"prompt":"x","min_chars":3,"max_seconds":1}',
            "ab",
            ["has 2 characters, fewer than 3", "took 2.0 s, more than 1 s"],
        ),
    ],
)
def test_an_answer_is_held_to_what_was_expected(line: str, text: str, said: list[str]) -> None:
    case = read_cases(line, "smoke.jsonl")[0]

    assert sorted(problems(case, text, 2.0)) == sorted(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 is not JSON"),
        ('{"prompt":"x"}\n{"prompt":"x","body":{}}', "line 2 must be an object with either body or prompt"),
        ('{"prompt":"x","contain":"a"}', "unknown fields: contain"),
        ('{"prompt":"x","matches":"("}', "no regular expression"),
        ("\n", "holds no cases"),
    ],
)
def test_a_broken_file_of_cases_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        read_cases(text, "smoke.jsonl")


@pytest.mark.parametrize(
    "answer",
    [
        {"generation": "t"},
        {"outputs": [{"text": "t"}]},
        {"choices": [{"text": "t"}]},
        {"choices": [{"message": {"content": "t"}}]},
    ],
)
def test_the_text_is_found_in_every_format(answer: Any) -> None:
    assert text_of(answer) == "t"


def test_no_policy_allows_more_than_a_prefix_and_the_imported_models() -> None:
    found = documents(
        region="eu-west-1", account="123456789012", bucket="b", prefix="models/", name="n", parameter="/p/live"
    )

    statements = [row for document in found.values() for row in document["Statement"]]
    resources = [row.get("Resource") for row in statements if "Resource" in row]
    flat = [one for row in resources for one in (row if isinstance(row, list) else [row])]
    assert "*" not in flat
    assert all("*" not in str(row["Action"]) for row in statements)
    assert all(
        one.startswith(("arn:aws:s3:::b", "arn:aws:bedrock:eu-west-1:123456789012:", "arn:aws:iam::", "arn:aws:ssm:"))
        for one in flat
    )
