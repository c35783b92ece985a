"""JSON Schema as a grammar: every text that it lets through is a document that the schema accepts.

The grammar may be narrower than the schema (an object gets the properties that are declared, in their order), never
wider; a keyword that cannot be kept to is refused by name. ``oneOf`` is read as ``anyOf``. ``format`` is what JSON
Schema says it is, a note, except for those that have a pattern below. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.engines.gbnf import MOST_REPEATS, expression, literal
from outcrop.errors import InvalidRequest

_NOTES = frozenset(
    {
        *("$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description", "default"),
        *("examples", "example", "deprecated", "readOnly", "writeOnly", "format", "discriminator", "strict"),
    }
)
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_KEYWORDS = frozenset().union(*_OF_TYPE.values()) | {"type"}
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"
_LARGEST = 10**16 - 1  # integers without a bound have at most this many digits, which a double holds exactly

# Space is bounded, so that no model spends its answer on it.
_COMMON = r"""
ws ::= | " " | "\n" [ ]{0,20}
char ::= [^"\\\x7F\x00-\x1F] | "\\" ["\\/bfnrt]
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
member ::= string ws ":" ws value
object ::= "{" ws (member ws ("," ws member ws)*)? "}"
array ::= "[" ws (value ws ("," ws value ws)*)? "]"
value ::= object | array | string | number | boolean | null
""".strip()


def json_object() -> str:
    """A whole grammar of any JSON object."""
    return "root ::= object\n" + _COMMON


def json_document(schema: Any) -> str:
    """A whole grammar of documents that *schema* accepts; raises InvalidRequest."""
    grammar = SchemaGrammar(schema)
    root = f"root ::= {grammar.value(schema, '$')}"
    return "\n".join([root, *grammar.rules(), _COMMON])


class SchemaGrammar:
    """The rules of one schema, to be used by an expression of the caller's."""

    COMMON = _COMMON  # the rules that every expression builds on

    def __init__(self, schema: Any, *, prefix: str = "r") -> None:
        self._schema = schema
        self._prefix = prefix
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}

    def rules(self) -> list[str]:
        """The rules that expressions of this schema name, besides ``COMMON``."""
        return [f"{name} ::= {body}" for name, body in self._rules.items()]

    def value(self, schema: Any, where: str) -> str:
        """An expression of the documents that *schema*, found at *where*, accepts."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"the JSON schema at {where} must be an object, got {schema!r:.60}")
        given = {key: value for key, value in schema.items() if key not in _NOTES}
        for keyword, read in (("$ref", self._ref), ("anyOf", self._any), ("oneOf", self._any), ("allOf", self._all)):
            if keyword in given:
                _only(given, {keyword, "type"}, where)
                return read(given[keyword], f"{where}.{keyword}")
        if "const" in given or "enum" in given:
            _only(given, {"const", "enum", "type"}, where)
            options = [given["const"]] if "const" in given else given["enum"]
            if not isinstance(options, list) or not options:
                raise InvalidRequest(f"enum in the JSON schema at {where} must be a list that is not empty")
            return "(" + " | ".join(literal(msgspec.json.encode(option).decode()) for option in options) + ")"
        _only(given, _KEYWORDS, where)
        return self._typed(given, schema.get("format"), where)

    def _typed(self, given: Mapping[str, Any], form: Any, where: str) -> str:
        types = given.get("type")
        if types is None:
            types = [name for name, keywords in _OF_TYPE.items() if keywords & given.keys()][:1]
            if not types:
                return "value"
        names = types if isinstance(types, list) else [types]
        if not names or not all(isinstance(name, str) and name in _OF_TYPE for name in names):
            raise InvalidRequest(f"type in the JSON schema at {where} must be one of {', '.join(_OF_TYPE)}")
        _only(given, {"type"}.union(*(_OF_TYPE[name] for name in names)), where)
        expressions = [self._of_type(name, given, form, where) for name in names]
        return expressions[0] if len(expressions) == 1 else "(" + " | ".join(expressions) + ")"

    def _of_type(self, name: str, given: Mapping[str, Any], form: Any, where: str) -> str:
        match name:
            case "object":
                return self._object(given, where)
            case "array":
                return self._array(given, where)
            case "string":
                return _string(given, form, where)
            case "integer":
                return _integer(given, where)
            case "number" if given.get("minimum") is not None:
                if given["minimum"] != 0:
                    raise _refused("minimum", where)
                return '("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})?'
        return name

    def _object(self, given: Mapping[str, Any], where: str) -> str:
        declared = given.get("properties") or {}
        required = given.get("required") or []
        are_names = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if not isinstance(declared, Mapping) or not are_names:
            raise InvalidRequest(
                f"properties in the JSON schema at {where} must be an object, required a list of names"
            )
        properties = {**declared, **{name: True for name in required if name not in declared}}
        more = given.get("additionalProperties", True)
        if properties:
            return '"{" ws ' + self._members(list(properties.items()), frozenset(required), where) + ' "}"'
        if more is False:
            return '"{" ws "}"'
        member = f'string ws ":" ws {self.value(more, where + ".additionalProperties")} ws'
        return f'"{{" ws ({member} ("," ws {member})*)? "}}"'

    def _members(self, properties: list[tuple[str, Any]], required: frozenset[str], where: str) -> str:
        """The declared properties in order; one rule for each place, with and without something before it."""
        # What may follow the last property, whether or not anything came before, is nothing.
        following = {True: '""', False: '""'}
        for name, schema in reversed(properties):
            value = self.value(schema, f"{where}.properties.{name}")
            pair = f'{literal(msgspec.json.encode(name).decode())} ws ":" ws {value} ws'
            rest = following[False]
            now = {}
            for is_first in (True, False):
                item = f"{pair} {rest}" if is_first else f'"," ws {pair} {rest}'
                now[is_first] = self._rule(item if name in required else f"{item} | {following[is_first]}")
            following = now
        return following[True]

    def _array(self, given: Mapping[str, Any], where: str) -> str:
        least = _count(given, "minItems", where) or 0
        most = _count(given, "maxItems", where)
        leading = given.get("prefixItems") or []
        if not isinstance(leading, list):
            raise InvalidRequest(f"prefixItems in the JSON schema at {where} must be a list")
        fixed = [self.value(item, f"{where}.prefixItems.{index}") for index, item in enumerate(leading)]
        if fixed:
            if given.get("items") not in (None, False) or least > len(fixed) or (most or least) not in (0, len(fixed)):
                raise _refused("prefixItems beside items or counts of its own", where)
            return '"[" ws ' + ' ws "," ws '.join(fixed) + ' ws "]"'
        if most == 0:
            return '"[" ws "]"'
        item = self._rule(self.value(given.get("items", True), f"{where}.items") + " ws")
        if most is not None and most < least:
            raise InvalidRequest(f"maxItems in the JSON schema at {where} is less than minItems")
        rest = f'("," ws {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        items = f"{item} {rest}"
        return f'"[" ws {items} "]"' if least else f'"[" ws ({items})? "]"'

    def _ref(self, ref: Any, where: str) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise InvalidRequest(f'{where} in the JSON schema must be "#" or begin with "#/", got {ref!r:.60}')
        if ref in self._refs:
            return self._refs[ref]
        target = self._schema
        for step in ref.split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if target is None:
            raise InvalidRequest(f"{where} in the JSON schema names {ref!r}, which is not in it")
        name = self._refs[ref] = f"{self._prefix}ref{len(self._refs)}"  # known before its body, which may name it again
        self._rules[name] = self.value(target, ref)
        return name

    def _any(self, options: Any, where: str) -> str:
        if not isinstance(options, list) or not options:
            raise InvalidRequest(f"{where} in the JSON schema must be a list that is not empty")
        return "(" + " | ".join(self.value(option, f"{where}.{i}") for i, option in enumerate(options)) + ")"

    def _all(self, options: Any, where: str) -> str:
        if not isinstance(options, list) or len(options) != 1:
            raise _refused("allOf of several schemas", where)
        return self.value(options[0], f"{where}.0")

    def _rule(self, body: str) -> str:
        name = f"{self._prefix}{len(self._rules)}"
        self._rules[name] = body
        return name


def _string(given: Mapping[str, Any], form: Any, where: str) -> str:
    pattern = given.get("pattern")
    least, most = _count(given, "minLength", where), _count(given, "maxLength", where)
    if pattern is None and least is None and most is None:
        pattern = _FORMATS.get(form) if isinstance(form, str) else None
        return "string" if pattern is None else f'"\\"" {expression(pattern, in_json_string=True)} "\\""'
    if pattern is None:
        return f'"\\"" char{{{least or 0},{"" if most is None else most}}} "\\""'
    if least is not None or most is not None:
        raise _refused("pattern beside minLength or maxLength", where)
    if not isinstance(pattern, str):
        raise InvalidRequest(f"pattern in the JSON schema at {where} must be a string")
    called = f"pattern in the JSON schema at {where}"
    # A pattern without anchors may match anywhere in the string.
    before = "" if pattern.startswith("^") else "char* "
    after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else " char*"
    return f'"\\"" {before}({expression(pattern, in_json_string=True, called=called)}){after} "\\""'


def _integer(given: Mapping[str, Any], where: str) -> str:
    bounds: dict[str, int | None] = {}
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        value = given.get(key)
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
        if value is not None and (not is_whole or abs(value) > _LARGEST):
            raise InvalidRequest(f"{key} in the JSON schema at {where} must be a whole number of at most 16 digits")
        bounds[key] = None if value is None else int(value)
    lows = [bounds["minimum"], None if bounds["exclusiveMinimum"] is None else bounds["exclusiveMinimum"] + 1]
    highs = [bounds["maximum"], None if bounds["exclusiveMaximum"] is None else bounds["exclusiveMaximum"] - 1]
    low = max((value for value in lows if value is not None), default=None)
    high = min((value for value in highs if value is not None), default=None)
    if low is None and high is None:
        return "integer"
    return integers(-_LARGEST if low is None else low, _LARGEST if high is None else high, where)


def integers(low: int, high: int, where: str = "$") -> str:
    """An expression of the whole numbers from *low* to *high*, both included; raises InvalidRequest when none is."""
    if low > high:
        raise InvalidRequest(f"minimum in the JSON schema at {where} is above maximum")
    options = []
    if low < 0:
        options += [f'"-" {piece}' for piece in _positive(max(1, -high), -low)]
    if high >= 0:
        options += _positive(max(0, low), high)
    return "(" + " | ".join(options) + ")"


def _positive(low: int, high: int) -> list[str]:
    found = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = 0 if digits == 1 else 10 ** (digits - 1)
        found.append(_digits(str(max(low, first)), str(min(high, 10**digits - 1))))
    return found


def _digits(low: str, high: str) -> str:
    """An expression of the digit strings from *low* to *high*, all of one length."""
    if not low:
        return '""'
    if set(low) == {"0"} and set(high) == {"9"}:
        return f"[0-9]{{{len(low)}}}"
    if low[0] == high[0]:
        return f'"{low[0]}" {_digits(low[1:], high[1:])}'
    rest = len(low) - 1
    if not rest:
        return f"[{low}-{high}]"
    options = [f'"{low[0]}" {_digits(low[1:], "9" * rest)}']
    if int(low[0]) + 1 < int(high[0]):
        options.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    options.append(f'"{high[0]}" {_digits("0" * rest, high[1:])}')
    return "(" + " | ".join(options) + ")"


def _count(given: Mapping[str, Any], key: str, where: str) -> int | None:
    value = given.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_REPEATS):
        raise InvalidRequest(f"{key} in the JSON schema at {where} must be a whole number from 0 to {MOST_REPEATS}")
    return value


def _only(given: Mapping[str, Any], allowed: frozenset[str] | set[str], where: str) -> None:
    for keyword in given:
        if keyword not in allowed and not (keyword == "uniqueItems" and given[keyword] is False):
            raise _refused(keyword, where)


def _refused(what: str, where: str) -> InvalidRequest:
    return InvalidRequest(f'the JSON schema uses "{what}" at {where}, which cannot be enforced; leave it out')
