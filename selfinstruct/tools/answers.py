"""Whether an answer says what its tools gave: their values stated, and no number that nothing stands behind.

In MOSS's own samples 40 of 52 turns of its mixed plugins whose call failed state a number all the same; here a reply is
held against the results it rests on. Numbers are compared exactly, or as far as the answer shows decimals. A number may
be written in many ways, and each way it can be read is tried before it is held against anybody.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from selfinstruct.tools.commands import Call
from selfinstruct.values import Rejection, ToolResult

_SCALES: dict[str, int | Fraction] = {
    "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "千": 10**3, "百": 100, "만": 10**4, "억": 10**8,
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "k": 10**3,
    "%": Fraction(1, 100), "‰": Fraction(1, 1000), "percent": Fraction(1, 100),
}  # fmt: skip
"""What a number may be multiplied by where one of these follows; by itself it may be meant too."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_MINUS = re.compile("[\N{MINUS SIGN}\N{EN DASH}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}]")
_FRAC = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*(-?[\d.,]+)\s*\}")
_POWER = re.compile(r"\s*(?:\\times|\\cdot|[×·*x])\s*10\s*(?:\^\s*\{?\s*(-?\d+)\s*\}?|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))")
_GROUPED = r"\d+(?:[.,'\u00a0\u202f ]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?"
_WORDS = "|".join(word for word in _SCALES if word.isascii() and word.isalpha())
_SIGNS = "|".join(map(re.escape, (sign for sign in _SCALES if not (sign.isascii() and sign.isalpha()))))
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.\\])(?P<digits>{_GROUPED})(?:[eE](?P<power>[-+]?\d{{1,3}})(?!\w))?"
    rf"(?:\s?(?:(?P<word>{_WORDS})(?![a-z])|(?P<sign>{_SIGNS})))?",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"^[ \t]*(?:[#>*+-]+[ \t]*)*[(（]?\d{1,2}[.)、）](?=\s|[^\d\s])", re.MULTILINE)
_CITATION = re.compile(r"<sup>\s*<\|\d+\|>\s*</sup>|<\|\d+\|>|\[\d{1,3}\]")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it stands in a text, with every value it may mean and how exact it then is: decimals shown, which
    are negative where only millions are.
    """  # noqa: D205

    text: str
    readings: tuple[tuple[Fraction, int], ...]

    @property
    def values(self) -> tuple[Fraction, ...]:
        """Return what it may mean."""
        return tuple(value for value, _ in self.readings)

    def means(self, value: Fraction) -> bool:
        """Tell whether it is `value`, or `value` rounded to what it shows, two digits at least; signs aside."""
        for mine, decimals in self.readings:
            unit = Fraction(10) ** -decimals
            if abs(mine) == abs(value) or (abs(mine) >= 10 * unit and abs(abs(mine) - abs(value)) <= unit / 2):
                return True
        return False


def numbers(text: str, *, list_marks: bool = False) -> list[Number]:
    """Return the numbers of a text: in any digits, with separators of any kind, fractions, percent, powers of ten.

    Digits that belong to a name (`x_1`, `H2O`) and citations are none, and the marks of a list (`2. Add both.`) unless
    `list_marks`: at the start of a line nobody can tell `26.` from one.
    """
    plain = _plain(text) if list_marks else _LIST_MARK.sub(" ", _plain(text))
    found = []
    for match in _NUMBER.finditer(plain):
        readings = _readings(match["digits"])
        power = int(match["power"] or 0)
        readings = [(value * Fraction(10) ** power, decimals - power) for value, decimals in readings]
        scale = _SCALES.get((match["word"] or match["sign"] or "").lower())
        if scale:
            zeros = len(str(scale)) - 1 if scale > 1 else 1 - len(str(scale.denominator))
            readings += [(value * scale, decimals - zeros) for value, decimals in readings]
        found.append(Number(match[0].strip(), tuple(readings)))
    for match in re.finditer(r"(?<![\w./])(\d{1,40})\s*/\s*(\d{1,40})(?![\w/])", plain):
        if int(match[2]):
            found.append(Number(match[0], ((Fraction(int(match[1]), int(match[2])), 99),)))
    return found


def check_answer(answer: str, results: Sequence[tuple[Call, ToolResult]], known: str) -> Rejection | None:
    """Reject an answer that leaves out what a tool gave, or has a number found nowhere else.

    Of each call with values the answer must state one: of two solutions a person may want the positive one. Its other
    numbers must come from `known` (the conversation), from a command or from a result.
    """
    if not results:
        return None
    said = numbers(answer, list_marks=True)
    for call, result in results:
        wanted = [*_exact(result.values), *_approximate(result.text)]
        stated = any(number.means(value) for number in said for value in wanted)
        if result.values and not stated and not _quoted(answer, result.values):
            return Rejection("reply", "result not stated", {"call": call.text[:200], "value": result.values[0][:80]})
    sources = [known, *(call.text for call, _ in results), *(result.text for _, result in results)]
    sources += [item for _, result in results for item in result.items]
    allowed = {value for source in sources for number in numbers(source) for value in number.values}
    for number in numbers(answer):
        if not any(number.means(value) for value in allowed) and not _is_quotient_of(number, allowed):
            return Rejection("reply", "number from nowhere", {"number": number.text[:80]})
    return None


def _plain(text: str) -> str:
    """Return a text with its digits, minus signs and fractions in one way of writing, and citations taken out."""
    text = _CITATION.sub(" ", text)
    text = _POWER.sub(lambda m: f"e{m[1] or m['raised'].translate(_SUPERSCRIPTS)}", text)
    text = "".join(
        str(unicodedata.decimal(char)) if unicodedata.category(char) == "Nd" else char
        for char in unicodedata.normalize("NFKC", text)
    )
    text = text.replace("{,}", ",").replace("\\,", " ").replace("٫", ".").replace("٬", ",")
    return _FRAC.sub(r" \1/\2 ", _MINUS.sub("-", text))


def _readings(digits: str) -> list[tuple[Fraction, int]]:
    """Return what digits with separators may mean, with the decimals shown: `1.234` is a thousand and more, or one."""
    pieces = re.split(r"([.,'\u00a0\u202f ])", digits)
    marks, groups = pieces[1::2], pieces[2::2]
    readings = []
    if not marks or (len(set(marks)) == 1 and all(len(group) == 3 for group in groups)):
        readings.append((Fraction("".join(pieces[::2])), 0))
    if marks and marks[-1] in ".," and marks.count(marks[-1]) == 1:
        readings.append((Fraction(f"{''.join(pieces[:-2:2])}.{groups[-1]}"), len(groups[-1])))
    return readings or [(Fraction("".join(pieces[::2])), 0)]


def _exact(values: Iterable[str]) -> Iterator[Fraction]:
    for value in values:
        try:
            yield Fraction(value)
        except (ValueError, ZeroDivisionError):
            continue


def _approximate(text: str) -> Iterator[Fraction]:
    for shown in re.findall(r"≈\s*([^\n]+)", text):
        yield from (value for number in numbers(shown) for value in number.values)


def _quoted(answer: str, values: Iterable[str]) -> bool:
    """Tell whether a value that is no rational number (`2*sqrt(3)`, `5 + 5*i`) stands in the answer, in any dress."""
    shown = _bare(answer)
    return any(_bare(value) in shown for value in values if not any(_exact([value])))


def _bare(text: str) -> str:
    text = re.sub(r"\\?sqrt\s*[({]?\s*(\w+)\s*[)}]?", r"√\1", unicodedata.normalize("NFKC", text).lower())
    return re.sub(r"\\(?:times|cdot|pi)|[\s*·×$()]", lambda m: "π" if m[0] == "\\pi" else "", text.replace("pi", "π"))


def _is_quotient_of(number: Number, allowed: Iterable[Fraction]) -> bool:
    """Tell whether a fraction as written is made of two numbers that are allowed each."""
    if "/" not in number.text:
        return False
    known = set(allowed)
    return all(Fraction(int(part)) in known for part in re.findall(r"\d+", number.text))
