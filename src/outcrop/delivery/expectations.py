"""Prompts with expectations (``smoke.jsonl``, cases of a quality gate) and whether an answer meets them. Pure.

One JSON object a line: ``body`` (of InvokeModel) or ``prompt`` (with ``max_tokens``, 256 unless said), and what the
answer's text must be: ``equals``, ``contains`` (a text or a list), ``lacks``, ``matches`` (a regular expression),
``json`` (it parses; given a mapping, these fields have these values), ``min_chars``; ``max_seconds`` for its time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outcrop.errors import BadSetting

_KNOWN = frozenset(
    {"name", "body", "prompt", "max_tokens", "equals", "contains", "lacks", "matches", "json", "min_chars"}
    | {"max_seconds"}
)
_CHECKS = _KNOWN - {"name", "body", "prompt", "max_tokens"}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    body: Mapping[str, Any]
    checks: Mapping[str, Any]


def read_cases(text: str, where: str) -> list[Case]:
    """The cases of a file. Raises BadSetting naming the line and what is wrong with it."""
    cases = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as exc:
            raise BadSetting(f"{where}, line {number} is not JSON: {exc}") from exc
        cases.append(_case(found, f"{where}, line {number}"))
    if not cases:
        raise BadSetting(f"{where} holds no cases")
    return cases


def _case(found: Any, where: str) -> Case:
    if not isinstance(found, dict) or not ("body" in found) ^ ("prompt" in found):
        raise BadSetting(f"{where} must be an object with either body or prompt")
    if unknown := found.keys() - _KNOWN:
        raise BadSetting(
            f"{where} has unknown fields: {', '.join(sorted(unknown))}; known are {', '.join(sorted(_KNOWN))}"
        )
    if "matches" in found:
        try:
            re.compile(found["matches"])
        except re.error as exc:
            raise BadSetting(f"{where}: matches is no regular expression: {exc}") from exc
    body = found.get("body") or {
        "messages": [{"role": "user", "content": found["prompt"]}],
        "max_tokens": found.get("max_tokens", 256),
        "temperature": 0,
    }
    return Case(found.get("name", where), body, {name: found[name] for name in _CHECKS & found.keys()})


def problems(case: Case, text: str, seconds: float) -> list[str]:
    """What an answer misses of *case*; empty when it meets it."""
    found = []
    for name, wanted in case.checks.items():
        match name:
            case "equals" if text.strip() != str(wanted).strip():
                found.append(f"is not {wanted!r}")
            case "contains":
                parts = wanted if isinstance(wanted, list) else [wanted]
                found += [f"lacks {part!r}" for part in parts if part not in text]
            case "lacks":
                parts = wanted if isinstance(wanted, list) else [wanted]
                found += [f"has {part!r}" for part in parts if part in text]
            case "matches" if not re.search(wanted, text):
                found.append(f"does not match {wanted!r}")
            case "json":
                found += _json_problems(text, wanted)
            case "min_chars" if len(text) < wanted:
                found.append(f"has {len(text)} characters, fewer than {wanted}")
            case "max_seconds" if seconds > wanted:
                found.append(f"took {seconds:.1f} s, more than {wanted} s")
    return found


def _json_problems(text: str, wanted: Any) -> list[str]:
    try:
        parsed = json.loads(text)
    except ValueError:
        return ["is not JSON"]
    if not isinstance(wanted, Mapping):
        return []
    if not isinstance(parsed, Mapping):
        return ["is not a JSON object"]
    return [
        f"has {name}={parsed.get(name)!r}, not {value!r}" for name, value in wanted.items() if parsed.get(name) != value
    ]


def text_of(answer: Any) -> str:
    """The generated text of a whole answer, in any format that imported models answer in."""
    for key in ("choices", "outputs"):
        entries = answer.get(key) if isinstance(answer, Mapping) else None
        if entries:
            entry = entries[0]
            return str(entry.get("text") if "text" in entry else (entry.get("message") or {}).get("content") or "")
    return str(answer.get("generation", "")) if isinstance(answer, Mapping) else ""
