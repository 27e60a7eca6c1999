"""Masking: whatever the text, it comes back; whatever the damage to a mark, it is noticed; numbers count by value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.masking import Fault, Masked, marks, mask, number_fault, unmarked, unmask

SPANS = [
    "`x = 1`",
    "``a ` b``",
    "\n```python\ndef f():\n    return '<b>'\n```\n",
    "\n~~~\nunclosed `code`\n~~~\n",
    "<pre>\n  two\n</pre>",
    "<code>a < b</code>",
    "$x^2 + 1$",
    "$$\n\\int_0^1 x\\,dx\n$$",
    "\\(a+b\\)",
    "\\[c\\]",
    "\\begin{align}a&=b\\\\c&=d\\end{align}",
    "\\frac{1}{2}",
    "https://example.org/a?b=c&d=%20#e",
    "www.example.org/bar",
    "joe.bloggs+tag@mail.example.org",
    "<b>",
    "</b>",
    '<a href="https://example.org" class=x>',
    "<br/>",
    "<!-- a\ncomment -->",
    "<|im_start|>",
    "[|Human|]",
    "[INST]",
    "&nbsp;",
    "&#39;",
    "{name}",
    "{0:.2f}",
    "{}",
    "{{ user.name }}",
    "{% if x %}",
    "${HOME}",
    "%s",
    "%(count)d",
    "%1$s",
    "⟦7⟧",
    "⟧",
]
# Words, and everything that opens a span without closing it.
WORDS = [
    " red ",
    " 日本語 ",
    " ",
    "\n",
    "\n\n",
    " 1,000 ",
    "`",
    "$",
    "<",
    "{",
    "\\",
    "[x]",
    "⟦",
    "5 < 6",
    "50% off",
    "```",
]

texts = st.lists(st.sampled_from(SPANS + WORDS) | st.text(max_size=8), max_size=12).map("".join)
# Each span between spaces of its own, so that none hides another.
protected = st.lists(st.sampled_from(SPANS), min_size=1, max_size=6).map(
    lambda spans: " and ".join(["so", *spans, "on"])
)


@settings(deadline=None)
@given(texts | st.text(), st.integers(1, 99))
def test_every_text_comes_back(text: str, first: int) -> None:
    masked = mask(text, first)
    assert unmask(masked.text, masked) == text
    assert marks(masked.text) == list(range(first, first + len(masked.spans)))
    assert not set("⟦⟧") & set(unmarked(masked.text))


@pytest.mark.parametrize("span", SPANS)
def test_each_kind_is_masked_as_a_whole(span: str) -> None:
    masked = mask(f"so {span} on")
    if span == "⟦7⟧":
        assert masked.text == "so ⟦1⟧7⟦2⟧ on", "the digits between brackets of the text's own stay"
        return
    assert [each.strip() for each in masked.spans] == [span.strip()]


@settings(deadline=None)
@given(protected, st.randoms(use_true_random=False))
def test_marks_may_change_places_but_for_blocks_and_tags(text: str, rng: object) -> None:
    masked = mask(text)
    pieces = [f"⟦ {number} ⟧" for number in marks(masked.text)]
    rng.shuffle(pieces)  # type: ignore[attr-defined]
    back = unmask(" ".join(pieces), masked)
    if isinstance(back, Fault):
        assert back.reason == "mark_order"
        assert any("\n" in span or span.startswith("<") for span in masked.spans)
    else:
        assert all(back.count(span) >= 1 for span in masked.spans)


DAMAGE = {
    "lost": lambda text, mark: text.replace(mark, "", 1),
    "doubled": lambda text, mark: text.replace(mark, mark + " " + mark, 1),
    "renumbered": lambda text, mark: text.replace(mark, "⟦999⟧", 1),
    "invented": lambda text, mark: text + " ⟦0⟧",
    "unbracketed": lambda text, mark: text.replace(mark, mark[1:-1], 1),
    "half": lambda text, mark: text.replace(mark, mark[:-1], 1),
    "other brackets": lambda text, mark: text.replace(mark, f"[{mark[1:-1]}]", 1),
    "emptied": lambda text, mark: text.replace(mark, "⟦⟧", 1),
    "spelled": lambda text, mark: text.replace(mark, "⟦one⟧", 1),
    "stray": lambda text, mark: text + " ⟧",
    "cut": lambda text, mark: text[: text.index(mark) + 1],
}


@settings(deadline=None)
@given(protected, st.sampled_from(sorted(DAMAGE)), st.data())
def test_damage_is_always_noticed(text: str, kind: str, data: st.DataObject) -> None:
    masked = mask(text)
    number = data.draw(st.sampled_from(marks(masked.text)))
    damaged = DAMAGE[kind](masked.text, f"⟦{number}⟧")
    fault = unmask(damaged, masked)
    assert isinstance(fault, Fault)
    assert fault.reason in {"mark_lost", "mark_repeated", "mark_unknown", "mark_damaged"}


def test_a_piece_is_only_asked_for_its_own_marks() -> None:
    masked = mask("one {a}\n\ntwo {b}")
    first, second = masked.text.split("\n\n")
    whole = Masked(second, masked.spans)
    assert unmask("dos ⟦2⟧", whole) == "dos {b}"
    assert unmask(first, whole) == Fault("mark_lost", "⟦2⟧")


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5, not $10.",
        "From US$20 to US$30 a night",
        "Is 3 < 4 and 5 > 4?",
        "a <b and c> d",
        "50% off, 7% more",
        "Fill in [your name] here (see below).",
        "AT&T and R&D; more",
        "line\\nHello",
        "C:\\Users\\Public",
        "{a set of words}",
        "ask @joe about #tag",
        "He said ```nothing``",
    ],
)
def test_prose_is_left_alone(text: str) -> None:
    assert mask(text) == Masked(text, ())


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("See https://example.org/a.", "https://example.org/a"),
        ("(https://example.org)", "https://example.org"),
        ("看https://example.org/路径。", "https://example.org/"),
        ("写信给a@example.org。", "a@example.org"),
        ("共%d个", "%d"),
        ("其中$x$为", "$x$"),
        ("见www.example.org。", "www.example.org"),
        ("你好{name}！", "{name}"),
        ("[here](../a_(b).md), or not", "(../a_(b).md)"),
        ("<b><i>x", "<b><i>"),
    ],
)
def test_a_span_ends_where_it_should(text: str, span: str) -> None:
    assert mask(text).spans == (span,)


@pytest.mark.parametrize(
    ("source", "translation"),
    [
        ("I have 1,000.50 and 3", "Ich habe 1.000,50 und 3"),
        ("12,345 people", "12 345 personnes"),
        ("12,345 people", "12\u202f345 personnes"),
        ("room 12 300 people", "12号房间300人"),
        ("1,00,000 rupees", "100000 Rupien"),
        ("123", "١٢٣"),
        ("1234.5", "१,२३४.५"),
        ("06/14/2025 at 7:30", "14.06.2025, 7:30"),
        ("pi is 3.14", "pi vaut 3,14"),
        ("5 million, 1.5 billion", "500万，15亿"),
        ("3 of 20, 12 in all", "三个，共二十个，十二"),
        ("3,500 in 2025", "二〇二五年三千五百"),
        ("twelve, a hundred and twenty", "12, 120"),
        ("14 June", "6月14日"),
        ("GPT-4 and H2O, the 1st", "GPT-4と H2O、第1"),
        ("no numbers", "ohne Zahlen"),
    ],
)
def test_numbers_count_by_value(source: str, translation: str) -> None:
    assert number_fault(source, translation) is None


@pytest.mark.parametrize(
    ("source", "translation", "fault"),
    [
        ("in 1950", "en 1905", Fault("number_changed", "1950")),
        ("10 eggs", "100 huevos", Fault("number_changed", "10")),
        ("1.5 litres", "15 Liter", Fault("number_changed", "1.5")),
        ("2 and 2", "2 y dos", Fault("number_changed", "2")),
        ("4 × 2 = 8", "4 × 2 = 9", Fault("number_changed", "8")),
        ("long ago", "en 1999", Fault("number_added", "1999")),
        ("5 people", "50万人", None),
        ("12 people", "13万人", Fault("number_changed", "12")),
    ],
)
def test_a_changed_number_is_noticed(source: str, translation: str, fault: Fault | None) -> None:
    assert number_fault(source, translation) == fault


@settings(deadline=None)
@given(st.text() | texts, st.text() | texts)
def test_numbers_of_any_texts_compare(source: str, translation: str) -> None:
    assert number_fault(source, source) is None
    number_fault(source, translation)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=5), st.integers(1, 9))
def test_a_digit_more_is_always_noticed(numbers: list[int], digit: int) -> None:
    source = " and ".join(f"{number:,}" for number in numbers)
    changed = " y ".join(f"{number:,}".replace(",", ".") for number in [*numbers[:-1], numbers[-1] * 10 + digit])
    assert number_fault(source, changed) is not None
