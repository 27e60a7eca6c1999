"""Keep what a translation must not touch: put marks in its place, put it back, and tell what came back damaged.

Code, formulas, addresses, markup and placeholders are replaced by numbered marks such as ⟦3⟧, which models hand on
untouched (the way of machine translation since XLIFF's inline tags). Whatever the text and the reply, nothing raises:
`unmask(mask(text).text, mask(text))` is `text`, and a mark that is lost, doubled, invented or bent is a `Fault`.

Numbers stay visible, because they belong to the grammar around them, and are compared afterwards: by value, in any
digits and with any separators.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Masked:
    """A text with marks in it; mark number n stands for `spans[n - first]`."""

    text: str
    spans: tuple[str, ...]
    first: int = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a translation: a stable reason, and what it is about."""

    reason: str
    about: str = ""


# Leftmost wins, then the order here: a tag inside of code is code.
_PROTECTED = re.compile(
    r"""
    # Code: a fenced block, which may be unclosed, and code within a line.
      (?m:^[ \t]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*$)(?s:.*?)(?:(?m:^[ \t]{0,3}(?P=fence)[`~]*[ \t]*$)|\Z)
    | (?<!`)(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n)[^`]|(?!(?<!`)(?P=ticks)(?!`))`)+(?P=ticks)(?!`)
    | <(?P<element>(?i:pre|code|script|style|math|svg))\b[^<>]*>(?s:.*?)</(?P=element)\s*>

    # LaTeX. A dollar opens a formula as in Pandoc: blank on neither inner side, no digit behind it; no prose in it.
    | \$\$(?s:.+?)\$\$ | \\\[(?s:.+?)\\\] | \\\((?s:.+?)\\\)
    | \\begin\{(?P<environment>[^{}\n]+)\}(?s:.*?)\\end\{(?P=environment)\}
    | (?<![\\$A-Za-z0-9])\$(?![\s$])(?![^$\n\\]*[^\W\d_]{3,}[ ][^\W\d_]{3,})[^$\n]{1,200}(?<![\s\\])\$(?![\d$])
    | \\[A-Za-z]+\*?(?:\[[^\[\]\n]*\])?(?:\{[^{}\n]*\})+

    # Markup: comments, tags, the marks of chat templates, entities, and where a Markdown link leads.
    | <!--(?s:.*?)--> | <![A-Za-z][^<>]*>
    | </?[^\W\d_][\w:.-]*(?:\s+[\w:@.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>
    | <\|[^|<>\n]{1,40}\|> | \[\|[^|\[\]\n]{1,20}\|\] | \[/?INST\] | <</?SYS>>
    | &(?:[A-Za-z]{2,31}|\#\d{1,7}|\#[xX][0-9A-Fa-f]{1,6});
    | (?<=\])\((?:[^()\s]|\([^()\s]*\))+(?:\s+"[^"\n]*")?\)

    # Addresses, without the punctuation of the sentence behind them.
    | (?:https?|ftp|file)://[!\#-;=?-_a-~]*[A-Za-z0-9\#$%&*+/=@\\^_~-]
    | (?<![A-Za-z0-9])www\.[!\#-;=?-_a-~]*[A-Za-z0-9\#$%&*+/=@\\^_~-]
    | (?a:(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)

    # Placeholders of templates, str.format and printf.
    | \{\{[^{}\n]*\}\} | \{%[^\n]*?%\} | \$\{[^{}\n]+\}
    | \{(?:[^\W\d][\w.\[\]-]*|\d*)(?:![rsa])?(?::[^{}\s]{0,20})?\}
    | %\(\w+\)[-+\#0]*\d*(?:\.\d+)?[A-Za-z] | (?a:(?<![\w%])%(?:\d+\$)?[-+\#0]*\d*(?:\.\d+)?[sdifgxXeEcu](?!\w))

    # The brackets of our own marks.
    | [⟦⟧]
    """,
    re.VERBOSE,
)
_MARK = re.compile(r"⟦\s*(\d{1,9})\s*⟧")
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)[^<>]*?(/?)>")


def mask(text: str, first: int = 1) -> Masked:
    """Return the text with a mark in place of each span that must not change; spans that touch share a mark."""
    spans: list[str] = []
    end = -1

    def mark(found: re.Match[str]) -> str:
        nonlocal end
        touching, end = found.start() == end, found.end()
        if touching:
            spans[-1] += found[0]
            return ""
        spans.append(found[0])
        return f"⟦{first + len(spans) - 1}⟧"

    return Masked(_PROTECTED.sub(mark, text), tuple(spans), first)


def unmask(reply: str, masked: Masked) -> str | Fault:
    """Return a reply with the spans back in their places, or what is wrong with its marks.

    Each mark of the masked text must be there exactly once. Words change their order in another language, so marks may,
    but for blocks of several lines; and tags that were nested properly must still be.
    """
    wanted = marks(masked.text)
    found = marks(reply)
    for number in wanted:
        if found.count(number) != 1:
            return Fault("mark_repeated" if number in found else "mark_lost", f"⟦{number}⟧")
    unknown = next((number for number in found if number not in wanted), None)
    if unknown is not None:
        return Fault("mark_unknown", f"⟦{unknown}⟧")
    if bent := re.search("[⟦⟧]", _MARK.sub("", reply)):
        return Fault("mark_damaged", bent[0])
    span = {number: masked.spans[number - masked.first] for number in wanted}
    before, after = ([span[number] for number in order] for order in (wanted, found))
    if [each for each in before if "\n" in each] != [each for each in after if "\n" in each]:
        return Fault("mark_order", "the blocks have changed places")
    if _nested(before) and not _nested(after):
        return Fault("mark_order", "a closing tag stands before its opening one")
    return _MARK.sub(lambda mark: span[int(mark[1])], reply)


def marks(text: str) -> list[int]:
    """Return the numbers of the marks in a text, in order."""
    return [int(number) for number in _MARK.findall(text)]


def unmarked(text: str) -> str:
    """Return a masked text without its marks: what there is to translate."""
    return _MARK.sub(" ", text)


def _nested(spans: list[str]) -> bool:
    """Tell whether the tags close in the order they opened; tags that are never closed do not count."""
    tags = [tag.groups() for span in spans if "\n" not in span for tag in _TAG.finditer(span)]
    closed = {name for closing, name, _ in tags if closing}
    opened: list[str] = []
    for closing, name, alone in tags:
        if name not in closed or alone:
            continue
        if not closing:
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return not opened


# Numbers

_SPACES = "\u00a0\u202f\u2009"  # no-break and thin spaces
_MARKS = rf".,'’٫٬_{_SPACES}"
_DIGITS = re.compile(rf"\d+(?:[{_MARKS}]\d+)*")
_SPACED = re.compile(rf"\d{{1,3}}(?: \d{{3}})+(?!\d)(?:[.,٫]\d+)?|{_DIGITS.pattern}")


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it is written and the values it may stand for: 1.234 is twelve hundred or one and a bit.

    `scaled`: a numeral such as 万 follows, so the value is some power of ten higher.
    """

    written: str
    values: frozenset[Fraction]
    scaled: bool = False


def number_fault(source: str, translation: str) -> Fault | None:
    """Say which number of the source is not in the translation, or which the translation made up.

    Values count, not how they are written: any digits, any separators. What the source spells out may become figures,
    so only an added number of three digits and more that are not zeros behind others ("1999", not "120") is one made
    up. Han numerals count as figures; 500万 is 5 with some zeros.
    """
    faults = [
        _compare(_numbers(source, one), _numbers(translation, other), translation)
        for one in (_DIGITS, _SPACED)
        for other in (_DIGITS, _SPACED)
    ]
    return None if None in faults else faults[0]


def _compare(wanted: list[_Number], found: list[_Number], text: str) -> Fault | None:
    spelled = None
    left = list(found)
    for number in sorted(wanted, key=lambda number: len(number.values)):
        match = next((each for each in left if _same(number, each)), None)
        if match is not None:
            left.remove(match)
            continue
        spelled = _spelled(text) if spelled is None else spelled
        if not number.values & spelled:
            return Fault("number_changed", number.written)
    made_up = next((each.written for each in left if len(_significant(each.written)) > 2), None)
    return Fault("number_added", made_up) if made_up else None


def _same(one: _Number, other: _Number) -> bool:
    if one.values & other.values:
        return True
    return (one.scaled or other.scaled) and _significant(one.written) == _significant(other.written)


def _significant(written: str) -> str:
    """Return the digits of a number between its first and its last that are not zero."""
    return "".join(str(unicodedata.digit(char)) for char in written if char.isdigit()).strip("0")


def _numbers(text: str, pattern: re.Pattern[str]) -> list[_Number]:
    found = []
    for match in pattern.finditer(text):
        scaled = unicodedata.numeric(text[match.end() : match.end() + 1] or "x", 0) >= 100
        for written in _split(match[0]):
            found.append(_Number(written, frozenset(_readings(written)), scaled))
    return found


def _split(written: str) -> list[str]:
    """Return the number, or the several ones that are joined by marks as in 14.06.2025 and 3,14,15."""
    if any(True for _ in _readings(written)):
        return [written]
    return re.split(rf"[{_MARKS} ]", written)


def _readings(written: str) -> Iterator[Fraction]:
    """Yield the values that digits with separators may stand for."""
    digits = "".join(str(unicodedata.digit(char)) if char.isdigit() else char for char in written)
    separators = re.findall(r"\D", digits)
    if not separators:
        yield Fraction(int(digits))
        return
    whole, _, rest = digits.rpartition(separators[-1])
    if _grouped(digits):
        yield Fraction(int(re.sub(r"\D", "", digits)))
    decimal = separators[-1] in ".,٫" and separators.count(separators[-1]) == 1
    if decimal and (whole.isdigit() or _grouped(whole)):
        yield Fraction(int(re.sub(r"\D", "", whole) + rest), 10 ** len(rest))


def _grouped(digits: str) -> bool:
    """Tell whether one kind of separator stands between groups of digits, by thousands or as in India."""
    return bool(re.fullmatch(r"\d{1,3}(\D)\d{3}(?:\1\d{3})*|\d{1,2}(\D)(?:\d{2}\2)+\d{3}", digits))


def _spelled(text: str) -> frozenset[Fraction]:
    """Return the values of the numerals among letters, as Han ones are: 三, 十二, 二〇二五, 三千五百."""
    values: set[Fraction] = set()
    run: list[int] = []
    for char in text + " ":
        value = unicodedata.numeric(char, None) if char.isalpha() or char == "〇" else None
        if value is not None and value == int(value):
            run.append(int(value))
        elif run:
            values.add(Fraction(_worked_out(run)))
            run = []
    return frozenset(values)


def _worked_out(numerals: list[int]) -> int:
    if all(value < 10 for value in numerals):
        return int("".join(map(str, numerals)))
    total = section = digit = 0
    for value in numerals:
        if value < 10:
            digit = value
        elif value < 10_000:
            section, digit = section + (digit or 1) * value, 0
        else:
            total, section, digit = total + (section + digit or 1) * value, 0, 0
    return total + section + digit
