"""What the calculator and the solver read: text to a tree of numbers, names and operations. Nothing is evaluated.

A tree is made of plain JSON arrays, so that it can be handed to another process:

    ["number", 17, 20]           a fraction, numerator and denominator: 0.85
    ["constant", "pi"]           pi, e or i
    ["name", "x"]                an unknown
    ["sum", a, b, ...]           ["product", a, b, ...]           ["negative", a]          ["inverse", a]
    ["power", a, b]              ["modulo", a, b]                 ["floor quotient", a, b]
    ["call", "sqrt", a, ...]     one of `FUNCTIONS`

Ways of writing whose meaning is plain are accepted: `2(3+4)`, `5x`, `60×0.85`, `x²`, `２＋３`, `50%`, `3!`, `|x|`,
`1,000`, `½`. What can be read in two ways (`1/2x`) or only guessed at is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from selfinstruct.languages import script

Tree = list[Any]

MAX_LENGTH = 2000
"""Characters of an expression, before and after full-width forms are replaced."""
MAX_DEPTH = 40
"""Brackets, signs and exponents inside each other."""
MAX_LITERAL = 400
"""Characters of one number; also the largest exponent of one such as 1e400."""
MAX_EQUATIONS = 12

FUNCTIONS: Mapping[str, tuple[int, int | None]] = {
    "sqrt": (1, 1), "cbrt": (1, 1), "root": (2, 2), "abs": (1, 1), "sign": (1, 1),
    "exp": (1, 1), "ln": (1, 1), "log": (1, 2), "log2": (1, 1), "log10": (1, 1),
    "sin": (1, 1), "cos": (1, 1), "tan": (1, 1), "cot": (1, 1), "sec": (1, 1), "csc": (1, 1),
    "asin": (1, 1), "acos": (1, 1), "atan": (1, 1), "atan2": (2, 2),
    "sinh": (1, 1), "cosh": (1, 1), "tanh": (1, 1), "asinh": (1, 1), "acosh": (1, 1), "atanh": (1, 1),
    "degrees": (1, 1), "radians": (1, 1),
    "floor": (1, 1), "ceil": (1, 1), "round": (1, 2),
    "factorial": (1, 1), "comb": (2, 2), "perm": (2, 2), "gcd": (2, None), "lcm": (2, None), "mod": (2, 2),
    "min": (1, None), "max": (1, None), "sum": (1, None), "mean": (1, None),
}  # fmt: skip
"""Each function with the least and the most arguments it takes (None: any number). `log` of one is natural."""

ALIASES: Mapping[str, str] = {
    "cuberoot": "cbrt", "nthroot": "root", "lg": "log10", "ceiling": "ceil", "fact": "factorial",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "binomial": "comb", "avg": "mean", "average": "mean",
    "squareroot": "sqrt", "power": "pow",
}  # fmt: skip

_SAME = {
    "×": "*", "✕": "*", "✖": "*", "∗": "*", "·": "*", "⋅": "*", "∙": "*", "•": "*",
    "÷": "/", "∕": "/", "⁄": "/",
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-",
    "π": " pi ", "∣": "|", "【": "[", "】": "]", "〔": "(", "〕": ")",
}  # fmt: skip
_SUPERSCRIPT = {char: unicodedata.normalize("NFKC", char) for char in "⁰¹²³⁴⁵⁶⁷⁸⁹"} | {"⁺": "+", "⁻": "-"}
_VULGAR = {char: Fraction(*map(int, unicodedata.normalize("NFKC", char).split("⁄"))) for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_PLAIN_FORMS = frozenset({"<wide>", "<narrow>", "<font>", "<small>", "<sub>"})
"""Compatibility forms of a character that differ in shape alone: full-width, mathematical italics, subscripts."""
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_CONSTANTS = {"pi": "pi", "e": "e", "i": "i"}

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w,.])")
_OPERATOR = re.compile(r"\*\*|//|==|[-+*/^%!°()\[\]{}|,;=√∛\n]")
_NAME_END = re.compile(r"_?\d+")


class BadExpression(ValueError):
    """Text that is no expression: `reason` is short and stable, the message says what and where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Equation:
    """`left` = `right`."""

    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True)
class System:
    """Equations, the names in them, and those of them that are asked for (none: all)."""

    equations: tuple[Equation, ...]
    names: tuple[str, ...]
    unknowns: tuple[str, ...]


def parse_expression(text: str) -> Tree:
    """Read one expression without unknowns.

    Raises:
        BadExpression: it is not one.
    """
    tokens = _tokens(_trimmed(_plain(text)))
    if any(token.text in ("=", "==") for token in tokens):
        raise BadExpression("not an expression", "an equation is for the equation solver")
    return _Parser(tokens, letters=None).whole()


def parse_system(text: str) -> System:
    """Read equations that are separated by `;`, `,` or a new line, and perhaps the unknowns after them.

    Raises:
        BadExpression: they are not equations.
    """
    parts = _split(_tokens(_plain(text).strip()))
    if not parts:
        raise BadExpression("empty", "expected an equation such as 2x + 3 = 7")
    if len(parts) > MAX_EQUATIONS:
        raise BadExpression("too long", f"more than {MAX_EQUATIONS} equations")
    asked: list[str] = []
    while parts and len(parts[-1]) == 1 and parts[-1][0].kind == "name":
        asked.insert(0, parts.pop()[0].text)
    letters = frozenset(token.text for part in parts for token in part if token.kind == "name" and len(token.text) == 1)
    equations = tuple(_equation(part, letters) for part in parts)
    if not equations:
        raise BadExpression("not an equation", "expected an equation such as 2x + 3 = 7")
    used, constants = _used(equations, "name"), _used(equations, "constant")
    if not used:
        raise BadExpression("not an equation", "there is no unknown in it")
    if "e" in used & constants:
        raise BadExpression("ambiguous", "e is an unknown in one place and Euler's number in another")
    for name in asked:
        if name not in used:
            raise BadExpression("unknown name", f"{name} is asked for and stands in no equation")
    return System(equations, tuple(sorted(used)), tuple(dict.fromkeys(asked)))


def _equation(tokens: list[_Token], letters: frozenset[str]) -> Equation:
    signs = [place for place, token in enumerate(tokens) if token.text in ("=", "==")]
    if len(signs) != 1:
        shown = " ".join(token.text for token in tokens)[:60]
        raise BadExpression("not an equation", f"expected one '=' in {shown!r}, found {len(signs)}")
    left, right = tokens[: signs[0]], tokens[signs[0] + 1 :]
    return Equation(_Parser(left, letters).whole(), _Parser(right, letters).whole())


def _used(equations: tuple[Equation, ...], kind: str) -> set[str]:
    found: set[str] = set()
    waiting: list[Any] = [side for equation in equations for side in (equation.left, equation.right)]
    while waiting:
        tree = waiting.pop()
        if tree[0] == kind:
            found.add(tree[1])
        waiting += [part for part in tree[1:] if isinstance(part, list)]
    return found


# Characters


def _plain(text: str) -> str:
    """Return the text in ASCII operators and digits; letters stay what they are."""
    if len(text) > MAX_LENGTH:
        raise BadExpression("too long", f"{len(text)} characters, at most {MAX_LENGTH}")
    plain: list[str] = []
    raised = False
    for char in text:
        if char in _SUPERSCRIPT:
            plain.append(("" if raised else "^(") + _SUPERSCRIPT[char])
            raised = True
            continue
        if raised:
            plain.append(")")
            raised = False
        plain.append(char if char.isascii() else _plain_char(char))
    found = "".join(plain) + (")" if raised else "")
    for char in found:
        if unicodedata.category(char)[0] == "C" and char not in "\t\n\r":
            raise BadExpression("hidden character", f"U+{ord(char):04X}")
    if len(found) > MAX_LENGTH:
        raise BadExpression("too long", f"{len(found)} characters, at most {MAX_LENGTH}")
    _check_scripts(found)
    return found.replace("\r", "\n")


def _plain_char(char: str) -> str:
    if char in _SAME:
        return _SAME[char]
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(char).partition(" ")[0] in _PLAIN_FORMS:
        same = unicodedata.normalize("NFKC", char)
        return _SAME.get(same, same)
    return " " if unicodedata.category(char) == "Zs" else char


def _check_scripts(text: str) -> None:
    # Latin, Greek and Cyrillic share shapes (x, х; o, ο): two unknowns that look the same are not clearly meant.
    seen = {script(char) for char in text if char.isalpha()} & {"Latn", "Cyrl"}
    if len(seen) > 1:
        raise BadExpression("mixed scripts", "Latin and Cyrillic letters look alike")


def _trimmed(text: str) -> str:
    """Return an expression without what often ends one: `12*3 = ?`."""
    return re.sub(r"\s*=\s*\??\s*\Z", "", text).strip()


# Tokens


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Literal["number", "name", "operator"]
    text: str
    value: Fraction | None = None
    spaced: bool = False
    """White space stands before it."""


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    brackets: list[bool] = []  # of each open one: are its commas between arguments?
    place = 0
    while place < len(text):
        start = place
        while place < len(text) and text[place] in " \t":
            place += 1
        if place == len(text):
            break
        spaced = place > start
        arguments = bool(brackets) and brackets[-1]
        token, place = (
            _number(text, place, spaced, grouped=not arguments)
            or _name(text, place, spaced)
            or _operator(text, place, spaced)
        )
        if token.text in _CLOSING:
            function = _function(found[-1]) if found else None
            brackets.append(function is not None and FUNCTIONS.get(function, (2, 2))[1] != 1)
        elif token.text in (")", "]", "}") and brackets:
            brackets.pop()
        found.append(token)
    return found


def _operator(text: str, place: int, spaced: bool) -> tuple[_Token, int]:
    match = _OPERATOR.match(text, place)
    if match is None:
        raise BadExpression("syntax", f"unexpected {text[place]!r} at {place + 1}")
    return _Token("operator", match[0], spaced=spaced), match.end()


def _number(text: str, place: int, spaced: bool, *, grouped: bool) -> tuple[_Token, int] | None:
    match = (grouped and _GROUPED.match(text, place)) or _NUMBER.match(text, place)
    if not match:
        vulgar = _VULGAR.get(text[place])
        return (_Token("number", text[place], vulgar, spaced), place + 1) if vulgar else None
    shown, end = match[0], match.end()
    if len(shown) > MAX_LITERAL:
        raise BadExpression("too large", f"a number of {len(shown)} characters, at most {MAX_LITERAL}")
    if re.match(r"0[xXbBoO]", shown):
        value = Fraction(int(shown, 0))
    elif re.match(r"0\d", shown):
        raise BadExpression("syntax", f"a number does not start with 0: {shown[:20]!r}")
    else:
        mantissa, _, exponent = shown.replace(",", "").lower().partition("e")
        if exponent and abs(int(exponent)) > MAX_LITERAL:
            raise BadExpression("too large", f"{shown[:20]}: an exponent beyond {MAX_LITERAL}")
        value = Fraction(mantissa + ("0" if mantissa.endswith(".") else "")) * Fraction(10) ** int(exponent or 0)
    if text[end : end + 1] in _VULGAR and shown.isdigit():  # 2½ is two and a half
        value += _VULGAR[text[end]]
        end += 1
    return _Token("number", shown, value, spaced), end


def _name(text: str, place: int, spaced: bool) -> tuple[_Token, int] | None:
    if not text[place].isalpha():
        return None
    end = place + 1
    while end < len(text) and (text[end].isalpha() or unicodedata.category(text[end])[0] == "M"):
        end += 1
    more = _NAME_END.match(text, end)
    if more is not None:
        end = more.end()
    return _Token("name", unicodedata.normalize("NFC", text[place:end]), spaced=spaced), end


def _function(token: _Token) -> str | None:
    name = token.text.casefold()
    name = ALIASES.get(name, name)
    return name if token.kind == "name" and (name in FUNCTIONS or name == "pow") else None


def _split(tokens: list[_Token]) -> list[list[_Token]]:
    """Return the tokens of each equation: `;`, `,` and new lines outside of brackets separate them."""
    parts: list[list[_Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in _CLOSING) - (token.text in (")", "]", "}"))
        if token.text in (";", ",", "\n") and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


# Grammar


class _Parser:
    """Recursive descent over tokens.

    expression = term { ("+" | "-") term }
    term       = signed { ("*" | "/" | "//" | "%") signed | power }      the last without a sign: 2x, 3(x+1)
    signed     = { "+" | "-" } power
    power      = postfix [ ("^" | "**") signed ]                          to the right: 2^3^2 is 2^9
    postfix    = primary { "!" | "%" | "°" }
    primary    = number | name | function "(" ... ")" | "(" expression ")" | "|" expression "|" | "√" primary

    `letters` are the unknowns of one letter that stand by themselves somewhere; None: there are no unknowns at all.
    """

    def __init__(self, tokens: list[_Token], letters: frozenset[str] | None) -> None:
        self.tokens = [token for token in tokens if token.text != "\n"]
        self.letters = letters
        self.place = 0
        self.depth = 0

    def whole(self) -> Tree:
        if not self.tokens:
            raise BadExpression("empty", "expected an expression such as 2*(3+4)")
        tree = self.expression()
        if self.place < len(self.tokens):
            token = self.tokens[self.place]
            if token.kind == "number" or self.opens():
                raise BadExpression("syntax", f"an operator is missing before {token.text[:20]!r}")
            if token.text == ",":
                raise BadExpression("syntax", "a comma outside of a function; decimals are written with a point")
            raise BadExpression("syntax", f"unexpected {token.text!r}")
        return tree

    def peek(self) -> str:
        """Return the next operator, "" where there is something else or nothing."""
        if self.place < len(self.tokens) and self.tokens[self.place].kind == "operator":
            return self.tokens[self.place].text
        return ""

    def opens(self) -> bool:
        """Tell whether the next token can start a factor that is multiplied without a sign."""
        if self.place == len(self.tokens):
            return False
        token = self.tokens[self.place]
        return token.kind == "name" or token.text in ("(", "[", "{", "√", "∛")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BadExpression("too deep", f"more than {MAX_DEPTH} brackets, signs or exponents inside each other")

    def expression(self) -> Tree:
        terms = [self.term()]
        while (sign := self.peek()) in ("+", "-"):
            self.place += 1
            term = self.term()
            terms.append(term if sign == "+" else ["negative", term])
        return terms[0] if len(terms) == 1 else ["sum", *terms]

    def term(self) -> Tree:
        factors = [self.signed()]
        divided = False
        while True:
            sign = self.peek()
            if sign in ("*", "/"):
                self.place += 1
                factor = self.signed()
                factors.append(factor if sign == "*" else ["inverse", factor])
                divided = sign == "/"
            elif sign in ("//", "%"):  # a percent sign that is left here is a modulo
                self.place += 1
                left = factors[0] if len(factors) == 1 else ["product", *factors]
                self.deeper()
                factors = [["floor quotient" if sign == "//" else "modulo", left, self.signed()]]
                divided = False
            elif self.opens():
                if divided:
                    raise BadExpression("ambiguous", "a/bc may be a/(bc) or (a/b)c: write the brackets")
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else ["product", *factors]

    def signed(self) -> Tree:
        negative, signs = False, 0
        while (sign := self.peek()) in ("+", "-"):
            negative ^= sign == "-"
            signs += 1
            self.place += 1
        if signs > 2:
            raise BadExpression("syntax", "more than two signs in a row")
        tree = self.power()
        return ["negative", tree] if negative else tree

    def power(self) -> Tree:
        base = self.postfix()
        if self.peek() not in ("^", "**"):
            return base
        self.place += 1
        depth = self.depth
        self.deeper()
        exponent = self.signed()
        self.depth = depth
        return ["power", base, exponent]

    def postfix(self) -> Tree:
        tree = self.primary()
        while True:
            sign = self.peek()
            if sign == "!":
                self.place += 1
                if self.peek() == "!":
                    raise BadExpression("ambiguous", "!! may be a double factorial: write brackets")
                tree = ["call", "factorial", tree]
            elif sign == "°":
                self.place += 1
                tree = ["call", "radians", tree]
            elif sign == "%" and not self.modulo():
                self.place += 1
                tree = ["product", tree, ["number", 1, 100]]
            else:
                return tree

    def modulo(self) -> bool:
        """Tell whether the percent sign ahead stands between two operands."""
        token = self.tokens[self.place]
        self.place += 1
        number = self.place < len(self.tokens) and self.tokens[self.place].kind == "number"
        operand = number or self.opens()
        self.place -= 1
        if operand and not number and not token.spaced:
            raise BadExpression("ambiguous", "% may be percent or modulo: write *, or mod(a, b)")
        return operand

    def primary(self) -> Tree:
        if self.place == len(self.tokens):
            raise BadExpression("syntax", "it ends where a number is expected")
        token = self.tokens[self.place]
        self.place += 1
        depth = self.depth
        if token.value is not None:
            return ["number", token.value.numerator, token.value.denominator]
        self.deeper()
        if token.kind == "name":
            tree = self.named(token)
        elif token.text in _CLOSING:
            tree = self.expression()
            self.close(token.text)
        elif token.text in ("√", "∛"):
            tree = ["call", "sqrt" if token.text == "√" else "cbrt", self.primary()]
        elif token.text == "|":
            tree = ["call", "abs", self.expression()]
            if self.peek() != "|":
                raise BadExpression("syntax", "a bar | is not closed")
            self.place += 1
        else:
            raise BadExpression("syntax", f"unexpected {token.text!r} where a number is expected")
        self.depth = depth
        return tree

    def close(self, opening: str) -> None:
        if self.peek() != _CLOSING[opening]:
            found = self.tokens[self.place].text[:20] if self.place < len(self.tokens) else "the end"
            raise BadExpression("syntax", f"expected {_CLOSING[opening]!r}, found {found!r}")
        self.place += 1

    def named(self, token: _Token) -> Tree:
        function = _function(token)
        opening = self.peek()
        if function is not None and opening in _CLOSING:
            self.place += 1
            return self.call(token.text, function, opening)
        if function is not None:
            raise BadExpression("syntax", f"{token.text} needs its argument in brackets")
        if opening in _CLOSING and (len(token.text) > 1 or token.text in "fg") and token.text.casefold() != "pi":
            raise BadExpression("unknown function", token.text[:40])
        return self.name(token.text)

    def name(self, name: str) -> Tree:
        constant = _CONSTANTS.get(name.casefold())
        if constant == "pi":
            return ["constant", "pi"]
        if self.letters is None:
            if constant is not None:
                return ["constant", constant]
            raise BadExpression("unknown name", name[:40])
        if name == "e" and self.peek() in ("^", "**"):
            return ["constant", "e"]
        # xy is a product where x and y are unknowns by themselves, otherwise a word.
        if len(name) > 1 and self.letters.issuperset(name):
            return ["product", *(["name", letter] for letter in name)]
        return ["name", name]

    def call(self, shown: str, function: str, opening: str) -> Tree:
        arguments = [self.expression()]
        while self.peek() == ",":
            self.place += 1
            arguments.append(self.expression())
        self.close(opening)
        if function == "pow":
            function, least, most = "power", 2, 2
        else:
            least, most = FUNCTIONS[function][0], FUNCTIONS[function][1] or len(arguments)
        if not least <= len(arguments) <= most:
            raise BadExpression(
                "wrong arity", f"{shown} takes {least}{f' to {most}' if most > least else ''} arguments"
            )
        return ["power", *arguments] if function == "power" else ["call", function, *arguments]
