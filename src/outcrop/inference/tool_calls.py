"""Whether the tool results of a Converse conversation answer the calls of the turn before. Worded as AWS does. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest


def kind_of(block: Any) -> str:
    """The one key of a content block, which is a union."""
    return next(iter(block), "") if isinstance(block, Mapping) else ""


class ToolCalls:
    """Goes through the messages in order; a turn may be several messages of one role."""

    def __init__(self) -> None:
        self._pending: list[str] = []  # ids of calls that have no result yet
        self._role = ""

    def check(self, role: str | None, content: list[Any], where: str) -> None:
        """Raises InvalidRequest when the results in *content* do not belong to the calls before."""
        if role == "assistant":
            used = _ids(content, "toolUse")
            _refuse_twice(used, "toolUse", where)
            self._pending = used if self._role == "user" else self._pending + used
        elif role == "user":
            self._check_results(_ids(content, "toolResult"), where)
        self._role = role or ""

    def _check_results(self, given: list[str], where: str) -> None:
        _refuse_twice(given, "toolResult", where)
        if len(given) > len(self._pending):
            raise InvalidRequest(
                f"The number of toolResult blocks at {where} exceeds the number of toolUse blocks of previous turn.",
                param=where,
            )
        missing = [one for one in self._pending if one not in given]
        if missing:
            raise InvalidRequest(
                f"Expected toolResult blocks at {where} for the following Ids: {', '.join(missing)}", param=where
            )
        self._pending = []


def _ids(content: list[Any], kind: str) -> list[str]:
    return [str(block[kind].get("toolUseId")) for block in content if kind_of(block) == kind]


def _refuse_twice(ids: list[str], kind: str, where: str) -> None:
    twice = [one for one, times in Counter(ids).items() if times > 1]
    if twice:
        raise InvalidRequest(f"The {kind} blocks at {where} contain duplicate Ids: {', '.join(twice)}", param=where)
