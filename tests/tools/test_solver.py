"""The equation solver against Gaussian elimination on fractions, numpy's roots, and its own equations."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfinstruct.tools import algebra
from selfinstruct.tools.grammar import BadExpression, parse_expression, parse_system

NONE, ENDLESS = "No solution.", "Infinitely many solutions"


def solved(text: str) -> dict[str, Any]:
    system = parse_system(text)
    equations = [(each.left, each.right) for each in system.equations]
    return algebra.answer({"job": "solve", "equations": equations, "names": system.names, "unknowns": system.unknowns})


def number(text: str) -> complex:
    """Return the decimal of a shown value."""
    decimal = text.rpartition("≈ ")[2].replace(" ", "").replace("*i", "j").replace("i", "1j")
    return complex(Fraction(decimal) if re.fullmatch(r"-?\d+/\d+", decimal) else complex(decimal))


def solutions(text: str) -> list[dict[str, str]]:
    """Return the solutions of a system as the lines show them."""
    answer = solved(text)
    assert "text" in answer, (text, answer)
    return shown(answer)


def shown(answer: dict[str, Any]) -> list[dict[str, str]]:
    """Return the solutions of an answer as its lines show them."""
    found: list[dict[str, str]] = []
    for line in answer["text"].splitlines():
        name, _, value = line.partition(" = ")
        name = re.sub(r"_\d+$", "", name)
        if not found or name in found[-1]:
            found.append({})
        found[-1][name] = value
    return found


def roots(text: str) -> list[complex]:
    return [number(each["x"]) for each in solutions(text)]


# Linear systems, on fractions


def eliminate(rows: Sequence[Sequence[Fraction]]) -> list[Fraction] | str:
    """Solve rows of coefficients and a right side exactly; say when there is no solution, or more than one."""
    matrix = [list(row) for row in rows]
    width = len(matrix[0]) - 1
    pivot = 0
    for column in range(width):
        chosen = next((row for row in range(pivot, len(matrix)) if matrix[row][column]), None)
        if chosen is None:
            continue
        matrix[pivot], matrix[chosen] = matrix[chosen], matrix[pivot]
        matrix[pivot] = [value / matrix[pivot][column] for value in matrix[pivot]]
        for row in range(len(matrix)):
            if row != pivot and matrix[row][column]:
                factor = matrix[row][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[pivot], strict=True)]
        pivot += 1
    if any(row[-1] and not any(row[:-1]) for row in matrix):
        return NONE
    return [row[-1] for row in matrix[:width]] if pivot == width else ENDLESS


coefficients = st.one_of(
    st.integers(-9, 9).map(Fraction),
    st.integers(-30, 30).map(lambda n: Fraction(n, 10)),
    st.builds(Fraction, st.integers(-9, 9), st.integers(1, 7)),
)


def written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"({value.numerator}/{value.denominator})"


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 3), st.data())
def test_linear_systems_are_those_of_elimination(size: int, data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.lists(coefficients, min_size=size + 1, max_size=size + 1), min_size=size, max_size=size)
    )
    if data.draw(st.booleans()) and size > 1:  # dependent rows are too rare by chance
        factor = data.draw(st.sampled_from([Fraction(1), Fraction(2), Fraction(-1, 3)]))
        rows[-1] = [factor * value for value in rows[0]]
        if data.draw(st.booleans()):
            rows[-1][-1] += 1
    names = "xyz"[:size]
    text = "; ".join(
        " + ".join(f"{written(value)}{name}" for value, name in zip(row, names, strict=False))
        + f" = {written(row[-1])}"
        for row in rows
    )
    expected = eliminate(rows)
    answer = solved(text)
    if isinstance(expected, str):
        assert answer["text"].startswith(expected), text
        assert answer["values"] == []
        return
    shown = [line.partition(" = ")[2].partition(" ≈ ")[0] for line in answer["text"].splitlines()]
    assert [Fraction(value) for value in shown] == expected, text


# One unknown


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7).filter(lambda each: each[0] != 0))
def test_polynomials_have_numpys_roots(polynomial: list[int]) -> None:
    degree = len(polynomial) - 1
    text = " + ".join(f"({value})x^{degree - place}" for place, value in enumerate(polynomial)) + " = 0"
    found = roots(text)
    for root in found:
        size = sum(abs(value) * max(1, abs(root)) ** (degree - place) for place, value in enumerate(polynomial))
        assert abs(np.polyval(polynomial, root)) <= 1e-9 * size, text
    assert len({(round(root.real, 9), round(root.imag, 9)) for root in found}) == len(found)
    # numpy spreads a multiple root over a small circle
    expected = np.roots(polynomial)
    for root in expected:
        assert min(abs(root - each) for each in found) < 1e-2 * max(1, abs(root)), text
    assert len(found) <= len(expected)


@settings(max_examples=120, deadline=None)
@given(st.integers(-12, 12).filter(bool), st.integers(-12, 12), st.integers(-12, 12))
def test_quadratics_are_exact(a: int, b: int, c: int) -> None:
    answer = solved(f"{a}x^2 + {b}x + {c} = 0")
    found = shown(answer)
    discriminant = b * b - 4 * a * c
    assert len(found) == (1 if discriminant == 0 else 2)
    for place, each in enumerate(found):
        sign = [-1, 1][place] * (1 if a > 0 else -1)
        root = (-b + sign * cmath.sqrt(discriminant)) / (2 * a)
        if discriminant < 0:
            root = complex(root.real, [-1, 1][place] * abs(root.imag))
        assert cmath.isclose(number(each["x"]), root, rel_tol=1e-12, abs_tol=1e-12)
    surd = "sqrt" in "".join(answer["values"])
    assert surd == (math.isqrt(abs(discriminant)) ** 2 != abs(discriminant))
    for exact in answer["values"]:  # the exact form, read back, is a root
        rest = algebra._build(parse_expression(exact))
        assert sympy.expand(a * rest**2 + b * rest + c) == 0


# Systems that are not linear


@settings(max_examples=150, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9))
def test_sum_and_product(x: int, y: int) -> None:
    found = {(each["x"], each["y"]) for each in solutions(f"x + y = {x + y}; xy = {x * y}")}
    assert found == {(str(x), str(y)), (str(y), str(x))}


lines = st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.integers(-6, 6)).filter(lambda line: any(line[:2]))


@settings(max_examples=100, deadline=None)
@given(lines, lines, lines)
def test_where_two_lines_cross_a_third(first: Sequence[int], second: Sequence[int], third: Sequence[int]) -> None:
    """All solutions are found, and none besides: (a pair of lines) and a line."""
    crossings = [eliminate([[Fraction(value) for value in line] for line in (each, third)]) for each in (first, second)]
    text = (
        f"({first[0]}x + {first[1]}y - {first[2]})({second[0]}x + {second[1]}y - {second[2]}) = 0; "
        f"{third[0]}x + {third[1]}y = {third[2]}"
    ).replace("--", "+")
    used = set(parse_system(text).names)
    assume(used == {"x", "y"})
    answer = solved(text)
    if ENDLESS in crossings:
        assert answer["text"].startswith(ENDLESS), text
    elif crossings == [NONE, NONE]:
        assert answer["text"] == NONE, text
    else:
        points = {tuple(point) for point in crossings if isinstance(point, list)}
        found = {tuple(Fraction(each[name].partition(" ≈ ")[0]) for name in "xy") for each in solutions(text)}
        assert found == points, text


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_fractions_of_unknowns(x: int, y: int) -> None:
    found = solutions(f"1/x + 1/y = {x + y}/{x * y}; x - y = {x - y}")
    assert {"x": str(x), "y": str(y)} in found
    for each in found:
        a, b = (Fraction(each[name].partition(" ≈ ")[0]) for name in "xy")
        assert (1 / a + 1 / b, a - b) == (Fraction(x + y, x * y), Fraction(x - y))


# By example


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x+y=30;x-y=8", "x = 19\ny = 11"),
        ("x + y = 3, 2x + 4y = 4", "x = 4\ny = -1"),
        ("鸡+兔=35；2鸡+4兔=94", "兔 = 12\n鸡 = 23"),
        ("x1+x2+x10=6\nx1-x2=-1\nx10=3", "x1 = 1\nx2 = 2\nx10 = 3"),
        ("2t + 6t + t = 1, t", "t = 1/9 ≈ 0.111111111111111"),
        ("x+14=(37-x)*0.25", "x = -3.8"),
        ("x+y=1,000; x-y=0", "x = 500\ny = 500"),
        ("x^2 = 2", "x_0 = -sqrt(2) ≈ -1.4142135623731\nx_1 = sqrt(2) ≈ 1.4142135623731"),
        ("x² + 1 = 0", "x_0 = -i\nx_1 = i"),
        ("x^2-2x+1=0", "x = 1"),
        ("x**2 - 4 == 0", "x_0 = -2\nx_1 = 2"),
        ("x^2=4;x^3=8", "x = 2"),
        ("x^2+y^2=25; x+y=7", "x_0 = 3\ny_0 = 4\nx_1 = 4\ny_1 = 3"),
        ("y-x=36;y/2=x+k;x/y=2/3", "k = -18\nx = 72\ny = 108"),
        ("pi*r^2=6; r", "r_0 = -sqrt(6)/sqrt(pi) ≈ -1.38197659788534\nr_1 = sqrt(6)/sqrt(pi) ≈ 1.38197659788534"),
        ("(x^2-1)/(x-1) = 0", "x = -1"),
        ("x^5 - x - 1 = 0; x^2 = 4", NONE),
        ("a*x + b = 0; x", "x = -b/a"),
        ("x + y = a; x - y = b; x, y", "x = a/2 + b/2\ny = a/2 - b/2"),
        ("2^x = 8", "x = 3"),
        ("e^x = 5", "x = log(5) ≈ 1.6094379124341"),
        ("sqrt(x) = x - 2", "x = 4"),
        ("|x-3| = 5", "x_0 = -2\nx_1 = 8"),
        ("lg(x) = 2", "x = 100"),
        ("x = x + 1", NONE),
        ("0*x = 1", NONE),
        ("x + y = 1; x + y = 2", NONE),
        ("x^2 = 4; x^2 = 9", NONE),
        ("x^2 + y = 1; x^2 + y = 2", NONE),
        ("1/x = 0", NONE),
        ("|x| = -1", "No real solution."),
        ("sqrt(x) = -3", "No real solution."),
        ("x = x", f"{ENDLESS}."),
        ("sin(x) = 1/2", f"{ENDLESS}."),
        ("x + y = 25", f"{ENDLESS}:\nx = 25 - y"),
        ("l*w = 72", f"{ENDLESS}."),
        ("x^2*y = 0; y = 0", f"{ENDLESS}."),
    ],
)  # fmt: skip
def test_a_solution_is_shown(text: str, shown: str) -> None:
    assert solved(text)["text"] == shown


def test_the_roots_of_a_cubic_are_exact_and_decimal() -> None:
    assert solved("100*pi = 4/3*pi*r^3")["text"].splitlines()[0] == "r_0 = 75^(1/3) ≈ 4.21716332650875"
    assert solved("x^3-3x+1=0")["values"] == ["-1.87938524157182", "0.347296355333861", "1.53208888623796"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (";;", "empty"),
        ("3x + 280", "not an equation"),
        ("x", "not an equation"),
        ("6x^2=2400; x^3", "not an equation"),
        ("x = y = 3", "not an equation"),
        ("3 = 3", "not an equation"),
        ("x > 3", "syntax"),
        ("x + 1 = 2; y", "unknown name"),
        ("det(randMatrix(5,7)) = 1", "unknown function"),
        ("f(x) = 2x", "unknown function"),
        ("x/2y = 3", "ambiguous"),
        ("e^x = e", "ambiguous"),
        ("x + х = 3", "mixed scripts"),
        ("__class__ = 3", "syntax"),
        (";".join(["x=1"] * 20), "too long"),
    ],
)  # fmt: skip
def test_what_is_no_equation_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(BadExpression) as caught:
        parse_system(text)
    assert caught.value.reason == reason, caught.value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("e^x = x + 5", "cannot solve"),
        ("x*e^x = 1", "cannot solve"),
        ("x^(1/3) = 2", "unsupported"),
        ("x^61 = 1", "unsupported"),
        ("x^60 = 1", "too large"),
        ("(x+1)^1000 = 2", "unsupported"),
        ("x = 9^9^9^9", "too large"),
        ("x! = 6", "unsupported"),
        ("floor(x) = 2", "unsupported"),
        ("x = 1/0", "division by zero"),
        ("i^2 = -1", "ambiguous"),
        ("x*y*z=12; x=y; z", "cannot solve"),
        ("sqrt(2)*x + y = 1; 2x + sqrt(2)*y = 3", "cannot solve"),
    ],
)  # fmt: skip
def test_what_can_not_be_solved_has_a_reason(text: str, reason: str) -> None:
    answer = solved(text)
    assert answer.get("reason") == reason, answer
