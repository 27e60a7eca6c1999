"""What an answer says is held against what the tools gave, in whatever way it writes its numbers."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct.tools import Call, Tool, ToolResult
from selfinstruct.tools.answers import check_answer, numbers
from selfinstruct.tools.tool import text_parameters


async def nothing(_: object) -> ToolResult:
    await asyncio.sleep(0)
    return ToolResult("")


TOOL = Tool("calculator", "Calculator", "Calculate", "", text_parameters(expression=""), nothing)


def given_result(text: str, *values: str, items: tuple[str, ...] = ()) -> list[tuple[Call, ToolResult]]:
    return [(Call(TOOL, {"expression": "240*0.85"}), ToolResult(text, values=values, items=items))]


def reason(answer: str, results: list[tuple[Call, ToolResult]], known: str = "A jacket of 240 is 15 % off.") -> str:
    rejection = check_answer(answer, results, known)
    return rejection.reason if rejection else ""


WRITINGS = (
    "{:d}", "{:,d}", "{:_d}".replace("_", ","), "{:d}.0", "{:d},00", "${:,d}.00", "it is {:d}.", "（{:d}）", "{:d}元",
    "\\boxed{{{:d}}}", "**{:d}**", "{:d} %", "={:d}", "-{:d}", "\N{MINUS SIGN}{:d}",
)  # fmt: skip
DIGITS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "๐๑๒๓๔๕๖๗๘๙")


@given(st.integers(0, 10**12), st.sampled_from(WRITINGS), st.sampled_from(DIGITS))
def test_a_whole_number_is_read_in_every_way_of_writing_it(value: int, writing: str, digits: str) -> None:
    text = writing.format(value).translate(str.maketrans("0123456789", digits))
    assert any(number.means(Fraction(value)) for number in numbers(text)), text


@given(st.fractions(-1000, 1000, max_denominator=999), st.integers(2, 12))
def test_a_decimal_means_what_it_rounds_and_not_its_neighbours(value: Fraction, decimals: int) -> None:
    text = f"{float(value):.{decimals}f}"
    (number,) = numbers(text)
    unit = Fraction(1, 10**decimals)
    assert number.means(value) or abs(value) < 10 * unit
    assert not number.means(value + 2 * unit)
    (comma,) = numbers(text.replace(".", ","))
    assert number.readings[-1] == comma.readings[-1]


@given(st.text(max_size=80))
def test_whatever_is_written_numbers_are_read_without_an_error(text: str) -> None:
    numbers(text)
    check_answer(text, given_result("204", "204"), text)


@pytest.mark.parametrize(
    ("answer", "result", "wanted"),
    [
        ("You pay 204 euros.", given_result("204", "204"), ""),
        ("204,00 € are due, 15 % less than 240 €.", given_result("204", "204"), ""),
        ("打折后是２０４元。", given_result("204", "204"), ""),
        ("You pay 214 euros.", given_result("204", "204"), "result not stated"),
        ("You pay less.", given_result("204", "204"), "result not stated"),
        ("You pay 204 euros and save 36.", given_result("204", "204"), "number from nowhere"),
        ("1. Take 85 % of it.\n2. That makes 204.", given_result("0.85 and 204", "204"), ""),
        ("204. That is all.", given_result("204", "204"), ""),
        ("26: that is my age.", given_result("x = 26", "26"), ""),
        ("Each gets 14.29 euros.", given_result("100/7 ≈ 14.2857142857143", "100/7"), ""),
        ("Each gets 14.30 euros.", given_result("100/7 ≈ 14.2857142857143", "100/7"), "result not stated"),
        ("Each gets 100/7 euros.", given_result("100/7 ≈ 14.2857142857143", "100/7"), ""),
        (r"Each gets \frac{100}{7} euros.", given_result("100/7 ≈ 14.2857142857143", "100/7"), ""),
        ("It is a third, that is 0.333.", given_result("1/3 ≈ 0.333333333333333", "1/3"), ""),
        ("It is 15 %.", given_result("0.15", "0.15"), ""),
        ("The width is 7.", given_result("x_0 = -10\nx_1 = 7", "-10", "7"), ""),
        ("The diagonal is √2.", given_result("sqrt(2) ≈ 1.4142135623731", "sqrt(2)"), ""),
        (r"The diagonal is $\sqrt{2}$.", given_result("sqrt(2) ≈ 1.4142135623731", "sqrt(2)"), ""),
        ("The diagonal is about 1.41.", given_result("sqrt(2) ≈ 1.4142135623731", "sqrt(2)"), ""),
        ("The product is 5 + 5i.", given_result("5 + 5*i", "5 + 5*i"), ""),
        ("About 1.27 × 10^30.", given_result("1267650600228229401496703205376", "1267650600228229401496703205376"), ""),
        ("3.5 million tickets.", given_result("3500000", "3500000"), ""),
        ("共350万张。", given_result("3500000", "3500000"), ""),
        ("There is no solution.", given_result("No solution."), ""),
        ("It was built in 1889 <sup><|1|></sup>.", given_result("", items=("The tower dates from 1889.",)), ""),
        ("It was built in 1899 [1].", given_result("", items=("The tower dates from 1889.",)), "number from nowhere"),
    ],
)
def test_an_answer_states_the_result_and_nothing_from_nowhere(
    answer: str, result: list[tuple[Call, ToolResult]], wanted: str
) -> None:
    assert reason(answer, result) == wanted
