"""What an answer says is held against what the tools gave, in whatever way it writes its numbers."""

from __future__ import annotations

import time
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from selfinstruct.tools import Call, ToolResult, check_answer, failure, parse_commands, unstated, unsupported
from selfinstruct.values import Rejection
from tests.tools.samples import TOOLS, inner, real, turns


def stated(answer: str, value: str) -> bool:
    return unstated(answer, ToolResult("", values=(value,))) == ()


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("打折后这本书的价格是51元。", "51"),
        ("It costs $51.00.", "51"),
        ("51,", "51"),
        ("(51)", "51"),
        ("26-30", "26"),
        ("110,592 cubic centimetres", "110592"),
        ("110.592 Liter", "110592"),
        ("12,34,567 रुपये", "1234567"),
        ("12.345,67 €", "12345.67"),
        ("12 345,67 €", "12345.67"),
        ("1'234'567 Fr.", "1234567"),
        ("$1{,}234$", "1234"),
        ("１１０５９２", "110592"),
        ("۱۲۳٫۵", "123.5"),
        ("१२", "12"),
        ("166.67公斤", "500/3"),
        ("about 167 kg", "500/3"),
        ("500/3", "500/3"),
        (r"$\frac{500}{3}$", "500/3"),
        (r"\dfrac{1}{2}", "0.5"),
        ("½ cup", "0.5"),
        ("2½", "2.5"),
        ("2 1/2", "2.5"),
        ("3/4", "0.75"),
        ("50%", "50"),
        ("50％", "0.5"),
        ("18.2%", "0.182073909701842"),
        ("百分之50", "0.5"),
        ("1.2万", "12000"),
        ("1.23万", "12345"),
        ("3.5亿", "350000000"),
        ("1.5 million people", "1500000"),
        ("26千克", "26"),
        ("1.5×10^8", "150000000"),
        (r"$1.5 \times 10^{8}$", "150000000"),
        ("1.5×10⁸", "150000000"),
        ("1e-10", "1e-10"),
        ("0.0000000001", "1e-10"),
        ("2√2", "2*sqrt(2)"),
        (r"$2\sqrt{2}$", "2*sqrt(2)"),
        ("2.83", "2*sqrt(2)"),
        ("(1+√5)/2", "1/2 + sqrt(5)/2"),
        (r"\frac{1+\sqrt{5}}{2}", "1/2 + sqrt(5)/2"),
        ("1.618", "1/2 + sqrt(5)/2"),
        (r"\sqrt[3]{2}", "2^(1/3)"),
        ("25π", "25*pi"),
        (r"25\pi", "25*pi"),
        ("78.54", "25*pi"),
        ("e^2", "exp(2)"),
        ("-1 + 2i", "-1 + 2*i"),
        ("-1 ± 2i", "-1 - 2*i"),
        ("-1.5 + 0.87i", "-3/2 + sqrt(3)*i/2"),
        ("x = ±i", "-i"),
        ("x=-3.8", "-3.8"),
        ("x = −3.8", "-3.8"),
        ("a decrease of 3.8", "-3.8"),
        ("x = ±2", "-2"),
        ("x_0 = -20, x_1 = 20", "20"),
        ("二十六个苹果", "26"),
        ("一百零五", "105"),
        ("两个", "2"),
        ("The capital is Paris.", "paris"),
    ],
)
def test_a_value_is_found_however_it_is_written(answer: str, value: str) -> None:
    assert stated(answer, value)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("", "51"),
        ("It costs 52.", "51"),
        ("510", "51"),
        ("5.1", "51"),
        ("151", "51"),
        ("x51", "51"),
        ("166.66", "500/3"),
        ("170", "500/3"),
        ("200", "500/3"),
        ("0", "1/3"),
        ("0.3", "1/3"),
        ("3", "2*sqrt(2)"),
        ("2.82", "2*sqrt(2)"),
        ("2√3", "2*sqrt(2)"),
        ("20%", "0.182073909701842"),
        ("18.1%", "0.182073909701842"),
        ("x = 3.8", "-3.8"),
        ("x = -3.8", "3.8"),
        ("-1 + 3i", "-1 + 2*i"),
        ("24π", "25*pi"),
        ("1.3万", "12345"),
        ("三十六", "26"),
        ("so it is<sup><|2|></sup>", "2"),
        ("x_2 grows", "2"),
        ("5 cm^2", "2"),
        ("London", "paris"),
    ],
)
def test_another_value_is_not_taken_for_it(answer: str, value: str) -> None:
    assert not stated(answer, value)


def test_each_value_is_looked_for() -> None:
    result = ToolResult("x = 19\ny = 11", values=("19", "11"))
    assert unstated("The numbers are 19 and 11.", result) == ()
    assert unstated("The larger one is 19.", result) == ("11",)
    assert unstated("No idea.", failure("cannot solve")) == ()


WRITINGS = (
    "{:d}", "{:,d}", "{:d}.0", "{:d},00", "${:,d}.00", "it is {:d}.", "（{:d}）", "{:d}元", "\\boxed{{{:d}}}",
    "**{:d}**", "{:d} %", "={:d}", "{:d}.",
)  # fmt: skip
DIGITS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "๐๑๒๓๔๕๖๗๘๙")


@given(st.integers(0, 10**12), st.sampled_from(WRITINGS), st.sampled_from(DIGITS))
def test_a_whole_number_is_read_in_every_way_of_writing_it(value: int, writing: str, digits: str) -> None:
    text = writing.format(value).translate(str.maketrans("0123456789", digits))
    assert stated(text, str(value)), text


FORMS = ["{}", "= {}", "约为{}元。", "({}).", "${}$", "**{}**", "x={}，", "{} cm²", "\\({}\\)", "「{}」", "{}<br>"]


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 6), st.sampled_from(FORMS), st.sampled_from(["", ",", "full"]))
def test_every_decimal_is_found(digits: int, places: int, form: str, style: str) -> None:
    value = Decimal(digits).scaleb(-places)
    shown = f"{value:{',' if style == ',' else ''}f}"
    if style == "full":
        shown = shown.translate(str.maketrans("0123456789.-", "０１２３４５６７８９．－"))
    assert stated(form.format(shown), f"{value:f}")


@settings(max_examples=300, deadline=None)
@given(st.fractions(min_value=Fraction(1, 50), max_value=10**6, max_denominator=997), st.integers(0, 6))
def test_a_rounded_value_is_found_and_its_neighbour_is_not(value: Fraction, places: int) -> None:
    step = Decimal(1).scaleb(-places)
    true = Decimal(value.numerator) / Decimal(value.denominator)
    shown = true.quantize(step, ROUND_HALF_EVEN)
    assume(abs(shown) >= 10 * step)
    exact = f"{value.numerator}/{value.denominator}"
    assert stated(f"It is {shown:f}.", exact)
    assert stated(f"It is \\frac{{{value.numerator}}}{{{value.denominator}}}.", exact)
    for neighbour in (shown + step, shown - step):
        if abs(Fraction(neighbour) - value) > Fraction(step) / 2:
            assert not stated(f"It is {neighbour:f} ml.", exact), neighbour


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 400), st.integers(1, 50))
def test_surds_are_found(inside: int, outside: int) -> None:
    value = f"{outside}*sqrt({inside})"
    assume(round(outside * (inside + 1) ** 0.5) not in (inside, outside))
    for written in (
        f"{outside}√{inside}",
        f"{outside}\\sqrt{{{inside}}}",
        f"{outside}·√({inside})",
        f"{outside}*sqrt({inside})",
    ):
        assert stated(f"x = {written}.", value), written
        assert not stated(f"x = {written}.", f"{outside}*sqrt({inside + 1})"), written


# Numbers out of nowhere


@pytest.mark.parametrize(
    ("answer", "sources", "found"),
    [
        ("60 × 0.85 = 51", ["原价60元，打八五折", 'Calculate("60*0.85")'], ()),
        ("It is 51, or 17% off.", ["60", 'Calculate("60*0.85")'], ("17%",)),
        ("那是八十五折", ["60"], ()),  # numerals in words are nobody's fault
        ("1. First, 60.\n2. Then 51.", ["60"], ()),
        ("51<sup><|3|></sup>", [], ()),
        ("x_1 = 51 cm^2, H2O", [], ()),
        ("about 51.00", [], ()),
        ("0.51", [], ("0.51",)),
        ("8% of 1,000 is 80", ["0.08 of 1000"], ("80",)),
        ("1,2,3", ["1 2 3"], ()),
        ("on 2020-05-01 at 3:45", ["2020/5/1 3 45"], ()),
        ("12.5万", ["125000"], ()),
        ("−20", ["20"], ()),
        ("9" * 3000, [], ("9" * 3000,)),
    ],
)
def test_numbers_out_of_nowhere_are_named(answer: str, sources: list[str], found: tuple[str, ...]) -> None:
    assert unsupported(answer, sources, [ToolResult("51", values=("51",))]) == found


def test_a_rounded_result_and_the_snippets_support() -> None:
    results = [
        ToolResult("500/3 ≈ 166.666666666667", values=("500/3",)),
        ToolResult("", items=("The tower is 324 m high.", "Built in 1889.")),
    ]
    assert unsupported("166.67, 167, 500/3; 324 m since 1889", [], results) == ()
    assert unsupported("166.6, 330 m since 1887", [], results) == ("166.6", "330", "1887")


@settings(max_examples=800, deadline=None)
@given(st.text(max_size=80), st.text("0123456789.,%/^√π±-+=()万亿二十 \\{}fracsqrt×10", max_size=60))
@example("", "0..1")  # a list's mark, then a number
@example("1×10^999", "")  # a number that is not computed
def test_whatever_the_texts_are_there_is_an_answer(first: str, second: str) -> None:
    for answer, other in ((first, second), (second, first)):
        unstated(answer, ToolResult(other, values=(other, "1/3")))
        assert unsupported(answer, [answer]) == ()
        unsupported(answer, [other], [ToolResult(other)])


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1.", "1 ", "(", "√", "\\frac{", "1/", "2^", "一", "i", "1±", "1e9", "±-"]
)
def test_long_answers_take_no_time(piece: str) -> None:
    answer = piece * (20_000 // len(piece))
    started = time.perf_counter()
    unstated(answer, ToolResult("", values=("51", "1/3", "sqrt(2)")))
    unsupported(answer, [answer])
    assert time.perf_counter() - started < 30


@real
def test_the_samples_of_moss_are_judged_as_a_person_would() -> None:
    """Nearly all successful calculations are stated; of the failed ones many answers invent a number."""
    right, wrong, invented, failed = 0, [], 0, 0
    for name, turn in turns("calculator"):
        calls = parse_commands(inner(turn["Commands"]), TOOLS)
        if isinstance(calls, Rejection) or not calls:
            continue
        body, answer = inner(turn["Tool Responses"]), inner(turn["MOSS"])
        values = tuple(line.partition("=> '")[2].rstrip("'") for line in body.splitlines())
        if "No result." in values:
            failed += 1
            invented += bool(unsupported(answer, [inner(turn["Human"]), *(call.text for call in calls)]))
        elif unstated(answer, ToolResult(body, values=values)):
            wrong.append(name)
        else:
            right += 1
    # The three state another number than their calculator: 20 for 21.2, 1900 for 1800, 26 for 23.9.
    assert wrong == [
        "calculator_plugin_conversation_3.json turn_2",
        "calculator_plugin_conversation_37.json turn_2",
        "calculator_plugin_conversation_44.json turn_2",
    ]
    assert right > 30
    assert (failed, invented) == (5, 4)


# Both at once


def given_result(text: str, *values: str, items: tuple[str, ...] = ()) -> list[tuple[Call, ToolResult]]:
    return [(Call(TOOLS[0], {"expression": "240*0.85"}), ToolResult(text, values=values, items=items))]


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
    rejection = check_answer(answer, result, "A jacket of 240 is 15 % off.")
    assert (rejection.reason if rejection else "") == wanted
