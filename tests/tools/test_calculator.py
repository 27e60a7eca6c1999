"""The calculator's grammar and arithmetic, against Python's own parser and fractions."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.tools import algebra
from selfinstruct.tools.grammar import MAX_DEPTH, BadExpression, parse_expression, parse_system


def calculated(text: str) -> dict[str, Any]:
    return algebra.answer({"job": "calculate", "tree": parse_expression(text)})


def exact(text: str) -> Fraction | None:
    """Return the value as a fraction, None for a division by zero."""
    try:
        value = algebra._build(parse_expression(text))
    except algebra.Refused as refused:
        assert refused.reason == "division by zero", (text, refused)
        return None
    assert value.is_Rational, text
    return Fraction(int(value.p), int(value.q))


# Against fractions: the text and its value are made together

Pair = tuple[str, Fraction | None]

HALVES = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4), "⅓": Fraction(1, 3), "⅛": Fraction(1, 8)}
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")

numbers = st.one_of(
    st.integers(0, 10**6).map(lambda n: (str(n), Fraction(n))),
    st.decimals(0, 1000, places=3).map(lambda d: (f"{d:f}", Fraction(d))),
    st.integers(1000, 10**9).map(lambda n: (f"{n:,}", Fraction(n))),
    st.integers(0, 400).map(lambda n: (f"{n}%", Fraction(n, 100))),
    st.builds(lambda n, half: (f"{n}{half}", n + HALVES[half]), st.integers(1, 99), st.sampled_from("½¼¾⅓⅛")),
    st.integers(0, 5000).map(lambda n: (str(n).translate(FULL_WIDTH), Fraction(n))),
)


def combined(pairs: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def binary(left: Pair, sign: str, right: Pair) -> Pair:
        text = f"({left[0]}){sign}({right[0]})"
        a, b = left[1], right[1]
        if a is None or b is None:
            return text, None
        if sign in ("/", "÷", "／"):
            return text, a / b if b else None
        return text, {"+": a + b, "-": a - b, "*": a * b}[
            {"＋": "+", "−": "-", "–": "-", "×": "*", "·": "*"}.get(sign, sign)
        ]

    def product(left: Pair, right: Pair) -> Pair:
        return f"({left[0]})[{right[0]}]", None if left[1] is None or right[1] is None else left[1] * right[1]

    def power(base: Pair, exponent: int) -> Pair:
        text = f"({base[0]})^{exponent}" if exponent < 0 else f"({base[0]})" + "⁰¹²³"[exponent]
        if base[1] is None or (base[1] == 0 and exponent < 0):
            return text, None
        return text, base[1] ** exponent

    return st.one_of(
        st.builds(binary, pairs, st.sampled_from("+-*/＋−–×·÷／"), pairs),
        st.builds(product, pairs, pairs),
        st.builds(power, pairs, st.integers(-3, 3)),
        pairs.map(lambda pair: (f"-({pair[0]})", None if pair[1] is None else -pair[1])),
        pairs.map(lambda pair: (f"abs({pair[0]})", None if pair[1] is None else abs(pair[1]))),
    )


@settings(max_examples=2500, deadline=None)
@given(st.recursive(numbers, combined, max_leaves=8))
def test_every_value_is_the_one_of_fractions(pair: Pair) -> None:
    text, value = pair
    assert exact(text) == value


# Against Python's parser: precedence and associativity


def by_python(text: str) -> Fraction | None:
    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return Fraction(left // right)
            case ast.Mod():
                return left % right
            case ast.Pow():
                if abs(right) > 300 or right.denominator != 1 or abs(left.numerator) > 10**9:
                    raise OverflowError
                return Fraction(left**right)
        raise AssertionError(node.op)

    try:
        return value(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        return None


flat = st.lists(
    st.tuples(st.sampled_from("+ - * / // % **".split()), st.sampled_from(["", "", "-", "("]), st.integers(0, 12)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=2500, deadline=None)
@given(st.integers(0, 12), flat, st.randoms(use_true_random=False))
def test_precedence_is_pythons(first: int, rest: list[tuple[str, str, int]], rng: Any) -> None:
    text, opened = str(first), 0
    for sign, prefix, number in rest:
        prefix = "" if prefix == "-" and sign == "%" else prefix  # 7 % -3 is a percentage here
        text += f" {sign} {prefix}{number}"
        opened += prefix == "("
        if opened and rng.random() < 0.5:
            text, opened = f"{text})", opened - 1
    text += ")" * opened
    try:
        expected = by_python(text)
    except OverflowError:
        return
    assert exact(text) == expected, text


# What is shown


@pytest.mark.parametrize(
    ("text", "shown", "value"),
    [
        ("60*0.85", "51", "51"),
        ("4*6.5*0.9", "23.4", "23.4"),  # floats say 23.400000000000002
        ("90/(1-0.95)", "1800", "1800"),
        ("0.1+0.2", "0.3", "0.3"),
        ("500/3", "500/3 ≈ 166.666666666667", "500/3"),
        ("1/8", "0.125", "0.125"),
        ("1/3e10", "1/30000000000 ≈ 3.33333333333333e-11", "1/30000000000"),
        ("1.5e-30", "1.5e-30", "1.5e-30"),
        ("1.1^50", "117.390852879695", "117.390852879695"),
        ("sqrt(8)", "2*sqrt(2) ≈ 2.82842712474619", "2*sqrt(2)"),
        ("(sqrt(2)+1)(sqrt(2)-1)", "1", "1"),
        ("sqrt(3+2√2)-√2-1", "0", "0"),
        ("(14/sqrt(2))^2", "98", "98"),
        ("sqrt(-4)", "2*i", "2*i"),
        ("(1+2i)(3-i)", "5 + 5*i", "5 + 5*i"),
        ("e^(i*pi)", "-1", "-1"),
        ("cbrt(-8)", "-2", "-2"),
        ("2*CubeRoot(12)^2", "4*18^(1/3) ≈ 10.4829655768356", "4*18^(1/3)"),
        ("0b01101000", "104", "104"),
        ("5!", "120", "120"),
        ("comb(49, 6)", "13983816", "13983816"),
        ("log(8, 2)", "3", "3"),
        ("lg(1000)", "3", "3"),
        ("sin(30°)", "0.5", "0.5"),
        ("round(2.5)", "3", "3"),
        ("round(-2.345, 2)", "-2.35", "-2.35"),
        ("gcd(12, 18)", "6", "6"),
        ("-17 % 5", "3", "3"),
        ("6.7%-6.9%", "-0.002", "-0.002"),
        ("12*3 = ?", "36", "36"),
        ("|3-5|", "2", "2"),
        ("10⁻³", "0.001", "0.001"),
        ("２＋３×４", "14", "14"),
        ("٣ + ٤", "7", "7"),
        ("1e300*1e300", "1" + "0" * 600, "1" + "0" * 600),
    ],
)  # fmt: skip
def test_a_value_is_shown(text: str, shown: str, value: str) -> None:
    assert calculated(text) == {"text": shown, "values": [value]}


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**30))
def test_a_fraction_is_exact_or_right_to_15_digits(top: int, bottom: int) -> None:
    answer = calculated(f"({top})/{bottom}")
    (value,) = answer["values"]
    true = Fraction(top, bottom)
    if len(f"{true.numerator}/{true.denominator}") <= algebra.MAX_EXACT or true.denominator == 1:
        assert Fraction(value) == true
    assert abs(Fraction(value) - true) <= abs(true) * Fraction(5, 10**15)
    assert abs(Fraction(answer["text"].rpartition("≈ ")[2]) - true) <= abs(true) * Fraction(5, 10**15)


@settings(deadline=None)
@given(
    st.floats(0.01, 50), st.sampled_from(["sqrt", "sin", "cos", "tan", "exp", "ln", "atan", "sinh", "log10", "asinh"])
)
def test_functions_agree_with_math(x: float, name: str) -> None:
    value = calculated(f"{name}({x!r})")["text"].rpartition("≈ ")[2]
    true = getattr(math, {"ln": "log"}.get(name, name))(float(repr(x)))
    assert math.isclose(float(value), true, rel_tol=1e-9, abs_tol=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("=", "empty"),
        ("9" * 3000, "too long"),
        ("9" * 1000, "too large"),
        ("1e999999999", "too large"),
        ("(" * 50 + "1" + ")" * 50, "too deep"),
        ("√" * 60 + "2", "too deep"),
        ("2^" * 60 + "2", "too deep"),
        ("__import__('os').system('ls')", "syntax"),
        ("open('/etc/passwd')", "syntax"),
        ("os.system", "syntax"),
        ("(1).__class__", "syntax"),
        ("lambda: 1", "syntax"),
        ("[1 for x in (1,)]", "unknown name"),
        ("while True: pass", "syntax"),
        ("print(1)", "unknown function"),
        ("exec(1)", "unknown function"),
        ("x + 1", "unknown name"),
        ("nan", "unknown name"),
        ("inf", "unknown name"),
        ("青秀山纬度-南湖纬度", "unknown name"),
        ("147227.31亿美元*6.474", "unknown name"),
        ("-9 == 1 - 8", "not an expression"),
        ("x - 0.8x = 24", "not an expression"),
        ("yes", "unknown name"),
        ("1/2pi", "ambiguous"),
        ("6/2(1+2)", "ambiguous"),
        ("3!!", "ambiguous"),
        ("50%(3)", "ambiguous"),
        ("1\u200b2", "hidden character"),
        ("\u202e1+2", "hidden character"),
        ("①+1", "syntax"),
        ("2 3", "syntax"),
        ("(2)3", "syntax"),
        ("007", "syntax"),
        ("3,5", "syntax"),
        ("1..2", "syntax"),
        ("1_000", "syntax"),
        ("(1+2", "syntax"),
        ("[1+2)", "syntax"),
        ("1+", "syntax"),
        ("---1", "syntax"),
        ("sqrt 2", "syntax"),
        ("|1", "syntax"),
        ("$5*3", "syntax"),
        ("sqrt(1, 2)", "wrong arity"),
        ("atan2(1)", "wrong arity"),
        ("е + х", "unknown name"),  # Cyrillic
        ("e + х", "mixed scripts"),
        ("2×3；1", "syntax"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(BadExpression) as caught:
        parse_expression(text)
    assert caught.value.reason == reason, caught.value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1/0", "division by zero"),
        ("1/(sqrt(3+2√2)-√2-1)", "division by zero"),
        ("0^-1", "division by zero"),
        ("5 % 0", "division by zero"),
        ("5//(1-1)", "division by zero"),
        ("9^9^9^9", "too large"),
        ("2^100000", "too large"),
        ("10^1000", "too large"),
        ("(10^400)^(10^400)", "too large"),
        ("1.0000001^(10^9)", "too large"),
        ("sqrt(2)^(10^9)", "too large"),
        ("e^e^e^e^e", "too large"),
        ("exp(exp(exp(100)))", "too large"),
        ("cosh(10^6)", "too large"),
        ("100000!", "too large"),
        ("3000!", "too large"),
        ("5!^99999999999", "too large"),
        ("comb(10^9, 5*10^8)", "too large"),
        ("perm(10^9, 10^8)", "too large"),
        ("(-1)!", "undefined"),
        ("0.5!", "undefined"),
        ("log(0)", "undefined"),
        ("log(5, 1)", "undefined"),
        ("tan(90°)", "undefined"),
        ("gcd(1.5, 2)", "undefined"),
        ("max(i, 1)", "undefined"),
        ("floor(i)", "undefined"),
        ("root(8, 0)", "undefined"),
    ],
)  # fmt: skip
def test_what_has_no_value_is_refused_with_a_reason(text: str, reason: str) -> None:
    answer = calculated(text)
    assert answer.get("reason") == reason, answer


SIGNS = "0123456789.,+-*/^%!()[]{}|= eixyπ√°²³½×÷−“”；，（）；√sqrtlogn\n\t\u200b\u0665"


@settings(max_examples=3000, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(SIGNS, max_size=40)))
def test_whatever_text_comes_is_read_or_refused(text: str) -> None:
    for parse in (parse_expression, parse_system):
        try:
            parse(text)
        except BadExpression as error:
            assert error.reason
            assert len(str(error)) < 300


@settings(max_examples=1500, deadline=None)
@given(st.text("0123456789.+-*/^%!()eiπ√²×", max_size=16))
def test_whatever_can_be_read_has_an_answer(text: str) -> None:
    try:
        tree = parse_expression(text)
    except BadExpression:
        return
    answer = algebra.answer({"job": "calculate", "tree": tree})
    assert answer.get("values") or answer["reason"] in {
        "too large",
        "undefined",
        "division by zero",
        "cannot compute",
    }, answer
    assert len(answer.get("text", "")) <= algebra.MAX_DIGITS + 100


def test_the_deepest_that_is_read_is_computed() -> None:
    deep = MAX_DEPTH - 1
    assert calculated("(" * deep + "1+1" + ")" * deep)["text"] == "2"
    assert calculated("+".join(["1"] * 900))["text"] == "900"
    assert calculated("*".join(["2"] * 900))["text"] == str(2**900)
