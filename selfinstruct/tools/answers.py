r"""Whether an answer says what its tools gave: their values stated, and no number that nothing stands behind.

`unstated` are values of a result that the answer does not give, `unsupported` are numbers of the answer that stand
neither in what was asked, nor in the commands, nor in the results: the model made them up (38 of 200 turns of
OpenLMLab/MOSS's calculator samples have a failed call, and 16 of these still state a number).

A number is read in every way it may be meant, since the language is not known: `1,234` and `1.234`, `50%` as 50 and as
0.5, `1.2万` as 1.2 and as 12,000, `26千克` as 26 and 26,000. Two numbers agree when one of these is equal, or is the
other one rounded to the digits shown, at least two of them. Read too are `1/3`, `½`, `\frac{1}{3}`, `1.5×10^8`, `2√2`,
`4π`, digits of any script, and `二十六` (only as a support: nobody is blamed for a numeral in words).
"""

from __future__ import annotations

import bisect
import cmath
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from selfinstruct.tools.commands import Call
from selfinstruct.tools.grammar import BadExpression, Tree, parse_expression
from selfinstruct.values import Rejection, ToolResult

_SCALES = {
    "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "億": 10**8,
    "万亿": 10**12, "만": 10**4, "억": 10**8, "thousand": 1000,
    "million": 10**6, "billion": 10**9, "trillion": 10**12, "k": 1000,
}  # fmt: skip
_FLOAT = Fraction(4, 10**15)  # what a float may be off, relatively
_MAX_ANSWER = 50_000  # characters looked at
_MAX_DIGITS = 1500  # of a number: no result has more

_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|boxed|operatorname)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"((\1)/(\2))"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\s*\[3\]\s*\{([^{}]*)\}"), r"∛(\1)"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"√(\1)"),
    (re.compile(r"\\sqrt\s*(\d)"), r"√\1"),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
)
_LATEX_SIGNS = {
    "{,}": ",",
    r"\times": "×",
    r"\cdot": "·",
    r"\div": "/",
    r"\pi": "π",
    r"\pm": "±",
    r"\%": "%",
    r"\approx": "≈",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_PLAIN_SIGNS = {"−": "-", "–": "-", "﹣": "-", "－": "-", "٫": ".", "٬": ",", "⁄": "/", "／": "/"}

_ASIDE = re.compile(r"<sup>\s*<\|\d+\|>\s*</sup>|<\|\d+\|>|\[\d{1,3}\]|</?\w+\s*/?>")
_LIST_MARK = re.compile(r"^[ \t]*(?:[#>*+-]+[ \t]*)*[(（]?\d{1,2}[.)、）](?=\s|[^\d\s])", re.MULTILINE)
_GROUPS = "'’\u00a0\u2009\u202f"
_NUMBER = re.compile(
    rf"(?P<digits>\d{{1,3}}(?: \d{{3}})+(?:[.,]\d+)?(?![\d.,]*\d)|\d+(?:[.,{_GROUPS}]\d+)*|(?<![\w.,])\.\d+)"
    r"(?P<power>[eE][+-]?\d+(?!\w)|\s?[×x*·]\s?10\^\(?[+-]?\d+\)?)?"
)
_GROUPED = [
    # 1,234,567.8 and, as in India, 12,34,567.8
    (
        each,
        point,
        re.compile(rf"(?:\d{{1,3}}(?:{each}\d{{3}})+|\d{{1,2}}(?:{each}\d{{2}})+{each}\d{{3}})(?:[{point}]\d+)?"),
    )
    for each, point in ((",", "."), (r"\.", ","), *((space, point) for space in f" {_GROUPS}" for point in ".,"))
]
_DIVISOR = re.compile(r"\)?\s?/\s?\(?(\d+(?:\.\d+)?)(?![\d/.]{0,20}\d)")
_AFTER = re.compile(
    r"\s?(?:%|％|percent\b|per cent\b)|\s?(" + "|".join(sorted(_SCALES, key=len, reverse=True)) + ")", re.I
)
_EXACT = re.compile(r"(?:[\d.()+\-±*/^√∛π×· ]|sqrt|cbrt|\bpi\b|\be\b|\bln\b|\blog\b|(?<![A-Za-z])i(?![A-Za-z]))+")
_TELLING = re.compile(r"√|∛|π|sqrt|cbrt|\bpi\b|\^|\bln\b|\blog\b|(?<![A-Za-z])i(?![A-Za-z])")


@dataclass(frozen=True, slots=True)
class _Reading:
    """A value, and the place value of its last digit (0: exact)."""

    value: Fraction
    unit: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it was written, what it may mean, and what its parts mean where it may be several."""

    text: str
    readings: tuple[_Reading, ...]
    parts: tuple[tuple[_Reading, ...], ...] = ()
    signed: bool = False
    """Its sign is certain: one is written, or it stands behind an equals sign."""


def check_answer(answer: str, results: Sequence[tuple[Call, ToolResult]], known: str) -> Rejection | None:
    """Reject an answer that leaves out what a tool gave, or has a number found nowhere else.

    Of each call with values the answer must state one: of two solutions a person may want the positive one. Its other
    numbers must come from `known` (the conversation), from a command or from a result.
    """
    if not results:
        return None
    for call, result in results:
        if result.values and len(unstated(answer, result)) == len(set(result.values)):
            return Rejection("reply", "result not stated", {"call": call.text[:200], "value": result.values[0][:80]})
    invented = unsupported(answer, [known, *(call.text for call, _ in results)], [result for _, result in results])
    return Rejection("reply", "number from nowhere", {"number": invented[0][:80]}) if invented else None


def unstated(answer: str, result: ToolResult) -> tuple[str, ...]:
    """Return the values of a result that the answer does not state; none for a result without values.

    The marks of a list count as numbers here: at the start of a line nobody can tell `26.` from one.
    """
    text = _plain(answer)
    numbers = list(_numbers(text))
    numerals = list(_numerals(text))
    expressions = list(_expressions(text))
    missing = []
    for shown in dict.fromkeys(result.values):
        value = _evaluated(shown)
        if value is None:
            stated = " ".join(shown.split()).casefold() in " ".join(answer.split()).casefold()
        elif isinstance(value, complex):
            stated = any(_near(value, each) for each in expressions) or all(
                part in (0, 1)
                or any(_agree(_exactly(part), _size(each)) for number in numbers for each in number.readings)
                for part in (abs(value.real), abs(value.imag))
            )
        else:
            stated = (
                any(_says(each, value) for each in numbers)
                or any(reading.value == value.value for reading in numerals)
                or any(_near(point, each) for point in _points(value) for each in expressions)
            )
        if not stated:
            missing.append(shown)
    return tuple(missing)


def unsupported(answer: str, sources: Iterable[str], results: Iterable[ToolResult] = ()) -> tuple[str, ...]:
    """Return the numbers of an answer that neither the sources (question, commands) nor the results give.

    Numbers of lists, citations, indices (`x_1`) and exponents (`cm^2`) are not looked at.
    """
    texts = [*sources]
    known: list[_Reading] = []
    written: set[str] = set()
    for result in results:
        texts += [result.text, *result.items, *result.values]
        for shown in result.values:
            value = _evaluated(shown)
            if isinstance(value, complex):
                known += [_exactly(value.real), _exactly(value.imag)]
            elif value is not None:
                known.append(value)
    for text in map(_plain, texts):
        # With and without the marks of lists: what stands in a source is no news in an answer, however it is read.
        for number in (*_numbers(text), *_numbers(_LIST_MARK.sub(" ", text))):
            written.add(number.text)
            known += number.readings
            known += [reading for part in number.parts for reading in part]
        known += _numerals(text)
    # Sorted by size, so that a long answer over long sources stays quick.
    supports = _Supports(known)
    found = []
    for number in _numbers(_LIST_MARK.sub(" ", _plain(answer))):
        whole = any(map(supports.has, number.readings))
        parts = bool(number.parts) and all(any(map(supports.has, part)) for part in number.parts)
        if not whole and not parts and number.text not in written:
            found.append(number.text)
    return tuple(dict.fromkeys(found))


# Agreement


def _says(number: _Number, value: _Reading) -> bool:
    for reading in number.readings:
        if _agree(value, reading):
            return True
        # "a decrease of 20" for -20; but x = 20 is not x = -20.
        if value.value < 0 and not number.signed and _agree(_Reading(-value.value, value.unit), reading):
            return True
    return False


def _agree(true: _Reading, shown: _Reading) -> bool:
    """Tell whether `shown` is the true value, or that rounded to its digits."""
    difference = abs(true.value - shown.value)
    if difference == 0:
        return True
    if shown.unit == 0:
        return difference <= true.unit
    two_digits = abs(shown.value) >= 10 * shown.unit
    return two_digits and difference <= max(shown.unit / 2, true.unit)


class _Supports:
    """Readings to look values up in, whatever their sign."""

    def __init__(self, readings: Sequence[_Reading]) -> None:
        self._sizes = sorted({abs(reading.value): reading.unit for reading in readings}.items())

    def has(self, shown: _Reading) -> bool:
        size = abs(shown.value)
        reach = max(shown.unit / 2, size * _FLOAT)
        place = bisect.bisect_left(self._sizes, size - reach, key=lambda pair: pair[0])
        while place < len(self._sizes) and self._sizes[place][0] <= size + reach:
            value = self._sizes[place][0]
            if _agree(_Reading(value, value * _FLOAT), _Reading(size, shown.unit)):
                return True
            place += 1
        return False


def _near(value: complex, other: complex) -> bool:
    return cmath.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12)


def _points(value: _Reading | complex) -> tuple[complex, ...]:
    """Return a value as a complex number; nothing for one too large to be compared so."""
    if isinstance(value, complex):
        return (value,)
    try:
        return (complex(float(value.value)),)
    except OverflowError:
        return ()


def _size(reading: _Reading) -> _Reading:
    return _Reading(abs(reading.value), reading.unit)


def _exactly(value: float) -> _Reading:
    return _Reading(Fraction(value), abs(Fraction(value)) * _FLOAT)


# Reading


def _plain(text: str) -> str:
    """Return text with LaTeX, digits of other scripts and the signs of numbers in one way of writing."""
    text = text[:_MAX_ANSWER]
    if "\\" in text or "{," in text:
        for sign, plain in _LATEX_SIGNS.items():
            text = text.replace(sign, plain)
        for _ in range(4):  # fractions inside of fractions
            for pattern, plain in _LATEX:
                text = pattern.sub(plain, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^({found[0].translate(_SUPERSCRIPTS)})", text)
    plain = "".join(_plain_char(char) if not char.isascii() else char for char in text)
    return _ASIDE.sub(" ", plain.replace("$", " "))


def _plain_char(char: str) -> str:
    if char in _PLAIN_SIGNS:
        return _PLAIN_SIGNS[char]
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    form, _, parts = unicodedata.decomposition(char).partition(" ")
    if form == "<wide>":
        return unicodedata.normalize("NFKC", char)
    if form == "<fraction>" and parts:
        return " " + unicodedata.normalize("NFKC", char).replace("⁄", "/")
    return char


def _numbers(text: str) -> Iterator[_Number]:
    end = 0
    for match in _NUMBER.finditer(text):
        start = match.start()
        if start < end or _is_part_of_a_word(text, start):
            continue
        end = match.end()
        readings, parts = _readings(match["digits"])
        if match["power"]:
            exponent = int(re.search(r"[+-]?\d+\)?\Z", match["power"])[0].rstrip(")"))  # type: ignore[index]
            readings = (
                tuple(_scaled(each, Fraction(10) ** exponent) for each in readings) if abs(exponent) < 400 else ()
            )
            parts = ()
        fraction = _DIVISOR.match(text, end)
        if fraction and Fraction(fraction[1]) != 0:
            parts = (readings, (_Reading(Fraction(fraction[1])),), *parts)
            readings = tuple(_Reading(each.value / Fraction(fraction[1])) for each in readings)
            end = fraction.end()
            whole = re.search(r"(?<![\d.,])(\d+) \Z", text[max(start - 20, 0) : start])
            if whole:  # 2 1/2
                readings += tuple(_Reading(each.value + int(whole[1])) for each in readings)
        after = _AFTER.match(text, end)
        if after:
            scale = Fraction(_SCALES[after[1].lower()]) if after[1] else Fraction(1, 100)
            readings += tuple(_scaled(each, scale) for each in readings)
            end = after.end() if not after[1] else end
        before = text[max(start - 20, 0) : start].rstrip(" (")
        if before.endswith("百分之"):
            readings += tuple(_scaled(each, Fraction(1, 100)) for each in readings)
        sign, signed = _sign(before)
        if sign == "±":
            readings += tuple(_scaled(each, Fraction(-1)) for each in readings)
        elif sign == "-":
            readings = tuple(_scaled(each, Fraction(-1)) for each in readings)
        yield _Number(text[start:end].strip(), readings, parts, signed)


def _sign(before: str) -> tuple[str, bool]:
    """Return the sign that stands before a number, and whether the number surely has it."""
    last = before[-1:]
    if last == "±":
        return "±", True
    if last == "-":
        rest = before[:-1].rstrip()
        minus = not rest or not (rest[-1].isalnum() or rest[-1] in ")]%")
        return ("-", True) if minus else ("", False)
    return "", last in ("=", "≈")


def _is_part_of_a_word(text: str, start: int) -> bool:
    """Tell whether the digits are those of x1, H2O, r_0, cm^2."""
    before = text[start - 1 : start]
    if re.search(r"[_^][({]?-?\Z", text[max(start - 3, 0) : start]):
        return True
    return before.isalpha() and unicodedata.name(before, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _readings(digits: str) -> tuple[tuple[_Reading, ...], tuple[tuple[_Reading, ...], ...]]:
    """Return what a group of digits, points and commas may mean as one number, and as several."""
    if len(digits) > _MAX_DIGITS:
        return (), ()
    if digits.isdecimal():
        return (_decimal(digits),), ()
    found: list[_Reading] = []
    if re.fullmatch(r"\d*\.\d+", digits):
        found.append(_decimal(digits))
    if re.fullmatch(r"\d+,\d+", digits):
        found.append(_decimal(digits.replace(",", ".")))
    for group, point, pattern in _GROUPED:
        if pattern.fullmatch(digits):
            found.append(_decimal(digits.replace(group[-1], "").replace(point, ".")))
    pieces = re.split(rf"[,{_GROUPS} ]", digits)
    parts = (
        tuple((_decimal(piece),) for piece in pieces if re.fullmatch(r"\d*\.?\d+", piece)) if len(pieces) > 1 else ()
    )
    return tuple(found), parts


def _decimal(text: str) -> _Reading:
    return _Reading(Fraction(text), Fraction(1, 10 ** len(text.partition(".")[2])))


def _scaled(reading: _Reading, factor: Fraction) -> _Reading:
    return _Reading(reading.value * factor, reading.unit * abs(factor))


def _numerals(text: str) -> Iterator[_Reading]:
    """Yield the numbers written in Chinese numerals: 二十六, 三百零五, and digit by digit 八五."""
    for match in re.finditer("[〇零一二两兩三四五六七八九十百千万萬亿億]+", text):
        if len(match[0]) > 60:
            continue
        values = [2 if char in "两兩" else int(unicodedata.numeric(char)) for char in match[0]]
        if all(value < 10 for value in values):
            yield _Reading(Fraction("".join(map(str, values))))
            continue
        total = section = digit = 0
        for value in values:
            if value < 10:
                digit = value
            elif value < 10**4:
                section += max(digit, 1) * value
                digit = 0
            else:
                total = (total + section + digit) * value
                section = digit = 0
        yield _Reading(Fraction(total + section + digit))


def _expressions(text: str) -> Iterator[complex]:
    """Yield the values of what is written as an exact form: 2√2, (1+√5)/2, 4π, -1 ± 2i."""
    for match in _EXACT.finditer(text):
        span = match[0].rstrip(" *·×/^+-.(").lstrip(" *·×/^+.)")
        if not _TELLING.search(span) or not re.search(r"\d|√|∛|π|i", span) or len(span) > 200:
            continue
        for sign in ("+", "-") if "±" in span else ("",):
            value = _evaluated(_balanced(span.replace("±", sign)))
            if value is not None:
                yield from _points(value)


def _balanced(span: str) -> str:
    while span.count("(") > span.count(")") and span.startswith("("):
        span = span[1:]
    while span.count(")") > span.count("(") and span.endswith(")"):
        span = span[:-1]
    return span


# Values


def _evaluated(text: str) -> _Reading | complex | None:
    """Return the value of an exact form: a fraction, a complex number, or None where it is no number."""
    try:
        value = _value(parse_expression(text))
    except (BadExpression, ValueError, ArithmeticError, KeyError, TypeError):
        return None
    if isinstance(value, Fraction):
        return _Reading(value)
    if not cmath.isfinite(value):
        return None
    if abs(value.imag) <= 1e-14 * abs(value):
        return _exactly(value.real)
    return value


_FLOATS: dict[str, Callable[..., complex]] = {
    "sqrt": cmath.sqrt, "exp": cmath.exp, "ln": cmath.log, "log": cmath.log, "abs": abs,
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "asin": cmath.asin, "acos": cmath.acos, "atan": cmath.atan,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "asinh": cmath.asinh, "acosh": cmath.acosh,
    "atanh": cmath.atanh, "cbrt": lambda x: complex(math.cbrt(x.real)) if x.imag == 0 else x ** (1 / 3),
}  # fmt: skip


def _value(tree: Tree) -> Fraction | complex:
    kind, *parts = tree
    if kind == "number":
        return Fraction(parts[0], parts[1])
    if kind == "constant":
        return {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}[parts[0]]
    if kind == "call":
        return _FLOATS[parts[0]](*(complex(_float(_value(part))) for part in parts[1:]))
    values = [_value(part) for part in parts]
    if kind == "negative":
        return -values[0]
    if kind == "inverse":
        return 1 / values[0]
    if kind == "power":
        base, exponent = values
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            if abs(exponent) > 1000:
                raise OverflowError
            return base ** int(exponent)
        return complex(_float(base) ** _float(exponent))
    if kind not in ("sum", "product"):
        raise KeyError(kind)
    total = values[0]
    for value in values[1:]:
        if isinstance(total, Fraction) and isinstance(value, Fraction):
            total = total + value if kind == "sum" else total * value
        else:
            total = _float(total) + _float(value) if kind == "sum" else _float(total) * _float(value)
    return total


def _float(value: Fraction | complex) -> complex:
    return complex(float(value)) if isinstance(value, Fraction) else value
