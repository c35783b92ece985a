"""Policy variables: ``${aws:username}``, with a default after a comma, and the signs ``${*}``, ``${?}``, ``${$}``.

Pure. A text is split once; what is filled in from the request is taken literally: a star in somebody's user name is
no wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from outcrop.access.patterns import LITERAL_MARK, LITERAL_STAR

Context = Mapping[str, str | list[str]]  # by lower-case key

_UNMARKED = str.maketrans({LITERAL_STAR: "*", LITERAL_MARK: "?"})
_MARKED = str.maketrans({"*": LITERAL_STAR, "?": LITERAL_MARK})
_VARIABLE = re.compile(r"\$\{\s*([^}]*?)\s*\}")
_DEFAULT = re.compile(r"^([^,]+?)\s*,\s*'(.*)'$", re.DOTALL)
_SIGNS = {"*": LITERAL_STAR, "?": LITERAL_MARK, "$": "$"}


@dataclass(frozen=True, slots=True)
class Template:
    """A text with variables, to be filled in from the context of a request."""

    pieces: tuple[str | tuple[str, str | None], ...]

    def filled(self, context: Context) -> str | None:
        """The text, its literal wildcards marked; None when a variable has no single value and no default."""
        parts = []
        for piece in self.pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            key, default = piece
            value = context.get(key, default)
            if not isinstance(value, str):
                return None
            parts.append(value.translate(_MARKED))
        return "".join(parts)


def template(text: str) -> str | Template:
    """*text* as it is when it has no variables, its literal wildcards marked; else a template."""
    if "${" not in text:
        return text
    pieces: list[str | tuple[str, str | None]] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        pieces.append(text[end : found.start()])
        name, end = found.group(1), found.end()
        if name in _SIGNS:
            pieces.append(_SIGNS[name])
        elif with_default := _DEFAULT.match(name):
            pieces.append((with_default.group(1).lower(), with_default.group(2)))
        else:
            pieces.append((name.lower(), None))
    pieces.append(text[end:])
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(str(piece) for piece in pieces)
    return Template(tuple(piece for piece in pieces if piece))


def unmarked(text: str) -> str:
    """*text* with its literal wildcards as themselves, for comparisons that know no wildcards."""
    return text.translate(_UNMARKED)
