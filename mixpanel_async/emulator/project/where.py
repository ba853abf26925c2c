"""Expressions of the parameter `where`, by which the export and the profile query select records.

Pure. `parse_where` compiles an expression once, in linear time, and `Where.matches` evaluates it for each record.

    properties["plan"] == "pro" and not (properties["amount"] < 10 or "@test" in user["$email"])

Source: https://docs.mixpanel.com/reference/segmentation-expressions (read 2026-11-29), and the expressions that
`mixpanel-utils` 2.2.7 and `airbyte-source-mixpanel` 4.0.2 send.

Supported
    - `properties["x"]`, `user["x"]`; strings in double or single quotes, numbers, `true`, `false`, `null`
    - `==`, `!=`, `<`, `<=`, `>`, `>=`
    - `in` with a list of literals, a list property, or text that contains the left side
    - `and`, `or`, `not`, parentheses
    - `defined(x)`, `boolean(x)`, `number(x)`, `string(x)`, `datetime(x)`

Anything else, such as arithmetic, raises `WhereError`, which names it.

Decisions where Mixpanel's documents are silent
    - A missing property equals `null`. It is unequal to everything else, and no order comparison with it is true.
    - Values of different types are unequal and have no order. Text has the order of its code points; case matters.
    - `datetime(x)` is a time, from seconds or milliseconds since the epoch, or from ISO 8601 text, in UTC if it has no
      offset. The other side of the comparison is read the same way.
    - `boolean(x)` is false for a missing property, 0, and empty text, lists and objects. `number(x)` of text that is no
      number, and `string(x)` of a list or an object, are missing.
    - In `and`, `or`, `not`, and as the whole expression, only `true` counts as true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from .checks import epoch_ms, is_number

MAX_LENGTH: Final = 10_000
MAX_DEPTH: Final = 50

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>==|!=|<=|>=|&&|\|\||.)
      | (?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED: Final[Mapping[str, str]] = {"n": "\n", "r": "\r", "t": "\t"}
_CONSTANTS: Final[Mapping[str, object]] = {"true": True, "false": False, "null": None}
_ORDERS: Final = frozenset({"<", "<=", ">", ">="})
_COMPARISONS: Final = frozenset({"==", "!=", "in"}) | _ORDERS
_ARITHMETIC: Final = frozenset({"+", "-", "*", "/", "%"})
_MAX_SHOWN: Final = 30
_MAX_INTEGER_DIGITS: Final = 18
_MAX_TIME_LENGTH: Final = 40


class WhereError(Exception):
    """The expression is malformed or uses what the emulator does not support. The message names it."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class _Instant:
    ms: int


_Record = tuple[Mapping[str, Any], Mapping[str, Any]]
_Term = Callable[[_Record], object]


class Where:
    """Compiled expression.

    Args:
        term: the expression.
        uses_user: whether it reads properties of the user's profile.
    """

    def __init__(self, term: _Term, *, uses_user: bool) -> None:
        self._term = term
        self.uses_user = uses_user

    def matches(self, properties: Mapping[str, Any], user: Mapping[str, Any]) -> bool:
        """Return whether a record is selected.

        Args:
            properties: properties of the record.
            user: properties of the profile of the record's person.
        """
        return self._term((properties, user)) is True


def parse_where(text: str) -> Where:
    """Compile an expression.

    Args:
        text: the expression, of at most 10,000 characters, with at most 50 levels of parentheses.

    Raises:
        WhereError: if the expression is malformed or not supported.
    """
    if len(text) > MAX_LENGTH:
        raise WhereError(f"where has {len(text)} characters; the emulator supports {MAX_LENGTH}")
    parser = _Parser(_tokens(text))
    term = parser.parse()
    return Where(term, uses_user=parser.uses_user)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    end = 0
    while not tokens or tokens[-1].kind != "end":
        match = _TOKEN.match(text, end)
        assert match is not None
        assert match.lastgroup is not None
        token = _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        if token.kind == "sign" and token.text in {'"', "'"}:
            # Going on would search for the end of a string from each quote, in quadratic time.
            raise WhereError(f"where has a string without end, from character {token.at + 1}")
        tokens.append(token)
        end = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens of an expression. Each method compiles one kind of term.

    Args:
        tokens: the tokens, of which the last has the kind `end`.
    """

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self.uses_user = False

    def parse(self) -> _Term:
        term = self._disjunction()
        if self._next.kind != "end":
            raise self._unexpected()
        return term

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> str | None:
        """Return and skip the next token if it is one of these names or signs."""
        token = self._next
        if token.kind == "string" or token.text not in texts:
            return None
        self._at += 1
        return token.text

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._unexpected(f"{text!r} is missing")

    def _disjunction(self) -> _Term:
        terms = [self._conjunction()]
        while self._take("or"):
            terms.append(self._conjunction())
        return terms[0] if len(terms) == 1 else lambda record: any(term(record) is True for term in terms)

    def _conjunction(self) -> _Term:
        terms = [self._negation()]
        while self._take("and"):
            terms.append(self._negation())
        return terms[0] if len(terms) == 1 else lambda record: all(term(record) is True for term in terms)

    def _negation(self) -> _Term:
        count = 0
        while self._take("not"):
            count += 1
        term = self._comparison()
        if count == 0:
            return term
        wanted = count % 2 == 0
        return lambda record: (term(record) is True) is wanted

    def _comparison(self) -> _Term:
        left = self._operand()
        operator = self._take(*_COMPARISONS)
        if operator is None:
            return left
        if operator == "in" and self._take("["):
            term = _is_one_of(left, self._literals())
        else:
            term = _compare(operator, left, self._operand())
        if self._next.kind != "string" and self._next.text in _COMPARISONS:
            raise self._unsupported("a chain of comparisons")
        return term

    def _literals(self) -> frozenset[tuple[str, object]]:
        values: list[object] = []
        while not self._take("]"):
            if values:
                self._expect(",")
            values.append(self._literal())
        return frozenset((_type_of(value), value) for value in values)

    def _literal(self) -> object:
        token = self._next
        sign = -1 if self._take("-") else 1
        found = self._next
        self._at += 1
        if found.kind == "number":
            return sign * _number(found.text)
        if sign == 1 and found.kind == "string":
            return _unescape(found.text)
        if sign == 1 and found.text in _CONSTANTS:
            return _CONSTANTS[found.text]
        self._at -= 1
        raise self._unexpected("only literals are supported in a list") if token is found else self._unexpected()

    def _operand(self) -> _Term:
        token = self._next
        if token.kind in {"string", "number"} or token.text in _CONSTANTS or token.text == "-":
            value = self._literal()
            return lambda _: value
        if self._take("("):
            return self._nested()
        if token.kind != "name":
            raise self._unexpected()
        self._at += 1
        if self._take("["):
            return self._property(token)
        if self._take("("):
            function = _FUNCTIONS.get(token.text)
            if function is None:
                raise self._unsupported(f"the function {token.text[:_MAX_SHOWN]!r}", token)
            argument = self._nested()
            return lambda record: function(argument(record))
        raise self._unsupported(f"the name {token.text[:_MAX_SHOWN]!r}", token)

    def _nested(self) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WhereError(f"where has more than {MAX_DEPTH} levels of parentheses")
        term = self._disjunction()
        self._expect(")")
        self._depth -= 1
        return term

    def _property(self, source: _Token) -> _Term:
        if source.text not in {"properties", "user"}:
            raise self._unsupported(f"{source.text[:_MAX_SHOWN]}[...]", source)
        if self._next.kind != "string":
            raise self._unexpected("a property name must be a string")
        name = _unescape(self._next.text)
        self._at += 1
        self._expect("]")
        if self._next.text == "[":
            raise self._unsupported("access to values inside a property")
        if source.text == "user":
            self.uses_user = True
            return lambda record: record[1].get(name)
        return lambda record: record[0].get(name)

    def _unexpected(self, problem: str = "") -> WhereError:
        token = self._next
        if token.kind == "end":
            return WhereError(f"where is incomplete{problem and ': '}{problem}")
        if token.text in _ARITHMETIC or token.text in {"&&", "||", "!"}:
            return self._unsupported(f"the operator {token.text!r}")
        if not problem:
            shown = "a string" if token.kind == "string" else f"{token.text[:_MAX_SHOWN]!r}"
            problem = f"unexpected {shown}"
        return WhereError(f"where is invalid at character {token.at + 1}: {problem}")

    def _unsupported(self, what: str, token: _Token | None = None) -> WhereError:
        at = (token or self._next).at + 1
        return WhereError(f"{what} in where, at character {at}, is not supported by the emulator")


def _number(text: str) -> float:
    if text.isdecimal() and len(text) <= _MAX_INTEGER_DIGITS:
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise WhereError("where has a number that is too large")
    return number


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPED.get(code, code)

    plain = _ESCAPE.sub(character, text[1:-1])
    # Joins escaped surrogate pairs, as in JSON, and replaces single surrogates.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _compare(operator: str, left: _Term, right: _Term) -> _Term:
    if operator == "==":
        return lambda record: _equal(left(record), right(record))
    if operator == "!=":
        return lambda record: not _equal(left(record), right(record))
    if operator == "in":
        return lambda record: _contains(right(record), left(record))
    return lambda record: _ordered(operator, left(record), right(record))


def _is_one_of(left: _Term, literals: frozenset[tuple[str, object]]) -> _Term:
    def test(record: _Record) -> object:
        value = left(record)
        return not isinstance(value, (list, dict)) and (_type_of(value), value) in literals

    return test


def _type_of(value: object) -> str:
    return "number" if type(value) in {int, float} else type(value).__name__


def _equal(left: object, right: object) -> bool:
    if isinstance(left, _Instant) or isinstance(right, _Instant):
        left, right = _instant(left), _instant(right)
        return left is not None and left == right
    return _type_of(left) == _type_of(right) and left == right


def _contains(container: object, value: object) -> bool:
    if isinstance(container, str):
        return isinstance(value, str) and value in container
    return isinstance(container, list) and any(_equal(item, value) for item in container)


def _ordered(operator: str, left: object, right: object) -> bool:
    if isinstance(left, _Instant) or isinstance(right, _Instant):
        first, second = _instant(left), _instant(right)
        return first is not None and second is not None and _in_order(operator, first.ms, second.ms)
    if isinstance(left, str) and isinstance(right, str):
        return _in_order(operator, left, right)
    return is_number(left) and is_number(right) and _in_order(operator, left, right)


def _in_order(operator: str, left: Any, right: Any) -> bool:
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    return bool(left > right) if operator == ">" else bool(left >= right)


def _instant(value: object) -> _Instant | None:
    if isinstance(value, _Instant):
        return value
    if is_number(value):
        return _Instant(epoch_ms(value))
    if not isinstance(value, str) or len(value) > _MAX_TIME_LENGTH:
        return None
    try:
        # Python 3.10 does not read the suffix Z.
        at = datetime.fromisoformat(value.removesuffix("Z") + "+00:00" if value.endswith("Z") else value)
        at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
        return _Instant(round(at.timestamp() * 1000))
    except (ValueError, OverflowError):
        return None


def _as_boolean(value: object) -> bool:
    return bool(value)


def _as_number(value: object) -> float | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.isascii() and len(value) <= _MAX_TIME_LENGTH:
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None


def _as_string(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (str, int, float)) else None


_FUNCTIONS: Final[Mapping[str, Callable[[object], object]]] = {
    "boolean": _as_boolean,
    "datetime": _instant,
    "defined": lambda value: value is not None,
    "number": _as_number,
    "string": _as_string,
}
