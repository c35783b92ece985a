"""IAM's wildcards as regular expressions that take linear time. Pure.

``*`` is any run of characters and ``?`` is any one; in an ARN neither crosses a colon of the first five segments
(IAM User Guide, "IAM JSON policy elements: Resource"). A piece after a star is matched where it first occurs and not
tried elsewhere (an atomic group), which is enough for such patterns and keeps hostile ones from taking for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

Matches = Callable[[str], object]

ARN_SEGMENTS = 6
# Stand in a pattern for a star and a question mark that mean themselves. They occur in no ARN, name or tag.
LITERAL_STAR, LITERAL_MARK = "\ue000", "\ue001"
_AS_THEMSELVES = {LITERAL_STAR: re.escape("*"), LITERAL_MARK: re.escape("?")}


@lru_cache(maxsize=4096)
def glob(pattern: str) -> Matches:
    """Whether a whole text fits *pattern*; case counts."""
    return _compiled(_translated(pattern, "."))


@lru_cache(maxsize=4096)
def arn_glob(pattern: str) -> Matches:
    """Whether an ARN fits *pattern* segment by segment; segments that the pattern leaves out are any."""
    if pattern == "*":
        return _anything
    parts = pattern.split(":", ARN_SEGMENTS - 1)
    parts += ["*"] * (ARN_SEGMENTS - len(parts))
    translated = [_translated(part, "[^:]") for part in parts[:-1]]
    return _compiled(":".join([*translated, _translated(parts[-1], ".")]))


def _anything(_text: str) -> bool:
    return True


def _compiled(expression: str) -> Matches:
    return re.compile(expression, re.DOTALL).fullmatch


def _translated(pattern: str, character: str) -> str:
    """*pattern* as a regular expression over *character*, which stands for any one."""
    pieces = [
        "".join(character if sign == "?" else _AS_THEMSELVES.get(sign) or re.escape(sign) for sign in piece)
        for piece in re.sub(r"\*+", "*", pattern).split("*")
    ]
    if len(pieces) == 1:
        return pieces[0]
    first, *middle, last = pieces
    return first + "".join(f"(?>{character}*?{piece})" for piece in middle) + f"{character}*{last}"
